//! Routes, pools and servers that a subject has beside those of the services.

use lb_common::packet::DEFAULT_FLOWS;

use super::kind::Kind;
use crate::path::topology::{DOMAIN, many_servers};

/// How many of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Names `rN.DOMAIN`, each with a route to the Redis that speaks TLS.
    pub(crate) routes: u32,
    /// Paths `/rN`, each with a rule to the server of HTTP.
    pub(crate) rules: u32,
    /// Names `pN.DOMAIN`, each with a route to a pool of its own.
    pub(crate) pools: u32,
    /// Servers of each of these pools.
    pub(crate) servers: u32,
    /// Whether these servers are checked: a TCP connection to each every 5 s.
    pub(crate) checked: bool,
    /// Connections that the packet tier's flow table has room for, if that is more than its default.
    pub(crate) connections: u32,
}

impl Size {
    /// What takes the place of `{{rules}}` in a configuration of this subject. Without any there is one, for what takes none.
    pub(super) fn rules(self, kind: Kind) -> String {
        (0..self.rules.max(1)).map(|number| kind.rule(number)).collect()
    }

    /// Entries of the flow table: two for each connection, and some for the load.
    pub(super) fn flow_table(self) -> u32 {
        DEFAULT_FLOWS.max(self.connections * 2 + 10_000)
    }

    /// What takes the place of `{{routes}}` and of `{{pools}}` in a configuration of this subject.
    pub(super) fn text(self, kind: Kind) -> (String, String) {
        let mut routes: String = (0..self.routes).map(|number| kind.route(number)).collect();
        let mut pools = String::new();
        for number in 0..self.pools {
            let servers = (0..self.servers).map(|server| many_servers(number * self.servers + server));
            let servers: Vec<_> = servers.map(|address| address.to_string()).collect();
            let (route, pool) = match kind {
                Kind::Haproxy => self.of_haproxy(number, &servers),
                _ if kind.is_ours() => self.of_ours(number, &servers),
                _ => continue,
            };
            routes += &route;
            pools += &pool;
        }
        (routes, pools)
    }

    fn of_ours(self, number: u32, servers: &[String]) -> (String, String) {
        let servers: Vec<_> = servers.iter().map(|server| format!("{{ address = \"{server}\" }}")).collect();
        let servers = servers.join(", ");
        let health = if self.checked { "health = { check = \"tcp\", interval = \"5s\" }\n" } else { "" };
        let route = format!(
            "[[route]]\nname = \"p{number}\"\nlistener = \"passthrough\"\nsni = [\"p{number}.{DOMAIN}\"]\n\
             backends = [{{ pool = \"p{number}\" }}]\n"
        );
        (route, format!("[[pool]]\nname = \"p{number}\"\nservers = [{servers}]\n{health}"))
    }

    fn of_haproxy(self, number: u32, servers: &[String]) -> (String, String) {
        let check = if self.checked { " check inter 5s fall 3 rise 2" } else { "" };
        let servers = servers.iter().enumerate();
        let servers: String =
            servers.map(|(i, server)| format!("    server s{i} {server}{check}\n")).collect();
        (format!("p{number}.{DOMAIN} p{number}\n"), format!("backend p{number}\n{servers}"))
    }
}
