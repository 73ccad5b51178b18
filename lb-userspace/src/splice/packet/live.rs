//! What is left in this process of a connection that the kernel forwards: its account.

use super::terms::{address, ends, socket_address};
use super::view::View;
use super::ways::Ways;
use super::{PacketTier, SourcePort, ms_between, ms_of_tick, now_tick, raise, tick_of_ms};
use crate::accept::{Limit, Permit};
use crate::account::{Account, CloseReason, Tier, Visitor};
use crate::clock::now_ms;
use crate::connect::{Pool, Server, ServerGuard};
use crate::gateway::{Gateway, Listener, Route, Snapshot};
use crate::kernel::Packet;
use crate::kernel::raw::{Kind, Segment};
use crate::splice::Choice;
use crate::splice::keepalive::Timing;
use lb_common::packet::track::{Half, Track, asked, closing};
use lb_common::packet::{Flow, Record, Tuple, before};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How long a reset must stand before the connection is over: who has not sent it goes on.
pub(super) const RESET_STANDS_MS: u64 = 500;

/// How long the flows of a finished connection stay for its last packets: as long as its ends remember it (TIME_WAIT).
/// As long, too, a connection may be silent whose FINs have passed, but not their acknowledgements.
pub(super) const LINGER_MS: u64 = 60_000;

/// A spliced connection.
pub struct Live {
    pub(super) account: Account,
    pub(super) _server: ServerGuard,
    pub(super) _permits: [Permit; 3],
    pub(super) _port: Option<SourcePort>,
    /// Place of its track.
    pub(super) slot: u32,
    /// [`Flow::origin`] of both flows.
    origin: [u64; 2],
    /// Of both ends (0: the client).
    probed: [Probed; 2],
}

/// The keepalive probes that an end has been sent since it was last heard.
#[derive(Clone, Copy, Debug, Default)]
struct Probed {
    probes: u8,
    /// When the last of them was sent, in ticks.
    at: u32,
}

/// What keepalive calls for. One probe without an answer proves nothing: Linux answers two a second, whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probing {
    Rests,
    Asks,
    /// The end has answered none of them.
    GivesUp,
}

impl Probed {
    /// What an end calls for that was last heard at this tick. Only probes that were sent count: while no process ran,
    /// nobody sent any.
    fn calls_for(&self, timing: &Timing, heard: u32, now: u32) -> Probing {
        let unanswered = self.unanswered(heard);
        if ms_between(heard, now) < timing.idle_ms
            || unanswered > 0 && ms_between(self.at, now) < timing.interval_ms
        {
            Probing::Rests
        } else if unanswered < timing.count {
            Probing::Asks
        } else {
            Probing::GivesUp
        }
    }

    /// Notes a probe.
    fn note(&mut self, heard: u32, now: u32) {
        *self = Self { probes: self.unanswered(heard).saturating_add(1), at: now };
    }

    fn unanswered(&self, heard: u32) -> u8 {
        if before(heard, self.at) { self.probes } else { 0 }
    }
}

/// Why a connection is over; and when it ended by itself, if it did ([`now_ms`]).
type Ending = (CloseReason, Option<u64>);

/// What a look at a connection calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A new connection has its tuple.
    Reused,
    /// Both FINs have passed: is it finished? If not, it may have to be reset, as [`Due::End`] says.
    Finish { else_end: Option<Ending> },
    /// It is to be reset.
    End(Ending),
    /// An end is to be asked what its SYN, or its inexact reset, meant.
    Challenge { side: usize },
}

impl Live {
    /// A connection that is being handed over; the permits are the gateway's, the listener's and the route's.
    pub(crate) fn new(
        account: Account,
        server: ServerGuard,
        permits: [Permit; 3],
        port: Option<SourcePort>,
        (slot, origin): (u32, [u64; 2]),
    ) -> Self {
        Self {
            account,
            _server: server,
            _permits: permits,
            _port: port,
            slot,
            origin,
            probed: Default::default(),
        }
    }

    /// Notes what its packets have told: bytes, and when the last one came. The time is that of the last packet of an end
    /// that has sent bytes since the last look.
    pub(super) fn note(&self, track: &Track) {
        let traffic = &self.account.connection.traffic;
        let counters = [&traffic.bytes_in, &traffic.bytes_out];
        for ((half, origin), bytes) in track.halves.iter().zip(self.origin).zip(counters) {
            let sent = half.position.saturating_sub(origin);
            if bytes.fetch_max(sent, Relaxed) < sent {
                raise(&traffic.active_ms, ms_of_tick(half.heard));
            }
        }
    }

    /// What is to be done about the connection at this time, and whether an end is to be asked if it is still there.
    fn due(&self, track: &Track, now_ms: u64, system: &Timing) -> (impl Iterator<Item = Due> + use<>, bool) {
        let quiet = track.halves.map(|half| now_ms.saturating_sub(ms_of_tick(half.heard)));
        let any = |bit: u8| track.halves.iter().any(|half| half.closing & bit != 0);
        let reset_stands =
            track.halves.iter().zip(quiet).any(|(half, quiet)| half.has_reset() && quiet >= RESET_STANDS_MS);
        let by_itself = |reason| (reason, Some(last_heard_ms(track)));
        let reset = if reset_stands { reason_of(closings(track)) } else { None };
        let ended = reset.map(by_itself).or_else(|| Some((self.expired(now_ms)?, None)));
        let first = if any(closing::REUSED) {
            Some(Due::Reused)
        } else if track.halves.iter().all(Half::has_fin) {
            // One end can keep it from being finished, and itself heard, for ever. Not both.
            let is_silent = quiet.iter().any(|quiet| *quiet >= LINGER_MS);
            let silent = if is_silent { reason_of(closings(track)) } else { None };
            Some(Due::Finish { else_end: ended.or(silent.map(by_itself)) })
        } else {
            ended.map(Due::End)
        };
        let mut due = [first, None, None];
        let mut asks = false;
        let probing = self.probing(track, tick_of_ms(now_ms), system);
        for side in [0, 1] {
            if track.halves[side].asked & asked::CHALLENGE != 0 {
                due[1 + side] = Some(Due::Challenge { side });
            }
            if first.is_some() {
                continue;
            }
            match probing[side] {
                Probing::Rests => {}
                Probing::Asks => asks = true,
                Probing::GivesUp => {
                    let reason = [CloseReason::ClientReset, CloseReason::ServerReset][side];
                    due[0] = Some(Due::End(by_itself(reason)));
                }
            }
        }
        (due.into_iter().flatten(), asks)
    }

    /// What keepalive calls for at both ends.
    fn probing(&self, track: &Track, now: u32, system: &Timing) -> [Probing; 2] {
        let keepalives = self.account.connection.keepalives();
        std::array::from_fn(|side| match &track.halves[side] {
            half if half.has_reset() => Probing::Rests,
            half => self.probed[side].calls_for(&Timing::of(keepalives[side], system), half.heard, now),
        })
    }

    /// The ends to be asked now whether they are still there; they are taken for asked.
    fn ask(&mut self, track: &Track, now: u32, system: &Timing) -> impl Iterator<Item = usize> + use<> {
        let asks = self.probing(track, now, system).map(|probing| probing == Probing::Asks);
        for ((probed, half), asks) in self.probed.iter_mut().zip(&track.halves).zip(asks) {
            if asks {
                probed.note(half.heard, now);
            }
        }
        [0, 1].into_iter().filter(move |side| asks[*side])
    }

    /// Why it is to be ended, if it is: idle, or alive, for too long.
    fn expired(&self, now_ms: u64) -> Option<CloseReason> {
        let connection = &self.account.connection;
        let since = |ms: u64| Duration::from_millis(now_ms.saturating_sub(ms));
        let idle = since(connection.traffic.active_ms.load(Relaxed));
        if connection.route.max_age.is_some_and(|max| since(connection.opened_ms) >= max) {
            Some(CloseReason::MaxAge)
        } else if connection.route.idle_timeout.is_some_and(|max| idle >= max) {
            Some(CloseReason::IdleTimeout)
        } else {
            None
        }
    }
}

/// How far both ends have come to the end, the client first.
pub(super) fn closings(track: &Track) -> [u8; 2] {
    track.halves.map(|half| half.closing)
}

/// The reason that this stands for, if it is one of an end. A reset after both FINs only says that somebody has forgotten
/// the connection by then.
pub(super) fn reason_of(closings: [u8; 2]) -> Option<CloseReason> {
    let fin = closings.map(|closing| closing & closing::FIN);
    let reset = closings.map(|closing| closing & closing::RESET != 0);
    match fin {
        [0, _] | [_, 0] => match reset {
            [false, false] => None,
            [false, true] => Some(CloseReason::ServerReset),
            [true, _] => Some(CloseReason::ClientReset),
        },
        [closing::FIRST, _] => Some(CloseReason::ClientClosed),
        _ => Some(CloseReason::ServerClosed),
    }
}

/// When the last packet came.
fn last_heard_ms(track: &Track) -> u64 {
    track.halves.iter().map(|half| ms_of_tick(half.heard)).max().unwrap_or_default()
}

impl PacketTier {
    /// Takes a connection in whose flows are live. `asked`: when its ways were asked for ([`Ways::generation`]).
    pub(crate) fn enter(&self, live: Live, asked: u64) {
        let id = live.account.connection.id;
        self.lock().insert(id, Box::new(live));
        self.ways.entered(id, asked);
    }

    /// Takes over the connections of an earlier process.
    pub fn adopt(self: &Arc<Self>, gateway: &Arc<Gateway>) {
        let snapshot = gateway.snapshot.load();
        let mut found = HashMap::<u64, Found>::new();
        for (tuple, flow) in self.kernel().take_found() {
            gateway.ledger.know_id(flow.id);
            found.entry(flow.id).or_default()[flow.side()] = Some((tuple, flow));
        }
        let records = self.kernel().records();
        for (id, record) in &records {
            let flows = found.remove(id).unwrap_or_default();
            let [Some((_, request)), Some((_, response))] = flows else {
                // Its process has died between the end of its sockets and the beginning of its flows.
                self.abandon(*id, record);
                if let Some((_, flow)) = flows.into_iter().flatten().next() {
                    self.release(*id, flow.slot);
                }
                continue;
            };
            let track = self.kernel().track(request.slot);
            let at = (request.slot, [request.origin, response.origin]);
            let live = self.remembered(gateway, &snapshot, *id, record, at);
            live.account.spliced(Choice { tier: Tier::Packet, reason: None });
            live.note(&track);
            raise(&live.account.connection.traffic.active_ms, last_heard_ms(&track));
            // Routes may have changed while no process ran.
            self.enter(live, Ways::NEVER);
            // Its process has died in the middle. What its sockets had not got through is lost, and so may bytes be that
            // passed the programs just before the flows were there: better an end that both notice than a wait for ever.
            if self.kernel().handover(*id).is_some() {
                self.end(*id, CloseReason::Shutdown);
            }
        }
        self.kernel().end_old_handovers();
        for (id, flows) in found {
            let Some((tuple, flow)) = flows.into_iter().flatten().next() else { continue };
            self.lingering().push(now_ms(), id, flow.slot, [tuple, flow.out.reversed()]);
        }
        while !self.kernel().events(usize::MAX).is_empty() {}
        if !records.is_empty() {
            tracing::info!(connections = self.lock().len(), "adopted the connections of an earlier process");
        }
    }

    /// Ends a connection whose sequence numbers are unknown. Each end is sent an ACK outside its window and answers with a
    /// challenge ACK; no socket here takes that, so this host's TCP resets it at exactly the number the end expects (RFC
    /// 9293, section 3.10.7.1).
    fn abandon(&self, id: u64, record: &Record) {
        for tuple in [&record.from_client, &record.from_server] {
            self.kernel().remove(id, tuple);
            let ack = Segment { kind: Kind::Ack, seq: 0, ack: 0, window: 0, timestamps: None };
            self.speak_by_route(tuple, &ack);
        }
        self.kernel().end_handover(id);
        self.kernel().forget(id);
    }

    /// The account of a connection of an earlier process. What is not configured any more keeps its name.
    fn remembered(
        self: &Arc<Self>,
        gateway: &Arc<Gateway>,
        snapshot: &Snapshot,
        id: u64,
        record: &Record,
        at: (u32, [u64; 2]),
    ) -> Live {
        let [listener, route, pool, server] =
            record.names.map(|key| self.kernel().name(key).unwrap_or_else(|| "unknown".into()));
        let seconds = |bound: u32| (bound != 0).then(|| Duration::from_secs(bound.into()));
        let route =
            snapshot.routes.iter().find(|known| *known.name == *route).cloned().unwrap_or_else(|| {
                Arc::new(Route::retired(
                    &route,
                    &listener,
                    seconds(record.idle_timeout),
                    seconds(record.max_age),
                ))
            });
        let keepalive = snapshot.keepalive;
        let known = snapshot.listeners.iter().find(|known| *known.name == *listener).cloned();
        let listener = known.unwrap_or_else(|| Arc::new(Listener::retired(&listener, keepalive)));
        let known = snapshot.pools.iter().find(|known| *known.name == *pool).cloned();
        let pool = known.unwrap_or_else(|| Arc::new(Pool::retired(&pool, keepalive)));
        let [address, local] = ends(&record.from_server);
        let known = pool.servers.iter().find(|known| known.address.to_string() == server).cloned();
        let server = known.unwrap_or_else(|| Arc::new(Server::retired(address)));
        let permits = [&gateway.stats.live, &listener.stats.live, &route.stats.live].map(Limit::join);

        let client = socket_address(&record.client, record.client_port);
        let facts = &record.facts[..usize::from(record.facts_length).min(record.facts.len())];
        let (visitor, sni) = Visitor::remembered(gateway, listener, client, record.opened_ms, facts);
        let account = Account::adopt(gateway.clone(), visitor, id, sni, route);
        let guard = ServerGuard::new(server);
        account.connected(&pool, &guard);
        Live::new(account, guard, permits, self.known_port(address, local.port()), at)
    }

    /// Leaves all connections to the next process.
    pub fn leave(&self) {
        for (_, live) in self.lock().drain() {
            live.account.leave();
        }
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
            let half = &track.halves[1 - side];
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

/// Connections that are looked at under one lock.
const AT_ONCE: usize = 1024;

/// Both flows of a connection of an earlier process, as far as they are there, each with its tuple.
type Found = [Option<(Tuple, Flow)>; 2];

/// What the next process must know of a connection.
pub(super) fn record(kernel: &Packet, account: &Account, tuples: [Tuple; 2]) -> Record {
    let connection = &account.connection;
    let upstream = connection.upstream.get();
    let (facts, facts_length) = account.facts();
    let seconds = |bound: Option<Duration>| bound.map_or(0, |bound| bound.as_secs().max(1) as u32);
    let [from_client, from_server] = tuples;
    Record {
        opened_ms: connection.opened_ms,
        names: [
            kernel.intern(&connection.listener.name),
            kernel.intern(&connection.route.name),
            upstream.map_or(0, |(pool, _)| kernel.intern(&pool.name)),
            upstream.map_or(0, |(_, server)| kernel.intern(&server.address.to_string())),
        ],
        from_client,
        from_server,
        client: address(connection.client.ip()),
        client_port: connection.client.port().to_be(),
        facts_length,
        idle_timeout: seconds(connection.route.idle_timeout),
        max_age: seconds(connection.route.max_age),
        facts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTES: Timing = Timing { idle_ms: 60_000, interval_ms: 15_000, count: 4 };

    #[test]
    fn an_end_is_given_up_when_it_was_asked_in_vain_and_not_before() {
        let mut probed = Probed::default();
        let calls_for = |probed: &Probed, heard, ms| probed.calls_for(&MINUTES, heard, tick_of_ms(ms));
        assert_eq!(calls_for(&probed, 7, 59_999), Probing::Rests);
        // Nobody has asked for a day.
        let (heard, mut ms) = (7, 86_400_000);
        for _ in 0..MINUTES.count {
            assert_eq!(calls_for(&probed, heard, ms), Probing::Asks);
            probed.note(heard, tick_of_ms(ms));
            assert_eq!(calls_for(&probed, heard, ms + 14_990), Probing::Rests);
            ms += 15_010;
        }
        assert_eq!(calls_for(&probed, heard, ms), Probing::GivesUp);
        // Its answer to the last one comes at the last moment.
        let heard = tick_of_ms(ms - 10);
        assert_eq!(calls_for(&probed, heard, ms), Probing::Rests);
        assert_eq!(calls_for(&probed, heard, ms + 60_000), Probing::Asks);
        probed.note(heard, tick_of_ms(ms + 60_000));
        assert_eq!(probed.probes, 1);
    }

    /// However rarely anybody looks: an answer that is itself long ago by then is one.
    #[test]
    fn an_end_that_answers_each_probe_is_not_given_up() {
        let timing = Timing { idle_ms: 1000, interval_ms: 1000, count: 1 };
        let (mut probed, mut heard) = (Probed::default(), 0);
        for look in 1..100 {
            let now = tick_of_ms(look * 5000);
            assert_eq!(probed.calls_for(&timing, heard, now), Probing::Asks, "{look}");
            probed.note(heard, now);
            // In the same tick.
            heard = now;
        }
    }

    #[test]
    fn a_reset_after_both_fins_is_not_how_it_ended() {
        const FIRST: u8 = closing::FIRST;
        const SECOND: u8 = closing::SECOND;
        const RESET: u8 = closing::RESET;
        for (closings, reason) in [
            ([0, 0], None),
            ([FIRST, 0], None),
            ([FIRST | closing::HANDOVER, 0], None),
            ([FIRST, SECOND], Some(CloseReason::ClientClosed)),
            ([SECOND | RESET, FIRST], Some(CloseReason::ServerClosed)),
            ([FIRST, RESET], Some(CloseReason::ServerReset)),
            ([RESET, FIRST], Some(CloseReason::ClientReset)),
        ] {
            assert_eq!(reason_of(closings), reason, "{closings:?}");
        }
    }
}
