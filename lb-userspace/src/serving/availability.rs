//! Whether servers and pools take new connections, and why not.

use super::health::Checked;
use super::pool::{Pool, Server};
use crate::clock::now_ms;
use crate::config::Role;
use crate::reason::{CloseReason, DownReason};
use crate::route::Candidate;
use crate::state::{Availability, ServerState};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Whether a server takes a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It does.
    Usable,
    /// It does where no other one of its pool does.
    Ejected,
    /// It does not.
    Unusable,
}

impl Server {
    /// Why its checks keep connections from it. One that is not checked yet takes them, unless its role matters.
    fn down(&self) -> Option<DownReason> {
        let health = self.health.as_ref()?;
        match self.state.health.checked() {
            Checked::Up => None,
            Checked::Down(reason) => Some(reason),
            Checked::Unchecked => health.role().map(|_| DownReason::Unchecked),
        }
    }

    /// Whether it takes new connections, and why not.
    pub fn availability(&self) -> Availability {
        let (record, now_ms) = (&self.state, now_ms());
        let [resolved, drained, undrained] =
            [&record.resolved_ms, &record.drained_ms, &record.undrained_ms].map(|time| time.load(Relaxed));
        let up_since = resolved.max(undrained);
        let (state, reason, since_ms) = if drained != 0 {
            (ServerState::Draining, None, drained)
        } else if record.addresses.load().is_empty() {
            (ServerState::Unresolved, None, resolved)
        } else if let Some(reason) = self.down() {
            (ServerState::Down, Some(reason), up_since.max(record.health.changed_ms()))
        } else if record.health.is_ejected(now_ms) {
            (ServerState::Down, Some(DownReason::Ejected), record.health.ejection_changed_ms(now_ms))
        } else {
            let checked = self.health.as_ref().map(|_| record.health.checked());
            let changed = if checked.is_some() { record.health.changed_ms() } else { 0 };
            let reason = (checked == Some(Checked::Unchecked)).then_some(DownReason::Unchecked);
            let since = up_since.max(changed).max(record.health.ejection_changed_ms(now_ms));
            (ServerState::Up, reason, since)
        };
        Availability { state, reason, since_ms }
    }

    pub(super) fn standing(&self, now_ms: u64) -> Standing {
        let record = &self.state;
        if record.drained_ms.load(Relaxed) != 0 || record.addresses.load().is_empty() || self.down().is_some()
        {
            return Standing::Unusable;
        }
        if record.health.is_ejected(now_ms) { Standing::Ejected } else { Standing::Usable }
    }
}

impl Pool {
    /// Its servers hold the same data, and one of them takes the writes.
    pub(super) fn follows_master(&self) -> bool {
        self.health.as_ref().is_some_and(|health| health.role() == Some(Role::Master))
    }

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

/// Of the candidates that are usable, keeps the one with the smallest `since`; of equals the first. Of several servers that say
/// they are the master, all but one are mistaken: the one that was it before stays it.
pub(super) fn keep_one(candidates: &mut [Candidate], since: impl Fn(usize) -> u64) {
    let usable = (0..candidates.len()).filter(|index| candidates[*index].usable);
    let Some(kept) = usable.min_by_key(|index| since(*index)) else { return };
    for (index, candidate) in candidates.iter_mut().enumerate() {
        candidate.usable &= index == kept;
    }
}
