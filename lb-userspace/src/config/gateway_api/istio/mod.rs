//! Istio's own objects, as far as they are about TLS and TCP.
//!
//! They become what they would be in the Gateway API when they are read: each host of a server of a Gateway a listener, each
//! match of a VirtualService a route. From then on the rules of the Gateway API hold for all. What restricts who may connect,
//! and is not known here, refuses the server or the clients that it is about.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod attach;
mod destination_rule;
mod gateway;
mod host;
mod resolve;
mod virtual_service;

pub(super) use attach::{rule_statuses, virtual_services};
pub(super) use destination_rule::{DestinationRule, Subset};
pub(super) use gateway::{Clients, IstioGateway, Server};
pub(super) use host::DOMAIN;
pub(super) use resolve::{Destination, only_port, subset, subsets};
pub(super) use virtual_service::VirtualService;
