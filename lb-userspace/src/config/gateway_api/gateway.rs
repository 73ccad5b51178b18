//! A Gateway by itself: where it is, what it asks of clients, and whom it lets add listeners.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::key::Kind;
use super::objects::Object;
use super::references::{admits, certificate};
use super::specs::{FromNamespaces, GatewaySpec, Validation};
use super::status::{Fault, StatusAddress};
use super::view::View;
use crate::config::certificate::Loaded;
use crate::config::controller::Mode;
use crate::config::diagnostic::quote;

/// A Gateway of one of our classes.
pub(super) struct Gateway<'i> {
    pub(super) object: &'i Object,
    spec: &'i GatewaySpec,
    /// Why it is not accepted, whatever its listeners are.
    pub(super) fault: Option<Fault>,
    /// Why its addresses are not what it asks for.
    pub(super) addresses_fault: Option<Fault>,
    /// What it shows to servers.
    pub(super) client_certificate: Option<Arc<Loaded>>,
    /// Of that.
    pub(super) backend_fault: Option<Fault>,
    /// Where it can be reached.
    pub(super) addresses: Vec<StatusAddress>,
    /// Where its listeners are bound; empty: on every address of the node; `None`: nowhere.
    pub(super) binds: Option<Arc<[IpAddr]>>,
    /// The ports of the node that stand for its ports; they are bound on every address of the node.
    node_ports: Option<&'i BTreeMap<u16, u16>>,
    /// Nothing arrives but what is for its node ports.
    pub(super) is_elsewhere: bool,
    /// Clients are let in with certificates that lead nowhere.
    pub(super) insecure: bool,
}

impl<'i> Gateway<'i> {
    pub(super) fn new(object: &'i Object, spec: &'i GatewaySpec, view: &mut View<'i>) -> Self {
        let mut gateway = Gateway {
            object,
            spec,
            fault: None,
            addresses_fault: None,
            client_certificate: None,
            backend_fault: None,
            addresses: Vec::new(),
            binds: None,
            node_ports: None,
            is_elsewhere: false,
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
            match certificate(view, &object.key, reference) {
                Ok(certificate) => gateway.client_certificate = Some(certificate),
                Err(fault) => {
                    gateway.backend_fault = Some(match fault.reason {
                        "InvalidCertificateRef" => Fault { reason: "InvalidClientCertificateRef", ..fault },
                        _ => fault,
                    });
                }
            }
        }
        gateway
    }

    /// Where it is.
    fn place(&mut self, view: &View<'i>) {
        let (settings, context) = (&view.index.settings, view.context);
        let is_node = settings.mode == Mode::Node;
        let place = context.assigned.get(&self.object.key.name);
        // Istio's Gateways have no status in which an address could be kept, and get no Service.
        let place = place.filter(|_| self.object.key.kind == Kind::Gateway);
        let assigned = place.map(|place| place.addresses.as_slice()).unwrap_or_default();
        let elsewhere = place.map(|place| place.elsewhere.as_slice()).unwrap_or_default();
        let reached = if context.nodes.is_empty() { &context.own } else { &context.nodes };
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
            let is_known = |ip: &IpAddr| match is_node {
                true => context.own.contains(ip),
                false => assigned.contains(ip) || elsewhere.contains(&StatusAddress::Ip(*ip)),
            };
            match ip.filter(|ip| settings.may_name(*ip) && is_known(ip)) {
                Some(ip) => named.push(ip),
                None => {
                    let message =
                        format!("{} is not an address that Gateways may have here", quote(&address.value));
                    self.addresses_fault.get_or_insert_with(|| Fault::new("AddressNotUsable", message));
                }
            }
        }
        let mut addresses = match (is_node, any) {
            (true, true) => reached.to_vec(),
            (true, false) => named,
            (false, _) => assigned.to_vec(),
        };
        addresses.sort();
        addresses.dedup();
        // On every address of the node, its sockets need not know them.
        self.binds = match (is_node, any) {
            (true, true) => Some(Arc::from([])),
            _ => Some(Arc::from(addresses.as_slice())).filter(|binds: &Arc<[IpAddr]>| !binds.is_empty()),
        };
        self.addresses =
            addresses.into_iter().map(StatusAddress::Ip).chain(elsewhere.iter().cloned()).collect();
        self.addresses.sort();
        if is_node {
            return;
        }
        self.node_ports = place.map(|place| &place.node_ports).filter(|ports| !ports.is_empty());
        if self.binds.is_none() && !elsewhere.is_empty() {
            self.is_elsewhere = true;
            self.binds = Some(Arc::from([]));
        }
        if let Some(refused) = place.and_then(|place| place.refused.clone()) {
            self.addresses_fault.get_or_insert_with(|| Fault::new("AddressNotUsable", refused));
        }
        if self.binds.is_none() {
            let message = match settings.mode {
                Mode::Service => "no load balancer has given its Service an address yet",
                _ => "no address is left for it",
            };
            self.addresses_fault.get_or_insert_with(|| Fault::new("AddressNotAssigned", message));
        }
    }

    /// The port of the node that stands for a port, if there is one.
    pub(super) fn node_port(&self, port: u16) -> Option<u16> {
        self.node_ports?.get(&port).copied()
    }

    /// Why a ListenerSet may not add to it.
    pub(super) fn refuses(&self, view: &mut View<'_>, set: &Object) -> Option<Fault> {
        let key = &self.object.key;
        let namespace = &set.key.name.namespace;
        if !self.lets_in(view, namespace) {
            return Some(Fault::new(
                "NotAllowed",
                format!("{key} does not allow ListenerSets of {namespace}"),
            ));
        }
        self.fault.as_ref().map(|_| Fault::new("ParentNotAccepted", format!("{key} is not accepted")))
    }

    /// Whether objects of a namespace may add listeners to it.
    pub(super) fn lets_in(&self, view: &mut View<'_>, namespace: &Arc<str>) -> bool {
        let own = &self.object.key.name.namespace;
        admits(view, &self.spec.allowed_listeners, FromNamespaces::None, own, namespace)
    }

    /// What it asks of the certificates of clients on a port.
    pub(super) fn validation(&self, port: u16) -> Option<&'i Validation> {
        let frontend = self.spec.tls.frontend.as_ref()?;
        let on_port = frontend.per_port.iter().find(|entry| entry.port == port).map(|entry| &entry.tls);
        on_port.unwrap_or(&frontend.default).validation.as_ref()
    }
}
