//! Who can forward the bytes, and what each can do.

use clap::ValueEnum;

use super::service::{
    HTTP, PASSTHROUGH, RELAY_BULK, RELAY_SECOND, Service, TCP_IPERF, TCP_REDIS, TERMINATED,
};
use crate::path::topology::DOMAIN;

/// Who forwards the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Nobody: the gateway's kernel routes the packets. The limit, for termination too: the server then does it.
    Bare,
    /// snisplice, connections handed to the kernel packet by packet.
    SnisplicePacket,
    /// snisplice, bytes moved from socket to socket in the kernel.
    SnispliceSockmap,
    /// snisplice, bytes copied in userspace.
    SnispliceCopy,
    /// Our minimal userspace relay with splice(2).
    Splice2,
    Haproxy,
    /// HAProxy with `option splice-auto`.
    HaproxySplice,
    Nginx,
    Envoy,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Bare => crate::report::BARE,
            Kind::SnisplicePacket => "snisplice-packet",
            Kind::SnispliceSockmap => "snisplice-sockmap",
            Kind::SnispliceCopy => "snisplice-copy",
            Kind::Splice2 => "splice2",
            Kind::Haproxy => "haproxy",
            Kind::HaproxySplice => "haproxy-splice",
            Kind::Nginx => "nginx",
            Kind::Envoy => "envoy",
        }
    }

    /// The program it is, unless it is none or this one.
    pub(crate) fn program(self) -> Option<&'static str> {
        match self {
            Kind::Bare | Kind::Splice2 => None,
            Kind::SnisplicePacket | Kind::SnispliceSockmap | Kind::SnispliceCopy => Some("snisplice"),
            Kind::HaproxySplice => Some("haproxy"),
            Kind::Haproxy | Kind::Nginx | Kind::Envoy => Some(self.name()),
        }
    }

    /// The tier, of snisplice.
    pub(super) fn tier(self) -> Option<&'static str> {
        match self {
            Kind::SnisplicePacket => Some("packet"),
            Kind::SnispliceSockmap => Some("sockmap"),
            Kind::SnispliceCopy => Some("copy"),
            _ => None,
        }
    }

    pub(crate) fn is_ours(self) -> bool {
        self.tier().is_some()
    }

    /// Whether it can do this at all. Terminated routes of snisplice take the copy tier, whatever is configured.
    pub(crate) fn offers(self, service: Service) -> bool {
        match self {
            Kind::Bare => !matches!(service, Service::PairTls | Service::PairObserved | Service::Routes),
            Kind::SnisplicePacket | Kind::SnispliceSockmap => !service.is_terminated(),
            Kind::SnispliceCopy => true,
            // Nothing is configured for it.
            Kind::Haproxy | Kind::HaproxySplice | Kind::Nginx | Kind::Envoy => {
                service != Service::PairObserved
            }
            Kind::Splice2 => {
                let routes = matches!(service, Service::PairTls | Service::PairObserved | Service::Routes);
                !service.is_terminated() && !routes
            }
        }
    }

    /// How many connections it can hold where a process may open so many files.
    pub(crate) fn capacity(self, open_files: u64) -> u64 {
        match self {
            // No socket of the gateway is involved.
            Kind::Bare | Kind::SnisplicePacket => u64::MAX,
            // Two sockets a connection and two pipes of two ends, and a tenth for everything else.
            Kind::HaproxySplice => open_files * 9 / 60,
            // Two sockets a connection, and a tenth for everything else.
            _ => open_files * 9 / 20,
        }
    }

    /// What must be listening before it is ready.
    pub(super) fn ports(self) -> &'static [u16] {
        match self {
            Kind::Splice2 => &[PASSTHROUGH, TCP_IPERF, TCP_REDIS, RELAY_BULK, RELAY_SECOND],
            _ => &[PASSTHROUGH, TERMINATED, TCP_IPERF, TCP_REDIS, HTTP],
        }
    }

    /// The configuration's files and their templates. `{{routes}}` becomes the lines of `route`, `{{rules}}`
    /// those of `rule`.
    pub(super) fn templates(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Kind::Bare | Kind::Splice2 => &[],
            Kind::SnisplicePacket | Kind::SnispliceSockmap | Kind::SnispliceCopy => {
                &[("snisplice.toml", include_str!("../../../peers/snisplice.toml"))]
            }
            Kind::Haproxy | Kind::HaproxySplice => &[
                ("names.map", include_str!("../../../peers/haproxy.map")),
                ("paths.map", "{{rules}}"),
                ("haproxy.cfg", include_str!("../../../peers/haproxy.cfg")),
            ],
            Kind::Nginx => &[("nginx.conf", include_str!("../../../peers/nginx.conf"))],
            Kind::Envoy => &[
                ("envoy.yaml", include_str!("../../../peers/envoy.yaml")),
                ("listeners.yaml", include_str!("../../../peers/envoy-listeners.yaml")),
            ],
        }
    }

    /// One more name, to the Redis that speaks TLS.
    pub(super) fn route(self, number: u32) -> String {
        let sni = format!("r{number}.{DOMAIN}");
        match self {
            Kind::Bare | Kind::Splice2 => String::new(),
            Kind::SnisplicePacket | Kind::SnispliceSockmap | Kind::SnispliceCopy => format!(
                "[[route]]\nname = \"r{number}\"\nlistener = \"passthrough\"\nsni = [\"{sni}\"]\n\
                 backends = [{{ pool = \"redis-tls\" }}]\n"
            ),
            Kind::Haproxy | Kind::HaproxySplice => format!("{sni} redis_tls\n"),
            Kind::Nginx => format!("        {sni} redis_tls;\n"),
            Kind::Envoy => format!(
                "  - filter_chain_match: {{ server_names: [\"{sni}\"] }}\n    name: r{number}\n    filters:\n    \
                 - name: envoy.filters.network.tcp_proxy\n      typed_config: {{ \"@type\": \
                 type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: \
                 routes, cluster: redis_tls }}\n"
            ),
        }
    }

    /// One more path, `/rN` and what is below it, to the server of HTTP.
    pub(super) fn rule(self, number: u32) -> String {
        match self {
            Kind::Bare | Kind::Splice2 => String::new(),
            Kind::SnisplicePacket | Kind::SnispliceSockmap | Kind::SnispliceCopy => format!(
                "[[route.rule]]\nmatch = [{{ path_prefix = \"/r{number}\" }}]\nbackends = [{{ pool = \"http\" }}]\n"
            ),
            Kind::Haproxy | Kind::HaproxySplice => format!("/r{number}/ http\n"),
            Kind::Nginx => format!("        location /r{number}/ {{ proxy_pass http://http; }}\n"),
            Kind::Envoy => format!(
                "                    \"/r{number}/\": {{ action: {{ name: r{number}, typed_config: {{ \"@type\": \
                 type.googleapis.com/envoy.config.route.v3.Route, match: {{ prefix: \"/\" }}, route: {{ cluster: http }} \
                 }} }} }}\n"
            ),
        }
    }
}
