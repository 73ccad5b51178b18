//! Istio's own objects, as far as they are about TLS and TCP.
//!
//! They are read as what they would be in the Gateway API: each host of a server of a Gateway is a listener, each match of a
//! VirtualService a route. From then on the rules of the Gateway API hold for all. What restricts who may connect, and is not
//! known here, refuses the server or the clients that it is about.

mod destination;
mod destination_rule;
mod gateway;
mod host;
mod http;
mod text;
mod virtual_service;

pub(super) use destination_rule::{DestinationRule, Subset};
pub(super) use gateway::IstioGateway;
pub(super) use host::{DOMAIN, is_exported};
pub(super) use virtual_service::{Rule, VirtualService};
