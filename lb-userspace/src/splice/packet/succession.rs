//! The packet tier passes from one process to the next while both live. The first is *frozen*: it changes nothing of its
//! connections, and can still thaw and go on. Once the next one has adopted them, the first leaves them. Connections whose
//! handover to the tier is under way are *kept*: they pass one by one, when their sockets are closed.

use super::tier::{HandoverState, PacketTier};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLockReadGuard, RwLockWriteGuard};

impl PacketTier {
    /// From here on no connection enters the tier, and nobody looks after those that are in it.
    pub fn freeze(&self) {
        // Whoever was at work has finished. Handovers are locked after this, as by those who begin one: in one statement the
        // right side of an assignment would be first.
        let mut frozen = self.write();
        *frozen = Some(self.handovers().keys().copied().collect());
    }

    /// The connections that are kept, and their slots where they are known.
    pub fn kept(&self) -> Vec<(u64, Option<u32>)> {
        let mut frozen = self.write();
        let Some(kept) = &mut *frozen else { return Vec::new() };
        let (live, handovers) = (self.lock(), self.handovers());
        kept.retain(|id| handovers.contains_key(id) || self.kernel().handover(*id).is_some());
        let slot = |id: &u64| match (live.get(*id), handovers.get(id)) {
            (Some(live), _) => Some(live.slot),
            (None, Some(HandoverState::ConnectionOver { slot })) => Some(*slot),
            (None, _) => None,
        };
        kept.iter().map(|id| (*id, slot(id))).collect()
    }

    /// Goes on as before. `addresses`: of the listeners.
    pub fn thaw(&self, addresses: impl Iterator<Item = SocketAddr>) -> anyhow::Result<()> {
        // The other process may have begun to work.
        self.kernel().look_again()?;
        self.listen(addresses)?;
        self.forget_allowed();
        *self.write() = None;
        Ok(())
    }

    /// Leaves all connections but those that are kept to the next process, with their accounts open.
    pub fn leave(&self) {
        let frozen = self.frozen();
        let is_kept = |id| frozen.as_ref().is_some_and(|kept| kept.contains(&id));
        // Not under the lock: accounts have their own.
        let left = self.lock().extract(|id| !is_kept(id));
        left.into_iter().for_each(|live| live.account.leave());
    }

    /// Leaves those of the kept connections that have no sockets any more, or are over. Returns what is still kept.
    pub fn leave_finished(&self) -> HashSet<u64> {
        let mut frozen = self.write();
        let Some(kept) = &mut *frozen else { return HashSet::new() };
        let mut live = self.lock();
        kept.retain(|id| {
            // A handover that failed ends the connection itself, in a moment.
            let is_finished = !self.handovers().contains_key(id) && self.kernel().handover(*id).is_none();
            if is_finished && let Some(live) = live.remove(*id) {
                live.account.leave();
            }
            !is_finished
        });
        kept.clone()
    }

    /// What the tier keeps while it is frozen. It does not freeze while this is held; a thread that holds it must not ask again, for
    /// one that waits to freeze goes first.
    pub(super) fn frozen(&self) -> RwLockReadGuard<'_, Option<HashSet<u64>>> {
        self.frozen.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<HashSet<u64>>> {
        // Never left half-changed.
        self.frozen.write().unwrap_or_else(PoisonError::into_inner)
    }
}
