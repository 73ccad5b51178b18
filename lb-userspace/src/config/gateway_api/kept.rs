//! What is kept of a build for the next one.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::sync::Arc;

use super::status::{Fault, Status};
use super::target::Target;
use crate::config::draft::{Field, RouteDraft};
use crate::config::http::Rule;
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
    pub(super) outcome: Outcome,
}

/// What comes of that.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) listeners: Listeners,
    /// `None`: it is no route of ours.
    pub(super) status: Option<Arc<Status>>,
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
    pub(super) rules: Vec<Rule<Field<String>>>,
    pub(super) targets: Vec<Target>,
}

/// What the data plane has of a listener of requests.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) ruled: Vec<Arc<Ruled>>,
    pub(super) draft: Arc<RouteDraft>,
}
