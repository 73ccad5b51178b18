//! Pieces of configuration that most tests share; `extra` is further TOML of the same table.

use snisplice_tests::topology;

/// A listener named `databases` on port 443, IPv4 unless `extra` binds otherwise.
pub(crate) fn listener(extra: &str) -> String {
    let bind = if extra.contains("bind") { "" } else { "bind = ['0.0.0.0:443']" };
    format!("[[listener]]\nname = 'databases'\n{bind}\n{extra}\n")
}

/// A route of `databases` toward the pool of its own name, unless `extra` has backends.
pub(crate) fn route(name: &str, sni: &str, extra: &str) -> String {
    let backends = if extra.contains("backends") {
        String::new()
    } else {
        format!("backends = [{{ pool = '{name}' }}]")
    };
    format!("[[route]]\nname = '{name}'\nlistener = 'databases'\nsni = ['{sni}']\n{backends}\n{extra}\n")
}

/// A passthrough route.
pub(crate) fn passthrough(name: &str, sni: &str) -> String {
    route(name, sni, "tls = 'passthrough'")
}

/// A pool of servers on the server's IPv4 address, by their ports.
pub(crate) fn pool(name: &str, ports: &[u16], extra: &str) -> String {
    let servers: Vec<String> =
        ports.iter().map(|port| format!("{{ address = '{}' }}", server(*port))).collect();
    format!("[[pool]]\nname = '{name}'\nservers = [{}]\n{extra}\n", servers.join(", "))
}

/// `address` of a server as it stands in configuration and status.
pub(crate) fn server(port: u16) -> String {
    topology::server(port).to_string()
}

/// The smallest gateway: one passthrough route `app1` for `app1.example.com` toward port 7001.
pub(crate) fn one_route() -> String {
    listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001], "")
}
