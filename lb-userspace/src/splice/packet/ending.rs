//! The ends of spliced connections, and what a sweep does to those that live on.

use super::spliced::{Due, SplicedConnection, closings, last_heard_ms, reason_of};
use super::ticks::now_tick;
use super::tier::PacketTier;
use super::view::View;
use crate::clock::now_ms;
use crate::kernel::raw::{Kind, Segment};
use crate::reason::CloseReason;
use crate::splice::keepalive::Timing;
use lb_common::packet::track::{Half, asked, closing};
use lb_common::packet::{PerLeg, Record, Side};

/// Slots that a sweep looks at before it releases the lock for others.
const AT_ONCE: usize = 1024;

impl PacketTier {
    /// Enters a connection whose flows are in the table. `asked`: the [generation](super::ways::Ways::generation) of its
    /// ways.
    pub(crate) fn enter(&self, live: SplicedConnection, asked: u64) {
        let id = live.account.connection.id;
        self.lock().insert(live);
        self.ways.entered(id, asked);
    }

    /// Ends a connection whose sequence numbers are unknown. Each end is sent an ACK outside its window and answers with a
    /// challenge ACK; no socket here takes that, so this host's TCP resets it at exactly the number the end expects (RFC
    /// 9293, section 3.10.7.1).
    pub(super) fn abandon(&self, id: u64, record: &Record) {
        for tuple in record.tuples().iter() {
            self.kernel().remove(id, tuple);
            let ack = Segment { kind: Kind::Ack, seq: 0, ack: 0, window: 0, timestamps: None };
            self.send_by_route(tuple, &ack);
        }
        self.kernel().end_handover(id);
        self.kernel().forget(id);
    }

    /// Resets a connection at both ends and closes its account. Its port, permits and slot are free only when its flows are
    /// removed. `false`: this process has no such connection, or its successor is about to have it.
    pub fn end(&self, id: u64, reason: CloseReason) -> bool {
        let frozen = self.frozen();
        frozen.as_ref().is_none_or(|kept| kept.contains(&id)) && self.end_at(id, reason, None)
    }

    /// As [`end`](Self::end), by the thread that looks after the connections. `ended_ms`: when the connection ended by itself,
    /// if it did.
    pub(super) fn end_at(&self, id: u64, reason: CloseReason, ended_ms: Option<u64>) -> bool {
        let Some(live) = self.lock().remove(id) else { return false };
        if let Some(record) = self.kernel().record(id) {
            match self.view(id, &record) {
                Some(view) => {
                    live.note(&view.track);
                    for side in Side::BOTH {
                        view.resets(side).for_each(|reset| self.send(&record, &view, side, &reset));
                    }
                    record.tuples().iter().for_each(|tuple| self.kernel().remove(id, tuple));
                }
                None => self.abandon(id, &record),
            }
        }
        self.kernel().forget(id);
        self.kernel().end_handover(id);
        self.release(id, live.slot);
        live.account.close_at(reason, ended_ms);
        true
    }

    /// A connection's flows and track; `None`: its flows are gone.
    pub(super) fn view(&self, id: u64, record: &Record) -> Option<View> {
        let flows = self.kernel().flows_of(id, record)?;
        Some(View { flows, track: self.kernel().track(flows.request.slot) })
    }

    /// Closes the account of a connection that is finished: each end has acknowledged the other's FIN, which a stranger who
    /// forges one end's packets cannot bring about. Its flows stay a while, for retransmissions. `false`: it is not
    /// finished.
    pub(super) fn finish_account(&self, id: u64) -> bool {
        let Some(slot) = self.lock().get(id).map(|live| live.slot) else { return false };
        let track = self.kernel().track(slot);
        let Some(reason) = reason_of(closings(&track)) else { return false };
        // The programs have told so, or would have if no store of theirs was lost.
        let is_finished = track.halves.iter().any(|half| half.closing & closing::FINISHED != 0)
            || self
                .kernel()
                .record(id)
                .and_then(|record| self.view(id, &record))
                .is_some_and(|view| view.is_finished());
        if !is_finished {
            return false;
        }
        let Some(live) = self.lock().remove(id) else { return false };
        live.note(&track);
        // Always there: whoever removes a record has removed the connection before.
        if let Some(record) = self.kernel().take_record(id) {
            self.lingering().push(now_ms(), id, slot, record.tuples());
        }
        live.account.close_at(reason, Some(last_heard_ms(&track)));
        true
    }

    /// Ends a connection if the reset of one of its ends [still stands](super::spliced::RESET_STANDS_MS).
    pub(super) fn end_reset(&self, id: u64) {
        let Some(slot) = self.lock().get(id).map(|live| live.slot) else { return };
        let track = self.kernel().track(slot);
        if track.halves.iter().any(Half::has_reset)
            && let Some(reason) = reason_of(closings(&track))
        {
            self.end_at(id, reason, Some(last_heard_ms(&track)));
        }
    }

    /// Closes the account of a connection whose flows the programs have removed, because a SYN from this side took its
    /// tuple. The SYN says that this end no longer has the connection; the other end is reset unless it was finished.
    pub(super) fn reused(&self, id: u64, side: Side, closings: PerLeg<u8>) {
        let Some(live) = self.lock().remove(id) else { return };
        let track = self.kernel().track(live.slot);
        live.note(&track);
        if closings.iter().all(|closing| closing & closing::FINISHED == 0)
            && let Some(record) = self.kernel().record(id)
        {
            let half = track.halves.get(side.other());
            let (kind, seq, ack) = (Kind::Reset, half.ack, half.sent());
            let reset = Segment { kind, seq, ack, window: 0, timestamps: None };
            self.send_by_route(record.tuples().get(side.other()), &reset);
        }
        self.kernel().forget(id);
        self.kernel().end_handover(id);
        self.release(id, live.slot);
        let reason = reason_of(closings).unwrap_or(CloseReason::ClientReset);
        live.account.close_at(reason, Some(last_heard_ms(&track)));
    }

    /// Looks at the connections of some slots, from this one on, as far as something may be due, and does it. Returns the slot
    /// to go on at; `None`: there are no more. `quiet` gets the connections whose ends are to be sent keepalive probes: there
    /// may be many, so the caller sends them in portions.
    pub(super) fn look(&self, from: usize, now: u64, system: &Timing, quiet: &mut Vec<u64>) -> Option<usize> {
        let (to, mut due) = (from + AT_ONCE, Vec::new());
        let mut live = self.lock();
        live.look(from..to, now, self.kernel(), |id, live, track| {
            live.note(track);
            let (actions, is_quiet) = live.due(track, now, system);
            due.extend(actions.map(|due| (id, due)));
            quiet.extend(is_quiet.then_some(id));
            for side in Side::BOTH {
                if track.halves.get(side).asked & asked::DEVICE != 0 {
                    self.kernel().was_asked(live.slot, side, asked::DEVICE);
                }
            }
            live.quiet_until(track, system)
        });
        let more = to < live.end();
        drop(live);
        for (id, due) in due {
            match due {
                Due::Reused => {
                    let slot = self.lock().get(id).map(|live| live.slot);
                    if let Some(slot) = slot {
                        let closings = closings(&self.kernel().track(slot));
                        let by_client = closings.client & closing::REUSED != 0;
                        let side = if by_client { Side::Client } else { Side::Server };
                        self.reused(id, side, closings);
                    }
                }
                Due::Finish { else_end } => {
                    if !self.finish_account(id)
                        && let Some((reason, ended_ms)) = else_end
                    {
                        self.end_at(id, reason, ended_ms);
                    }
                }
                Due::End((reason, ended_ms)) => _ = self.end_at(id, reason, ended_ms),
                Due::Challenge { side } => self.challenge(id, side),
            }
        }
        more.then_some(to)
    }

    /// The next sweep looks at every connection.
    pub(super) fn look_at_all(&self) {
        self.lock().look_at_all();
    }

    /// Sends keepalive probes to those ends of a connection that have been silent for long enough. The answer of one end is
    /// forwarded to the other, to which it is a duplicate ACK.
    pub(super) fn probe(&self, id: u64, system: &Timing) {
        let sides = {
            let mut live = self.lock();
            let Some(live) = live.get_mut(id) else { return };
            // Judged anew: an end may have sent something since the sweep looked at it.
            live.take_probes(&self.kernel().track(live.slot), now_tick(), system)
        };
        let Some(record) = self.kernel().record(id) else { return };
        let Some(mut view) = self.view(id, &record) else { return };
        for side in sides {
            // Read anew: the first end may have answered already, and Linux (since 6.14) does not answer a probe whose
            // timestamp is older than that of the answer (PAWS, RFC 7323, section 5).
            view.track = self.kernel().track(view.flows.of(side).slot);
            self.send(&record, &view, side, &view.probe(side));
        }
    }

    /// Brings the accounts of all spliced connections up to date.
    pub fn refresh(&self) {
        let mut from = 0;
        loop {
            let mut live = self.lock();
            if from >= live.end() {
                return;
            }
            live.note(from..from + AT_ONCE, self.kernel());
            from += AT_ONCE;
        }
    }
}
