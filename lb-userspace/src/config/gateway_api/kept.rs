//! What is kept of a build for the next one.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use super::key::{Key, Name};
use super::status::{Fault, Status};
use super::target::Target;
use crate::config::authorities::Authorities;
use crate::config::draft::{RouteDraft, RulesDraft};
use crate::config::model::SniPattern;

/// Indices of listeners, each with the names that a route and it both have; no listener twice.
pub(super) type Listeners = Arc<[(usize, Vec<SniPattern>)]>;

/// The listeners of a parent that accept a route, or why none does.
pub(super) type Accepting = Result<Vec<(usize, Vec<SniPattern>)>, Fault>;

/// What a route finds at its parents, whatever other routes are there.
#[derive(Debug)]
pub(super) struct Offer {
    /// Of each parent that is ours, by its place in `spec.parentRefs`.
    pub(super) parents: Vec<(usize, Accepting)>,
    /// The first backend that it cannot have.
    pub(super) references: Option<Fault>,
    /// The Services that its other backends are.
    pub(super) services: Services,
    pub(super) outcome: Outcome,
}

/// Services, none twice.
pub(super) type Services = Arc<[Name]>;

/// What comes of that.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) listeners: Listeners,
    /// `None`: it is no route of ours.
    pub(super) status: Option<Arc<Status>>,
}

/// What a VirtualService finds at its Gateways.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// Of each of its rules the listeners that take its clients, and the Services that its destinations are.
    pub(super) rules: Vec<(Listeners, Services)>,
    /// The listeners that any of its rules is on, once for each of its Gateways.
    pub(super) attached: Vec<usize>,
    /// `None`: it is for no Gateway of ours.
    pub(super) status: Option<Arc<Status>>,
}

/// What a policy says of servers.
#[derive(Debug)]
pub(super) struct Trust {
    /// Who signs their certificates; `None`: whom the system trusts. Or why nobody may speak to them.
    pub(super) authorities: Result<Option<Arc<Authorities>>, Fault>,
    /// The first reference that names nobody.
    pub(super) fault: Option<Fault>,
    /// Something that it names is not watched, because there is too much of that.
    pub(super) is_refused: bool,
}

/// What is said of a policy.
#[derive(Debug)]
pub(super) struct Told {
    /// All Gateways by which somebody comes to its Services.
    pub(super) ancestors: Box<[Key]>,
    pub(super) status: Arc<Status>,
}

/// Who gets a share of a route's connections.
#[derive(Debug)]
pub(super) enum Share {
    Of(Target),
    Nobodys,
}

/// What the data plane has of a route on a listener.
#[derive(Debug)]
pub(super) struct Drafted {
    /// The names that are left to it there.
    pub(super) hosts: Vec<SniPattern>,
    pub(super) draft: Arc<RouteDraft>,
    pub(super) shares: Vec<Share>,
}

/// The rules of a route for a listener.
#[derive(Debug)]
pub(super) struct Ruled {
    pub(super) hosts: Vec<SniPattern>,
    pub(super) rules: Arc<RulesDraft>,
    /// Whose pools they are.
    pub(super) targets: Vec<Target>,
}

/// What the data plane has of a listener of requests.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) ruled: Vec<Arc<Ruled>>,
    pub(super) draft: Arc<RouteDraft>,
}
