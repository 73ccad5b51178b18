//! The result as snisplice's TOML.

use super::model::{
    Certificate, ClientCa, Extra, Model, Note, Object, Part, Protocol, Route, Server, Servers, Termination,
};
use super::names::Names;
use super::values::{toml_list, toml_string, toml_table};
use crate::config::quote;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

/// The largest weight of a backend.
const LARGEST_WEIGHT: u32 = 256;

/// The tables, each with its notes.
pub(super) fn write(model: Model) -> Vec<Part> {
    let Model { mut listeners, routes, mut pools, .. } = model;
    let mut names = Names::new(is_in_name, 253);
    let listener_names: Vec<String> =
        listeners.iter().map(|listener| names.unique("listener", &listener.name)).collect();
    let used: BTreeSet<usize> =
        routes.iter().flat_map(|route| route.backends.iter().map(|&(pool, _)| pool)).collect();
    let pool_names: HashMap<usize, String> =
        used.iter().map(|&pool| (pool, names.unique("pool", &pools[pool].name))).collect();
    let mut parts = Vec::new();
    for (listener, name) in listeners.iter_mut().zip(&listener_names) {
        let mut table = Table::new("listener");
        table.string("name", name);
        let binds: Vec<_> =
            listener.binds.iter().map(|&(ip, port)| SocketAddr::new(ip, port).to_string()).collect();
        table.key("bind", toml_list(&binds));
        match listener.protocol {
            Protocol::Tls => {}
            Protocol::Postgres => table.string("protocol", "postgres"),
            Protocol::Tcp => table.string("protocol", "tcp"),
        }
        table.extras(&listener.extras);
        parts.push(Part { notes: std::mem::take(&mut listener.notes), text: table.text });
    }
    // Those to which a client's own TLS goes.
    let mut passed_through = BTreeSet::new();
    for mut route in routes {
        let protocol = listeners[route.listener].protocol;
        if protocol != Protocol::Tcp && route.tls.is_none() {
            passed_through.extend(route.backends.iter().map(|&(pool, _)| pool));
        }
        let mut table = Table::new("route");
        let name = names.unique("route", &route.name.name);
        table.string("name", &name);
        table.string("listener", &listener_names[route.listener]);
        if protocol != Protocol::Tcp {
            let hosts = if route.hosts.is_empty() { vec!["*".to_owned()] } else { route.hosts.clone() };
            table.key("sni", toml_list(&hosts));
            if !route.alpn.is_empty() {
                table.key("alpn", toml_list(&route.alpn));
            }
            if let Some(tls) = route.tls.take() {
                termination(&tls, &name, &mut route, &mut table);
            }
        }
        table.key("backends", backends(&mut route, &pool_names));
        table.extras(&route.extras);
        parts.push(Part { notes: route.notes, text: table.text });
    }
    let mut in_cluster = false;
    for (index, name) in &pool_names.iter().collect::<std::collections::BTreeMap<_, _>>() {
        let pool = &mut pools[**index];
        let mut table = Table::new("pool");
        table.string("name", name);
        let mut notes = std::mem::take(&mut pool.notes);
        let mut addresses = false;
        match &pool.servers {
            Servers::Service { service, port, subset } => {
                if !std::mem::replace(&mut in_cluster, true) {
                    let text = "servers are Services by their names in the cluster's DNS, which the gateway must use";
                    notes.push(Note::to_do(pool.at, text));
                }
                let Object { namespace, name } = service;
                table.key("servers", toml_list(&[format!("{name}.{namespace}.svc.cluster.local:{port}")]));
                if subset.is_some() {
                    let text =
                        format!("some pods of a Service: make the Service {service}, which selects them");
                    notes.push(Note::lost(pool.at, text));
                }
            }
            Servers::Addresses(servers) => {
                addresses = servers.iter().any(|server| server.host.parse::<IpAddr>().is_ok());
                let servers: Vec<_> = servers.iter().map(server).collect();
                table.key("servers", format!("[{}]", servers.join(", ")));
            }
        }
        for extra in std::mem::take(&mut pool.extras) {
            if extra.key == "tls" && passed_through.contains(index) {
                let text = format!("{}: the clients' own TLS goes to these servers", extra.said);
                notes.push(Note::lost(extra.at, text));
                continue;
            }
            if extra.key == "tls" && addresses && !extra.value.contains("server_name") {
                let text = format!("{}: set `server_name` of `tls`, servers by address need one", extra.said);
                notes.push(Note::to_do(extra.at, text));
            }
            table.extras(&[extra]);
        }
        parts.push(Part { notes, text: table.text });
    }
    parts
}

/// Names of the configuration have neither spaces nor `/`.
fn is_in_name(c: char) -> bool {
    c.is_ascii_graphic() && c != '/'
}

/// A table as text.
struct Table {
    text: String,
}

impl Table {
    fn new(name: &str) -> Self {
        Self { text: format!("[[{name}]]\n") }
    }

    fn key(&mut self, key: &str, value: impl AsRef<str>) {
        self.text.push_str(&format!("{key} = {}\n", value.as_ref()));
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, toml_string(value));
    }

    fn extras(&mut self, extras: &[Extra]) {
        for extra in extras {
            self.key(extra.key, &extra.value);
        }
    }
}

fn termination(tls: &Termination, name: &str, route: &mut Route, table: &mut Table) {
    table.string("tls", "terminate");
    let at = route.at;
    if tls.certificates.len() > 1 {
        let text = "several certificates: only the first is here; give each name a route with its own";
        route.notes.push(Note::to_do(at, text));
    }
    let (chain, key) = match tls.certificates.first() {
        Some(Certificate::Files { chain, key }) => (chain.clone(), key.clone()),
        Some(Certificate::Secret(secret)) => {
            let (chain, key) = (format!("{}.crt", secret.name), format!("{}.key", secret.name));
            for command in
                [secret_to_file(secret, "tls.crt", &chain), secret_to_file(secret, "tls.key", &key)]
            {
                route.notes.push(Note::to_do(at, command));
            }
            (chain, key)
        }
        Some(Certificate::Unknown) | None => {
            let text = format!("the files of the certificate of {}", quote(name));
            route.notes.push(Note::to_do(at, text));
            (format!("{name}.crt"), format!("{name}.key"))
        }
    };
    let parts = [format!("chain = {}", toml_string(&chain)), format!("key = {}", toml_string(&key))];
    table.key("certificate", toml_table(&parts));
    match &tls.client_ca {
        Some(ClientCa::File(file)) => table.string("client_ca", file),
        Some(ClientCa::Secret(secret)) => {
            let file = format!("{}-ca.crt", secret.name);
            route.notes.push(Note::to_do(at, secret_to_file(secret, "ca.crt", &file)));
            table.string("client_ca", &file);
        }
        None => {}
    }
}

/// The pools of a route; without weights if they are the same.
fn backends(route: &mut Route, names: &HashMap<usize, String>) -> String {
    let largest = route.backends.iter().map(|&(_, weight)| weight).max().unwrap_or(1);
    let scaled = |weight: u32| {
        if largest <= LARGEST_WEIGHT || weight == 0 {
            return weight;
        }
        let share = u64::from(weight) * u64::from(LARGEST_WEIGHT) / u64::from(largest);
        u32::try_from(share).unwrap_or(LARGEST_WEIGHT).max(1)
    };
    if largest > LARGEST_WEIGHT {
        let text = format!("weights above {LARGEST_WEIGHT}: scaled, and rounded");
        route.notes.push(Note::lost(route.at, text));
    }
    let equal = route.backends.iter().all(|&(_, weight)| weight == largest);
    let backend = |&(pool, weight): &(usize, u32)| {
        let name = toml_string(names.get(&pool).map_or("", String::as_str));
        if equal {
            name
        } else {
            toml_table(&[format!("pool = {name}"), format!("weight = {}", scaled(weight))])
        }
    };
    format!("[{}]", route.backends.iter().map(backend).collect::<Vec<_>>().join(", "))
}

fn server(server: &Server) -> String {
    let address = match server.host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, server.port).to_string(),
        Err(_) => format!("{}:{}", server.host, server.port),
    };
    let mut parts = vec![format!("address = {}", toml_string(&address))];
    if server.weight != 1 {
        parts.push(format!("weight = {}", server.weight));
    }
    if server.backup {
        parts.push("backup = true".to_owned());
    }
    parts.extend(server.extras.iter().map(|extra| format!("{} = {}", extra.key, extra.value)));
    if parts.len() == 1 { toml_string(&address) } else { toml_table(&parts) }
}

/// How a key of a Secret becomes a file. Names of objects and our own file names are safe in a shell.
fn secret_to_file(secret: &Object, key: &str, file: &str) -> String {
    let key = key.replace('.', "\\.");
    format!(
        "(umask 077; kubectl -n {} get secret {} -o jsonpath='{{.data.{key}}}' | base64 -d > {file})",
        secret.namespace, secret.name
    )
}
