//! The spliced connections that live.

use super::glances::Glances;
use super::spliced::SplicedConnection;
use crate::account::ById;
use crate::kernel::Packet;
use lb_common::packet::track::Track;
use std::ops::Range;

/// The spliced connections that live.
#[derive(Default)]
pub(super) struct Live {
    by_id: ById<Box<SplicedConnection>>,
    glances: Glances,
}

impl Live {
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn insert(&mut self, live: SplicedConnection) {
        let id = live.account.connection.id;
        self.glances.enter(live.slot, id);
        self.by_id.insert(id, Box::new(live));
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Box<SplicedConnection>> {
        let live = self.by_id.remove(&id)?;
        self.glances.leave(live.slot, id);
        Some(live)
    }

    /// Removes those that are `wanted`.
    pub(super) fn extract(&mut self, wanted: impl Fn(u64) -> bool) -> Vec<SplicedConnection> {
        let Self { by_id, glances } = self;
        let found = by_id.extract_if(|id, _| wanted(*id));
        found.inspect(|(id, live)| glances.leave(live.slot, *id)).map(|(_, live)| *live).collect()
    }

    pub(super) fn get(&self, id: u64) -> Option<&SplicedConnection> {
        self.by_id.get(&id).map(|live| &**live)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut SplicedConnection> {
        self.by_id.get_mut(&id).map(|live| &mut **live)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u64> {
        self.by_id.keys().copied()
    }

    /// No slot from here on has a connection.
    pub(super) fn end(&self) -> usize {
        self.glances.end()
    }

    /// What is due may have changed for all of them.
    pub(super) fn look_at_all(&mut self) {
        self.glances.forget();
    }

    /// Looks at those of the connections in these slots of which something is due, or something has changed: see
    /// [`Glances::look`].
    pub(super) fn look(
        &mut self,
        slots: Range<usize>,
        now: u64,
        kernel: &Packet,
        mut look: impl FnMut(u64, &SplicedConnection, &Track) -> u64,
    ) {
        let Self { by_id, glances } = self;
        glances.look(
            slots,
            now,
            |slot| kernel.track(slot),
            |id, track| by_id.get(&id).map_or(u64::MAX, |live| look(id, live, track)),
        );
    }

    /// Brings the accounts of the connections in these slots up to date.
    pub(super) fn note(&mut self, slots: Range<usize>, kernel: &Packet) {
        let Self { by_id, glances } = self;
        glances.moved(
            slots,
            |slot| kernel.track(slot),
            |id, track| {
                if let Some(live) = by_id.get(&id) {
                    live.note(track);
                }
            },
        );
    }
}
