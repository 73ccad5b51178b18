//! Listeners and attached routes to a draft: what the data plane has of them.
//!
//! All listeners of a port are one listener there, which tells their clients apart by name. A client belongs to the listener
//! with the narrowest host name that covers the client's, and only routes of that one count, even if a route of another listener
//! fits better. A table that knows only the narrowest pattern does the same with these patterns in it:
//!
//! - of each listener its own host name, which is *reserved* where no route has it: nobody is served by it;
//! - of each route those names that the route's listener is the narrowest for.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use super::attach::{Attached, Connections, Work};
use super::backend_tls::{self, Speech};
use super::drafts::{given, listener_name, place, pool, route, terminate};
use super::gateways::Gateways;
use super::index::Built;
use super::kept::{Drafted, Requests, Ruled, Share};
use super::key::{Key, Kind, Name};
use super::listeners::{Family, Listener, Use};
use super::pools;
use super::route::RequestRule;
use super::subsets::subsets;
use super::target::{Parts, Target};
use super::view::View;
use crate::config::controller::Attach;
use crate::config::draft::{BackendDraft, Field, ListenerDraft, PoolDraft, ServerDraft};
use crate::config::hostname::wider;
use crate::config::model::{MAX_WEIGHT, Protocol, Refuse, SniPattern};
use crate::config::place::{ObjectField, Place, Placed};

/// The pool without servers, for what is refused.
const NOBODY: &str = "gateway:refused";

/// What a build has made.
pub(super) struct Drafts {
    pub(super) built: Built,
    /// The pools, by their Services.
    pub(super) pools: HashMap<Name, Parts>,
    /// The pool without servers is there.
    has_nobody: bool,
}

/// The listeners of one address and port.
struct Port<'g, 'i> {
    name: String,
    listeners: Vec<(usize, &'g Listener<'i>)>,
    family: Family,
    /// Which listener each host name is of.
    hosts: HashMap<SniPattern, usize>,
    /// Names that a route has.
    taken: HashSet<SniPattern>,
    /// The rules of requests of each listener.
    rules: HashMap<usize, Vec<Arc<Ruled>>>,
    /// Of a port without names: it has its route.
    is_served: bool,
}

/// What the data plane has of all listeners that are bound and of all routes on them.
pub(super) fn drafts(view: &mut View<'_>, gateways: &Gateways<'_>, attached: &[Attached<'_>]) -> Drafts {
    let (mut ports, port_of) = ports(gateways);
    let mut made = Drafts { built: Built::default(), pools: HashMap::new(), has_nobody: false };
    for route in attached {
        for (number, hosts) in &*route.listeners {
            let listener = &gateways.listeners[*number];
            let Some(index) = port_of.get(number).filter(|_| listener.is_programmed()) else { continue };
            let port = &mut ports[*index];
            let connections = match &route.work {
                Work::Requests(rules) => {
                    let ruled = made.rules(view, route, rules, *number, listener, hosts);
                    port.rules.entry(*number).or_default().push(ruled);
                    continue;
                }
                Work::Connections(connections) => connections,
            };
            let on = (*number, listener, &*port.name);
            match listener.is_for {
                Some(Use::Passthrough | Use::Terminate) => {
                    let mut own = Vec::new();
                    for host in hosts {
                        let narrowest = wider(host).find_map(|wider| port.hosts.get(&wider));
                        if narrowest == Some(number) && port.taken.insert(host.clone()) {
                            own.push(host.clone());
                        }
                    }
                    if !own.is_empty() {
                        made.route(view, route, connections, on, own);
                    }
                }
                Some(Use::Tcp) if !port.is_served => {
                    port.is_served = true;
                    made.route(view, route, connections, on, Vec::new());
                }
                _ => {}
            }
        }
    }
    for port in &mut ports {
        made.auto_passthrough(view, port);
        made.finish(view, port);
    }
    made
}

/// The ports with their listeners, and where each listener is among them.
fn ports<'g, 'i>(gateways: &'g Gateways<'i>) -> (Vec<Port<'g, 'i>>, HashMap<usize, usize>) {
    let mut known: BTreeMap<(Arc<[IpAddr]>, u16), usize> = BTreeMap::new();
    let (mut ports, mut port_of) = (Vec::<Port<'_, '_>>::new(), HashMap::new());
    for (number, listener) in
        gateways.listeners.iter().enumerate().filter(|(_, listener)| listener.is_bound())
    {
        let Some(is_for) = listener.is_for else { continue };
        let index = *known.entry((listener.binds.clone(), listener.bound_port)).or_insert_with(|| {
            let name = match listener.binds.first() {
                None => format!("gateway:{}", listener.bound_port),
                Some(first) => format!("gateway:{}", SocketAddr::new(*first, listener.bound_port)),
            };
            ports.push(Port {
                name,
                listeners: Vec::new(),
                family: is_for.family(),
                hosts: HashMap::new(),
                taken: HashSet::new(),
                rules: HashMap::new(),
                is_served: false,
            });
            ports.len() - 1
        });
        ports[index].listeners.push((number, listener));
        ports[index].hosts.insert(listener.host.clone(), number);
        port_of.insert(number, index);
    }
    (ports, port_of)
}

impl Drafts {
    /// A route for each Service and port, and for each subset of it, that an auto-passthrough listener covers, by the name that
    /// Istio's clients ask for. What a route has goes before.
    fn auto_passthrough(&mut self, view: &mut View<'_>, port: &mut Port<'_, '_>) {
        let is_auto = |(_, listener): &&(usize, &Listener<'_>)| {
            listener.is_auto_passthrough() && listener.is_programmed()
        };
        for (number, listener) in port.listeners.iter().filter(is_auto) {
            for (key, service) in view.services().filter(|(_, service)| &*service.kind != "ExternalName") {
                let known = subsets(view, &key.name);
                for service_port in service.ports.iter().filter(|port| pools::is_tcp(port)) {
                    for subset in std::iter::once(None).chain(known.iter().copied().map(Some)) {
                        let target = Target::new(key.name.clone(), service_port.port, subset);
                        let host = SniPattern::Exact(target.outbound_name().into());
                        let narrowest = wider(&host).find_map(|wider| port.hosts.get(&wider));
                        if narrowest != Some(number) || !port.taken.insert(host.clone()) {
                            continue;
                        }
                        let at = place(key, "spec.ports");
                        let name = format!("auto.{}@{}", target.pool(), listener_name(listener));
                        let mut draft = route(at.clone(), name, &port.name);
                        draft.sni = given(at.clone(), vec![Placed::new(at.clone(), host)]);
                        let share = Share::Of(target);
                        draft.backends = given(at.clone(), vec![Placed::new(at.clone(), share.draft(at))]);
                        self.have(view, &share);
                        self.built.routes.push(draft.into());
                    }
                }
            }
        }
    }

    /// The listener of a port, and the routes that it has by itself.
    fn finish(&mut self, view: &mut View<'_>, port: &mut Port<'_, '_>) {
        let (ipv6, freebind) = (view.context.ipv6, view.index.settings.attach == Attach::Freebind);
        let (_, first) = port.listeners[0];
        let at = |path: &str| place(first.owner, first.path() + path);
        for (number, listener) in port.listeners.iter().filter(|(_, listener)| listener.is_programmed()) {
            let is_http = matches!(listener.is_for, Some(Use::Http | Use::Https));
            if is_http && port.taken.insert(listener.host.clone()) {
                let ruled = port.rules.remove(number).unwrap_or_default();
                let made = view.remembered(
                    |memo| &mut memo.requests,
                    *number,
                    |known| known.is_of(&ruled),
                    |_| Requests::new(listener, &port.name, ruled.clone()),
                );
                self.built.routes.push(made.draft.clone());
            }
        }
        if port.family == Family::Tcp && !port.is_served {
            let mut draft = route(at(""), port.name.clone(), &port.name);
            draft.backends = given(at(""), vec![Placed::new(at(""), Share::Nobodys.draft(at("")))]);
            self.have_nobody();
            self.built.routes.push(draft.into());
        }
        let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let all = if ipv6 { &all[..] } else { &all[..1] };
        let addresses = if first.binds.is_empty() { all } else { &first.binds };
        let own = addresses.iter().map(|ip| SocketAddr::new(*ip, first.bound_port));
        let node_ports: BTreeSet<u16> =
            port.listeners.iter().filter_map(|(_, listener)| listener.node_port).collect();
        let node = node_ports.iter().flat_map(|port| all.iter().map(|ip| SocketAddr::new(*ip, *port)));
        let bind = own.chain(node).map(|address| Placed::new(at(".port"), address));
        let protocol = match port.family {
            Family::Http => Protocol::Http,
            Family::Tls => Protocol::Tls,
            Family::Tcp => Protocol::Tcp,
        };
        let reserved = port.listeners.iter().filter(|_| port.family != Family::Tcp);
        let reserved = reserved.map(|(_, listener)| listener.host.clone());
        let reserved = reserved.filter(|host| !port.taken.contains(host));
        let reserved: Vec<_> = reserved.map(|host| Placed::new(at(".hostname"), host)).collect();
        self.built.listeners.push(ListenerDraft {
            name: given(at(""), port.name.as_str().into()),
            bind: given(at(".port"), bind.collect()),
            protocol: given(at(".protocol"), protocol),
            refuse: given(at(""), Refuse::Close),
            freebind: given(at(""), freebind && !first.binds.is_empty()),
            reserved: given(at(".hostname"), reserved),
            ..ListenerDraft::new(at(""))
        });
    }

    /// Adds what the data plane has of a route on a listener.
    fn route(
        &mut self,
        view: &mut View<'_>,
        attached: &Attached<'_>,
        connections: &Connections<'_>,
        (number, listener, port): (usize, &Listener<'_>, &str),
        hosts: Vec<SniPattern>,
    ) {
        let drafted = view.remembered(
            |memo| &mut memo.drafts,
            (attached.key.clone(), attached.part.map(Box::from), number),
            |known| known.hosts == hosts,
            |view| Drafted::new(view, attached, connections, listener, port, hosts.clone()),
        );
        drafted.shares.iter().for_each(|share| self.have(view, share));
        self.built.routes.push(drafted.draft.clone());
    }

    /// The rules of a route for a listener.
    fn rules(
        &mut self,
        view: &mut View<'_>,
        attached: &Attached<'_>,
        rules: &[RequestRule],
        number: usize,
        listener: &Listener<'_>,
        hosts: &[SniPattern],
    ) -> Arc<Ruled> {
        let ruled = view.remembered(
            |memo| &mut memo.rules,
            (attached.key.clone(), attached.part.map(Box::from), number),
            |known| known.hosts == *hosts,
            |view| Ruled::new(view, attached.key, rules, listener, hosts),
        );
        ruled.targets.iter().for_each(|target| self.have_pool(view, target));
        ruled
    }

    /// Sees to it that the pool of a share is there.
    fn have(&mut self, view: &mut View<'_>, share: &Share) {
        match share {
            Share::Of(target) => self.have_pool(view, target),
            Share::Nobodys => self.have_nobody(),
        }
    }

    fn have_pool(&mut self, view: &mut View<'_>, target: &Target) {
        let Target { service, part, labels, .. } = target;
        if let Entry::Vacant(new) = self.pools.entry(service.clone()).or_default().entry(part.clone()) {
            let made = view.remembered(
                |memo| &mut memo.pools,
                (service.clone(), part.clone()),
                |(known, _)| known == labels,
                |view| (labels.clone(), Arc::new(pool_of(view, target))),
            );
            self.built.pools.push(made.1.clone());
            new.insert(labels.clone());
        }
    }

    /// The pool without servers.
    fn have_nobody(&mut self) {
        if !std::mem::replace(&mut self.has_nobody, true) {
            // It belongs to no object, so that no object takes it away from others.
            let nowhere = ObjectField { object: "the Gateway API".into(), path: "".into() };
            let nowhere = Place::Object(Box::new(nowhere));
            self.built.pools.push(pool(nowhere, NOBODY, Vec::new()).into());
        }
    }
}

impl Share {
    fn draft(&self, at: Place) -> BackendDraft {
        let pool = match self {
            Share::Of(target) => target.pool(),
            Share::Nobodys => NOBODY.to_owned(),
        };
        BackendDraft { pool: given(at, pool), weight: Field::Absent }
    }
}

impl Drafted {
    fn new(
        view: &mut View<'_>,
        attached: &Attached<'_>,
        connections: &Connections<'_>,
        listener: &Listener<'_>,
        port: &str,
        hosts: Vec<SniPattern>,
    ) -> Self {
        let key = attached.key;
        view.note(key.clone());
        let part = attached.part.map(|part| format!(".{part}")).unwrap_or_default();
        let name = format!(
            "{}.{}.{}{part}@{}",
            key.kind.name(),
            key.name.namespace,
            key.name.name,
            listener_name(listener)
        );
        let mut draft = route(place(key, ""), name, port);
        if !hosts.is_empty() {
            let at = place(key, &*connections.hosts_path);
            let hosts = hosts.iter().map(|host| Placed::new(at.clone(), host.clone())).collect();
            draft.sni = given(at.clone(), hosts);
        }
        if listener.is_for == Some(Use::Terminate) {
            terminate(&mut draft, listener, &place(key, "spec.parentRefs"));
        }
        let (backends, shares) = shared_out(view, key, connections, listener);
        draft.backends = given(place(key, &*connections.backends_path), backends);
        Self { hosts, draft: draft.into(), shares }
    }
}

fn shared_out(
    view: &mut View<'_>,
    key: &Key,
    connections: &Connections<'_>,
    listener: &Listener<'_>,
) -> (Vec<Placed<BackendDraft>>, Vec<Share>) {
    let (path, backends) = (&*connections.backends_path, connections.backends);
    let weights = scaled(backends.iter().map(|backend| backend.weight.unwrap_or(1)));
    let (mut found, mut shares) = (Vec::with_capacity(backends.len()), Vec::with_capacity(backends.len()));
    for (number, (backend, weight)) in
        backends.iter().zip(weights).enumerate().filter(|(_, (_, weight))| *weight > 0)
    {
        let at = place(key, format!("{path}[{number}]"));
        // What it may not have, or what is not there, keeps its share, in which clients are refused.
        let mut target = pools::resolve(view, key.kind, &key.name.namespace, backend);
        if listener.is_for == Some(Use::Terminate) {
            target = target.and_then(|target| target.spoken_to(view, Speech::Bytes, listener));
        }
        let share = target.map_or(Share::Nobodys, Share::Of);
        let weight = given(at.clone(), weight);
        found.push(Placed::new(at.clone(), BackendDraft { weight, ..share.draft(at) }));
        shares.push(share);
    }
    if found.is_empty() {
        let at = place(key, path);
        found.push(Placed::new(at.clone(), Share::Nobodys.draft(at)));
        shares.push(Share::Nobodys);
    }
    (found, shares)
}

/// The pool of a Service's port.
fn pool_of(view: &mut View<'_>, target: &Target) -> PoolDraft {
    let Target { service, part, labels, http2, tls } = target;
    let servers = pools::servers(view, service, part.0, labels).into_iter().map(|origin| {
        let at = origin.place.clone();
        let address = Field::Given(origin);
        Placed::new(at, ServerDraft { address, ..ServerDraft::default() })
    });
    let key = Key { kind: Kind::Service, name: service.clone() };
    let at = place(&key, "spec.ports");
    let mut pool = pool(at.clone(), &target.pool(), servers.collect());
    if *http2 {
        pool.http2 = given(at.clone(), true);
    }
    if let Some(client) = tls {
        // Nobody is spoken to in the clear instead.
        match backend_tls::draft(view, target, client) {
            Some(tls) => pool.tls = given(at, tls),
            None => pool.tls = Field::Invalid,
        }
    }
    pool
}

/// Weights in the same proportions, none above what a route may have. One that is not 0 stays so.
fn scaled(weights: impl Iterator<Item = u32>) -> Vec<u32> {
    let weights: Vec<u32> = weights.collect();
    let most = weights.iter().copied().max().unwrap_or(0);
    if most <= MAX_WEIGHT {
        return weights;
    }
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    if most / divisor <= MAX_WEIGHT {
        return weights.iter().map(|weight| weight / divisor).collect();
    }
    let scale = |weight: u32| {
        let share = (u64::from(weight) * u64::from(MAX_WEIGHT) + u64::from(most) / 2) / u64::from(most);
        u32::try_from(share).unwrap_or(MAX_WEIGHT).max(u32::from(weight > 0))
    };
    weights.into_iter().map(scale).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_keep_their_proportions() {
        for (given, made) in [
            (vec![], vec![]),
            (vec![1, 99], vec![1, 99]),
            (vec![0, 0], vec![0, 0]),
            (vec![500_000, 500_000], vec![1, 1]),
            (vec![1_000_000, 0, 1], vec![256, 0, 1]),
            (vec![999_999, 333_333], vec![3, 1]),
            (vec![1000, 501], vec![256, 128]),
        ] {
            assert_eq!(scaled(given.clone().into_iter()), made, "{given:?}");
        }
    }
}
