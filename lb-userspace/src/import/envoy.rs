//! Envoy: listeners, filter chains and clusters of a static configuration (YAML or JSON).

mod cluster;
mod time;

use super::model::{
    ANY, At, Certificate, ClientCa, Extra, Listener, Model, Note, PROXY_FROM_ANYBODY, Protocol, Route,
    Termination, any_address, default_gateway, host, in_default,
};
use super::values::{duration, timeout, toml_list};
use super::yaml::{Fields, Item};
use crate::config::quote;
use cluster::Clusters;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};
use time::time_or;

/// Whether a document is a configuration of Envoy.
pub(super) fn is_one(fields: &Fields<'_>) -> bool {
    ["static_resources", "dynamic_resources"].iter().any(|key| fields.peek(key).is_some())
}

/// Takes over one document.
pub(super) fn read(document: &Fields<'_>, model: &mut Model) {
    for (key, item) in document.all() {
        match key {
            "static_resources" => {}
            "dynamic_resources" => item.lost("what a control plane says", &mut model.notes),
            _ => {
                let text = format!("{}: of Envoy itself", quote(key));
                model.notes.push(Note::left_out(item.at, text));
            }
        }
    }
    let Some(resources) = document.map("static_resources") else { return };
    let mut clusters = Clusters::new(&resources.list("clusters"));
    for item in resources.list("listeners") {
        listener(&item, &mut clusters, model);
        if model.is_too_large() {
            return;
        }
    }
    resources.rest(&mut model.notes);
    clusters.unused(&mut model.notes);
}

fn listener(item: &Item<'_>, clusters: &mut Clusters<'_>, model: &mut Model) {
    let Some(fields) = item.fields() else { return item.lost("not a listener", &mut model.notes) };
    let mut notes = Vec::new();
    let Some(binds) = fields.map("address").and_then(|address| socket_addresses(&address)) else {
        return item.lost("it has no TCP address and port", &mut model.notes);
    };
    let default = format!("port-{}", binds[0].1);
    let name = fields.text("name").unwrap_or(&default);
    let mut listener = Listener::new(item.at, name, default_gateway(), Protocol::Tcp);
    listener.binds = binds;
    for extra in fields.list("additional_addresses") {
        let addresses = extra.fields().and_then(|extra| socket_addresses(&extra.map("address")?));
        match addresses {
            Some(addresses) => {
                let known = listener.binds.clone();
                listener.binds.extend(addresses.into_iter().filter(|address| !known.contains(address)));
            }
            None => extra.lost("no TCP address and port", &mut notes),
        }
    }
    for filter in fields.list("listener_filters") {
        let Some(filter_fields) = filter.fields() else { continue };
        let name = filter_fields.text("name").unwrap_or_default();
        filter_fields.ignore(&["typed_config"]);
        if name.contains("tls_inspector") {
            listener.protocol = Protocol::Tls;
        } else if name.contains("proxy_protocol") {
            let text = format!("{}: {}", quote(name), PROXY_FROM_ANYBODY);
            notes.push(Note::lost(filter.at, text));
        } else {
            notes.push(Note::lost(filter.at, format!("listener filter {}: not taken over", quote(name))));
        }
        filter_fields.rest(&mut notes);
    }
    let hello_timeout = time_or(&fields, "listener_filters_timeout", "15s", "hello_timeout");
    if let Some(limit) = fields.map("connection_limit") {
        limit.rest(&mut notes);
    }
    fields.ignore(&[
        "per_connection_buffer_limit_bytes",
        "traffic_direction",
        "enable_reuse_port",
        "stat_prefix",
        "access_log",
        "tcp_backlog_size",
        "filter_chains",
        "default_filter_chain",
        "metadata",
    ]);
    fields.rest(&mut notes);
    let mut chains: Vec<(Item<'_>, Chain)> = Vec::new();
    for chain in fields.list("filter_chains") {
        chains.extend(Chain::read(&chain, &mut notes).map(|read| (chain, read)));
    }
    if let Some(chain) = fields.peek("default_filter_chain") {
        chains.extend(
            Chain::read(&chain, &mut notes)
                .map(|read| (chain, Chain { hosts: Vec::new(), is_default: true, ..read })),
        );
    }
    // Envoy compares the port first: where a chain names it, no client gets to those that name none.
    let ports: HashSet<u16> = listener.binds.iter().map(|&(_, port)| port).collect();
    let named: HashSet<u16> = chains.iter().filter_map(|(_, chain)| chain.port).collect();
    if let ([port], false) = (Vec::from_iter(&ports).as_slice(), named.is_empty()) {
        let wanted = named.contains(port).then_some(**port);
        chains.retain(|(item, chain)| {
            let is_reached = chain.is_default || chain.port == wanted;
            if !is_reached {
                notes.push(Note::left_out(item.at, "a filter chain that no client of this port reaches"));
            }
            is_reached
        });
    } else if !named.is_empty() {
        let text = "destination_port, where there are several: not taken over (restricts who may connect)";
        notes.push(Note::lost(item.at, text));
    }
    if chains.iter().any(|(_, chain)| !chain.hosts.is_empty() || chain.tls.is_some()) {
        listener.protocol = Protocol::Tls;
    }
    if listener.protocol == Protocol::Tls {
        // Its clients begin with something else than TLS.
        chains.retain(|(item, chain)| {
            if chain.is_plain {
                item.lost("plain TCP and TLS on one address, the chain is left out", &mut notes);
            }
            !chain.is_plain
        });
    }
    if listener.protocol == Protocol::Tls {
        listener.extras.extend(hello_timeout);
    }
    // Lists of clients are the listener's here.
    let sources: Vec<_> = chains.iter().filter(|(_, chain)| !chain.sources.is_empty()).collect();
    match sources.as_slice() {
        [] => {}
        [(item, chain), ..] if chains.iter().all(|(_, other)| other.sources == chain.sources) => {
            let value = toml_list(&chain.sources);
            listener.extras.push(Extra::new("allow", value, item.at, "source_prefix_ranges"));
        }
        [(item, _), ..] => {
            let text = "source_prefix_ranges of some chains only: not taken over (restricts who may connect)";
            notes.push(Note::lost(item.at, text));
        }
    }
    listener.notes = notes;
    model.listeners.push(listener);
    let index = model.listeners.len() - 1;
    for (item, chain) in chains {
        chain.route(&item, index, clusters, model);
    }
}

/// `address: { socket_address: { address, port_value } }`.
fn socket_addresses(fields: &Fields<'_>) -> Option<Vec<(IpAddr, u16)>> {
    let (host, port) = cluster::host_of(fields)?;
    let address: IpAddr = host.parse().ok()?;
    let of_both_families = fields.map("socket_address").is_some_and(|socket| socket.is_true("ipv4_compat"));
    let is_any = address == Ipv6Addr::UNSPECIFIED;
    Some(if is_any && of_both_families { any_address(port) } else { vec![(address, port)] })
}

/// A filter chain that passes TCP on.
#[derive(Default)]
struct Chain {
    name: Option<String>,
    hosts: Vec<String>,
    alpn: Vec<String>,
    sources: Vec<String>,
    /// At which clients arrive.
    port: Option<u16>,
    /// For whom no other chain is.
    is_default: bool,
    /// For clients that send no ClientHello.
    is_plain: bool,
    tls: Option<Termination>,
    /// Names of clusters, and their weights.
    targets: Vec<(At, String, u32)>,
    extras: Vec<Extra>,
    notes: Vec<Note>,
}

impl Chain {
    fn read(item: &Item<'_>, notes: &mut Vec<Note>) -> Option<Self> {
        let Some(fields) = item.fields() else {
            item.lost("not a filter chain", notes);
            return None;
        };
        let mut chain = Self { name: fields.text("name").map(str::to_owned), ..Self::default() };
        if let Some(matched) = fields.map("filter_chain_match") {
            for name in matched.texts("server_names") {
                match host(name) {
                    Some(name) => chain.hosts.push(name),
                    None => {
                        chain.notes.push(Note::lost(matched.at(), format!("{}: no host name", quote(name))))
                    }
                }
            }
            chain.port = matched.parsed("destination_port");
            chain.alpn = matched.texts("application_protocols").into_iter().map(str::to_owned).collect();
            let mut rest = Vec::new();
            for item in matched.list("source_prefix_ranges") {
                let range = item.fields().and_then(|range| {
                    let address: IpAddr = range.parsed("address_prefix")?;
                    let length = range.map("prefix_len").and_then(|length| length.parsed("value"));
                    let length = length.or_else(|| range.parsed::<u8>("prefix_len")).unwrap_or(0);
                    ipnet::IpNet::new(address, length).ok()
                });
                match range {
                    Some(range) => chain.sources.push(range.to_string()),
                    None => item.lost("no network", &mut rest),
                }
            }
            match matched.text("transport_protocol") {
                None | Some("tls" | "") => {}
                Some("raw_buffer") => chain.is_plain = true,
                Some(_) => item.lost("transport_protocol", &mut rest),
            }
            matched.rest(&mut rest);
            if !rest.is_empty() || (chain.hosts.is_empty() && !chain.notes.is_empty()) {
                notes.append(&mut rest);
                notes.append(&mut chain.notes);
                item.lost("its match is not taken over, the chain is left out", notes);
                return None;
            }
        }
        if let Some(socket) = fields.map("transport_socket") {
            let tls = socket.text("name").is_some_and(|name| name.contains("tls"));
            let config = socket.map("typed_config").filter(|_| tls);
            match config {
                Some(config) => chain.tls = Some(termination(&config, &mut chain.notes)),
                None => {
                    item.lost("its transport_socket is not TLS, the chain is left out", notes);
                    return None;
                }
            }
            socket.rest(&mut chain.notes);
        }
        let filters = fields.list("filters");
        for filter in &filters {
            chain.filter(filter);
        }
        fields.ignore(&["transport_socket_connect_timeout", "metadata"]);
        fields.rest(&mut chain.notes);
        if chain.targets.is_empty() {
            notes.append(&mut chain.notes);
            item.lost("no tcp_proxy that leads to a cluster, the chain is left out", notes);
            return None;
        }
        Some(chain)
    }

    fn filter(&mut self, item: &Item<'_>) {
        let Some(fields) = item.fields() else { return item.lost("not a filter", &mut self.notes) };
        let name = fields.text("name").unwrap_or_default();
        let config = fields.peek("typed_config").and_then(|config| config.fields());
        let kind = config.as_ref().and_then(|config| config.text("@type")).unwrap_or_default();
        let (true, Some(config)) =
            (kind.ends_with(".TcpProxy") || name == "envoy.filters.network.tcp_proxy", config)
        else {
            let restricts = if name.contains("rbac") || name.contains("ext_authz") || name.contains("limit") {
                " (restricts who may connect)"
            } else {
                ""
            };
            let text = format!("filter {}: not taken over{restricts}", quote(name));
            return self.notes.push(Note::lost(item.at, text));
        };
        config.ignore(&["@type", "stat_prefix", "access_log", "access_log_options", "max_connect_attempts"]);
        if let Some(cluster) = config.text("cluster") {
            self.targets.push((item.at, cluster.to_owned(), 1));
        }
        if let Some(weighted) = config.map("weighted_clusters") {
            for target in weighted.list("clusters") {
                let Some(fields) = target.fields() else { continue };
                match fields.text("name") {
                    Some(name) => {
                        let weight = fields.parsed("weight").unwrap_or(1);
                        self.targets.push((target.at, name.to_owned(), weight));
                    }
                    None => target.lost("it has no name", &mut self.notes),
                }
                fields.rest(&mut self.notes);
            }
            weighted.rest(&mut self.notes);
        }
        self.extras.extend(time_or(&config, "idle_timeout", "3600s", "idle_timeout"));
        if let Some(text) = config.text("max_downstream_connection_duration") {
            let said = format!("max_downstream_connection_duration: {text}");
            let time = duration(text, "s");
            self.extras.extend(time.and_then(|time| timeout("max_age", time, item.at, &said)));
        }
        config.rest(&mut self.notes);
    }

    fn route(mut self, item: &Item<'_>, listener: usize, clusters: &mut Clusters<'_>, model: &mut Model) {
        let mut backends = Vec::new();
        for (at, name, weight) in &self.targets {
            match clusters.pool(name, model) {
                Some(pool) => backends.push((pool, *weight)),
                None => {
                    let text = format!("cluster {}: there is no such cluster with servers", quote(name));
                    self.notes.push(Note::lost(*at, text));
                }
            }
        }
        let first = self.targets.first().map_or(ANY, |(_, name, _)| name);
        let name = self.name.as_deref().unwrap_or(first);
        let mut route = Route::new(item.at, in_default(name), listener);
        (route.hosts, route.alpn, route.tls, route.backends) = (self.hosts, self.alpn, self.tls, backends);
        (route.extras, route.notes) = (self.extras, self.notes);
        model.route(route);
    }
}

/// A DownstreamTlsContext.
fn termination(config: &Fields<'_>, notes: &mut Vec<Note>) -> Termination {
    config.ignore(&["@type"]);
    let required = config.is_true("require_client_certificate");
    let mut termination = Termination::default();
    if let Some(common) = config.map("common_tls_context") {
        for item in common.list("tls_certificates") {
            let files = item.fields().and_then(|fields| {
                let file = |key| fields.map(key)?.text("filename").map(str::to_owned);
                Some(Certificate::Files { chain: file("certificate_chain")?, key: file("private_key")? })
            });
            match files {
                Some(files) => termination.certificates.push(files),
                None => item.lost("only files are taken over", notes),
            }
        }
        if let Some(validation) = common.map("validation_context") {
            let file = validation.map("trusted_ca").and_then(|ca| ca.text("filename").map(str::to_owned));
            termination.client_ca = file.filter(|_| required).map(ClientCa::File);
            let mut rest = Vec::new();
            validation.rest(&mut rest);
            for note in &mut rest {
                note.text.push_str(" (restricts who may connect)");
            }
            notes.append(&mut rest);
        }
        common.ignore(&["alpn_protocols", "tls_params"]);
        common.rest(notes);
    }
    if required && termination.client_ca.is_none() {
        let text = "require_client_certificate without a file of authorities (restricts who may connect)";
        notes.push(Note::lost(config.at(), text));
    }
    if termination.certificates.is_empty() {
        termination.certificates.push(Certificate::Unknown);
    }
    config.rest(notes);
    termination
}
