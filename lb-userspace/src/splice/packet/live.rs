//! What is left in this process of a connection that the kernel forwards: its account.

use super::ticks::{ms_between, ms_of_tick, tick_of_ms};
use crate::account::Account;
use crate::connect::SourcePort;
use crate::kernel::Packet;
use crate::kernel::tuples::address;
use crate::reason::CloseReason;
use crate::serving::{Permits, ServerGuard};
use crate::splice::keepalive::Timing;
use lb_common::packet::track::{Half, Track, asked, closing};
use lb_common::packet::{Record, Tuple, before};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    pub(super) _permits: Permits,
    pub(super) _port: Option<SourcePort>,
    /// Place of its track.
    pub(super) slot: u32,
    /// [`Flow::origin`](lb_common::packet::Flow::origin) of both flows.
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

/// Why a connection is over; and when it ended by itself, if it did ([`now_ms`](crate::clock::now_ms)).
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
    /// A connection that is being handed over.
    pub(crate) fn new(
        account: Account,
        server: ServerGuard,
        permits: Permits,
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
    pub(super) fn due(
        &self,
        track: &Track,
        now_ms: u64,
        system: &Timing,
    ) -> (impl Iterator<Item = Due> + use<>, bool) {
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
        let mut due = [first, None, None];
        let mut asks = false;
        let probing = self.probing(track, tick_of_ms(now_ms), system);
        for side in [0, 1] {
            if track.halves.each_ref()[side].asked & asked::CHALLENGE != 0 {
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
        std::array::from_fn(|side| match track.halves.each_ref()[side] {
            half if half.has_reset() => Probing::Rests,
            half => self.probed[side].calls_for(&Timing::of(keepalives[side], system), half.heard, now),
        })
    }

    /// The ends to be asked now whether they are still there; they are taken for asked.
    pub(super) fn ask(
        &mut self,
        track: &Track,
        now: u32,
        system: &Timing,
    ) -> impl Iterator<Item = usize> + use<> {
        let asks = self.probing(track, now, system).map(|probing| probing == Probing::Asks);
        for ((probed, half), asks) in self.probed.iter_mut().zip(track.halves.each_ref()).zip(asks) {
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
pub(super) fn last_heard_ms(track: &Track) -> u64 {
    track.halves.iter().map(|half| ms_of_tick(half.heard)).max().unwrap_or_default()
}

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

/// Raises a counter that several threads write to this value; never lowers it.
pub(super) fn raise(counter: &AtomicU64, value: u64) {
    counter.fetch_max(value, Relaxed);
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
