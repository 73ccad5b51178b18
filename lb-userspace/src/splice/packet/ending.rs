//! How spliced connections end, and what their state calls for until then.

use super::live::{Due, Live, closings, last_heard_ms, reason_of};
use super::ticks::now_tick;
use super::tier::PacketTier;
use super::view::View;
use crate::clock::now_ms;
use crate::kernel::raw::{Kind, Segment};
use crate::reason::CloseReason;
use crate::splice::keepalive::Timing;
use lb_common::packet::Record;
use lb_common::packet::track::{Half, asked, closing};

/// Connections that are looked at under one lock.
const AT_ONCE: usize = 1024;

impl PacketTier {
    /// Takes a connection in whose flows are live. `asked`: when its ways were asked for ([`Ways::generation`](super::ways::Ways::generation)).
    pub(crate) fn enter(&self, live: Live, asked: u64) {
        let id = live.account.connection.id;
        self.lock().insert(id, Box::new(live));
        self.ways.entered(id, asked);
    }

    /// Ends a connection whose sequence numbers are unknown. Each end is sent an ACK outside its window and answers with a
    /// challenge ACK; no socket here takes that, so this host's TCP resets it at exactly the number the end expects (RFC
    /// 9293, section 3.10.7.1).
    pub(super) fn abandon(&self, id: u64, record: &Record) {
        for tuple in [&record.from_client, &record.from_server] {
            self.kernel().remove(id, tuple);
            let ack = Segment { kind: Kind::Ack, seq: 0, ack: 0, window: 0, timestamps: None };
            self.speak_by_route(tuple, &ack);
        }
        self.kernel().end_handover(id);
        self.kernel().forget(id);
    }

    /// Ends a connection, with resets to both ends: nothing of it is given back while it may live. `false`: it is not one of
    /// ours.
    pub fn end(&self, id: u64, reason: CloseReason) -> bool {
        self.end_at(id, reason, None)
    }

    /// The same of one that has ended by itself at this time.
    fn end_at(&self, id: u64, reason: CloseReason, ended_ms: Option<u64>) -> bool {
        let Some(live) = self.lock().remove(&id) else { return false };
        if let Some(record) = self.kernel().record(id) {
            let tuples = [record.from_client, record.from_server];
            match self.view(id, &record) {
                Some(view) => {
                    live.note(&view.track);
                    for side in [0, 1] {
                        view.resets(side).for_each(|reset| self.speak(&record, &view, side, &reset));
                    }
                    tuples.iter().for_each(|tuple| self.kernel().remove(id, tuple));
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

    /// A connection as the programs have it; `None`: its flows are gone.
    pub(super) fn view(&self, id: u64, record: &Record) -> Option<View> {
        let [Some(request), Some(response)] = self.kernel().flows_of(id, record) else { return None };
        Some(View { flows: [request, response], track: self.kernel().track(request.slot) })
    }

    /// Looks at a connection whose FINs have both passed. Finished, its account is closed: nobody can fake that alone, and
    /// its flows stay a while, for its last packets.
    pub(super) fn finish_account(&self, id: u64) -> bool {
        let Some(record) = self.kernel().record(id) else { return false };
        let Some(view) = self.view(id, &record) else { return false };
        let Some(reason) = reason_of(closings(&view.track)) else { return false };
        if !view.is_finished() {
            return false;
        }
        let Some(live) = self.lock().remove(&id) else { return false };
        live.note(&view.track);
        self.kernel().forget(id);
        self.lingering().push(now_ms(), id, live.slot, [record.from_client, record.from_server]);
        live.account.close_at(reason, Some(last_heard_ms(&view.track)));
        true
    }

    /// Ends a connection whose reset still stands.
    pub(super) fn end_reset(&self, id: u64) {
        let Some(slot) = self.lock().get(&id).map(|live| live.slot) else { return };
        let track = self.kernel().track(slot);
        if track.halves.iter().any(Half::has_reset)
            && let Some(reason) = reason_of(closings(&track))
        {
            self.end_at(id, reason, Some(last_heard_ms(&track)));
        }
    }

    /// Closes the account of a connection whose flows a new one of this side has taken away. Unless it was finished, the
    /// other side is reset; this one has said by its SYN that it knows of nothing.
    pub(super) fn reused(&self, id: u64, side: usize, closings: [u8; 2]) {
        let Some(live) = self.lock().remove(&id) else { return };
        let track = self.kernel().track(live.slot);
        live.note(&track);
        if closings.iter().all(|closing| closing & closing::FINISHED == 0)
            && let Some(record) = self.kernel().record(id)
        {
            let half = track.halves.each_ref()[1 - side];
            let (kind, seq, ack) = (Kind::Reset, half.ack, half.sent());
            let reset = Segment { kind, seq, ack, window: 0, timestamps: None };
            self.speak_by_route([&record.from_server, &record.from_client][side], &reset);
        }
        self.kernel().forget(id);
        self.kernel().end_handover(id);
        self.release(id, live.slot);
        let reason = reason_of(closings).unwrap_or(CloseReason::ClientReset);
        live.account.close_at(reason, Some(last_heard_ms(&track)));
    }

    /// Looks at every connection, and does what is due, except for keepalive probes, of which there may be many: gives the
    /// connections that want some.
    pub(super) fn look(&self, now: u64, system: &Timing) -> Vec<u64> {
        let ids: Vec<u64> = self.lock().keys().copied().collect();
        let (mut due, mut quiet) = (Vec::new(), Vec::new());
        for ids in ids.chunks(AT_ONCE) {
            let live = self.lock();
            for id in ids {
                let Some(live) = live.get(id) else { continue };
                let track = self.kernel().track(live.slot);
                live.note(&track);
                let (actions, asks) = live.due(&track, now, system);
                due.extend(actions.map(|due| (*id, due)));
                quiet.extend(asks.then_some(*id));
                for (side, half) in track.halves.iter().enumerate() {
                    if half.asked & asked::DEVICE != 0 {
                        self.kernel().was_asked(live.slot, side, asked::DEVICE);
                    }
                }
            }
        }
        for (id, due) in due {
            match due {
                Due::Reused => {
                    let slot = self.lock().get(&id).map(|live| live.slot);
                    if let Some(slot) = slot {
                        let closings = closings(&self.kernel().track(slot));
                        let side = usize::from(closings[0] & closing::REUSED == 0);
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
        quiet
    }

    /// Asks the ends of a connection that have been silent for long enough whether they are still there. What one answers
    /// goes to the other, to which it says nothing new.
    pub(super) fn probe(&self, id: u64, system: &Timing) {
        let sides = {
            let mut live = self.lock();
            let Some(live) = live.get_mut(&id) else { return };
            // Again: they may have been heard since the look.
            live.ask(&self.kernel().track(live.slot), now_tick(), system)
        };
        let Some(record) = self.kernel().record(id) else { return };
        let Some(mut view) = self.view(id, &record) else { return };
        for side in sides {
            // Anew: the first end may have answered already, and to a probe with a timestamp older than that of its answer
            // Linux says nothing (since 6.14; PAWS, RFC 7323, section 5).
            view.track = self.kernel().track(view.flows[side].slot);
            self.speak(&record, &view, side, &view.probe(side));
        }
    }

    /// Brings the accounts of all spliced connections up to date.
    pub fn refresh(&self) {
        for live in self.lock().values() {
            live.note(&self.kernel().track(live.slot));
        }
    }
}
