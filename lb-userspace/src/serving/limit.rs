//! `max_connections`, counted over all workers.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::ClientPermit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A count of live connections.
#[derive(Debug, Default)]
pub struct Limit(AtomicUsize);

impl Limit {
    /// Counts one more, unless there are `max` already.
    pub fn acquire(self: &Arc<Self>, max: Option<usize>) -> Option<Permit> {
        let permit = Permit(self.clone());
        let before = self.0.fetch_add(1, Relaxed);
        max.is_none_or(|max| before < max).then_some(permit)
    }

    /// Counts an existing connection, even above the bound.
    pub fn join(self: &Arc<Self>) -> Permit {
        self.0.fetch_add(1, Relaxed);
        Permit(self.clone())
    }

    /// How many there are now.
    pub fn active(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// One connection of a [`Limit`], counted until dropped.
#[derive(Debug)]
pub struct Permit(Arc<Limit>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// All the places that a routed connection takes, until dropped: in `max_connections` of the gateway, the listener and the
/// route, and in `client_rate` of the listener and the route, where they have one.
#[derive(Debug)]
pub struct Permits {
    /// Of the gateway, the listener and the route.
    pub connections: [Permit; 3],
    /// Of the listener and the route.
    pub clients: [Option<ClientPermit>; 2],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_limit_refuses_and_a_dropped_permit_makes_room() {
        let limit = Arc::new(Limit::default());
        let first = limit.acquire(Some(1)).unwrap();
        assert!(limit.acquire(Some(1)).is_none());
        assert_eq!(limit.active(), 1);
        drop(first);
        assert!(limit.acquire(Some(1)).is_some());
        assert_eq!(limit.active(), 0);
    }
}
