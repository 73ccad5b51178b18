//! Which listeners are in each other's way, and who goes before whom.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::key::Key;
use super::listeners::{Family, Listener, Use};
use super::status::Fault;
use crate::config::hostname::wider;
use crate::config::model::SniPattern;

const PROTOCOL_CONFLICT: &str = "ProtocolConflict";
const HOSTNAME_CONFLICT: &str = "HostnameConflict";

/// Of one Gateway's own listeners those that are equal are all in conflict, and all of a port that two families are on: none may
/// win.
pub(super) fn reject_equal(listeners: &mut [Listener<'_>]) {
    #[derive(Default)]
    struct Port {
        /// How many listeners have each host name.
        hosts: HashMap<SniPattern, usize>,
        family: Option<Family>,
        is_mixed: bool,
    }
    let mut ports: HashMap<u16, Port> = HashMap::new();
    for listener in listeners.iter() {
        let Some(is_for) = listener.is_for else { continue };
        let port = ports.entry(listener.port()).or_default();
        *port.hosts.entry(listener.host.clone()).or_default() += usize::from(!listener.is_of_no_host);
        port.is_mixed |= port.family.replace(is_for.family()).is_some_and(|other| other != is_for.family());
    }
    for listener in listeners.iter_mut().filter(|listener| listener.is_for.is_some()) {
        let (port, all) = (listener.port(), &ports[&listener.port()]);
        if all.is_mixed {
            let message = format!("listeners of port {port} have protocols that exclude one another");
            listener.conflict = Some(Fault::new(PROTOCOL_CONFLICT, message));
        } else if all.hosts[&listener.host] > 1 && !listener.is_of_no_host {
            let message = format!("another listener of port {port} has the same host name");
            listener.conflict = Some(Fault::new(HOSTNAME_CONFLICT, message));
        }
    }
}

/// Who has which names of which ports.
pub(super) struct Claims<'i> {
    ports: HashMap<(Option<IpAddr>, u16), Claim<'i>>,
    /// How many ports there may be, each of an address by itself.
    most: usize,
}

struct Claim<'i> {
    family: Family,
    /// Where the first of it is bound: no two sockets can have an address and port.
    binds: Arc<[IpAddr]>,
    hosts: HashMap<SniPattern, Owner<'i>>,
}

/// Whose a listener is.
#[derive(Clone, Copy)]
pub(super) struct Owner<'i> {
    /// The Gateway or ListenerSet.
    key: &'i Key,
    /// The Gateway that it is of.
    gateway: usize,
}

impl<'i> Claims<'i> {
    pub(super) fn new(most: usize) -> Self {
        Self { ports: HashMap::new(), most }
    }

    /// The first has it. `lets_in`: whether a Gateway lets the listener's namespace add listeners.
    ///
    /// Names out of a wildcard are taken away from whoever has the wildcard, and that may be another tenant. A Gateway may have
    /// them where the owner could have them by a ListenerSet, too: in its own namespace, and in those that the older Gateway
    /// lets in.
    pub(super) fn claim(
        &mut self,
        listener: &mut Listener<'i>,
        gateway: usize,
        mut lets_in: impl FnMut(usize) -> bool,
    ) {
        let Some(is_for) = listener.is_for.filter(|_| listener.is_bound()) else { return };
        let port = listener.bound_port;
        let on: Vec<Option<IpAddr>> = match listener.binds.is_empty() {
            true => vec![None],
            false => listener.binds.iter().copied().map(Some).collect(),
        };
        for address in &on {
            // A socket on one address takes that address's clients from one on all.
            let claim = self.ports.get(&(*address, port)).or_else(|| self.ports.get(&(None, port)));
            let Some(claim) = claim else { continue };
            if claim.binds != listener.binds {
                let message = format!("another Gateway has port {port} of some of its addresses");
                listener.fault = Some(Fault::new("PortUnavailable", message));
            } else if claim.family != is_for.family() {
                let message = format!("port {port} has another protocol already");
                listener.conflict = Some(Fault::new(PROTOCOL_CONFLICT, message));
            } else if let Some(owner) = claim.hosts.get(&listener.host) {
                let message = format!("{} has this host name on port {port} already", owner.key);
                listener.conflict = Some(Fault::new(HOSTNAME_CONFLICT, message));
            } else if let Some((wider, owner)) = claim.wider(&listener.host)
                && owner.gateway != gateway
                && owner.key.name.namespace != listener.owner.name.namespace
                && !lets_in(owner.gateway)
            {
                let message = format!(
                    "{} has {wider} on port {port}, and `allowedListeners` of its Gateway does not let this namespace have a part \
                     of that",
                    owner.key
                );
                listener.conflict = Some(Fault::new(HOSTNAME_CONFLICT, message));
            }
        }
        let new = on.iter().filter(|address| !self.ports.contains_key(&(**address, port))).count();
        if listener.is_bound() && self.ports.len() + new > self.most {
            let message =
                format!("Gateways have all the {} ports that they may have (`max_ports`)", self.most);
            listener.fault = Some(Fault::new("PortUnavailable", message));
        }
        if !listener.is_bound() {
            return;
        }
        for address in on {
            let new =
                || Claim { family: is_for.family(), binds: listener.binds.clone(), hosts: HashMap::new() };
            let claim = self.ports.entry((address, port)).or_insert_with(new);
            claim.hosts.insert(listener.host.clone(), Owner { key: listener.owner, gateway });
        }
    }
}

impl<'i> Claim<'i> {
    /// Who would have these names without another listener, and by which wildcard.
    fn wider(&self, host: &SniPattern) -> Option<(SniPattern, Owner<'i>)> {
        wider(host).skip(1).find_map(|wider| self.hosts.get(&wider).map(|owner| (wider, *owner)))
    }
}

/// Marks the HTTPS listeners of a port of which one's names are among another's: HTTP/2 clients may use the connection of one
/// for the other.
pub(super) fn mark_overlaps(listeners: &mut [Listener<'_>]) {
    let mut hosts: HashMap<(Arc<[IpAddr]>, u16, SniPattern), usize> = HashMap::new();
    let is_https = |listener: &Listener<'_>| listener.is_for == Some(Use::Https) && listener.is_bound();
    for (number, listener) in listeners.iter().enumerate().filter(|(_, listener)| is_https(listener)) {
        hosts.insert((listener.binds.clone(), listener.bound_port, listener.host.clone()), number);
    }
    let mut marked = HashSet::new();
    for (number, listener) in listeners.iter().enumerate().filter(|(_, listener)| is_https(listener)) {
        for wider in wider(&listener.host) {
            let found = hosts.get(&(listener.binds.clone(), listener.bound_port, wider)).copied();
            if let Some(other) = found.filter(|other| *other != number) {
                marked.extend([number, other]);
            }
        }
    }
    marked.into_iter().for_each(|number| listeners[number].overlaps = true);
}
