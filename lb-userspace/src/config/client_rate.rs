//! `client_rate`: what one client address may have of a listener or a route.

use std::num::NonZeroU32;
use std::time::Duration;

/// What one client address (of IPv6: one /64) may have; at least one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRate {
    /// How many connections it may open.
    pub new: Option<NewConnections>,
    /// How many it may have open at once; at least 1.
    pub open: Option<usize>,
}

impl ClientRate {
    /// So many a second.
    pub(crate) const fn per_second(most: NonZeroU32) -> Self {
        Self { new: Some(NewConnections { most, per: NewConnections::PER }), open: None }
    }
}

/// So many new connections in so much time. As many may come at once after as much time without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewConnections {
    /// How many.
    pub most: NonZeroU32,
    /// In how much time; not zero.
    pub per: Duration,
}

impl NewConnections {
    /// The time if none is given.
    pub(super) const PER: Duration = Duration::from_secs(1);
}
