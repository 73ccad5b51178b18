//! Traefik: IngressRouteTCP, MiddlewareTCP, and the entry points of its static configuration.

use super::model::{
    ANY, At, Certificate, Extra, LARGEST, Listener, Model, Note, Object, Pool, Protocol, Route, Servers,
    Termination, host,
};
use super::objects::{Cluster, Manifest, is_object_name};
use super::values::toml_list;
use super::yaml::{Fields, Item};
use crate::config::quote;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const GROUPS: [&str; 2] = ["traefik.io", "traefik.containo.us"];

/// The Gateway of all entry points, in the namespace of the first route.
const GATEWAY: &str = "traefik";

/// Where an entry point listens.
pub(super) struct EntryPoint {
    bind: Vec<(IpAddr, u16)>,
    extras: Vec<Extra>,
    notes: Vec<Note>,
    is_guess: bool,
}

/// Entry points whose ports are guessed, at most.
const MOST_GUESSES: usize = 1000;

pub(super) type EntryPoints = BTreeMap<String, EntryPoint>;

/// The entry points of a static configuration.
pub(super) fn entry_points(fields: &Fields<'_>, into: &mut EntryPoints, notes: &mut Vec<Note>) {
    let points = fields.map("entryPoints").map(|points| points.all()).unwrap_or_default();
    for (name, item) in points {
        let Some(point) = item.fields() else { continue };
        let (mut extras, mut own) = (Vec::new(), Vec::new());
        let address = point.text("address").unwrap_or_default();
        let Some(bind) = address_of(address) else {
            item.lost("it has no TCP address", notes);
            continue;
        };
        if let Some(proxy) = point.map("proxyProtocol") {
            let trusted = proxy.texts("trustedIPs");
            if trusted.is_empty() {
                own.push(Note::lost(proxy.at(), "PROXY headers of anybody: only of those in trustedIPs"));
            } else {
                let said = format!("entryPoints.{name}.proxyProtocol");
                extras.push(Extra::new("proxy_protocol", true, proxy.at(), &said));
                let value = toml_list(&trusted);
                extras.push(Extra::new("trusted_proxies", value, proxy.at(), &said));
            }
            proxy.rest(&mut own);
        }
        point.ignore(&["asDefault"]);
        point.rest(&mut own);
        into.insert(name.to_owned(), EntryPoint { bind, extras, notes: own, is_guess: false });
    }
    for (key, item) in fields.all() {
        if key != "entryPoints" {
            notes.push(Note::left_out(item.at, format!("{}: of Traefik itself", item.said())));
        }
    }
}

/// `[HOST]:PORT[/tcp]`.
fn address_of(text: &str) -> Option<Vec<(IpAddr, u16)>> {
    let (host, port) = text.strip_suffix("/tcp").unwrap_or(text).rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port > 0)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Some(vec![(Ipv4Addr::UNSPECIFIED.into(), port), (Ipv6Addr::UNSPECIFIED.into(), port)]);
    }
    Some(vec![(host.parse().ok()?, port)])
}

/// Takes over what the cluster has of Traefik.
pub(super) fn read(cluster: &Cluster<'_>, mut points: EntryPoints, model: &mut Model) {
    let ours = || cluster.objects.iter().filter(|object| GROUPS.contains(&object.group));
    let Some(first) = ours().find(|object| object.kind == "IngressRouteTCP") else {
        for object in ours() {
            unknown(object, &mut model.notes);
        }
        return;
    };
    let middlewares: HashMap<&Object, &Manifest<'_>> =
        ours().filter(|object| object.kind == "MiddlewareTCP").map(|object| (&object.name, object)).collect();
    let gateway = Object::new(&first.name.namespace, GATEWAY);
    for object in ours() {
        match object.kind {
            "IngressRouteTCP" => {
                Reader { cluster, middlewares: &middlewares, gateway: &gateway, object }
                    .read(&mut points, model);
            }
            "MiddlewareTCP" => {}
            _ => unknown(object, &mut model.notes),
        }
    }
}

fn unknown(object: &Manifest<'_>, notes: &mut Vec<Note>) {
    let text = format!("{} {}: not taken over", quote(object.kind), object.name);
    notes.push(Note::lost(object.fields.at(), text));
}

struct Reader<'r, 'a> {
    cluster: &'r Cluster<'a>,
    middlewares: &'r HashMap<&'r Object, &'r Manifest<'a>>,
    gateway: &'r Object,
    object: &'r Manifest<'a>,
}

impl Reader<'_, '_> {
    fn read(&self, points: &mut EntryPoints, model: &mut Model) {
        let Some(spec) = self.object.fields.map("spec") else {
            return model.notes.push(Note::lost(self.object.fields.at(), "an IngressRouteTCP without spec"));
        };
        let mut notes = Vec::new();
        let mut names = spec.texts("entryPoints");
        if names.is_empty() {
            let text = "no entryPoints: `websecure` is taken, Traefik takes all default ones";
            notes.push(Note::to_do(spec.at(), text));
            names.push("websecure");
        }
        let tls = spec.map("tls").map(|tls| self.tls(&tls, &mut notes));
        let rules = spec.list("routes");
        spec.rest(&mut notes);
        let several = rules.len() > 1;
        let first = model.routes.len();
        for (index, rule) in rules.iter().enumerate() {
            let name = format!("{}-{}", self.object.name.name, index + 1);
            let name = if several { name } else { self.object.name.name.clone() };
            self.rule(rule, &name, tls.as_ref(), &names, points, model, &mut notes);
        }
        match model.routes.get_mut(first) {
            Some(route) => route.notes.append(&mut notes),
            None => model.notes.append(&mut notes),
        }
    }

    /// Who ends TLS; none: the server.
    fn tls(&self, tls: &Fields<'_>, notes: &mut Vec<Note>) -> Option<Termination> {
        tls.ignore(&["domains"]);
        let passthrough = tls.is_true("passthrough");
        let secret = tls.text("secretName").filter(|name| is_object_name(name));
        if let Some(resolver) = tls.text("certResolver") {
            let text = format!(
                "certificates by ACME (`certResolver: {}`): let cert-manager make the Secret",
                resolver.escape_debug()
            );
            notes.push(Note::lost(tls.at(), text));
        }
        if let Some(options) = tls.peek("options") {
            tls.ignore(&["options"]);
            options.lost("versions, suites and client certificates (restricts who may connect)", notes);
        }
        tls.rest(notes);
        let certificate = secret.map_or(Certificate::Unknown, |name| {
            Certificate::Secret(Object::new(&self.object.name.namespace, name))
        });
        (!passthrough).then(|| Termination { certificates: vec![certificate], client_ca: None })
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one rule, at its only call")]
    fn rule(
        &self,
        item: &Item<'_>,
        name: &str,
        tls: Option<&Option<Termination>>,
        entry_points: &[&str],
        points: &mut EntryPoints,
        model: &mut Model,
        notes: &mut Vec<Note>,
    ) {
        let Some(rule) = item.fields() else { return item.lost("not a rule", notes) };
        let text = rule.text("match").unwrap_or_default();
        let Some((hosts, alpn)) = matched(text) else {
            let text =
                format!("{}: only HostSNI (and ALPN) are taken over, the rule is left out", quote(text));
            return notes.push(Note::lost(item.at, text));
        };
        if tls.is_none() && hosts != [ANY] {
            let text = format!("{}: names without TLS, the rule is left out", quote(text));
            return notes.push(Note::lost(item.at, text));
        }
        rule.ignore(&["kind", "syntax"]);
        let object = Object::new(&self.object.name.namespace, name);
        let mut route = Route::new(item.at, object, 0);
        (route.alpn, route.tls) = (alpn, tls.cloned().flatten());
        route.hosts = hosts;
        let services = rule.list("services");
        for service in &services {
            match self.service(service, model, &mut route.notes) {
                Some(backend) => route.backends.push(backend),
                None => service.lost("a Service and a port number are needed", &mut route.notes),
            }
        }
        for middleware in rule.list("middlewares") {
            self.middleware(&middleware, &mut route);
        }
        rule.rest(&mut route.notes);
        for (index, name) in entry_points.iter().enumerate() {
            let mut route = route.clone();
            if index > 0 {
                route.notes.clear();
            }
            let ports = route.backends.iter().filter_map(|&(pool, _)| match &model.pools[pool].servers {
                Servers::Service { port, .. } => Some(*port),
                Servers::Addresses(_) => None,
            });
            let ports: Vec<u16> = ports.collect();
            let protocol = match tls {
                None => Protocol::Tcp,
                Some(_)
                    if *name == "postgres"
                        || (!ports.is_empty() && ports.iter().all(|&port| port == 5432)) =>
                {
                    Protocol::Postgres
                }
                Some(_) => Protocol::Tls,
            };
            if model.is_too_large() {
                return;
            }
            route.listener = self.listener(name, protocol, ports.first().copied(), item.at, points, model);
            let known = &mut model.listeners[route.listener];
            if (known.protocol == Protocol::Tcp) != (protocol == Protocol::Tcp) {
                let text = format!("{}: plain TCP and TLS on one entry point", quote(text));
                model.notes.push(Note::lost(item.at, text));
                continue;
            }
            if protocol == Protocol::Tls {
                // One that is not PostgreSQL's: the listener takes those who begin with TLS.
                known.protocol = Protocol::Tls;
            }
            model.route(route);
        }
    }

    fn service(&self, item: &Item<'_>, model: &mut Model, notes: &mut Vec<Note>) -> Option<(usize, u32)> {
        let service = item.fields()?;
        let namespace = service.text("namespace").unwrap_or(&self.object.name.namespace);
        let name = service.text("name").filter(|name| is_object_name(name))?;
        let object = Some(Object::new(namespace, name)).filter(|_| is_object_name(namespace))?;
        let port = self.cluster.port(&object, service.text("port")?)?;
        let weight = service.parsed("weight").unwrap_or(1);
        let servers = Servers::Service { service: object, port, subset: None };
        let mut pool = Pool::new(item.at, name, servers);
        service.ignore(&["terminationDelay", "nativeLB", "kind"]);
        if let Some(proxy) = service.map("proxyProtocol") {
            let version = if proxy.text("version") == Some("1") { "\"v1\"" } else { "\"v2\"" };
            pool.extras.push(Extra::new("send_proxy", version, proxy.at(), "proxyProtocol"));
        }
        if service.is_true("tls") {
            pool.extras.push(Extra::new("tls", "{}", item.at, "tls: true"));
        }
        service.rest(notes);
        Some((model.service_pool(pool), weight))
    }

    fn middleware(&self, item: &Item<'_>, route: &mut Route) {
        let fields = item.fields();
        let text = |key| fields.as_ref().and_then(|fields| fields.text(key));
        let namespace = text("namespace").unwrap_or(&self.object.name.namespace);
        let object = Object::new(namespace, text("name").unwrap_or_default());
        let spec = self.middlewares.get(&object).and_then(|object| object.fields.map("spec"));
        let limit = spec.as_ref().and_then(|spec| spec.map("inFlightConn")?.parsed::<u32>("amount"));
        match limit.filter(|&limit| limit > 0) {
            Some(limit) => {
                let said = format!("inFlightConn.amount: {limit}");
                route.extras.push(Extra::new("client_rate", format!("{{ open = {limit} }}"), item.at, &said));
            }
            None => {
                let what = quote(&object.to_string());
                let text = format!("MiddlewareTCP {what}: not taken over (restricts who may connect)");
                route.notes.push(Note::lost(item.at, text));
            }
        }
    }

    fn listener(
        &self,
        name: &str,
        protocol: Protocol,
        server_port: Option<u16>,
        at: At,
        points: &mut EntryPoints,
        model: &mut Model,
    ) -> usize {
        if let Some(known) = model.known_listener(self.gateway, name) {
            return known;
        }
        if !points.contains_key(name)
            && points.values().filter(|point| point.is_guess).count() >= MOST_GUESSES
        {
            model.grow(LARGEST + 1);
        }
        let point = points.entry(name.to_owned()).or_insert_with(|| {
            let binds = model.listeners.iter().flat_map(|known| &known.binds);
            let used: HashSet<u16> = binds.map(|&(_, port)| port).collect();
            let likely = match name {
                "websecure" => 443,
                "web" => 80,
                _ => server_port.unwrap_or(443),
            };
            let port = (likely..=u16::MAX).find(|port| !used.contains(port)).unwrap_or(likely);
            let name = quote(name);
            let text = format!(
                "entry point {name}: its port is in Traefik's static configuration, which is not among the files; {port} \
                 is a guess"
            );
            EntryPoint {
                bind: vec![(Ipv4Addr::UNSPECIFIED.into(), port), (Ipv6Addr::UNSPECIFIED.into(), port)],
                extras: Vec::new(),
                notes: vec![Note::to_do(at, text)],
                is_guess: true,
            }
        });
        let mut listener = Listener::new(at, name, self.gateway.clone(), protocol);
        (listener.binds, listener.extras) = (point.bind.clone(), point.extras.clone());
        listener.notes = std::mem::take(&mut point.notes);
        model.listener(listener)
    }
}

/// Names and protocols of a rule: ``HostSNI(`a`) || HostSNI(`b`)``, each or all with ``&& ALPN(`p`)``.
fn matched(rule: &str) -> Option<(Vec<String>, Vec<String>)> {
    let mut hosts = Vec::new();
    let mut protocols: Option<Vec<String>> = None;
    for alternative in rule.split("||") {
        let (mut names, mut alpn) = (Vec::new(), Vec::new());
        for call in alternative.split("&&") {
            let (function, rest) = call.trim().split_once('(')?;
            let arguments = rest.trim_end().strip_suffix(')')?.split(',');
            let argument = |text: &str| {
                let text = text.trim();
                let quoted = |c| text.strip_prefix(c).and_then(|text| text.strip_suffix(c));
                quoted('`').or_else(|| quoted('"')).map(str::to_owned)
            };
            let arguments = arguments.map(argument).collect::<Option<Vec<_>>>()?;
            match function.trim() {
                "HostSNI" if names.is_empty() => names = arguments,
                "ALPN" if alpn.is_empty() => alpn = arguments,
                _ => return None,
            }
        }
        if names.is_empty() || protocols.replace(alpn.clone()).is_some_and(|before| before != alpn) {
            return None;
        }
        for name in names {
            hosts.push(if name == ANY { name } else { host(&name)? });
        }
    }
    Some((hosts, protocols.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_names_and_protocols_are_read_and_others_are_not() {
        let read = |rule| matched(rule).map(|(hosts, alpn)| (hosts.join(" "), alpn.join(" ")));
        let some = |hosts: &str, alpn: &str| Some((hosts.to_owned(), alpn.to_owned()));
        assert_eq!(read("HostSNI(`A.example`)"), some("a.example", ""));
        assert_eq!(read("HostSNI(`a.example`, `b.example`)"), some("a.example b.example", ""));
        assert_eq!(read("HostSNI(`a.example`) || HostSNI(`b.example`)"), some("a.example b.example", ""));
        assert_eq!(read("HostSNI(`*`)"), some("*", ""));
        assert_eq!(read("HostSNI(`a.example`) && ALPN(`h2`)"), some("a.example", "h2"));
        for other in [
            "",
            "HostSNI(`a.example`",
            "HostSNI(a.example)",
            "!HostSNI(`a.example`)",
            "HostSNIRegexp(`.*`)",
            "HostSNI(`a.example`) && ClientIP(`10.0.0.0/8`)",
            "ALPN(`h2`)",
            "HostSNI(`a.example`) && ALPN(`h2`) || HostSNI(`b.example`)",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
