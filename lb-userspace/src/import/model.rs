//! What the readers have found, in neither the words of where it comes from nor of where it goes.

use crate::config::quote;
use crate::sniff::ServerName;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A place in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct At {
    /// Index of the file.
    pub(super) file: usize,
    /// From 1.
    pub(super) line: usize,
}

/// What a note says about the part that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The result does not do what this part asked for.
    Lost,
    /// The result is complete only when somebody has done this.
    ToDo,
    /// Nothing is lost without it.
    LeftOut,
}

impl Verdict {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::ToDo => "to do",
            Self::LeftOut => "left out",
        }
    }
}

/// A part that has no equal in the result, or needs somebody's attention.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) at: At,
    pub(super) verdict: Verdict,
    /// Parts of the input stand in it [quoted](quote), so it is one line.
    pub(super) text: String,
}

impl Note {
    pub(super) fn lost(at: At, text: impl Into<String>) -> Self {
        Self { at, verdict: Verdict::Lost, text: text.into() }
    }

    pub(super) fn to_do(at: At, text: impl Into<String>) -> Self {
        Self { at, verdict: Verdict::ToDo, text: text.into() }
    }

    pub(super) fn left_out(at: At, text: impl Into<String>) -> Self {
        Self { at, verdict: Verdict::LeftOut, text: text.into() }
    }
}

/// A table or an object, and what there is to say of it.
pub(super) struct Part {
    pub(super) notes: Vec<Note>,
    pub(super) text: String,
}

/// Why PROXY headers toward the gateway are not taken over.
pub(super) const PROXY_FROM_ANYBODY: &str = "PROXY headers of anybody are believed there. With `proxy_protocol` and \
                                  `trusted_proxies` of a listener, those of proxies that you name are";

/// Something that is one key of snisplice's TOML, and that the Gateway API cannot say.
#[derive(Clone, Debug)]
pub(super) struct Extra {
    pub(super) key: &'static str,
    /// As TOML.
    pub(super) value: String,
    pub(super) at: At,
    /// How the input says it; empty for what it has by default.
    pub(super) said: String,
    /// Without it more clients get in than before.
    pub(super) restricts: bool,
}

impl Extra {
    pub(super) fn new(key: &'static str, value: impl fmt::Display, at: At, said: &str) -> Self {
        let restricts = matches!(key, "allow" | "deny");
        let said = if said.is_empty() { String::new() } else { quote(said) };
        Self { key, value: value.to_string(), at, said, restricts }
    }
}

/// The name of a Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Object {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Object {
    pub(super) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The namespace of what comes from outside of a cluster.
pub(super) const NAMESPACE: &str = "default";

/// Every address of the machine.
pub(super) fn any_address(port: u16) -> Vec<(IpAddr, u16)> {
    vec![(Ipv4Addr::UNSPECIFIED.into(), port), (Ipv6Addr::UNSPECIFIED.into(), port)]
}

/// The Gateway of a configuration that knows no objects.
pub(super) fn default_gateway() -> Object {
    Object::new(NAMESPACE, "imported")
}

pub(super) fn in_default(name: &str) -> Object {
    Object::new(NAMESPACE, name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tls,
    /// PostgreSQL's request for TLS comes first.
    Postgres,
    Tcp,
}

/// Where clients arrive.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) at: At,
    pub(super) name: String,
    /// The Gateway that it becomes a part of.
    pub(super) gateway: Object,
    /// An unspecified address is every address of its family.
    pub(super) binds: Vec<(IpAddr, u16)>,
    pub(super) protocol: Protocol,
    /// The names of Istio's AUTO_PASSTHROUGH, whose routes come from the Services.
    pub(super) auto_passthrough: Vec<String>,
    pub(super) extras: Vec<Extra>,
    pub(super) notes: Vec<Note>,
}

impl Listener {
    pub(super) fn new(at: At, name: impl Into<String>, gateway: Object, protocol: Protocol) -> Self {
        Self {
            at,
            name: name.into(),
            gateway,
            binds: Vec::new(),
            protocol,
            auto_passthrough: Vec::new(),
            extras: Vec::new(),
            notes: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Certificate {
    /// `kubernetes.io/tls`.
    Secret(Object),
    /// PEM; both may be the same file.
    Files { chain: String, key: String },
    /// The input does not say which.
    Unknown,
}

/// Who may issue clients' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientCa {
    File(String),
    /// Its `ca.crt`.
    Secret(Object),
}

/// TLS ends at the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Termination {
    /// Not empty.
    pub(super) certificates: Vec<Certificate>,
    /// Clients must show a certificate.
    pub(super) client_ca: Option<ClientCa>,
}

/// Which clients of a listener go to which pools.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) at: At,
    pub(super) name: Object,
    /// Index into [`Model::listeners`].
    pub(super) listener: usize,
    /// As [`host`] gives them; empty: every name, and none.
    pub(super) hosts: Vec<String>,
    pub(super) alpn: Vec<String>,
    pub(super) tls: Option<Termination>,
    /// Indexes into [`Model::pools`], and weights.
    pub(super) backends: Vec<(usize, u32)>,
    pub(super) extras: Vec<Extra>,
    pub(super) notes: Vec<Note>,
}

impl Route {
    pub(super) fn new(at: At, name: Object, listener: usize) -> Self {
        Self {
            at,
            name,
            listener,
            hosts: Vec::new(),
            alpn: Vec::new(),
            tls: None,
            backends: Vec::new(),
            extras: Vec::new(),
            notes: Vec::new(),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) weight: u32,
    pub(super) backup: bool,
    pub(super) extras: Vec<Extra>,
}

/// A Service that selects some of another's pods, which has to be made.
#[derive(Clone, Debug)]
pub(super) struct Subset {
    pub(super) selector: BTreeMap<String, String>,
    pub(super) target_port: String,
}

#[derive(Clone, Debug)]
pub(super) enum Servers {
    Service { service: Object, port: u16, subset: Option<Subset> },
    Addresses(Vec<Server>),
}

#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) at: At,
    pub(super) name: String,
    pub(super) servers: Servers,
    pub(super) extras: Vec<Extra>,
    pub(super) notes: Vec<Note>,
}

impl Pool {
    pub(super) fn new(at: At, name: impl Into<String>, servers: Servers) -> Self {
        Self { at, name: name.into(), servers, extras: Vec::new(), notes: Vec::new() }
    }
}

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) listeners: Vec<Listener>,
    /// Those of a listener in the order in which they are asked.
    pub(super) routes: Vec<Route>,
    pub(super) pools: Vec<Pool>,
    pub(super) notes: Vec<Note>,
    /// Where the listener of a Gateway and name is.
    listener_of: HashMap<(Object, String), usize>,
    /// Where the pools of a Service and port are.
    pools_of: HashMap<(Object, u16), Vec<usize>>,
    /// What the routes are made of.
    size: usize,
}

/// Names, backends and keys of all routes together. A file can name a list once and use it in thousands of rules.
pub(super) const LARGEST: usize = 500_000;
/// Addresses of one listener.
const MOST_BINDS: usize = 64;

impl Model {
    /// Adds a route, unless there is too much already.
    pub(super) fn route(&mut self, route: Route) {
        let certificates = route.tls.as_ref().map_or(0, |tls| tls.certificates.len());
        let parts =
            [route.hosts.len(), route.alpn.len(), route.backends.len(), route.extras.len(), certificates];
        self.grow(1 + parts.iter().sum::<usize>());
        if !self.is_too_large() {
            self.routes.push(route);
        }
    }

    /// Counts this many names more.
    pub(super) fn grow(&mut self, by: usize) {
        self.size = self.size.saturating_add(by);
    }

    pub(super) fn is_too_large(&self) -> bool {
        self.size > LARGEST
    }

    /// The index of the listener of this name in a Gateway, if there is one.
    pub(super) fn known_listener(&self, gateway: &Object, name: &str) -> Option<usize> {
        self.listener_of.get(&(gateway.clone(), name.to_owned())).copied()
    }

    /// The index of the listener of this name in a Gateway, which is made if there is none.
    pub(super) fn listener(&mut self, new: Listener) -> usize {
        let next = self.listeners.len();
        let index = *self.listener_of.entry((new.gateway.clone(), new.name.clone())).or_insert(next);
        if index == next {
            self.listeners.push(new);
        }
        index
    }

    /// The index of the pool of this Service and port with the same properties.
    pub(super) fn service_pool(&mut self, new: Pool) -> usize {
        let next = self.pools.len();
        let Servers::Service { service, port, .. } = &new.servers else {
            self.pools.push(new);
            return next;
        };
        let values = |pool: &Pool| {
            pool.extras.iter().map(|extra| (extra.key, extra.value.clone())).collect::<Vec<_>>()
        };
        let known = self.pools_of.entry((service.clone(), *port)).or_default();
        let same = |index: &&usize| {
            let known = &self.pools[**index];
            known.name == new.name && values(known) == values(&new)
        };
        match known.iter().find(same).copied() {
            Some(index) => {
                self.pools[index].notes.extend(new.notes);
                index
            }
            None => {
                known.push(next);
                self.pools.push(new);
                next
            }
        }
    }

    /// Makes of it what a process outside of a cluster can serve: an address has one listener, and no Services are known.
    pub(super) fn for_one_process(&mut self) {
        for listener in &mut self.listeners {
            for host in std::mem::take(&mut listener.auto_passthrough) {
                let text = format!(
                    "AUTO_PASSTHROUGH for {}: routes of all Services, only in a cluster",
                    quote(&host)
                );
                listener.notes.push(Note::lost(listener.at, text));
            }
        }
        let mut first: BTreeMap<Vec<(IpAddr, u16)>, usize> = BTreeMap::new();
        let mut index_of = Vec::with_capacity(self.listeners.len());
        for index in 0..self.listeners.len() {
            let listener = &mut self.listeners[index];
            let (protocol, at) = (listener.protocol, listener.at);
            let kept = *first.entry(listener.binds.clone()).or_insert(index);
            index_of.push(kept);
            if kept != index {
                let mut notes = std::mem::take(&mut listener.notes);
                let name = quote(&listener.name);
                if (self.listeners[kept].protocol == Protocol::Tcp) != (protocol == Protocol::Tcp) {
                    notes.push(Note::lost(at, format!("{name}: plain TCP and TLS on one port")));
                }
                let extras = self.listeners[index].extras.clone();
                let lost = extras
                    .iter()
                    .map(|extra| Note::lost(extra.at, format!("{}: of a second listener", extra.said)));
                notes.extend(lost);
                self.listeners[kept].notes.append(&mut notes);
            }
        }
        // What is left has no list of addresses of its own, but may share one of them.
        let mut bound = HashSet::new();
        let mut kept: Vec<usize> = first.into_values().collect();
        kept.sort_unstable();
        for index in kept {
            let Listener { at, name, binds, notes, .. } = &mut self.listeners[index];
            binds.retain(|bind| {
                let is_free = bound.insert(*bind);
                if !is_free {
                    let (ip, port) = bind;
                    let text = format!("{}: another listener has {ip} port {port}", quote(name));
                    notes.push(Note::lost(*at, text));
                }
                is_free
            });
        }
        for route in &mut self.routes {
            let kept = index_of[route.listener];
            if kept != route.listener {
                let mixed = |index: usize| self.listeners[index].protocol == Protocol::Tcp;
                if mixed(kept) != mixed(route.listener) {
                    // Its listener has said so.
                    route.backends.clear();
                }
                route.listener = kept;
            }
            if self.listeners[kept].binds.is_empty() {
                route.backends.clear();
            }
            let has_servers =
                |pool: &Pool| !matches!(&pool.servers, Servers::Addresses(all) if all.is_empty());
            route.backends.retain(|&(pool, _)| has_servers(&self.pools[pool]));
        }
    }

    /// Takes away names that an earlier route has, routes without a name or server left, and listeners without a route.
    pub(super) fn tidy(&mut self) {
        let mut kept: Vec<Route> = Vec::with_capacity(self.routes.len());
        let mut taken = HashSet::new();
        // A number for each list of protocols, which may be long.
        let mut lists: HashMap<Vec<String>, usize> = HashMap::new();
        for mut route in std::mem::take(&mut self.routes) {
            let next = lists.len();
            let alpn = *lists.entry(route.alpn.clone()).or_insert(next);
            let name = quote(&route.name.name);
            let tcp = self.listeners[route.listener].protocol == Protocol::Tcp;
            if tcp || route.hosts.is_empty() {
                route.hosts = vec![ANY.to_owned()];
            }
            route.hosts.retain(|host| {
                let free = taken.insert((route.listener, alpn, host.clone()));
                if !free {
                    let what = if tcp { "this port".to_owned() } else { quote(host) };
                    let text = format!("{name}: another route has {what} already");
                    route.notes.push(Note::lost(route.at, text));
                }
                free
            });
            let mut weights: BTreeMap<usize, u32> = BTreeMap::new();
            for &(pool, weight) in &route.backends {
                let sum = weights.entry(pool).or_default();
                *sum = sum.saturating_add(weight);
            }
            let mut added = HashSet::new();
            route.backends.retain(|&(pool, _)| added.insert(pool));
            for (pool, weight) in &mut route.backends {
                *weight = weights.get(pool).copied().unwrap_or(*weight);
            }
            let served = route.backends.iter().any(|&(_, weight)| weight > 0);
            if !served {
                let text = format!(
                    "{name}: no server is left, the route is left out: one for more names may take its clients"
                );
                route.notes.push(Note::lost(route.at, text));
            }
            if route.hosts.is_empty() || !served {
                self.notes.append(&mut route.notes);
                continue;
            }
            // A route for everybody needs no other name.
            if route.hosts.iter().any(|host| host == ANY) {
                route.hosts.clear();
            }
            kept.push(route);
        }
        self.routes = kept;
        for pool in &mut self.pools {
            let Servers::Addresses(servers) = &mut pool.servers else { continue };
            let mut known = HashSet::new();
            servers.retain(|server| {
                let first = known.insert((server.host.clone(), server.port));
                if !first {
                    let text = format!("{}: {} is there already", quote(&pool.name), quote(&server.host));
                    pool.notes.push(Note::lost(pool.at, text));
                }
                first
            });
        }
        let routed: HashSet<usize> = self.routes.iter().map(|route| route.listener).collect();
        let mut new_index = Vec::with_capacity(self.listeners.len());
        let mut listeners = Vec::new();
        for (index, mut listener) in std::mem::take(&mut self.listeners).into_iter().enumerate() {
            new_index.push(listeners.len());
            if listener.binds.len() > MOST_BINDS {
                let text = format!("{}: addresses beyond the first {MOST_BINDS}", quote(&listener.name));
                listener.notes.push(Note::lost(listener.at, text));
                listener.binds.truncate(MOST_BINDS);
            }
            if routed.contains(&index) || !listener.auto_passthrough.is_empty() {
                listeners.push(listener);
            } else {
                let text = format!("{}: no route of it is left", quote(&listener.name));
                listener.notes.push(Note::left_out(listener.at, text));
                self.notes.append(&mut listener.notes);
            }
        }
        self.listeners = listeners;
        for route in &mut self.routes {
            route.listener = new_index[route.listener];
        }
    }
}

/// Every name, and none.
pub(super) const ANY: &str = "*";

/// The wildcards that cover this name, and [`ANY`].
pub(super) fn parents(host: &str) -> Vec<String> {
    if host == ANY {
        return Vec::new();
    }
    let bare = host.strip_prefix("*.").unwrap_or(host);
    let mut all: Vec<String> = bare.match_indices('.').map(|(dot, _)| format!("*{}", &bare[dot..])).collect();
    all.push(ANY.to_owned());
    all
}

/// A name or `*.` and a name, in lower case.
pub(super) fn host(text: &str) -> Option<String> {
    let (star, bare) = text.strip_prefix("*.").map_or(("", text), |bare| ("*.", bare));
    Some(format!("{star}{}", ServerName::parse(bare.as_bytes()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_covered_by_the_wildcards_above_it() {
        assert_eq!(parents("a.b.example"), ["*.b.example", "*.example", "*"]);
        assert_eq!(parents("*.b.example"), ["*.example", "*"]);
        assert_eq!(parents("*"), [""; 0]);
    }
}
