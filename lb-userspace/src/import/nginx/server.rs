//! One `server` of nginx's `stream`.

use super::map::{Map, is_name, names_of};
use super::syntax::Directive;
use super::upstream::Pools;
use crate::config::quote;
use crate::import::model::{
    ANY, At, Certificate, ClientCa, Extra, Listener, Model, Note, PROXY_FROM_ANYBODY, Protocol, Route,
    Termination, default_gateway, in_default,
};
use crate::import::values::{duration, port, server_host, timeout, toml_list, toml_string, toml_table};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// nginx's defaults of `proxy_timeout`, `proxy_connect_timeout`, `preread_timeout` and `ssl_handshake_timeout`.
const IDLE: Duration = Duration::from_mins(10);
const CONNECT: Duration = Duration::from_mins(1);
const PREREAD: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_mins(1);

/// Where all servers listen.
pub(super) struct Listeners {
    /// The listener of each list of addresses.
    known: HashMap<Vec<(IpAddr, u16)>, usize>,
    /// Ports of `[::]` that are those of IPv4, too: one server says so for all.
    of_both_families: HashSet<u16>,
    /// Addresses that have a `default_server`.
    with_default: HashSet<(IpAddr, u16)>,
}

impl Listeners {
    pub(super) fn of(servers: &[Directive]) -> Self {
        let mut listeners =
            Self { known: HashMap::new(), of_both_families: HashSet::new(), with_default: HashSet::new() };
        let lines = servers.iter().flat_map(|server| server.block.as_deref().unwrap_or_default());
        for line in lines.filter(|line| line.name() == "listen") {
            let Some(address) = line.words.get(1).and_then(|address| listen_of(address)) else { continue };
            let says = |option: &str| line.words.iter().skip(2).any(|word| word == option);
            if says("ipv6only=off") && address.0 == Ipv6Addr::UNSPECIFIED {
                listeners.of_both_families.insert(address.1);
            }
            if says("default_server") {
                listeners.with_default.insert(address);
            }
        }
        listeners
    }

    /// Adds to `[::]` what it stands for.
    fn widen(&self, listens: &mut Vec<(IpAddr, u16)>) {
        for (index, (ip, port)) in listens.clone().into_iter().enumerate().rev() {
            let v4 = (Ipv4Addr::UNSPECIFIED.into(), port);
            if ip == Ipv6Addr::UNSPECIFIED && self.of_both_families.contains(&port) && !listens.contains(&v4)
            {
                listens.insert(index, v4);
            }
        }
    }
}

#[derive(Default)]
pub(super) struct ReadServer {
    at: Option<At>,
    listens: Vec<(IpAddr, u16)>,
    ends_tls: bool,
    preread: bool,
    /// Clients whose name no server of the address has are this one's. If none says so: the first.
    default: bool,
    names: Vec<String>,
    target: Option<(At, String)>,
    chains: Vec<String>,
    keys: Vec<String>,
    authorities: Option<String>,
    verify: String,
    /// TLS toward servers.
    tls: Option<At>,
    tls_ca: Option<String>,
    tls_name: Option<String>,
    tls_verify: bool,
    allow: Vec<String>,
    deny: Vec<String>,
    /// Nobody else comes.
    closed: bool,
    /// Everybody else comes.
    open: bool,
    preread_timeout: Option<Extra>,
    handshake_timeout: Option<Extra>,
    idle_timeout: Option<Extra>,
    connect_timeout: Option<Extra>,
    send_proxy: Option<Extra>,
    pub(super) notes: Vec<Note>,
}

impl ReadServer {
    pub(super) fn new(at: At) -> Self {
        Self { at: Some(at), ..Self::default() }
    }

    fn at(&self) -> At {
        self.at.unwrap_or(At { file: 0, line: 0 })
    }

    pub(super) fn directive(&mut self, directive: &Directive) {
        let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
        let at = directive.at;
        let time = |key, text| timeout(key, duration(text, "s")?, at, &directive.said());
        match words.as_slice() {
            ["listen", address, options @ ..] => self.listen(address, options, directive),
            ["ssl_preread", value] => self.preread = *value == "on",
            ["server_name", names @ ..] => {
                for name in names {
                    match names_of(name, true) {
                        Some(hosts) => self.names.extend(hosts),
                        None => self.notes.push(directive.unknown()),
                    }
                }
            }
            ["proxy_pass", target] => self.target = Some((at, (*target).to_owned())),
            ["proxy_timeout", text] => self.idle_timeout = time("idle_timeout", text),
            ["proxy_connect_timeout", text] => self.connect_timeout = time("connect_timeout", text),
            ["preread_timeout", text] => self.preread_timeout = time("hello_timeout", text),
            ["ssl_handshake_timeout", text] => self.handshake_timeout = time("hello_timeout", text),
            ["proxy_protocol", "on"] => {
                self.send_proxy = Some(Extra::new("send_proxy", "\"v1\"", at, &directive.said()));
            }
            ["ssl_certificate", file] => self.chains.push((*file).to_owned()),
            ["ssl_certificate_key", file] => self.keys.push((*file).to_owned()),
            ["ssl_client_certificate", file] => self.authorities = Some((*file).to_owned()),
            ["ssl_verify_client", value] => self.verify = (*value).to_owned(),
            ["proxy_ssl", value] => self.tls = (*value == "on").then_some(at),
            ["proxy_ssl_trusted_certificate", file] => self.tls_ca = Some((*file).to_owned()),
            ["proxy_ssl_name", name] if server_host(name).is_some() => self.tls_name = server_host(name),
            ["proxy_ssl_verify", value] => self.tls_verify = *value == "on",
            ["proxy_ssl_server_name" | "proxy_ssl_session_reuse", _] => {}
            ["proxy_protocol" | "proxy_half_close", "off"] => {}
            // Nobody gets as far as the rules behind `deny all` or `allow all`.
            ["allow" | "deny", _] if self.closed || self.open => {}
            ["allow" | "deny", network] => self.access(words[0], network, directive),
            ["proxy_next_upstream" | "proxy_next_upstream_tries" | "proxy_next_upstream_timeout", ..] => {
                self.notes.push(directive.aside());
            }
            _ if directive.is_aside() => self.notes.push(directive.aside()),
            _ => self.notes.push(directive.unknown()),
        }
    }

    /// The first rule that fits counts. Lists here: those who may not come, and of the others those who may.
    fn access(&mut self, verb: &str, network: &str, directive: &Directive) {
        let good = network.parse::<IpAddr>().is_ok() || network.parse::<ipnet::IpNet>().is_ok();
        match verb {
            "deny" if network == "all" => self.closed = true,
            "deny" if good && self.allow.is_empty() => self.deny.push(network.to_owned()),
            "allow" if good => self.allow.push(network.to_owned()),
            "allow" if network == "all" => self.open = true,
            _ => {
                let text = format!("{}: not taken over (restricts who may connect)", directive.quoted());
                self.notes.push(Note::lost(directive.at, text));
            }
        }
    }

    fn listen(&mut self, address: &str, options: &[&str], directive: &Directive) {
        let Some(address) = listen_of(address) else {
            let text = format!("{}: no TCP address and port", directive.quoted());
            return self.notes.push(Note::lost(directive.at, text));
        };
        for option in options {
            let note = match option.split('=').next().unwrap_or_default() {
                "udp" => {
                    let text = format!("{}: UDP", directive.quoted());
                    return self.notes.push(Note::lost(directive.at, text));
                }
                "ssl" => {
                    self.ends_tls = true;
                    continue;
                }
                "proxy_protocol" => PROXY_FROM_ANYBODY.to_owned(),
                "default_server" => {
                    self.default = true;
                    continue;
                }
                "reuseport" | "bind" | "backlog" | "rcvbuf" | "sndbuf" | "so_keepalive" | "fastopen"
                | "ipv6only" | "deferred" => continue,
                _ => quote(option),
            };
            self.notes.push(Note::lost(directive.at, format!("{}: {note}", directive.quoted())));
        }
        self.listens.push(address);
    }

    pub(super) fn finish(
        mut self,
        maps: &BTreeMap<String, Map>,
        pools: &mut Pools<'_>,
        listeners: &mut Listeners,
        model: &mut Model,
    ) {
        let Some((at, target)) = self.target.take().filter(|_| !self.listens.is_empty()) else {
            if self.notes.is_empty() {
                self.notes.push(Note::lost(self.at(), "a server without an address, or without proxy_pass"));
            }
            return model.notes.append(&mut self.notes);
        };
        if self.closed && self.allow.is_empty() {
            self.notes.push(Note::left_out(self.at(), "a server that denies everybody"));
            return model.notes.append(&mut self.notes);
        }
        // Names and where each leads.
        let choices = if let Some(map) = maps.get(&target) {
            if !is_name(&map.source) {
                let text = format!(
                    "proxy_pass {}: a map of {}, not of the SNI; only its default is taken over",
                    quote(&target),
                    quote(&map.source)
                );
                self.notes.push(Note::lost(at, text));
            }
            model.grow(map.entries.iter().map(|(_, hosts, _)| hosts.len()).sum());
            if model.is_too_large() {
                return;
            }
            map.entries.clone()
        } else if target.contains('$') {
            let text = format!("proxy_pass {}: only the variable of a map is taken over", quote(&target));
            self.notes.push(Note::lost(at, text));
            return model.notes.append(&mut self.notes);
        } else {
            vec![(at, vec![ANY.to_owned()], target)]
        };
        listeners.widen(&mut self.listens);
        let is_with_default = |address| listeners.with_default.contains(address);
        let has_default = self.listens.iter().any(is_with_default);
        if !self.default && self.names.is_empty() && self.listens.iter().all(is_with_default) {
            let text = "a server without names: clients of this address go to its default_server";
            self.notes.push(Note::left_out(self.at(), text));
            return model.notes.append(&mut self.notes);
        }
        let by_name = !self.names.is_empty()
            || choices.iter().any(|(_, hosts, _)| hosts.iter().any(|host| host != ANY));
        let next = model.listeners.len();
        let listener = self.listener(by_name, &mut listeners.known, model);
        self.default |= listener == next && !has_default;
        let tls = self.ends_tls.then(|| self.termination());
        let keys = self.pool_keys();
        // The names of a pool are one route.
        let mut of_pool: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, mut hosts, target) in choices {
            let Some(pool) = pools.get(&target, at, &keys, model) else {
                // An empty value is how maps refuse a client.
                if !target.is_empty() {
                    let text = format!("{}: neither an upstream nor an address and port", quote(&target));
                    self.notes.push(Note::lost(at, text));
                }
                continue;
            };
            let any = hosts.iter().any(|host| host == ANY);
            if any && !self.names.is_empty() {
                if self.default {
                    self.route(at, vec![ANY.to_owned()], tls.clone(), pool, listener, model);
                }
                hosts.clone_from(&self.names);
            } else if let (Some(&known), false) = (of_pool.get(&pool), any) {
                model.routes[known].hosts.append(&mut hosts);
                continue;
            }
            if !any {
                of_pool.insert(pool, model.routes.len());
            }
            self.route(at, hosts, tls.clone(), pool, listener, model);
            if model.is_too_large() {
                return;
            }
        }
        model.listeners[listener].notes.append(&mut self.notes);
    }

    fn route(
        &self,
        at: At,
        hosts: Vec<String>,
        tls: Option<Termination>,
        pool: usize,
        listener: usize,
        model: &mut Model,
    ) {
        let mut route = Route::new(at, in_default(&model.pools[pool].name), listener);
        (route.hosts, route.tls, route.backends) = (hosts, tls, vec![(pool, 1)]);
        route.extras.extend(self.idle_timeout.clone().or_else(|| timeout("idle_timeout", IDLE, at, "")));
        model.route(route);
    }

    /// What it says of connections to servers.
    fn pool_keys(&mut self) -> Vec<Extra> {
        let connect_timeout =
            self.connect_timeout.take().or_else(|| timeout("connect_timeout", CONNECT, self.at(), ""));
        let mut keys: Vec<_> = connect_timeout.into_iter().chain(self.send_proxy.take()).collect();
        if let Some(at) = self.tls {
            let ca = self.tls_ca.as_deref().map(|file| format!("ca = {}", toml_string(file)));
            let name = self.tls_name.as_deref().map(|name| format!("server_name = {}", toml_string(name)));
            let parts: Vec<_> = ca.into_iter().chain(name).collect();
            keys.push(Extra::new("tls", toml_table(&parts), at, "proxy_ssl on"));
            if !self.tls_verify {
                let text = "`proxy_ssl on`: certificates of servers are verified here";
                self.notes.push(Note::lost(at, text));
            }
        }
        keys
    }

    /// Servers of the same addresses are one listener: nginx tells them apart by `server_name`.
    fn listener(
        &mut self,
        by_name: bool,
        known: &mut HashMap<Vec<(IpAddr, u16)>, usize>,
        model: &mut Model,
    ) -> usize {
        let at = self.at();
        let protocol = if by_name || self.ends_tls || self.preread { Protocol::Tls } else { Protocol::Tcp };
        let mut extras: Vec<Extra> = Vec::new();
        if protocol == Protocol::Tls {
            let (said, default) = match self.ends_tls {
                true => (self.handshake_timeout.take(), HANDSHAKE),
                false => (self.preread_timeout.take(), PREREAD),
            };
            extras.extend(said.or_else(|| timeout("hello_timeout", default, at, "")));
        }
        if self.closed {
            extras.push(Extra::new("allow", toml_list(&self.allow), at, "allow"));
        }
        if !self.deny.is_empty() {
            extras.push(Extra::new("deny", toml_list(&self.deny), at, "deny"));
        }
        if let Some(&index) = known.get(&self.listens) {
            let first = &model.listeners[index].extras;
            let said = |extras: &[Extra]| {
                let said = extras.iter().filter(|extra| !extra.said.is_empty());
                said.map(|extra| (extra.key, extra.value.clone())).collect::<Vec<_>>()
            };
            if said(&extras) != said(first) {
                let text = "a second server of one address: only the first one's times and lists of clients are taken \
                            over (restricts who may connect)";
                self.notes.push(Note::lost(at, text));
            }
            return index;
        }
        let name = format!("port-{}", self.listens[0].1);
        let mut listener = Listener::new(at, name, default_gateway(), protocol);
        (listener.binds, listener.extras) = (std::mem::take(&mut self.listens), extras);
        known.insert(listener.binds.clone(), model.listeners.len());
        model.listeners.push(listener);
        model.listeners.len() - 1
    }

    fn termination(&mut self) -> Termination {
        let files = std::mem::take(&mut self.chains).into_iter().zip(std::mem::take(&mut self.keys));
        let mut certificates: Vec<_> = files.map(|(chain, key)| Certificate::Files { chain, key }).collect();
        if certificates.is_empty() {
            certificates.push(Certificate::Unknown);
        }
        let client_ca = self.authorities.take().filter(|_| self.verify == "on").map(ClientCa::File);
        if !matches!(self.verify.as_str(), "" | "off") && client_ca.is_none() {
            let text = format!(
                "ssl_verify_client {}: not taken over (restricts who may connect)",
                quote(&self.verify)
            );
            self.notes.push(Note::lost(self.at(), text));
        }
        Termination { certificates, client_ca }
    }
}

/// `443`, `10.0.0.1:443`, `*:443`, `[::]:443`.
fn listen_of(text: &str) -> Option<(IpAddr, u16)> {
    let (host, number) = text.rsplit_once(':').unwrap_or(("*", text));
    let port = port(number)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare {
        "*" => Some((Ipv4Addr::UNSPECIFIED.into(), port)),
        "::" => Some((Ipv6Addr::UNSPECIFIED.into(), port)),
        bare => Some((bare.parse().ok()?, port)),
    }
}
