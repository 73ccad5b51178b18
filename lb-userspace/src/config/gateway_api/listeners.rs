//! Listeners of Gateways and ListenerSets: what they are for, and what they need.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::context::Context;
use super::gateway::Gateway;
use super::key::{GROUP, Key, Kind};
use super::references::{authority, certificate, istio_authorities};
use super::specs::{Clients, ListenerSpec, RouteKind, Server};
use super::status::{Condition, Fault, ListenerStatus, Truth};
use super::view::View;
use crate::config::certificate::Loaded;
use crate::config::client_auth::{Allowed, ClientAuth};
use crate::config::controller::Mode;
use crate::config::diagnostic::quote;
use crate::config::hostname;
use crate::config::model::SniPattern;

/// Ports that no Gateway gets on a node, whether or not something listens there now: sshd, etcd, the API server, the kubelet,
/// kube-proxy, the controller manager, the scheduler.
const RESERVED: [u16; 10] = [22, 2379, 2380, 6443, 10_248, 10_249, 10_250, 10_256, 10_257, 10_259];

const NO_AUTHORITY: &str = "NoValidCACertificate";

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
    /// The Gateway that it is of.
    pub(super) gateway: &'i Key,
    /// In its owner's `spec.listeners`.
    pub(super) number: usize,
    pub(super) spec: &'i ListenerSpec,
    pub(super) host: SniPattern,
    /// Its host name cannot be read, and nobody knows which one is meant.
    pub(super) is_of_no_host: bool,
    /// `None`: its protocol is none of ours.
    pub(super) is_for: Option<Use>,
    /// Of routes.
    pub(super) kinds: Vec<Kind>,
    /// Where it is bound; empty: on every address of the node.
    pub(super) binds: Arc<[IpAddr]>,
    /// And on which port: its own, or what stands for it.
    pub(super) bound_port: u16,
    /// It is bound on every address of the node, too, on this port.
    pub(super) node_port: Option<u16>,
    /// Its Gateway is accepted, and is somewhere.
    is_placed: bool,
    pub(super) certificates: Vec<Arc<Loaded>>,
    pub(super) client_auth: Option<Arc<ClientAuth>>,
    /// What is shown to servers.
    pub(super) client_certificate: Option<Arc<Loaded>>,
    pub(super) fault: Option<Fault>,
    /// Why this machine cannot give it its port, whatever others can.
    pub(super) lacks_port: Option<Box<str>>,
    /// Another machine cannot.
    elsewhere: Option<Fault>,
    pub(super) conflict: Option<Fault>,
    refs_fault: Option<Fault>,
    /// Why it takes no connection, though it is accepted.
    idle: Option<Fault>,
    pub(super) overlaps: bool,
    /// Routes that it accepts.
    pub(super) attached: usize,
}

impl Listener<'_> {
    /// Whether it is accepted, by every machine.
    pub(super) fn is_accepted(&self) -> bool {
        self.is_accepted_here() && self.elsewhere.is_none()
    }

    fn is_accepted_here(&self) -> bool {
        self.fault.is_none() && self.conflict.is_none()
    }

    /// Whether it has a port. Also one that lacks its certificate, or the authorities of its clients, keeps wider listeners from
    /// its names.
    pub(super) fn is_bound(&self) -> bool {
        let is_set_up = self.fault.as_ref().is_none_or(|fault| fault.reason == NO_AUTHORITY);
        is_set_up && self.conflict.is_none() && self.is_for.is_some() && self.is_placed
    }

    /// Whether it takes connections here.
    pub(super) fn is_programmed(&self) -> bool {
        self.is_bound() && self.is_accepted_here() && self.idle.is_none()
    }

    /// Whether it takes connections on every machine.
    pub(super) fn is_programmed_everywhere(&self) -> bool {
        self.is_programmed() && self.elsewhere.is_none()
    }

    /// Whether it passes clients on to the Service and port that their server name tells, as Istio's gateways between clusters
    /// do.
    pub(super) fn is_auto_passthrough(&self) -> bool {
        let option = self.spec.tls.options.get("gateway.istio.io/listener-protocol");
        self.is_for == Some(Use::Passthrough) && option.is_some_and(|option| option == "auto-passthrough")
    }

    /// Whether policies say how servers are spoken to: what is passed on as it comes is not told to anybody in another way.
    pub(super) fn follows_policies(&self) -> bool {
        matches!(self.is_for, Some(Use::Http | Use::Https | Use::Terminate))
    }

    /// Whether clients may come for it, if not here then to another node.
    pub(super) fn is_for_clients(&self) -> bool {
        self.is_for.is_some() && self.conflict.is_none()
    }

    pub(super) fn port(&self) -> u16 {
        self.spec.port.get()
    }

    /// Where it stands in its owner.
    pub(super) fn path(&self) -> String {
        match &self.spec.istio {
            Some(server) => format!("spec.servers[{}]", server.number),
            None => format!("spec.listeners[{}]", self.number),
        }
    }
}

impl<'i> Listener<'i> {
    pub(super) fn new(
        view: &mut View<'i>,
        owner: &'i Key,
        parent: &mut Gateway<'i>,
        number: usize,
        spec: &'i ListenerSpec,
    ) -> Self {
        let port = spec.port.get();
        let node_port = parent.node_port(port);
        let (bound_port, node_port) = match parent.is_elsewhere {
            true => (node_port, None),
            false => (Some(port), node_port),
        };
        let mut listener = Listener {
            owner,
            gateway: &parent.object.key,
            number,
            spec,
            host: SniPattern::Any,
            is_of_no_host: false,
            is_for: None,
            kinds: Vec::new(),
            binds: parent.binds.clone().unwrap_or_else(|| Arc::from([])),
            bound_port: bound_port.unwrap_or(port),
            node_port,
            is_placed: parent.fault.is_none() && parent.binds.is_some() && bound_port.is_some(),
            certificates: Vec::new(),
            client_auth: None,
            client_certificate: parent.client_certificate.clone(),
            fault: None,
            lacks_port: None,
            elsewhere: None,
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
        let why = spec.istio.as_ref().and_then(|server| server.fault.clone());
        listener.fault = why.map(|why| Fault::new("UnsupportedValue", why)).or(listener.fault);
        let Some(is_for) = listener.is_for else { return listener };
        if let Some(host) = spec.hostname.as_deref().filter(|host| !host.is_empty() && is_for != Use::Tcp) {
            match hostname::read(host) {
                Some(host) => listener.host = host,
                None => {
                    listener.is_of_no_host = true;
                    let message = format!("{} is no host name", quote(host));
                    listener.fault = Some(Fault::new("UnsupportedValue", message));
                }
            }
        }
        if listener.is_auto_passthrough() && !view.index.settings.auto_passthrough {
            let message = "an auto-passthrough listener reaches the Services of all namespaces: only `auto_passthrough = true` in \
                           the gateway's configuration serves it";
            listener.fault.get_or_insert_with(|| Fault::new("UnsupportedValue", message));
        }
        let why_unavailable = || {
            let own = bound_port.and_then(|port| unavailable(view.context, &listener.binds, port));
            own.or_else(|| node_port.and_then(|port| unavailable(view.context, &[], port)))
        };
        if view.index.settings.mode == Mode::Node && RESERVED.contains(&port) {
            let message = format!("port {port} is the node's own");
            listener.fault = Some(Fault::new("PortUnavailable", message));
        } else if let Some(why) = why_unavailable() {
            let message = match &view.context.name {
                Some(node) => format!("{node}: {why}").into(),
                None => why.clone(),
            };
            listener.fault = Some(Fault::new("PortUnavailable", message));
            listener.lacks_port = Some(why);
        }
        let elsewhere = view.context.elsewhere.get(owner).and_then(|listeners| listeners.get(&spec.name));
        listener.elsewhere = elsewhere.map(|why| Fault::new("PortUnavailable", why.clone()));
        listener.read_kinds(is_for);
        if is_for.terminates() {
            listener.read_certificates(view);
            listener.read_validation(view, parent);
        }
        if !listener.is_placed {
            listener.idle =
                Some(Fault::new("Pending", "its Gateway is not accepted, or has no address for it"));
        }
        listener
    }

    fn read_kinds(&mut self, is_for: Use) {
        if self.spec.istio.is_some() {
            return self.kinds = vec![Kind::VirtualService];
        }
        let known = is_for.kinds();
        let Some(named) = self.spec.allowed_routes.kinds.as_ref().filter(|named| !named.is_empty()) else {
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
            let key = if self.spec.istio.is_some() { "credentialName" } else { "certificateRefs" };
            fault = Some(Fault::new("InvalidCertificateRef", format!("`tls.{key}` names no Secret")));
        }
        if self.certificates.is_empty() {
            self.idle = Some(Fault::new("Invalid", "it has no certificate"));
        }
        self.refs_fault = fault.or(self.refs_fault.take());
    }

    /// What its Gateway asks of the certificates of clients. One that has none of the authorities takes no connection.
    fn read_validation(&mut self, view: &mut View<'_>, gateway: &mut Gateway<'i>) {
        if let Some(server) = &self.spec.istio {
            return self.read_clients(view, server);
        }
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
            self.fault.get_or_insert_with(|| Fault::new(NO_AUTHORITY, message));
        }
        self.refs_fault = fault.or(self.refs_fault.take());
        self.client_auth = Some(Arc::new(ClientAuth {
            authorities,
            crls: Vec::new(),
            crl_expiry: None,
            required: !is_insecure,
            unverified: is_insecure,
            allowed: Allowed::default(),
        }));
    }

    /// The same of a server of Istio's, of whose listeners the first asks for all.
    fn read_clients(&mut self, view: &mut View<'_>, server: &Server) {
        let Some(Clients { secrets, required, sans }) = server.clients.as_deref() else { return };
        let of_server = (self.owner.clone(), server.number);
        if let Some(known) = view.client_auths.get(&of_server) {
            return self.client_auth = Some(known.clone());
        }
        let authorities = match istio_authorities(view, self.owner, secrets) {
            Ok(authorities) => authorities.to_vec(),
            Err(why) => {
                let message = "`spec.servers[].tls` has no authority that can be used";
                self.fault.get_or_insert_with(|| Fault::new(NO_AUTHORITY, message));
                self.refs_fault.get_or_insert(why);
                return;
            }
        };
        let allowed = Allowed { sans: sans.clone(), ..Allowed::default() };
        let auth = Arc::new(ClientAuth {
            authorities,
            crls: Vec::new(),
            crl_expiry: None,
            required: *required,
            unverified: false,
            allowed,
        });
        view.client_auths.insert(of_server, auth.clone());
        self.client_auth = Some(auth);
    }
}

/// Why a port cannot be had on these addresses; none: on every address of the node.
fn unavailable(context: &Context, binds: &[IpAddr], port: u16) -> Option<Box<str>> {
    let first = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let mut of_port = context.unavailable.range((port, first)..).take_while(|((other, _), _)| *other == port);
    let is_wanted = |address: &IpAddr| {
        let meets = |bind: &IpAddr| {
            let same_family = bind.is_ipv4() == address.is_ipv4();
            bind == address || (same_family && (bind.is_unspecified() || address.is_unspecified()))
        };
        binds.is_empty() || binds.iter().any(meets)
    };
    of_port.find(|((_, address), _)| is_wanted(address)).map(|(_, why)| why.clone())
}

impl Listener<'_> {
    pub(super) fn status(&self, generation: i64) -> ListenerStatus {
        let fault = self.fault.as_ref().or(self.elsewhere.as_ref());
        let not_accepted = self.conflict.as_ref().or(fault);
        let not_programmed = match (&self.conflict, fault, &self.idle) {
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
        let kind = |kind: &Kind| RouteKind { group: Some(kind.group().into()), kind: kind.name().into() };
        ListenerStatus {
            name: self.spec.name.clone(),
            supported_kinds: self.kinds.iter().map(kind).collect(),
            attached_routes: self.attached,
            conditions,
        }
    }
}
