//! Whether pools take new connections, and why not.

use super::pool::Pool;
use super::server::{Server, Standing};
use crate::clock::now_ms;
use crate::reason::{CloseReason, DownReason};
use crate::state::ServerState;
use std::sync::Arc;
use std::time::Duration;

impl Pool {
    /// Some server of it takes new connections, be it for want of a better one.
    pub fn is_available(&self) -> bool {
        let now_ms = now_ms();
        self.servers().iter().any(|server| server.standing(now_ms) != Standing::Unusable)
    }

    /// No server takes connections, but the first check of one is still to come, which may change that.
    pub fn awaits_checks(&self) -> bool {
        let unchecked = |server: &Arc<Server>| server.availability().reason == Some(DownReason::Unchecked);
        self.health.as_ref().is_some_and(|health| health.role().is_some())
            && !self.is_available()
            && self.servers().iter().any(unchecked)
    }

    /// Why it has no server for a connection that has tried none.
    pub fn refusal(&self) -> CloseReason {
        match self.servers().iter().any(|server| server.availability().state == ServerState::Down) {
            true => CloseReason::PoolDown,
            false => CloseReason::NoServer,
        }
    }

    /// A connection to the server failed before the first byte of an answer.
    pub fn failed(&self, server: &Server) {
        let Some(eject) = self.eject else { return };
        let now_ms = now_ms();
        let another = || {
            let usable = |other: &&Arc<Server>| other.standing(now_ms) == Standing::Usable;
            self.servers().iter().filter(usable).any(|other| !Arc::ptr_eq(&other.state, &server.state))
        };
        if let Some(until_ms) = server.state.health.failed(eject, another, now_ms) {
            let time = Duration::from_millis(until_ms - now_ms);
            tracing::warn!(pool = %self.name, server = %server.address, ?time, "ejected: connections to it fail");
        }
    }

    /// A connection to the server has ended; `answered`: with a byte of the server.
    pub fn ended(&self, server: &Server, reason: CloseReason, answered: bool) {
        match (reason, answered) {
            (CloseReason::ServerReset, false) => self.failed(server),
            (CloseReason::ServerReset, true) | (_, false) => {}
            (_, true) => server.state.health.worked(),
        }
    }
}
