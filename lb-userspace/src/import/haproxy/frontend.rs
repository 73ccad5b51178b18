//! HAProxy's frontends: where they listen, and which clients they send where.

use super::backend::{Backend, is_for_backend};
use super::bases::Bases;
use super::condition::{self, Acls, Condition, Matching, Term};
use super::section::{Section, Settings, idle_timeout};
use crate::config::quote;
use crate::import::auxiliary::Auxiliary;
use crate::import::model::{
    ANY, At, Certificate, ClientCa, Extra, LARGEST, Listener, Model, Note, PROXY_FROM_ANYBODY, Protocol,
    Route, Termination, default_gateway, in_default, parents,
};
use crate::import::values::{duration, port, timeout, toml_list};
use crate::import::words::{Line, lines};
use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What all frontends share.
pub(super) struct Known<'r, 'a> {
    pub(super) bases: &'r Bases,
    pub(super) backends: &'r BTreeMap<&'a str, Backend>,
    /// Addresses that any `bind` says.
    pub(super) said: &'r HashSet<(IpAddr, u16)>,
}

/// A rule that sends clients to a backend.
struct Rule {
    at: At,
    said: String,
    /// [`ANY`] among them: everybody.
    hosts: Vec<String>,
    /// Only those of clients that begin with TLS.
    of_tls: bool,
    backend: String,
}

struct Bind {
    line: Line,
    addresses: Vec<(IpAddr, u16)>,
    tls: Option<Termination>,
}

pub(super) struct Frontend<'r, 'a, 'x> {
    section: &'r Section<'a>,
    settings: Settings,
    known: Known<'r, 'a>,
    used: &'r mut HashSet<String>,
    auxiliary: &'r mut Auxiliary<'x>,
    acls: Acls,
    binds: Vec<Bind>,
    rules: Vec<Rule>,
    /// Names of all rules.
    size: usize,
    /// Of the listener.
    extras: Vec<Extra>,
    /// Clients that do not begin with TLS are refused before any rule.
    refuses_others: bool,
    notes: Vec<Note>,
}

impl<'r, 'a, 'x> Frontend<'r, 'a, 'x> {
    pub(super) fn new(
        section: &'r Section<'a>,
        settings: Settings,
        known: Known<'r, 'a>,
        used: &'r mut HashSet<String>,
        auxiliary: &'r mut Auxiliary<'x>,
    ) -> Self {
        Self {
            section,
            settings,
            known,
            used,
            auxiliary,
            acls: Acls::default(),
            binds: Vec::new(),
            rules: Vec::new(),
            size: 0,
            extras: Vec::new(),
            refuses_others: false,
            notes: Vec::new(),
        }
    }

    /// Takes it over, as a listener for each way in which it ends TLS.
    pub(super) fn read(mut self, model: &mut Model) {
        self.read_lines();
        self.finish(model);
    }

    fn read_lines(&mut self) {
        let section = self.section;
        for line in &section.lines {
            let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["acl", name, rest @ ..] => self.acls.add(name, rest, line, self.auxiliary, &mut self.notes),
                ["bind", address, options @ ..] => self.bind(address, options, line),
                ["use_backend", target, rest @ ..] => self.use_backend(target, rest, line),
                ["tcp-request", rest @ ..] => self.tcp_request(rest, line),
                // Those of `listen` that its backend has read.
                _ if is_for_backend(&words) && section.kind == "listen" => {}
                _ => {
                    if !self.settings.read(line, &mut self.notes) {
                        self.notes.push(line.unknown());
                    }
                }
            }
        }
    }

    fn bind(&mut self, address: &str, options: &[&str], line: &Line) {
        let mut addresses = Vec::new();
        for part in address.split(',') {
            match address_of(part) {
                Some(address) => {
                    // What listens on `::` has IPv4, too, unless something else listens there.
                    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
                    let implied = (v4.into(), address.1);
                    if address.0 == v6 && !options.contains(&"v6only") && !self.known.said.contains(&implied)
                    {
                        addresses.push(implied);
                    }
                    addresses.push(address);
                }
                None => {
                    let text = format!("{}: {} is no address and port", line.quoted(), quote(part));
                    self.notes.push(Note::lost(line.at, text));
                }
            }
        }
        let bases = self.known.bases;
        let (mut ssl, mut certificates, mut authorities, mut verify) = (false, Vec::new(), None, "none");
        let mut rest = options.iter();
        while let Some(option) = rest.next() {
            match *option {
                "ssl" => ssl = true,
                "crt" => {
                    let file = bases.certificate(rest.next().unwrap_or(&""));
                    if file.ends_with('/') {
                        let text = format!("{}: a directory of certificates; name the files", line.quoted());
                        self.notes.push(Note::lost(line.at, text));
                    } else {
                        certificates.push(Certificate::Files { chain: file.clone(), key: file });
                    }
                }
                "ca-file" => {
                    authorities = rest.next().and_then(|file| bases.authorities(file)).map(ClientCa::File);
                }
                "verify" => verify = rest.next().unwrap_or(&"none"),
                "accept-proxy" => {
                    let text = format!("{}: {PROXY_FROM_ANYBODY}", line.quoted());
                    self.notes.push(Note::lost(line.at, text));
                }
                "v4v6" | "v6only" | "transparent" | "defer-accept" | "tfo" | "allow-0rtt" => {}
                "name" | "backlog" | "process" | "thread" | "shards" | "level" | "user" | "group"
                | "mode" | "nice" | "mss" | "tcp-ut" | "id" => _ = rest.next(),
                other => {
                    let text = format!("{}: {} of `bind`", line.quoted(), quote(other));
                    self.notes.push(Note::lost(line.at, text));
                    // Its value, if it has one.
                    if [
                        "alpn",
                        "ciphers",
                        "ciphersuites",
                        "curves",
                        "ecdhe",
                        "ssl-min-ver",
                        "ssl-max-ver",
                        "crt-list",
                        "crl-file",
                        "interface",
                        "namespace",
                        "maxconn",
                        "npn",
                        "ca-verify-file",
                        "sigalgs",
                    ]
                    .contains(&other)
                    {
                        rest.next();
                    }
                }
            }
        }
        let client_ca = match verify {
            "required" => authorities,
            "optional" => {
                let text = format!("{}: optional client certificates", line.quoted());
                self.notes.push(Note::lost(line.at, text));
                None
            }
            _ => None,
        };
        if verify == "required" && client_ca.is_none() {
            let text = format!(
                "{}: verify without a file of authorities (restricts who may connect)",
                line.quoted()
            );
            self.notes.push(Note::lost(line.at, text));
        }
        if certificates.is_empty() {
            certificates.push(Certificate::Unknown);
        }
        if !addresses.is_empty() {
            let tls = ssl.then_some(Termination { certificates, client_ca });
            self.binds.push(Bind { line: line.clone(), addresses, tls });
        }
    }

    fn use_backend(&mut self, target: &str, rest: &[&str], line: &Line) {
        if let Some(expression) = target.strip_prefix("%[").and_then(|text| text.strip_suffix(']')) {
            return self.use_mapped(expression, rest, line);
        }
        if target.contains('%') {
            return self.notes.push(line.unknown());
        }
        let condition = Condition::read(rest, &self.acls, line, self.auxiliary, &mut self.notes);
        let of_tls = condition.as_ref().is_some_and(Condition::is_of_tls);
        let Some(hosts) = condition.and_then(|condition| condition.names()) else {
            let text =
                format!("{}: only conditions on the SNI are taken over, the rule is left out", line.quoted());
            return self.notes.push(Note::lost(line.at, text));
        };
        self.size += hosts.len();
        if self.size <= LARGEST {
            let (at, said, backend) = (line.at, line.quoted(), target.to_owned());
            self.rules.push(Rule { at, said, hosts, of_tls, backend });
        }
    }

    /// `req.ssl_sni,lower,map(FILE,DEFAULT)`.
    fn use_mapped(&mut self, expression: &str, rest: &[&str], line: &Line) {
        let parsed = || {
            let (fetch, map) = expression.split_once(",map").filter(|_| rest.is_empty())?;
            let fetch = fetch.strip_suffix(",lower").unwrap_or(fetch);
            let (kind, arguments) = map.split_once('(')?;
            let arguments = arguments.strip_suffix(')')?;
            let (file, default) = arguments.split_once(',').map_or((arguments, None), |(f, d)| (f, Some(d)));
            let matching = match kind {
                "" | "_str" => Matching::Exact,
                "_end" => Matching::End,
                "_dom" => Matching::Domain,
                _ => return None,
            };
            condition::is_sni(fetch).then_some((matching, file, default))
        };
        let Some((matching, file, default)) = parsed() else { return self.notes.push(line.unknown()) };
        let Some((index, text)) = self.auxiliary.take(file) else {
            let text = format!("{}: give this file, too", quote(file));
            return self.notes.push(Note::lost(line.at, text));
        };
        for entry in lines(text, index) {
            let [key, backend] = entry.words.as_slice() else {
                self.notes.push(entry.unknown());
                continue;
            };
            match condition::pattern(key, matching) {
                Some((hosts, exact)) => {
                    if !exact {
                        self.notes.push(Note::lost(
                            entry.at,
                            format!("{}: only as a whole domain", entry.quoted()),
                        ));
                    }
                    let said = entry.quoted();
                    self.size += hosts.len();
                    if self.size > LARGEST {
                        return;
                    }
                    let backend = backend.clone();
                    self.rules.push(Rule { at: entry.at, said, hosts, of_tls: true, backend });
                }
                None => self.notes.push(entry.unknown()),
            }
        }
        if let Some(default) = default {
            let (hosts, said) = (vec![ANY.to_owned()], line.quoted());
            self.rules.push(Rule { at: line.at, said, hosts, of_tls: true, backend: default.to_owned() });
        }
    }

    fn tcp_request(&mut self, words: &[&str], line: &Line) {
        match words {
            ["inspect-delay", time] => match duration(time, "ms") {
                // The last of them counts.
                Some(time) => {
                    self.extras.retain(|extra| extra.key != "hello_timeout");
                    self.extras.extend(timeout("hello_timeout", time, line.at, &line.said()));
                }
                None => self.notes.push(line.unknown()),
            },
            [_, verb @ ("accept" | "reject"), rest @ ..] => {
                let condition = Condition::read(rest, &self.acls, line, self.auxiliary, &mut self.notes);
                let networks = match condition.as_ref().and_then(Condition::single) {
                    // A client without a ClientHello is refused here, and one that has sent it is let in.
                    Some((positive, Term::Hello)) if positive == (*verb == "accept") => {
                        self.refuses_others |= *verb == "reject";
                        return;
                    }
                    // What no name or rule takes is refused here.
                    None if *verb == "reject" && rest.is_empty() => {
                        self.refuses_others = true;
                        return;
                    }
                    Some((positive, Term::Source(networks))) if *verb == "reject" => {
                        let key = if positive { "deny" } else { "allow" };
                        Some((key, toml_list(&networks)))
                    }
                    _ => None,
                };
                match networks {
                    Some((key, _)) if self.extras.iter().any(|extra| extra.key == key) => {
                        let text = format!("{}: a second list (restricts who may connect)", line.quoted());
                        self.notes.push(Note::lost(line.at, text));
                    }
                    Some((key, value)) => self.extras.push(Extra::new(key, value, line.at, &line.said())),
                    None => {
                        let text = format!("{}: not taken over (restricts who may connect)", line.quoted());
                        self.notes.push(Note::lost(line.at, text));
                    }
                }
            }
            _ => self.notes.push(line.unknown()),
        }
    }

    fn finish(mut self, model: &mut Model) {
        let kind = self.section.kind;
        let name = self.section.name;
        model.grow(self.size);
        if model.is_too_large() {
            return;
        }
        if self.settings.http {
            let what = quote(&format!("{kind} {name}"));
            let text = format!("{what}: HTTP, only mode tcp is taken over");
            return model.notes.push(Note::lost(self.section.at, text));
        }
        if let Some((at, backend)) = self.settings.default_backend.take() {
            let said = quote(&format!("default_backend {backend}"));
            self.rules.push(Rule { at, said, hosts: vec![ANY.to_owned()], of_tls: false, backend });
        }
        if kind == "listen" && self.known.backends.contains_key(name) {
            let (hosts, said) = (vec![ANY.to_owned()], quote(&format!("listen {name}")));
            let at = self.section.at;
            self.rules.push(Rule { at, said, hosts, of_tls: false, backend: name.to_owned() });
        }
        self.extras.extend(self.settings.max_connections.take());
        // Binds that end TLS in different ways are listeners of their own.
        let mut groups: Vec<Bind> = Vec::new();
        for bind in std::mem::take(&mut self.binds) {
            match groups.iter_mut().find(|known| known.tls == bind.tls) {
                Some(known) => known.addresses.extend(bind.addresses),
                None => groups.push(bind),
            }
        }
        let several = groups.len() > 1;
        for (index, Bind { line, addresses, tls }) in groups.into_iter().enumerate() {
            let own = if several { format!("{name}-{}", index + 1) } else { name.to_owned() };
            let by_hello =
                self.rules.iter().any(|rule| rule.of_tls || rule.hosts.iter().any(|host| host != ANY));
            let protocol = if tls.is_some() || by_hello { Protocol::Tls } else { Protocol::Tcp };
            let at = if several { line.at } else { self.section.at };
            let mut listener = Listener::new(at, own, default_gateway(), protocol);
            // Lists of networks may be long, and each listener has them.
            model.grow(self.extras.iter().map(|extra| extra.value.len() / 16).sum());
            if model.is_too_large() {
                return;
            }
            (listener.binds, listener.extras) = (addresses, self.extras.clone());
            if protocol == Protocol::Tcp {
                listener.extras.retain(|extra| extra.key != "hello_timeout");
            }
            listener.notes = std::mem::take(&mut self.notes);
            model.listeners.push(listener);
            let index = model.listeners.len() - 1;
            self.routes(index, tls.as_ref(), model);
        }
        model.notes.append(&mut self.notes);
    }

    /// The rules in their order: the first that fits takes a client, so a later one has what no earlier one covers.
    fn routes(&mut self, listener: usize, tls: Option<&Termination>, model: &mut Model) {
        let mut taken: HashSet<String> = HashSet::new();
        let mut of_backend: BTreeMap<String, usize> = BTreeMap::new();
        // Nothing more is to be said of clients that do not begin with TLS.
        let mut without_tls =
            self.refuses_others || tls.is_some() || model.listeners[listener].protocol == Protocol::Tcp;
        for rule in &self.rules {
            let Some(backend) = self.known.backends.get(rule.backend.as_str()) else {
                let text = format!("{}: there is no such backend", rule.said);
                model.notes.push(Note::lost(rule.at, text));
                continue;
            };
            self.used.insert(rule.backend.clone());
            let any = rule.hosts.iter().any(|host| host == ANY);
            if any && !rule.of_tls && !std::mem::replace(&mut without_tls, true) {
                let text = format!("{}: clients that do not begin with TLS are refused", rule.said);
                model.notes.push(Note::lost(rule.at, text));
            }
            let mut hosts = Vec::new();
            for host in &rule.hosts {
                if parents(host).iter().chain([host]).any(|host| taken.contains(host)) {
                    let text = format!("{}: an earlier rule takes {}", rule.said, quote(host));
                    model.notes.push(Note::left_out(rule.at, text));
                } else {
                    hosts.push(host.clone());
                }
            }
            taken.extend(hosts.iter().cloned());
            if hosts.is_empty() {
                continue;
            }
            // A backend's rules are one route, unless one of them is for everybody.
            let any = hosts.iter().any(|host| host == ANY);
            if let (Some(&known), false) = (of_backend.get(&rule.backend), any) {
                model.grow(hosts.len());
                if model.is_too_large() {
                    return;
                }
                model.routes[known].hosts.append(&mut hosts);
                continue;
            }
            let pool = backend.pool(&rule.backend, model);
            let mut route = Route::new(rule.at, in_default(&rule.backend), listener);
            (route.hosts, route.tls, route.backends) = (hosts, tls.cloned(), vec![(pool, 1)]);
            route.extras.extend(idle_timeout(&self.settings, &backend.settings));
            if !any {
                of_backend.insert(rule.backend.clone(), model.routes.len());
            }
            model.route(route);
        }
    }
}

/// The addresses that a section's `bind` lines say.
pub(super) fn said_addresses(section: &Section<'_>) -> Vec<(IpAddr, u16)> {
    let binds = section.lines.iter().filter(|line| line.words.first().is_some_and(|word| word == "bind"));
    let parts = binds.filter_map(|line| line.words.get(1)).flat_map(|addresses| addresses.split(','));
    parts.filter_map(address_of).collect()
}

/// `*:443`, `:443`, `10.0.0.1:443`, `:::443`, `[::]:443`, `ipv4@…`, `ipv6@…`.
fn address_of(text: &str) -> Option<(IpAddr, u16)> {
    let v6 = text.strip_prefix("ipv6@");
    let text = v6.or_else(|| text.strip_prefix("ipv4@")).unwrap_or(text);
    let (host, number) = text.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = match host {
        "" | "*" if v6.is_some() => Ipv6Addr::UNSPECIFIED.into(),
        "" | "*" => Ipv4Addr::UNSPECIFIED.into(),
        host => host.parse().ok()?,
    };
    Some((address, port(number)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_haproxy_writes_them() {
        let read = |text| address_of(text).map(|(ip, port)| format!("{ip} {port}"));
        for (text, expected) in [
            ("*:443", "0.0.0.0 443"),
            (":443", "0.0.0.0 443"),
            ("ipv4@:443", "0.0.0.0 443"),
            (":::443", ":: 443"),
            ("ipv6@*:443", ":: 443"),
            ("[2001:db8::1]:443", "2001:db8::1 443"),
        ] {
            assert_eq!(read(text).as_deref(), Some(expected), "{text}");
        }
        for other in
            ["", "443", "*:0", "*:+443", "*:100-200", "/run/socket", "abns@name", "${HOST}:443", "fd@3"]
        {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
