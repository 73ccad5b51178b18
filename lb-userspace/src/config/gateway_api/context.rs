//! What is outside the objects, and counts.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::key::{Key, Kind, Name};
use super::status::StatusAddress;

/// What is outside the objects, and counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The addresses of this machine, but for loopback and link-local ones: what a Gateway on the node is reached by. An
    /// endpoint with one of them is refused, as it may be the gateway's own.
    pub own: Vec<IpAddr>,
    /// Modes `node` and `service`: where all machines are reached that serve the same objects. Empty: there is only this one.
    pub nodes: Vec<IpAddr>,
    /// Which of them this one is, for statuses that are of it alone; `None`: no other is known.
    pub name: Option<Box<str>>,
    /// Whether this machine has IPv6.
    pub ipv6: bool,
    /// Every address of those machines. An endpoint with one of them is refused, too: it could lead from one gateway to the next
    /// and back, without an end.
    pub peers: Vec<IpAddr>,
    /// Ports that cannot be listened on, at which address, and why: those of the file's listeners, and those that the system
    /// refuses.
    pub unavailable: BTreeMap<(u16, IpAddr), Box<str>>,
    /// The same of the other machines, as far as they have said it.
    pub elsewhere: Lacking,
    /// The definitions of the Gateway API's kinds that the cluster has, by their names, what each says; none: there is no
    /// cluster, or they are not known.
    pub definitions: Definitions,
    /// Modes `pool` and `service`: where each Gateway is.
    pub assigned: BTreeMap<Name, Assigned>,
    /// Kinds that the API server does not let this gateway look at, so that nobody knows whether there are objects of them; each
    /// with its namespace, which is empty for all.
    pub unseen: BTreeSet<(Kind, Arc<str>)>,
}

impl Context {
    /// Whether there may be objects of a kind in a namespace that nobody here knows of.
    pub(super) fn is_unseen(&self, kind: Kind, namespace: &Arc<str>) -> bool {
        self.unseen.iter().any(|(unseen, of)| *unseen == kind && (of.is_empty() || of == namespace))
    }
}

/// Where a Gateway is that has addresses of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// The addresses for which packets arrive here.
    pub addresses: Vec<IpAddr>,
    /// Where else its clients find it: what sends their connections on to node ports.
    pub elsewhere: Vec<StatusAddress>,
    /// Mode `service`: the ports of every node that stand for its ports.
    pub node_ports: BTreeMap<u16, u16>,
    /// An address that its load balancer gives and that it cannot have here, and why.
    pub refused: Option<Box<str>>,
}

/// Listeners whose ports cannot be had, by their Gateway or ListenerSet and their names, and why.
pub type Lacking = BTreeMap<Key, BTreeMap<Box<str>, Box<str>>>;

/// CustomResourceDefinitions by name.
pub type Definitions = BTreeMap<Box<str>, Definition>;

/// What a CustomResourceDefinition of the Gateway API says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Definition {
    /// Of the Gateway API.
    pub version: Option<Box<str>>,
    /// It has the fields of the experimental channel.
    pub is_experimental: bool,
}
