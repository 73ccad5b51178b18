//! What is left in this process of a connection that the kernel forwards: its account.

use super::terms::{address, ends, socket_address};
use super::view::View;
use super::ways::Ways;
use super::{PacketTier, SourcePort, ms_of_tick, raise, tick_of_ms};
use crate::accept::{Limit, Permit};
use crate::account::{Account, CloseReason, Tier, Visitor};
use crate::clock::now_ms;
use crate::connect::{KEEPALIVE, Pool, Server, ServerGuard};
use crate::gateway::{Gateway, Listener, Route, Snapshot};
use crate::kernel::Packet;
use crate::kernel::raw::{Kind, Segment};
use crate::splice::Choice;
use lb_common::packet::track::{Half, Track, asked, closing};
use lb_common::packet::{Flow, Record, Tuple};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// How long a reset must stand before the connection is over: who has not sent it goes on.
pub(super) const RESET_STANDS_MS: u64 = 500;

/// How long an end may be silent before it is asked whether it is still there: what keepalive does for a socket.
const KEEPALIVE_MS: u64 = KEEPALIVE.as_millis() as u64;
/// Time between two such questions, and how many may stay unanswered: Linux' own (tcp(7)). One proves nothing: Linux
/// answers two a second, whoever asks.
const PROBE_TICKS: u32 = tick_of_ms(75_000);
const PROBES: u8 = 9;

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
    keepalive: [Keepalive; 2],
}

/// What an end has been asked since it was last heard.
#[derive(Clone, Copy, Debug, Default)]
struct Keepalive {
    probes: u8,
    /// When the last of them was sent, in ticks.
    at: u32,
}

/// What keepalive calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probing {
    Rests,
    Asks,
    /// The end has answered none of them.
    GivesUp,
}

impl Keepalive {
    /// What an end that has been silent for so long calls for. Only what was asked counts: while no process ran, nobody
    /// asked.
    fn due(&mut self, quiet_ms: u64, now: u32) -> Probing {
        if quiet_ms < KEEPALIVE_MS {
            self.probes = 0;
            Probing::Rests
        } else if self.probes > 0 && now.wrapping_sub(self.at) < PROBE_TICKS {
            Probing::Rests
        } else if self.probes == PROBES {
            Probing::GivesUp
        } else {
            *self = Self { probes: self.probes + 1, at: now };
            Probing::Asks
        }
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
    /// An end is to be asked whether it is still there.
    Probe { side: usize },
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
            keepalive: Default::default(),
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

    /// What is to be done about the connection at this time.
    fn due(&mut self, track: &Track, now_ms: u64) -> impl Iterator<Item = Due> + use<> {
        let quiet = track.halves.each_ref().map(|half| now_ms.saturating_sub(ms_of_tick(half.heard)));
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
        let mut due = [first, None, None, None, None];
        for side in [0, 1] {
            if track.halves.each_ref()[side].asked & asked::CHALLENGE != 0 {
                due[3 + side] = Some(Due::Challenge { side });
            }
            if first.is_some() || track.halves.each_ref()[side].has_reset() {
                continue;
            }
            match self.keepalive[side].due(quiet[side], tick_of_ms(now_ms)) {
                Probing::Rests => {}
                Probing::Asks => due[1 + side] = Some(Due::Probe { side }),
                Probing::GivesUp => {
                    let reason = [CloseReason::ClientReset, CloseReason::ServerReset][side];
                    due[0] = Some(Due::End(by_itself(reason)));
                }
            }
        }
        due.into_iter().flatten()
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
    track.halves.each_ref().map(|half| half.closing)
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
            found.entry(flow.id).or_default()[flow.side() as usize] = Some((tuple, flow));
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
        let known = snapshot.listeners.iter().find(|known| *known.name == *listener).cloned();
        let listener = known.unwrap_or_else(|| Arc::new(Listener::retired(&listener)));
        let known = snapshot.pools.iter().find(|known| *known.name == *pool).cloned();
        let pool = known.unwrap_or_else(|| Arc::new(Pool::retired(&pool)));
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

    /// Looks at every connection, and does what is due.
    pub(super) fn look(&self, now: u64) {
        let ids: Vec<u64> = self.lock().keys().copied().collect();
        let mut due = Vec::new();
        for ids in ids.chunks(AT_ONCE) {
            let mut live = self.lock();
            for id in ids {
                let Some(live) = live.get_mut(id) else { continue };
                let track = self.kernel().track(live.slot);
                live.note(&track);
                due.extend(live.due(&track, now).map(|due| (*id, due)));
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
                Due::Probe { side } => self.probe(id, side),
            }
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

    #[test]
    fn an_end_is_given_up_when_it_was_asked_in_vain_and_not_before() {
        let mut keepalive = Keepalive::default();
        let mut now = 7;
        assert_eq!(keepalive.due(KEEPALIVE_MS - 1, now), Probing::Rests);
        // Nobody has asked for a day.
        for _ in 0..PROBES {
            assert_eq!(keepalive.due(86_400_000, now), Probing::Asks);
            assert_eq!(keepalive.due(86_400_000, now.wrapping_add(PROBE_TICKS - 1)), Probing::Rests);
            now = now.wrapping_add(PROBE_TICKS);
        }
        let mut answered = keepalive;
        assert_eq!(keepalive.due(86_400_000, now), Probing::GivesUp);
        assert_eq!(answered.due(10, now), Probing::Rests);
        assert_eq!(answered.due(KEEPALIVE_MS, now), Probing::Asks);
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
