//! Gateways and their listeners: whose they are, what they need, and which of them are in each other's way.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::hostname::{self, wider};
use super::index::{View, by_age};
use super::objects::{
    Allowed, FromNamespaces, GROUP, GatewaySpec, Key, Kind, ListenerSetSpec, ListenerSpec, Name, Object,
    Reference, RouteKind, Spec, Validation,
};
use super::settings::Mode;
use super::status::{
    ClassStatus, Condition, Fault, GatewayStatus, ListenerSetStatus, ListenerStatus, Status, StatusAddress,
    Statuses, Truth,
};
use crate::config::check::certificate::Loaded;
use crate::config::client_auth::{Allowed as AllowedNames, ClientAuth};
use crate::config::diagnostic::quote;
use crate::config::model::SniPattern;

/// Ports that no Gateway gets on a node: sshd, the API server, the kubelet.
const RESERVED: [u16; 3] = [22, 6443, 10_250];

/// The Gateways of our classes, and what hangs on them.
pub(super) struct Gateways<'i> {
    /// The oldest first.
    list: Vec<Gateway<'i>>,
    sets: Vec<Set<'i>>,
    /// Of all Gateways: each one's own, then those of its ListenerSets.
    pub(super) listeners: Vec<Listener<'i>>,
    /// The listeners of each Gateway and ListenerSet of ours.
    by_owner: HashMap<&'i Key, Vec<usize>>,
}

struct Gateway<'i> {
    object: &'i Object,
    spec: &'i GatewaySpec,
    /// Why it is not accepted, whatever its listeners are.
    fault: Option<Fault>,
    /// Why its addresses are not what it asks for.
    addresses_fault: Option<Fault>,
    /// Of its client certificate toward servers.
    backend_fault: Option<Fault>,
    /// Where it can be reached.
    addresses: Vec<IpAddr>,
    /// Where its listeners are bound; empty: on every address of the node; `None`: nowhere.
    binds: Option<Arc<[IpAddr]>>,
    /// Clients are let in with certificates that lead nowhere.
    insecure: bool,
}

struct Set<'i> {
    object: &'i Object,
    gateway: &'i Key,
    fault: Option<Fault>,
}

/// What becomes of the connections of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Http,
    Https,
    Passthrough,
    Terminate,
    Tcp,
}

/// Listeners of one family can share a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Http,
    Tls,
    Tcp,
}

impl Use {
    pub(super) fn family(self) -> Family {
        match self {
            Use::Http => Family::Http,
            Use::Https | Use::Passthrough | Use::Terminate => Family::Tls,
            Use::Tcp => Family::Tcp,
        }
    }

    fn kinds(self) -> &'static [Kind] {
        match self {
            Use::Http | Use::Https => &[Kind::HttpRoute, Kind::GrpcRoute],
            Use::Passthrough | Use::Terminate => &[Kind::TlsRoute],
            Use::Tcp => &[Kind::TcpRoute],
        }
    }

    fn terminates(self) -> bool {
        matches!(self, Use::Https | Use::Terminate)
    }
}

/// A listener of a Gateway or ListenerSet.
pub(super) struct Listener<'i> {
    pub(super) owner: &'i Key,
    /// In its owner's `spec.listeners`.
    pub(super) number: usize,
    pub(super) spec: &'i ListenerSpec,
    pub(super) host: SniPattern,
    /// `None`: its protocol is none of ours.
    pub(super) is_for: Option<Use>,
    /// Of routes.
    pub(super) kinds: Vec<Kind>,
    /// Where it is bound; empty: on every address of the node.
    pub(super) binds: Arc<[IpAddr]>,
    /// Its Gateway is accepted, and is somewhere.
    is_placed: bool,
    pub(super) certificates: Vec<Arc<Loaded>>,
    pub(super) client_auth: Option<Arc<ClientAuth>>,
    fault: Option<Fault>,
    conflict: Option<Fault>,
    refs_fault: Option<Fault>,
    /// Why it takes no connection, though it is accepted.
    idle: Option<Fault>,
    overlaps: bool,
    /// Routes that it accepts.
    pub(super) attached: usize,
}

impl Listener<'_> {
    fn is_accepted(&self) -> bool {
        self.fault.is_none() && self.conflict.is_none()
    }

    /// Whether it has a port: also one that has no certificate keeps others from its names.
    pub(super) fn is_bound(&self) -> bool {
        self.is_accepted() && self.is_for.is_some() && self.is_placed
    }

    /// Whether it takes connections.
    pub(super) fn is_programmed(&self) -> bool {
        self.is_bound() && self.idle.is_none()
    }

    /// Whether it passes clients on to the Service and port that their server name tells, as Istio's gateways between clusters
    /// do.
    pub(super) fn is_auto_passthrough(&self) -> bool {
        let option = self.spec.tls.options.get("gateway.istio.io/listener-protocol");
        self.is_for == Some(Use::Passthrough) && option.is_some_and(|option| option == "auto-passthrough")
    }

    pub(super) fn port(&self) -> u16 {
        self.spec.port.get()
    }
}

impl<'i> Gateways<'i> {
    /// Looks at all Gateways of our classes, and writes the statuses of these classes.
    pub(super) fn new(view: &mut View<'i>, statuses: &mut Statuses) -> Self {
        let classes = classes(view, statuses);
        let gateways = by_age(view.all(Kind::Gateway), |object| match &object.spec {
            Spec::Gateway(spec) if classes.contains(&*spec.gateway_class_name) => Some(&**spec),
            _ => None,
        });
        let sets = by_age(view.all(Kind::ListenerSet), |object| match &object.spec {
            Spec::ListenerSet(spec) => Some(&**spec),
            _ => None,
        });
        let mut sets_of: HashMap<Key, Vec<(&Object, &ListenerSetSpec)>> = HashMap::new();
        for (object, spec) in sets {
            let parent = spec.parent_ref.key(&object.key.name.namespace);
            if let Some(parent) = parent.filter(|parent| parent.kind == Kind::Gateway) {
                sets_of.entry(parent).or_default().push((object, spec));
            }
        }
        let mut all =
            Gateways { list: Vec::new(), sets: Vec::new(), listeners: Vec::new(), by_owner: HashMap::new() };
        let mut claims = Claims::default();
        for (object, spec) in gateways {
            let gateway = all.list.len();
            all.list.push(Gateway::new(object, spec, view));
            let first = all.listeners.len();
            for (number, listener) in spec.listeners.iter().enumerate() {
                all.add(view, &object.key, gateway, number, listener);
            }
            all.by_owner.entry(&object.key).or_default();
            reject_equal(&mut all.listeners[first..]);
            for listener in &mut all.listeners[first..] {
                claims.claim(listener);
            }
            for (set, set_spec) in sets_of.remove(&object.key).into_iter().flatten() {
                let fault = all.list[gateway].refuses(view, set);
                all.by_owner.entry(&set.key).or_default();
                if fault.is_none() {
                    for (number, listener) in set_spec.listeners.iter().enumerate() {
                        all.add(view, &set.key, gateway, number, listener);
                        claims.claim(all.listeners.last_mut().expect("it was just added"));
                    }
                }
                all.sets.push(Set { object: set, gateway: &object.key, fault });
            }
        }
        mark_overlaps(&mut all.listeners);
        all
    }

    /// The listeners of a Gateway or ListenerSet; `None`: it is not of ours.
    pub(super) fn listeners_of(&self, owner: &Key) -> Option<&[usize]> {
        self.by_owner.get(owner).map(Vec::as_slice)
    }

    fn add(
        &mut self,
        view: &mut View<'i>,
        owner: &'i Key,
        gateway: usize,
        number: usize,
        spec: &'i ListenerSpec,
    ) {
        let listener = Listener::new(view, owner, &mut self.list[gateway], number, spec);
        self.by_owner.entry(owner).or_default().push(self.listeners.len());
        self.listeners.push(listener);
    }
}

/// The classes that are ours, and good.
fn classes(view: &View<'_>, statuses: &mut Statuses) -> HashSet<Box<str>> {
    let mut ours = HashSet::new();
    for object in view.all(Kind::GatewayClass) {
        let Spec::GatewayClass(class) = &object.spec else { continue };
        if *class.controller_name != *view.index.settings.controller {
            continue;
        }
        let fault = class.parameters_ref.is_some().then(|| {
            Fault::new(
                "InvalidParameters",
                "`spec.parametersRef` names something that this controller does not know",
            )
        });
        if fault.is_none() {
            ours.insert(Box::from(&*object.key.name.name));
        }
        let accepted = Condition::of("Accepted", "Accepted", fault.as_ref(), object.generation);
        statuses.insert(object.key.clone(), Status::Class(ClassStatus { conditions: vec![accepted] }));
    }
    ours
}

impl<'i> Gateway<'i> {
    fn new(object: &'i Object, spec: &'i GatewaySpec, view: &mut View<'i>) -> Self {
        let mut gateway = Gateway {
            object,
            spec,
            fault: None,
            addresses_fault: None,
            backend_fault: None,
            addresses: Vec::new(),
            binds: None,
            insecure: false,
        };
        if spec.infrastructure.parameters_ref.is_some() {
            let message =
                "`spec.infrastructure.parametersRef` names something that this controller does not know";
            gateway.fault = Some(Fault::new("InvalidParameters", message));
        }
        gateway.place(view);
        let client = spec.tls.backend.as_ref().and_then(|backend| backend.client_certificate_ref.as_ref());
        if let Some(reference) = client {
            gateway.backend_fault =
                certificate(view, &object.key, reference).err().map(|fault| match fault.reason {
                    "InvalidCertificateRef" => Fault { reason: "InvalidClientCertificateRef", ..fault },
                    _ => fault,
                });
        }
        gateway
    }

    /// Where it is.
    fn place(&mut self, view: &View<'_>) {
        let (settings, context) = (&view.index.settings, view.context);
        let is_node = settings.mode == Mode::Node;
        let mut named = Vec::new();
        let mut any = self.spec.addresses.is_empty();
        for address in &self.spec.addresses {
            let kind = address.kind.as_deref().unwrap_or("IPAddress");
            if kind != "IPAddress" {
                let message = format!("addresses of the type {} are not supported", quote(kind));
                self.fault.get_or_insert_with(|| Fault::new("UnsupportedAddress", message));
                continue;
            }
            if address.value.is_empty() {
                any = true;
                continue;
            }
            let ip = address.value.parse::<IpAddr>().ok();
            match ip.filter(|ip| settings.may_name(*ip) && (!is_node || context.own.contains(ip))) {
                Some(ip) => named.push(ip),
                None => {
                    let message =
                        format!("{} is not an address that Gateways may have here", quote(&address.value));
                    self.addresses_fault.get_or_insert_with(|| Fault::new("AddressNotUsable", message));
                }
            }
        }
        let assigned = || context.assigned.get(&self.object.key.name).cloned().unwrap_or_default();
        let mut addresses = match (is_node, any) {
            (true, true) => context.own.clone(),
            (true, false) => named,
            (false, _) => assigned(),
        };
        addresses.sort();
        addresses.dedup();
        // On every address of the node, its sockets need not know them.
        self.binds = match (is_node, any) {
            (true, true) => Some(Arc::from([])),
            _ => Some(Arc::from(addresses.as_slice())).filter(|binds: &Arc<[IpAddr]>| !binds.is_empty()),
        };
        if !is_node && self.binds.is_none() {
            self.addresses_fault
                .get_or_insert_with(|| Fault::new("AddressNotAssigned", "no address is left for it"));
        }
        self.addresses = addresses;
    }

    /// Why a ListenerSet may not add to it.
    fn refuses(&self, view: &mut View<'_>, set: &Object) -> Option<Fault> {
        let key = &self.object.key;
        let (namespace, own) = (&set.key.name.namespace, &key.name.namespace);
        if !admits(view, &self.spec.allowed_listeners, FromNamespaces::None, own, namespace) {
            return Some(Fault::new(
                "NotAllowed",
                format!("{key} does not allow ListenerSets of {namespace}"),
            ));
        }
        self.fault.as_ref().map(|_| Fault::new("ParentNotAccepted", format!("{key} is not accepted")))
    }

    /// What it asks of the certificates of clients on a port.
    fn validation(&self, port: u16) -> Option<&'i Validation> {
        let frontend = self.spec.tls.frontend.as_ref()?;
        let on_port = frontend.per_port.iter().find(|entry| entry.port == port).map(|entry| &entry.tls);
        on_port.unwrap_or(&frontend.default).validation.as_ref()
    }
}

/// Whether `allowed` takes something of `namespace`. `own`: that of the object it is in.
pub(super) fn admits(
    view: &mut View<'_>,
    allowed: &Allowed,
    default: FromNamespaces,
    own: &Arc<str>,
    namespace: &Arc<str>,
) -> bool {
    match allowed.namespaces.from.unwrap_or(default) {
        FromNamespaces::All => true,
        FromNamespaces::Same => own == namespace,
        FromNamespaces::None => false,
        FromNamespaces::Selector => allowed.namespaces.selector.matches(&view.labels_of(namespace)),
    }
}

/// The certificate of the Secret that `owner` names, or why it cannot have it.
fn certificate(view: &mut View<'_>, owner: &Key, reference: &Reference) -> Result<Arc<Loaded>, Fault> {
    let kind = reference.kind.as_deref().unwrap_or("Secret");
    let invalid = |message: String| Fault::new("InvalidCertificateRef", message);
    if !reference.group.is_empty() || kind != "Secret" {
        return Err(invalid(format!(
            "{} of the group {} is no Secret",
            quote(kind),
            quote(&reference.group)
        )));
    }
    let own = &owner.name.namespace;
    let secret = Name::new(reference.namespace.as_deref().unwrap_or(own), &reference.name);
    if !view.is_granted(owner.kind, own, Kind::Secret, &secret) {
        let message = format!("no ReferenceGrant lets a {} of {own} name Secret {secret}", owner.kind.name());
        return Err(Fault::new("RefNotPermitted", message));
    }
    let found = view.secret(&secret).ok_or_else(|| invalid(format!("there is no Secret {secret}")))?;
    found.certificate.clone().map_err(|why| invalid(format!("Secret {secret}: {why}")))
}

impl<'i> Listener<'i> {
    fn new(
        view: &mut View<'i>,
        owner: &'i Key,
        parent: &mut Gateway<'i>,
        number: usize,
        spec: &'i ListenerSpec,
    ) -> Self {
        let mut listener = Listener {
            owner,
            number,
            spec,
            host: SniPattern::Any,
            is_for: None,
            kinds: Vec::new(),
            binds: parent.binds.clone().unwrap_or_else(|| Arc::from([])),
            is_placed: parent.fault.is_none() && parent.binds.is_some(),
            certificates: Vec::new(),
            client_auth: None,
            fault: None,
            conflict: None,
            refs_fault: None,
            idle: None,
            overlaps: false,
            attached: 0,
        };
        match (&*spec.protocol, spec.tls.mode.as_deref()) {
            ("HTTP", _) => listener.is_for = Some(Use::Http),
            ("HTTPS", None | Some("Terminate")) => listener.is_for = Some(Use::Https),
            ("TLS", None | Some("Terminate")) => listener.is_for = Some(Use::Terminate),
            ("TLS", Some("Passthrough")) => listener.is_for = Some(Use::Passthrough),
            ("TCP", _) => listener.is_for = Some(Use::Tcp),
            ("HTTPS" | "TLS", Some(mode)) => {
                let message = format!("{} is no mode of {}", quote(mode), spec.protocol);
                listener.fault = Some(Fault::new("UnsupportedValue", message));
            }
            (other, _) => {
                let message = format!("{} is not supported, but HTTP, HTTPS, TLS and TCP", quote(other));
                listener.fault = Some(Fault::new("UnsupportedProtocol", message));
            }
        }
        let Some(is_for) = listener.is_for else { return listener };
        if let Some(host) = spec.hostname.as_deref().filter(|host| !host.is_empty() && is_for != Use::Tcp) {
            match hostname::read(host) {
                Some(host) => listener.host = host,
                None => {
                    let message = format!("{} is no host name", quote(host));
                    listener.fault = Some(Fault::new("UnsupportedValue", message));
                }
            }
        }
        let port = spec.port.get();
        if view.index.settings.mode == Mode::Node && RESERVED.contains(&port) {
            let message = format!("port {port} is the node's own");
            listener.fault = Some(Fault::new("PortUnavailable", message));
        } else if let Some(why) = view.context.unavailable.get(&port) {
            listener.fault = Some(Fault::new("PortUnavailable", why.clone()));
        }
        listener.read_kinds(is_for);
        if is_for.terminates() {
            listener.read_certificates(view);
            listener.read_validation(view, parent);
        }
        if !listener.is_placed {
            listener.idle = Some(Fault::new("Pending", "its Gateway is not accepted, or has no address"));
        }
        listener
    }

    fn read_kinds(&mut self, is_for: Use) {
        let known = is_for.kinds();
        let Some(named) = &self.spec.allowed_routes.kinds else {
            self.kinds = known.to_vec();
            return;
        };
        for named in named {
            let is_meant = |kind: &&Kind| {
                *named.kind == *kind.name() && named.group.as_deref().is_none_or(|group| group == GROUP)
            };
            match known.iter().find(is_meant) {
                Some(kind) if self.kinds.contains(kind) => {}
                Some(kind) => self.kinds.push(*kind),
                None => {
                    let message =
                        format!("{} cannot be on a listener of {}", quote(&named.kind), self.spec.protocol);
                    self.refs_fault = Some(Fault::new("InvalidRouteKinds", message));
                }
            }
        }
    }

    fn read_certificates(&mut self, view: &mut View<'_>) {
        let mut fault = None;
        for reference in &self.spec.tls.certificate_refs {
            match certificate(view, self.owner, reference) {
                Ok(certificate) => self.certificates.push(certificate),
                Err(why) => _ = fault.get_or_insert(why),
            }
        }
        if self.spec.tls.certificate_refs.is_empty() {
            fault = Some(Fault::new("InvalidCertificateRef", "`tls.certificateRefs` names no Secret"));
        }
        if self.certificates.is_empty() {
            self.idle = Some(Fault::new("Invalid", "it has no certificate"));
        }
        self.refs_fault = fault.or(self.refs_fault.take());
    }

    /// What its Gateway asks of the certificates of clients. One that has none of the authorities takes no connection.
    fn read_validation(&mut self, view: &mut View<'_>, gateway: &mut Gateway<'i>) {
        let Some(validation) = gateway.validation(self.port()) else { return };
        let owner = &gateway.object.key;
        let (mut authorities, mut fault) = (Vec::new(), None);
        for reference in &validation.ca_certificate_refs {
            match authority(view, owner, reference) {
                Ok(more) => authorities.extend(more.iter().cloned()),
                Err(why) => _ = fault.get_or_insert(why),
            }
        }
        let is_insecure = validation.mode.as_deref() == Some("AllowInsecureFallback");
        gateway.insecure |= is_insecure;
        if let Some(other) =
            validation.mode.as_deref().filter(|mode| !is_insecure && *mode != "AllowValidOnly")
        {
            let message = format!("{} is no mode of `spec.tls.frontend`", quote(other));
            self.fault.get_or_insert_with(|| Fault::new("UnsupportedValue", message));
        }
        if authorities.is_empty() {
            let message = "`spec.tls.frontend` of its Gateway names no authority that can be used";
            self.fault.get_or_insert_with(|| Fault::new("NoValidCACertificate", message));
        }
        self.refs_fault = fault.or(self.refs_fault.take());
        // One that lets in whom it cannot verify need not ask.
        self.client_auth = (!is_insecure).then(|| {
            let allowed = AllowedNames::default();
            Arc::new(ClientAuth { authorities, crls: Vec::new(), crl_expiry: None, required: true, allowed })
        });
    }
}

/// The authorities of the ConfigMap that a Gateway names, or why it cannot have them.
fn authority<'i>(
    view: &mut View<'i>,
    owner: &Key,
    reference: &Reference,
) -> Result<&'i [rustls::pki_types::CertificateDer<'static>], Fault> {
    let kind = reference.kind.as_deref().unwrap_or_default();
    if !reference.group.is_empty() || kind != "ConfigMap" {
        let message = format!("{} of the group {} is no ConfigMap", quote(kind), quote(&reference.group));
        return Err(Fault::new("InvalidCACertificateKind", message));
    }
    let own = &owner.name.namespace;
    let name = Name::new(reference.namespace.as_deref().unwrap_or(own), &reference.name);
    if !view.is_granted(Kind::Gateway, own, Kind::ConfigMap, &name) {
        let message = format!("no ReferenceGrant lets a Gateway of {own} name ConfigMap {name}");
        return Err(Fault::new("RefNotPermitted", message));
    }
    let invalid = |message: String| Fault::new("InvalidCACertificateRef", message);
    let found = view.authority(&name).ok_or_else(|| invalid(format!("there is no ConfigMap {name}")))?;
    found.authorities.as_deref().map_err(|why| invalid(format!("ConfigMap {name}: {why}")))
}

const PROTOCOL_CONFLICT: &str = "ProtocolConflict";
const HOSTNAME_CONFLICT: &str = "HostnameConflict";

/// Of one Gateway's own listeners those that are equal are all in conflict, and all of a port that two families are on: none may
/// win.
fn reject_equal(listeners: &mut [Listener<'_>]) {
    let mut ports: BTreeMap<u16, (HashMap<SniPattern, usize>, Option<Family>, bool)> = BTreeMap::new();
    for listener in listeners.iter() {
        let Some(is_for) = listener.is_for else { continue };
        let (hosts, family, mixed) = ports.entry(listener.port()).or_default();
        *hosts.entry(listener.host.clone()).or_default() += 1;
        *mixed |= family.replace(is_for.family()).is_some_and(|other| other != is_for.family());
    }
    for listener in listeners.iter_mut().filter(|listener| listener.is_for.is_some()) {
        let (hosts, _, mixed) = &ports[&listener.port()];
        let port = listener.port();
        if *mixed {
            let message = format!("listeners of port {port} have protocols that exclude one another");
            listener.conflict = Some(Fault::new(PROTOCOL_CONFLICT, message));
        } else if hosts[&listener.host] > 1 {
            let message = format!("another listener of port {port} has the same host name");
            listener.conflict = Some(Fault::new(HOSTNAME_CONFLICT, message));
        }
    }
}

/// Who has which names of which ports.
#[derive(Default)]
struct Claims<'i> {
    ports: HashMap<(Option<IpAddr>, u16), Claim<'i>>,
}

struct Claim<'i> {
    family: Family,
    /// Where the first of it is bound: no two sockets can have an address and port.
    binds: Arc<[IpAddr]>,
    hosts: HashMap<SniPattern, &'i Key>,
}

impl<'i> Claims<'i> {
    /// The first has it: older Gateways come before younger ones, and a Gateway before its ListenerSets.
    fn claim(&mut self, listener: &mut Listener<'i>) {
        let Some(is_for) = listener.is_for.filter(|_| listener.is_bound()) else { return };
        let port = listener.port();
        let on: Vec<Option<IpAddr>> = match listener.binds.is_empty() {
            true => vec![None],
            false => listener.binds.iter().copied().map(Some).collect(),
        };
        for address in &on {
            let Some(claim) = self.ports.get(&(*address, port)) else { continue };
            if claim.binds != listener.binds {
                let message = format!("another Gateway has port {port} of some of its addresses");
                listener.fault = Some(Fault::new("PortUnavailable", message));
            } else if claim.family != is_for.family() {
                let message = format!("port {port} has another protocol already");
                listener.conflict = Some(Fault::new(PROTOCOL_CONFLICT, message));
            } else if let Some(owner) = claim.hosts.get(&listener.host) {
                let message = format!("{owner} has this host name on port {port} already");
                listener.conflict = Some(Fault::new(HOSTNAME_CONFLICT, message));
            }
        }
        if !listener.is_accepted() {
            return;
        }
        for address in on {
            let new =
                || Claim { family: is_for.family(), binds: listener.binds.clone(), hosts: HashMap::new() };
            let claim = self.ports.entry((address, port)).or_insert_with(new);
            claim.hosts.insert(listener.host.clone(), listener.owner);
        }
    }
}

/// Marks the HTTPS listeners of a port of which one's names are among another's: HTTP/2 clients may use the connection of one
/// for the other.
fn mark_overlaps(listeners: &mut [Listener<'_>]) {
    let mut hosts: HashMap<(Arc<[IpAddr]>, u16, SniPattern), usize> = HashMap::new();
    let is_https = |listener: &Listener<'_>| listener.is_for == Some(Use::Https) && listener.is_bound();
    for (number, listener) in listeners.iter().enumerate().filter(|(_, listener)| is_https(listener)) {
        hosts.insert((listener.binds.clone(), listener.port(), listener.host.clone()), number);
    }
    let mut marked = HashSet::new();
    for (number, listener) in listeners.iter().enumerate().filter(|(_, listener)| is_https(listener)) {
        for wider in wider(&listener.host) {
            let found = hosts.get(&(listener.binds.clone(), listener.port(), wider)).copied();
            if let Some(other) = found.filter(|other| *other != number) {
                marked.extend([number, other]);
            }
        }
    }
    marked.into_iter().for_each(|number| listeners[number].overlaps = true);
}

/// Writes the statuses of Gateways and ListenerSets.
pub(super) fn statuses(gateways: &Gateways<'_>, statuses: &mut Statuses) {
    let listeners = |owner: &Key| gateways.by_owner[owner].iter().map(|number| &gateways.listeners[*number]);
    let mut sets_of: HashMap<&Key, usize> = HashMap::new();
    for set in &gateways.sets {
        let generation = set.object.generation;
        let invalid = || Fault::new("ListenersNotValid", "none of its listeners takes connections");
        let is_good = listeners(&set.object.key).any(Listener::is_programmed);
        let fault = set.fault.clone().or_else(|| (!is_good).then(invalid));
        *sets_of.entry(set.gateway).or_default() += usize::from(fault.is_none());
        let some_bad = listeners(&set.object.key).any(|listener| !listener.is_programmed());
        let reason = if some_bad { "ListenersNotValid" } else { "Accepted" };
        let status = ListenerSetStatus {
            conditions: vec![
                Condition::of("Accepted", reason, fault.as_ref(), generation),
                Condition::of("Programmed", "Programmed", fault.as_ref(), generation),
            ],
            listeners: listeners(&set.object.key).map(|each| each.status(generation)).collect(),
        };
        statuses.insert(set.object.key.clone(), Status::ListenerSet(status));
    }
    for gateway in &gateways.list {
        let key = &gateway.object.key;
        let mut status = gateway.status(&listeners(key).collect::<Vec<_>>());
        status.attached_listener_sets = sets_of.get(key).copied().unwrap_or_default();
        statuses.insert(key.clone(), Status::Gateway(status));
    }
}

impl Gateway<'_> {
    fn status(&self, listeners: &[&Listener<'_>]) -> GatewayStatus {
        let generation = self.object.generation;
        let bad: Vec<_> = listeners.iter().filter(|listener| !listener.is_accepted()).collect();
        let names: Vec<_> = bad.iter().map(|listener| quote(&listener.spec.name)).collect();
        let not_valid = || {
            Fault::new("ListenersNotValid", format!("listeners that are not accepted: {}", names.join(", ")))
        };
        let fault =
            self.fault.clone().or_else(|| (!bad.is_empty() && bad.len() == listeners.len()).then(not_valid));
        let mut accepted = Condition::of("Accepted", "Accepted", fault.as_ref(), generation);
        if fault.is_none() && !bad.is_empty() {
            let Fault { reason, message } = not_valid();
            (accepted.reason, accepted.message) = (reason, message);
        }
        let is_idle = !listeners.is_empty() && !listeners.iter().any(|listener| listener.is_programmed());
        let not_programmed = match &fault {
            Some(_) => Some(Fault::new("Invalid", "it is not accepted")),
            None => self.addresses_fault.clone().or_else(|| {
                is_idle.then(|| Fault::new("Invalid", "none of its listeners takes connections"))
            }),
        };
        let mut conditions = vec![
            accepted,
            Condition::of("Programmed", "Programmed", not_programmed.as_ref(), generation),
            Condition::of("ResolvedRefs", "ResolvedRefs", self.backend_fault.as_ref(), generation),
        ];
        if self.insecure {
            conditions.push(Condition {
                kind: "InsecureFrontendValidationMode",
                status: Truth::True,
                reason: "ConfigurationChanged",
                message: "clients are let in whose certificates cannot be verified".into(),
                observed_generation: generation,
            });
        }
        let address = |value: &IpAddr| StatusAddress { kind: "IPAddress", value: *value };
        GatewayStatus {
            addresses: self.addresses.iter().map(address).collect(),
            conditions,
            listeners: listeners.iter().map(|listener| listener.status(generation)).collect(),
            attached_listener_sets: 0,
        }
    }
}

impl Listener<'_> {
    fn status(&self, generation: i64) -> ListenerStatus {
        let not_accepted = self.conflict.as_ref().or(self.fault.as_ref());
        let not_programmed = match (&self.conflict, &self.fault, &self.idle) {
            (Some(conflict), ..) => Some(conflict.clone()),
            (None, Some(fault), _) => Some(Fault { reason: "Invalid", ..fault.clone() }),
            (None, None, idle) => idle.clone(),
        };
        let conflicted = match &self.conflict {
            Some(conflict) => Condition {
                status: Truth::True,
                ..Condition::of("Conflicted", "", Some(conflict), generation)
            },
            None => Condition {
                status: Truth::False,
                ..Condition::of("Conflicted", "NoConflicts", None, generation)
            },
        };
        let mut conditions = vec![
            Condition::of("Accepted", "Accepted", not_accepted, generation),
            Condition::of("Programmed", "Programmed", not_programmed.as_ref(), generation),
            Condition::of("ResolvedRefs", "ResolvedRefs", self.refs_fault.as_ref(), generation),
            conflicted,
        ];
        if self.overlaps {
            conditions.push(Condition {
                kind: "OverlappingTLSConfig",
                status: Truth::True,
                reason: "OverlappingHostnames",
                message: "another HTTPS listener of the port has names of this one".into(),
                observed_generation: generation,
            });
        }
        let kind = |kind: &Kind| RouteKind { group: Some(GROUP.into()), kind: kind.name().into() };
        ListenerStatus {
            name: self.spec.name.clone(),
            supported_kinds: self.kinds.iter().map(kind).collect(),
            attached_routes: self.attached,
            conditions,
        }
    }
}
