//! A draft: what a source says, value by value, before anything looks at two of them at once.
//!
//! A value that is wrong by itself was reported by the source and is [`Field::Invalid`] from then on, so that one mistake
//! is one error.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub(super) mod rule;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::address::Origin;
use super::authorities::Authorities;
use super::certificate::Loaded;
use super::client_auth::ClientAuth;
use super::controller::{Attach, Mode};
use super::diagnostic::{Diagnostic, Report};
pub(super) use super::field::Field;
use super::health::{Eject, OnDown, Role};
use super::http::Rule;
use super::model::{
    Balance, Interfaces, Keepalive, LogFormat, LogTarget, MinVersion, OnRemoval, Protocol, ProxyVersion,
    Refuse, SniPattern, SourceAddress,
};
use super::place::{Place, Placed};
use super::san::San;
use crate::ech;
use crate::reason::Tier;
use ipnet::IpNet;
use rule::{Carried, RuleDraft};
use rustls::pki_types::ServerName;

/// What all sources say together, each thing with its place. The file's things come first: where two clash, the error is
/// at the later one.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) gateway: GatewayDraft,
    pub(super) listeners: Vec<ListenerDraft>,
    pub(super) routes: Vec<Arc<RouteDraft>>,
    pub(super) pools: Vec<Arc<PoolDraft>>,
    pub(super) gateway_api: Field<GatewayApiDraft>,
}

#[derive(Clone, Debug)]
pub(super) struct GatewayApiDraft {
    pub(super) from: Field<From>,
    pub(super) directory: Field<PathBuf>,
    pub(super) kubeconfig: Field<PathBuf>,
    pub(super) keep_objects: Field<bool>,
    pub(super) controller: Field<Box<str>>,
    pub(super) mode: Field<Mode>,
    pub(super) attach: Field<Attach>,
    pub(super) merge: Field<bool>,
    pub(super) load_balancer_class: Field<Box<str>>,
    pub(super) addresses: Field<Vec<Placed<RangeInclusive<IpAddr>>>>,
    pub(super) external_names: Field<bool>,
    pub(super) auto_passthrough: Field<bool>,
    pub(super) max_ports: Field<usize>,
    pub(super) max_watches: Field<usize>,
    pub(super) namespaces: Field<Vec<Placed<Box<str>>>>,
    pub(super) istio: Field<Vec<Placed<BTreeMap<String, String>>>>,
}

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    Directory,
    Cluster,
}

impl Draft {
    /// Takes out the listeners, routes and pools that these objects have added; whether there were any.
    pub(super) fn remove(&mut self, objects: &HashSet<Arc<str>>) -> bool {
        let is_kept = |place: &Place| place.object().is_none_or(|object| !objects.contains(object));
        let count = |draft: &Self| draft.listeners.len() + draft.routes.len() + draft.pools.len();
        let before = count(self);
        self.listeners.retain(|listener| is_kept(&listener.place));
        self.routes.retain(|route| is_kept(&route.place));
        self.pools.retain(|pool| is_kept(&pool.place) && !pool.others().any(|place| !is_kept(place)));
        count(self) < before
    }
}

#[derive(Clone, Debug)]
pub(super) struct GatewayDraft {
    pub(super) workers: Field<usize>,
    pub(super) interfaces: Field<Interfaces>,
    pub(super) tiers: Field<Vec<Tier>>,
    pub(super) bpffs: Field<PathBuf>,
    pub(super) state_dir: Field<PathBuf>,
    pub(super) admin: Field<SocketAddr>,
    pub(super) watch: Field<bool>,
    pub(super) access_log: Field<AccessLogDraft>,
    pub(super) max_connections: Field<usize>,
    pub(super) drain_timeout: Field<Duration>,
    pub(super) source_ports: Field<RangeInclusive<u16>>,
    pub(super) flow_table: Field<u32>,
    pub(super) keepalive: Field<Keepalive>,
    pub(super) peer_id: Field<u16>,
    pub(super) peers: Field<Vec<Placed<PeerDraft>>>,
}

#[derive(Clone, Debug)]
pub(super) struct PeerDraft {
    pub(super) id: Field<u16>,
    pub(super) address: Field<SocketAddr>,
}

#[derive(Clone, Debug)]
pub(super) struct AccessLogDraft {
    pub(super) path: Field<LogTarget>,
    pub(super) format: Field<LogFormat>,
}

#[derive(Clone, Debug)]
pub(super) struct ListenerDraft {
    /// Of the whole.
    pub(super) place: Place,
    pub(super) name: Field<Box<str>>,
    pub(super) bind: Field<Vec<Placed<SocketAddr>>>,
    pub(super) protocol: Field<Protocol>,
    pub(super) hello_timeout: Field<Duration>,
    pub(super) hello_bytes: Field<usize>,
    pub(super) proxy_protocol: Field<bool>,
    pub(super) trusted_proxies: Field<Vec<Placed<IpNet>>>,
    pub(super) allow: Field<Vec<Placed<IpNet>>>,
    pub(super) deny: Field<Vec<Placed<IpNet>>>,
    pub(super) max_connections: Field<usize>,
    pub(super) client_rate: Field<ClientRateDraft>,
    pub(super) backlog: Field<u32>,
    pub(super) keepalive: Field<Keepalive>,
    pub(super) freebind: Field<bool>,
    pub(super) version: Field<Box<str>>,
    pub(super) plugin: Field<Box<str>>,
    pub(super) ech: Field<EchDraft>,
    pub(super) refuse: Field<Refuse>,
    /// Not in the file.
    pub(super) reserved: Field<Vec<Placed<SniPattern>>>,
}

impl ListenerDraft {
    /// One without keys.
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            name: Field::Absent,
            bind: Field::Absent,
            protocol: Field::Absent,
            hello_timeout: Field::Absent,
            hello_bytes: Field::Absent,
            proxy_protocol: Field::Absent,
            trusted_proxies: Field::Absent,
            allow: Field::Absent,
            deny: Field::Absent,
            max_connections: Field::Absent,
            client_rate: Field::Absent,
            backlog: Field::Absent,
            keepalive: Field::Absent,
            freebind: Field::Absent,
            version: Field::Absent,
            plugin: Field::Absent,
            ech: Field::Absent,
            refuse: Field::Absent,
            reserved: Field::Absent,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct EchDraft {
    pub(super) keys: Field<Vec<Placed<PathBuf>>>,
    pub(super) mode: Field<ech::Mode>,
    pub(super) openings: Field<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct RouteDraft {
    pub(super) place: Place,
    pub(super) name: Field<Box<str>>,
    pub(super) listener: Field<String>,
    pub(super) sni: Field<Vec<Placed<SniPattern>>>,
    pub(super) alpn: Field<Vec<Placed<Box<str>>>>,
    pub(super) protocol: Field<Carried>,
    pub(super) tls: Field<Tls>,
    pub(super) certificate: Field<Box<CertificateDraft>>,
    pub(super) client_ca: Field<PathBuf>,
    pub(super) client_auth: Field<ClientAuthDraft>,
    pub(super) backends: Field<Vec<Placed<BackendDraft>>>,
    pub(super) retry_other_pool: Field<bool>,
    pub(super) idle_timeout: Field<Duration>,
    pub(super) max_age: Field<Duration>,
    pub(super) max_connections: Field<usize>,
    pub(super) on_removal: Field<OnRemoval>,
    pub(super) client_rate: Field<ClientRateDraft>,
    pub(super) rules: Vec<RuleDraft>,
    /// Not in the file, where `rules` are: those of requests of HTTP.
    pub(super) http: Field<Vec<Arc<RulesDraft>>>,
}

/// Rules of an object.
#[derive(Debug)]
pub(super) struct RulesDraft {
    /// Pools are indices into `pools`.
    pub(super) list: Arc<[Rule<usize>]>,
    /// Their names.
    pub(super) pools: Vec<String>,
}

impl RouteDraft {
    /// One without keys.
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            name: Field::Absent,
            listener: Field::Absent,
            sni: Field::Absent,
            alpn: Field::Absent,
            protocol: Field::Absent,
            tls: Field::Absent,
            certificate: Field::Absent,
            client_ca: Field::Absent,
            client_auth: Field::Absent,
            backends: Field::Absent,
            retry_other_pool: Field::Absent,
            idle_timeout: Field::Absent,
            max_age: Field::Absent,
            max_connections: Field::Absent,
            on_removal: Field::Absent,
            client_rate: Field::Absent,
            rules: Vec::new(),
            http: Field::Absent,
        }
    }
}

impl RouteDraft {
    /// The pools that the file names for its backends and those of its rules.
    pub(super) fn pools(&self) -> impl Iterator<Item = &Placed<String>> {
        let of_rules =
            self.rules.iter().flat_map(|rule| items(&rule.backends)).map(|backend| &backend.value.pool);
        items(&self.backends)
            .iter()
            .map(|backend| &backend.value.pool)
            .chain(of_rules)
            .filter_map(Field::given)
    }
}

#[derive(Clone, Debug)]
pub(super) struct ClientRateDraft {
    pub(super) connections: Field<u32>,
    pub(super) per: Field<Duration>,
    pub(super) open: Field<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tls {
    Passthrough,
    Terminate,
}

/// A certificate and its key: files, or those of a source that has them in memory.
#[derive(Clone, Debug)]
pub(super) enum CertificateDraft {
    Files(CertificateFiles),
    /// Not empty; where they are several, the name that a client asks for chooses.
    Held(Vec<Arc<Loaded>>),
}

#[derive(Clone, Debug)]
pub(super) struct CertificateFiles {
    pub(super) chain: Field<PathBuf>,
    pub(super) key: Field<PathBuf>,
    pub(super) passphrase_file: Field<PathBuf>,
}

/// What is asked of clients' certificates: of files, or of a source that has the authorities in memory.
#[derive(Clone, Debug)]
pub(super) enum ClientAuthDraft {
    Files(ClientAuthFiles),
    Held(Arc<ClientAuth>),
}

#[derive(Clone, Debug)]
pub(super) struct ClientAuthFiles {
    pub(super) ca: Field<Vec<Placed<PathBuf>>>,
    pub(super) crl: Field<Vec<Placed<PathBuf>>>,
    /// Whether clients must have a certificate.
    pub(super) mode: Field<bool>,
    pub(super) subjects: Field<Vec<Placed<Box<str>>>>,
    pub(super) sans: Field<Vec<Placed<San>>>,
}

#[derive(Clone, Debug)]
pub(super) struct BackendDraft {
    pub(super) pool: Field<String>,
    pub(super) weight: Field<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct PoolDraft {
    pub(super) place: Place,
    pub(super) name: Field<Box<str>>,
    pub(super) balance: Field<Balance>,
    pub(super) servers: Field<Vec<Placed<ServerDraft>>>,
    pub(super) slow_start: Field<Duration>,
    pub(super) connect_timeout: Field<Duration>,
    pub(super) send_proxy: Field<ProxyVersion>,
    pub(super) source: Field<SourceAddress>,
    pub(super) keepalive: Field<Keepalive>,
    pub(super) health: Field<HealthDraft>,
    pub(super) eject: Field<Eject>,
    pub(super) on_down: Field<OnDown>,
    pub(super) http2: Field<bool>,
    pub(super) tls: Field<UpstreamTlsDraft>,
}

impl PoolDraft {
    /// One without keys.
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            name: Field::Absent,
            balance: Field::Absent,
            servers: Field::Absent,
            slow_start: Field::Absent,
            connect_timeout: Field::Absent,
            send_proxy: Field::Absent,
            source: Field::Absent,
            keepalive: Field::Absent,
            health: Field::Absent,
            eject: Field::Absent,
            on_down: Field::Absent,
            http2: Field::Absent,
            tls: Field::Absent,
        }
    }

    /// Where values of an object's pool stand in other objects: its servers in EndpointSlices, its TLS in policies and Gateways. None
    /// of a pool of the file, which no object takes away.
    fn others(&self) -> impl Iterator<Item = &Place> {
        let of_object = self.place.object().map(|_| self);
        let servers = of_object.into_iter().flat_map(|pool| items(&pool.servers)).map(|server| &server.place);
        let tls = of_object.and_then(|pool| pool.tls.given()).into_iter().flat_map(|tls| {
            let UpstreamTlsDraft { ca, server_name, san, certificate, alpn, min_version } = &tls.value;
            [
                ca.place(),
                server_name.place(),
                san.place(),
                certificate.place(),
                alpn.place(),
                min_version.place(),
            ]
        });
        servers.chain(tls.flatten())
    }
}

#[derive(Clone, Debug)]
pub(super) struct UpstreamTlsDraft {
    /// Absent: those of the system.
    pub(super) ca: Field<AuthoritiesDraft>,
    pub(super) server_name: Field<ServerName<'static>>,
    pub(super) san: Field<Vec<Placed<San>>>,
    pub(super) certificate: Field<Box<CertificateDraft>>,
    pub(super) alpn: Field<Vec<Placed<Box<str>>>>,
    pub(super) min_version: Field<MinVersion>,
}

/// Those who sign servers' certificates: of a file, or of a source that has them in memory.
#[derive(Clone, Debug)]
pub(super) enum AuthoritiesDraft {
    File(PathBuf),
    Held(Arc<Authorities>),
}

#[derive(Clone, Debug)]
pub(super) struct HealthDraft {
    pub(super) check: Field<CheckKind>,
    pub(super) interval: Field<Duration>,
    pub(super) timeout: Field<Duration>,
    pub(super) rise: Field<u32>,
    pub(super) fall: Field<u32>,
    pub(super) port: Field<u16>,
    pub(super) role: Field<Role>,
    pub(super) user: Field<Box<str>>,
    pub(super) password_file: Field<PathBuf>,
    pub(super) database: Field<Box<str>>,
    pub(super) path: Field<Box<str>>,
    pub(super) host: Field<Box<str>>,
    pub(super) status: Field<Vec<Placed<u16>>>,
    pub(super) tls: Field<HealthTlsDraft>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CheckKind {
    Tcp,
    Tls,
    Redis,
    Postgres,
    Mysql,
    Http,
}

#[derive(Clone, Debug)]
pub(super) struct HealthTlsDraft {
    pub(super) ca: Field<PathBuf>,
    pub(super) server_name: Field<ServerName<'static>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct ServerDraft {
    pub(super) address: Field<Origin>,
    pub(super) weight: Field<u32>,
    pub(super) backup: Field<bool>,
    pub(super) max_connections: Field<usize>,
}

/// None where the key is not there.
pub(super) fn items<T>(field: &Field<Vec<Placed<T>>>) -> &[Placed<T>] {
    field.given().map_or(&[], |list| &list.value)
}

/// The items without their places.
pub(super) fn values<T: Clone>(field: &Field<Vec<Placed<T>>>) -> Vec<T> {
    items(field).iter().map(|value| value.value.clone()).collect()
}

/// Every value that was there before, each with the place of the first.
pub(super) fn reject_repeated<'r, T: Eq + Hash + 'r>(
    values: impl IntoIterator<Item = &'r Placed<T>>,
    message: impl Fn(&T) -> String,
    report: &mut Report,
) {
    let mut values = values.into_iter();
    // Of very many lists there is nothing to be compared.
    let (Some(first), Some(second)) = (values.next(), values.next()) else { return };
    let mut seen = HashMap::new();
    for value in [first, second].into_iter().chain(values) {
        match seen.entry(&value.value) {
            Entry::Vacant(entry) => _ = entry.insert(&value.place),
            Entry::Occupied(first) => {
                let error = Diagnostic::error(&value.place, message(&value.value));
                report.push(error.related(*first.get(), "first here").help("take one of them out"));
            }
        }
    }
}
