//! Envoy's clusters, as pools.

use super::time::time_or;
use crate::config::{is_http_host, is_http_path, quote};
use crate::import::model::{Extra, Model, Note, Pool, Server, Servers};
use crate::import::values::{duration, server_host, timeout, toml_string, toml_table};
use crate::import::yaml::{Fields, Item};
use std::collections::BTreeMap;
use std::time::Duration;

/// The clusters of a document, by name.
pub(super) struct Clusters<'a>(BTreeMap<&'a str, (Item<'a>, Option<usize>)>);

impl<'a> Clusters<'a> {
    pub(super) fn new(items: &[Item<'a>]) -> Self {
        let named = |item: &Item<'a>| Some((item.fields()?.text("name")?, (item.clone(), None)));
        Self(items.iter().filter_map(named).collect())
    }

    /// The index of a cluster's pool, which is made when the first route uses it.
    pub(super) fn pool(&mut self, name: &str, model: &mut Model) -> Option<usize> {
        let (item, index) = self.0.get_mut(name)?;
        if index.is_none() {
            let pool = pool(name, item)?;
            model.pools.push(pool);
            *index = Some(model.pools.len() - 1);
        }
        *index
    }

    /// Names those that no route uses.
    pub(super) fn unused(&self, notes: &mut Vec<Note>) {
        for (name, (item, _)) in self.0.iter().filter(|(_, (_, index))| index.is_none()) {
            let text = format!("cluster {}: no chain that is taken over uses it", quote(name));
            notes.push(Note::left_out(item.at, text));
        }
    }
}

fn pool(name: &str, item: &Item<'_>) -> Option<Pool> {
    let fields = item.fields()?;
    fields.ignore(&[
        "name",
        "dns_lookup_family",
        "dns_refresh_rate",
        "respect_dns_ttl",
        "alt_stat_name",
        "per_connection_buffer_limit_bytes",
        "metadata",
    ]);
    let mut pool = Pool::new(item.at, name, Servers::Addresses(Vec::new()));
    let mut servers = Vec::new();
    let kind = fields.text("type").unwrap_or("STATIC");
    if let Some(assignment) = fields.map("load_assignment") {
        assignment.ignore(&["cluster_name"]);
        for locality in assignment.list("endpoints") {
            let Some(locality) = locality.fields() else { continue };
            // Of the highest priority (0) are those that are used while they are up.
            let priority = locality.parsed::<u32>("priority").unwrap_or(0);
            let backup = priority > 0;
            if priority > 1 {
                let text = format!("priority {priority}: backups like those of priority 1");
                pool.notes.push(Note::lost(locality.at(), text));
            }
            for endpoint in locality.list("lb_endpoints") {
                server(&endpoint, backup, &mut servers, &mut pool.notes);
            }
            locality.ignore(&["locality"]);
            locality.rest(&mut pool.notes);
        }
        assignment.rest(&mut pool.notes);
    }
    if !["STATIC", "STRICT_DNS", "LOGICAL_DNS"].contains(&kind) {
        pool.notes.push(Note::lost(item.at, format!("cluster type {}: not taken over", quote(kind))));
    }
    if servers.is_empty() {
        return None;
    }
    pool.servers = Servers::Addresses(servers);
    let balance = fields.text("lb_policy").unwrap_or("ROUND_ROBIN");
    let value = match balance {
        "ROUND_ROBIN" => "\"round-robin\"",
        "LEAST_REQUEST" => "\"least-connections\"",
        "RANDOM" => "\"random\"",
        "RING_HASH" | "MAGLEV" => "\"source-hash\"",
        _ => "",
    };
    let said = format!("lb_policy: {balance}");
    if value.is_empty() {
        pool.notes.push(Note::lost(item.at, format!("{}: not taken over", quote(&said))));
    } else if balance != "ROUND_ROBIN" {
        pool.extras.push(Extra::new("balance", value, item.at, &said));
    }
    pool.extras.extend(time_or(&fields, "connect_timeout", "5s", "connect_timeout"));
    let tls = transport(&fields, &mut pool);
    health(&fields, tls.as_deref(), &mut pool);
    eject(&fields, &mut pool);
    if let Some(options) = fields.map("upstream_connection_options") {
        if let Some(keepalive) = options.map("tcp_keepalive") {
            let keys = [
                ("keepalive_time", "idle", true),
                ("keepalive_interval", "interval", true),
                ("keepalive_probes", "count", false),
            ];
            let key = |(key, name, time): (&str, &str, bool)| {
                let number: u32 = keepalive.parsed(key)?;
                Some(if time { format!("{name} = \"{number}s\"") } else { format!("{name} = {number}") })
            };
            let keys: Vec<_> = keys.into_iter().filter_map(key).collect();
            pool.extras.push(Extra::new("keepalive", toml_table(&keys), keepalive.at(), "tcp_keepalive"));
            keepalive.rest(&mut pool.notes);
        }
        options.rest(&mut pool.notes);
    }
    fields.rest(&mut pool.notes);
    Some(pool)
}

fn server(item: &Item<'_>, backup: bool, into: &mut Vec<Server>, notes: &mut Vec<Note>) {
    let Some(fields) = item.fields() else { return item.lost("not an endpoint", notes) };
    let endpoint = fields.map("endpoint");
    let address = endpoint.as_ref().and_then(|endpoint| host_of(&endpoint.map("address")?));
    let Some((host, port)) = address.and_then(|(host, port)| Some((server_host(&host)?, port))) else {
        return item.lost("it has no address and port", notes);
    };
    let weight = fields.parsed::<u32>("load_balancing_weight").unwrap_or(1);
    if weight > 256 {
        item.lost("weights above 256", notes);
    }
    if let Some(endpoint) = endpoint {
        endpoint.ignore(&["hostname"]);
        endpoint.rest(notes);
    }
    fields.rest(notes);
    into.push(Server { host, port, weight: weight.clamp(1, 256), backup, extras: Vec::new() });
}

/// `socket_address: { address, port_value }`.
pub(super) fn host_of(address: &Fields<'_>) -> Option<(String, u16)> {
    let socket = address.map("socket_address")?;
    if socket.text("protocol").is_some_and(|protocol| protocol != "TCP") {
        return None;
    }
    let port = socket.parsed("port_value").filter(|&port| port > 0)?;
    Some((socket.text("address")?.to_owned(), port))
}

/// `tls`: the keys of TLS toward the servers, in which they are checked, too.
fn health(fields: &Fields<'_>, tls: Option<&[String]>, pool: &mut Pool) {
    for (index, item) in fields.list("health_checks").into_iter().enumerate() {
        let Some(check) = item.fields() else { continue };
        let mut keys = Vec::new();
        if let Some(tcp) = check.map("tcp_health_check") {
            keys.push(format!("check = \"{}\"", if tls.is_some() { "tls" } else { "tcp" }));
            tcp.rest(&mut pool.notes);
        } else if let Some(http) = check.map("http_health_check") {
            keys.push("check = \"http\"".to_owned());
            for (key, is_good) in [("path", is_http_path as fn(&str) -> bool), ("host", is_http_host)] {
                match http.text(key) {
                    Some(text) if is_good(text) => keys.push(format!("{key} = {}", toml_string(text))),
                    Some(text) => {
                        let text = format!("{}: not taken over", quote(&format!("{key}: {text}")));
                        pool.notes.push(Note::lost(http.at(), text));
                    }
                    None => {}
                }
            }
            if http.peek("expected_statuses").is_none() {
                keys.push("status = [200]".to_owned());
            }
            http.rest(&mut pool.notes);
        } else if check.peek("custom_health_check").is_some_and(|custom| {
            custom
                .fields()
                .and_then(|custom| custom.text("name"))
                .is_some_and(|name| name.ends_with(".redis"))
        }) {
            check.ignore(&["custom_health_check"]);
            keys.push("check = \"redis\"".to_owned());
        } else {
            item.lost("not taken over", &mut pool.notes);
            continue;
        }
        if index > 0 {
            item.lost("only the first check is taken over", &mut pool.notes);
            continue;
        }
        let time = |key| check.text(key).and_then(|text| duration(text, "s"));
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_hours(24));
        let interval = time("interval").unwrap_or(Duration::from_secs(5)).clamp(shortest, longest);
        let limit = time("timeout").filter(|limit| !limit.is_zero()).unwrap_or(interval);
        if limit > interval {
            let text = "a `timeout` longer than `interval`: a check ends before the next here";
            pool.notes.push(Note::lost(item.at, text));
        }
        let times = [("interval", interval), ("timeout", limit.min(interval))];
        let times = times.into_iter().filter_map(|(key, time)| timeout(key, time, item.at, ""));
        keys.extend(times.map(|time| format!("{} = {}", time.key, time.value)));
        for (key, name) in [("healthy_threshold", "rise"), ("unhealthy_threshold", "fall")] {
            let count = check.parsed::<u32>(key).map(|count| count.clamp(1, 1000));
            keys.extend(count.map(|count| format!("{name} = {count}")));
        }
        keys.extend(tls.map(|tls| format!("tls = {}", toml_table(tls))));
        check.rest(&mut pool.notes);
        pool.extras.push(Extra::new("health", toml_table(&keys), item.at, "health_checks"));
    }
}

fn eject(fields: &Fields<'_>, pool: &mut Pool) {
    let Some(outliers) = fields.map("outlier_detection") else { return };
    let mut keys = Vec::new();
    let failures = ["consecutive_local_origin_failure", "consecutive_gateway_failure", "consecutive_5xx"]
        .iter()
        .filter_map(|key| outliers.parsed::<u32>(key))
        .max();
    keys.push(format!("failures = {}", failures.unwrap_or(5).clamp(1, 1000)));
    let time = time_or(&outliers, "base_ejection_time", "30s", "time");
    keys.extend(time.map(|time| format!("time = {}", time.value)));
    outliers.rest(&mut pool.notes);
    pool.extras.push(Extra::new("eject", toml_table(&keys), outliers.at(), "outlier_detection"));
}

/// TLS or a PROXY header toward servers. The keys of TLS that its checks need.
fn transport(fields: &Fields<'_>, pool: &mut Pool) -> Option<Vec<String>> {
    let socket = fields.map("transport_socket")?;
    let name = socket.text("name").unwrap_or_default();
    let Some(config) = socket.map("typed_config") else {
        pool.notes.push(Note::lost(socket.at(), "a transport_socket without typed_config"));
        return None;
    };
    let mut tls = None;
    config.ignore(&["@type"]);
    if name.contains("upstream_proxy_protocol") {
        let version = config.map("config").and_then(|config| config.text("version").map(str::to_owned));
        let version = if version.as_deref() == Some("V2") { "\"v2\"" } else { "\"v1\"" };
        pool.extras.push(Extra::new("send_proxy", version, socket.at(), "upstream_proxy_protocol"));
        config.ignore(&["transport_socket"]);
        let inner =
            config.peek("transport_socket").and_then(|inner| inner.fields()?.text("name").map(str::to_owned));
        if inner.is_some_and(|name| !name.contains("raw_buffer")) {
            pool.notes.push(Note::lost(socket.at(), "TLS inside of upstream_proxy_protocol"));
        }
    } else if name.contains("tls") {
        let mut keys = Vec::new();
        let common = config.map("common_tls_context");
        let validation = common.as_ref().and_then(|common| common.map("validation_context"));
        let file = validation.as_ref().and_then(|validation| validation.map("trusted_ca")?.text("filename"));
        keys.extend(file.map(|file| format!("ca = {}", toml_string(file))));
        let text = match file {
            Some(_) => "certificates must be for the server's name here",
            None => "certificates of servers are verified here, against the system's authorities",
        };
        pool.notes.push(Note::lost(config.at(), text));
        if let Some(validation) = validation {
            validation.rest(&mut pool.notes);
        }
        if let Some(common) = common {
            common.rest(&mut pool.notes);
        }
        match config.text("sni").map(server_host) {
            Some(Some(name)) => keys.push(format!("server_name = {}", toml_string(&name))),
            Some(None) => pool.notes.push(Note::lost(config.at(), "`sni`: no host name")),
            None => {}
        }
        pool.extras.push(Extra::new("tls", toml_table(&keys), socket.at(), "UpstreamTlsContext"));
        tls = Some(keys);
    } else {
        pool.notes.push(Note::lost(socket.at(), format!("transport_socket {}: not taken over", quote(name))));
    }
    config.rest(&mut pool.notes);
    socket.rest(&mut pool.notes);
    tls
}
