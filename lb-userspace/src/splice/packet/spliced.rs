//! What this process keeps of a spliced connection, which the kernel forwards: its account, and what must stay taken.

use super::ticks::{ms_between, ms_of_tick, tick_of_ms};
use crate::account::Account;
use crate::connect::SourcePort;
use crate::kernel::Packet;
use crate::kernel::tuples::address;
use crate::reason::CloseReason;
use crate::serving::{Permits, ServerGuard};
use crate::splice::keepalive::Timing;
use lb_common::packet::track::{Half, Track, asked, closing};
use lb_common::packet::{PerDirection, PerLeg, Record, Side, Tuple, before};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long a reset must stand before the connection is over. If it was forged, its supposed sender sends on meanwhile,
/// which revokes it.
pub(super) const RESET_STANDS_MS: u64 = 500;

/// How long the flows of a finished connection stay for retransmissions: as long as its ends are in TIME_WAIT. It is also
/// how long one end may be silent between both FINs and their acknowledgements, before the connection is reset.
pub(super) const LINGER_MS: u64 = 60_000;

/// A spliced connection.
pub struct SplicedConnection {
    pub(super) account: Account,
    pub(super) _server: ServerGuard,
    pub(super) _permits: Permits,
    pub(super) _port: Option<SourcePort>,
    /// The slot of its track.
    pub(super) slot: u32,
    /// [`Flow::origin`](lb_common::packet::Flow::origin) of both flows.
    origin: PerDirection<u64>,
    probed: PerLeg<Probed>,
    challenged: PerLeg<Challenged>,
}

/// Least time between two challenge ACKs to one end (RFC 5961, section 10). The limit is per connection: from a shared one a
/// stranger could infer that a forged packet has hit a connection (CVE-2016-5696).
pub(super) const CHALLENGE_MS: u64 = 500;

/// When an end was sent its last challenge ACK ([`now_ms`](crate::clock::now_ms)).
#[derive(Clone, Copy, Debug, Default)]
struct Challenged {
    at: Option<u64>,
}

impl Challenged {
    /// Whether it may be sent one now, which then counts as sent.
    fn take(&mut self, now: u64) -> bool {
        let may = self.at.is_none_or(|at| now.saturating_sub(at) >= CHALLENGE_MS);
        if may {
            self.at = Some(now);
        }
        may
    }
}

/// The keepalive probes that an end was sent since it was last heard.
#[derive(Clone, Copy, Debug, Default)]
struct Probed {
    probes: u8,
    /// When the last of them was sent, in ticks.
    at: u32,
}

/// What keepalive calls for at one end. One unanswered probe proves nothing: Linux limits its answers to two a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probing {
    /// Nothing yet.
    Wait,
    Probe,
    /// The end has answered none of the probes.
    GiveUp,
}

impl Probed {
    /// What to do about an end that was last heard at this tick. Only probes that were sent count, not the time: while no
    /// gateway runs, nobody sends any.
    fn calls_for(&self, timing: &Timing, heard: u32, now: u32) -> Probing {
        let unanswered = self.unanswered(heard);
        if ms_between(heard, now) < timing.idle_ms
            || unanswered > 0 && ms_between(self.at, now) < timing.interval_ms
        {
            Probing::Wait
        } else if unanswered < timing.count {
            Probing::Probe
        } else {
            Probing::GiveUp
        }
    }

    /// Until when ([`now_ms`](crate::clock::now_ms)) it [calls for](Self::calls_for) nothing.
    fn waits_until(&self, timing: &Timing, heard: u32) -> u64 {
        let idle = ms_of_tick(heard) + timing.idle_ms;
        match self.unanswered(heard) {
            0 => idle,
            _ => idle.max(ms_of_tick(self.at) + timing.interval_ms),
        }
    }

    /// Counts a probe that is sent now.
    fn note(&mut self, heard: u32, now: u32) {
        *self = Self { probes: self.unanswered(heard).saturating_add(1), at: now };
    }

    fn unanswered(&self, heard: u32) -> u8 {
        if before(heard, self.at) { self.probes } else { 0 }
    }
}

/// Why a connection is over, and, if it ended by itself, when ([`now_ms`](crate::clock::now_ms)).
type Ending = (CloseReason, Option<u64>);

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// A new connection has taken its tuple.
    Reused,
    /// Both FINs have passed: its account is to be closed if it is finished. If it is not, and `else_end` is there, it is
    /// to be reset.
    Finish { else_end: Option<Ending> },
    /// It is to be reset.
    End(Ending),
    /// This end is to be sent a challenge ACK, because of a SYN or an inexact reset.
    Challenge { side: Side },
}

impl SplicedConnection {
    /// A connection whose handover has begun, or that was adopted.
    pub(crate) fn new(
        account: Account,
        server: ServerGuard,
        permits: Permits,
        port: Option<SourcePort>,
        (slot, origin): (u32, PerDirection<u64>),
    ) -> Self {
        Self {
            account,
            _server: server,
            _permits: permits,
            _port: port,
            slot,
            origin,
            probed: PerLeg::default(),
            challenged: PerLeg::default(),
        }
    }

    /// Whether this end may be sent a challenge ACK now, which then counts as sent.
    pub(super) fn take_challenge(&mut self, side: Side, now: u64) -> bool {
        self.challenged.get_mut(side).take(now)
    }

    /// Copies what the programs have counted into the account: each end's bytes, and, if they have grown, the time of its
    /// last packet.
    pub(super) fn note(&self, track: &Track) {
        let traffic = &self.account.connection.traffic;
        let counters = [&traffic.bytes_in, &traffic.bytes_out];
        for ((half, origin), bytes) in track.halves.iter().zip(self.origin.iter()).zip(counters) {
            let sent = half.position.saturating_sub(*origin);
            if bytes.fetch_max(sent, Relaxed) < sent {
                raise(&traffic.active_ms, ms_of_tick(half.heard));
            }
        }
    }

    /// What is to be done about the connection at this time, and whether an end is to be sent a keepalive probe.
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
        let mut first = if any(closing::REUSED) {
            Some(Due::Reused)
        } else if track.halves.iter().all(Half::has_fin) {
            // One end alone may keep sending, for ever, so that it is always heard; the other one is silent then.
            let is_silent = quiet.iter().any(|quiet| *quiet >= LINGER_MS);
            let silent = if is_silent { reason_of(closings(track)) } else { None };
            Some(Due::Finish { else_end: ended.or(silent.map(by_itself)) })
        } else {
            ended.map(Due::End)
        };
        let mut is_quiet = false;
        if first.is_none() {
            let probing = self.probing(track, tick_of_ms(now_ms), system);
            for side in Side::BOTH {
                match probing.of(side) {
                    Probing::Wait => {}
                    Probing::Probe => is_quiet = true,
                    Probing::GiveUp => first = Some(Due::End(by_itself(CloseReason::reset_by(side)))),
                }
            }
        }
        let challenges = Side::BOTH.map(|side| {
            let is_asked = track.halves.get(side).asked & asked::CHALLENGE != 0;
            is_asked.then_some(Due::Challenge { side })
        });
        (first.into_iter().chain(challenges.into_iter().flatten()), is_quiet)
    }

    /// Until when ([`now_ms`](crate::clock::now_ms)) time alone makes nothing [`due`](Self::due). Never too late by more than a
    /// few milliseconds, if the track stays as it is.
    pub(super) fn quiet_until(&self, track: &Track, system: &Timing) -> u64 {
        let connection = &self.account.connection;
        let after = |since: u64, bound: Option<Duration>| {
            let ms = |bound: Duration| u64::try_from(bound.as_millis()).unwrap_or(u64::MAX);
            bound.map_or(u64::MAX, |bound| since.saturating_add(ms(bound)))
        };
        let max_age = after(connection.opened_ms, connection.route.max_age());
        let idle = after(connection.traffic.active_ms.load(Relaxed), connection.route.idle_timeout());
        let keepalives = connection.keepalives();
        let probing = Side::BOTH.map(|side| {
            let timing = Timing::of(keepalives.of(side), system);
            self.probed.get(side).waits_until(&timing, track.halves.get(side).heard)
        });
        probing.into_iter().fold(max_age.min(idle), u64::min)
    }

    /// What keepalive calls for at each end.
    fn probing(&self, track: &Track, now: u32, system: &Timing) -> PerLeg<Probing> {
        let keepalives = self.account.connection.keepalives();
        PerLeg::from_fn(|side| match track.halves.get(side) {
            half if half.has_reset() => Probing::Wait,
            half => {
                let timing = Timing::of(keepalives.of(side), system);
                self.probed.get(side).calls_for(&timing, half.heard, now)
            }
        })
    }

    /// The ends that are to be sent a keepalive probe now. Their probes are counted as sent.
    pub(super) fn take_probes(
        &mut self,
        track: &Track,
        now: u32,
        system: &Timing,
    ) -> impl Iterator<Item = Side> + use<> {
        let probing = self.probing(track, now, system);
        let sides = Side::BOTH.into_iter().filter(move |side| probing.of(*side) == Probing::Probe);
        for side in sides.clone() {
            self.probed.get_mut(side).note(track.halves.get(side).heard, now);
        }
        sides
    }

    /// The limit that it has passed, if any: `max_age` or `idle_timeout`.
    fn expired(&self, now_ms: u64) -> Option<CloseReason> {
        let connection = &self.account.connection;
        let since = |ms: u64| Duration::from_millis(now_ms.saturating_sub(ms));
        let idle = since(connection.traffic.active_ms.load(Relaxed));
        if connection.route.max_age().is_some_and(|max| since(connection.opened_ms) >= max) {
            Some(CloseReason::MaxAge)
        } else if connection.route.idle_timeout().is_some_and(|max| idle >= max) {
            Some(CloseReason::IdleTimeout)
        } else {
            None
        }
    }
}

/// [`Half::closing`] of both ends.
pub(super) fn closings(track: &Track) -> PerLeg<u8> {
    track.halves.map(|half| half.closing)
}

/// Why a connection with these [`closings`] ended; `None`: it has not. After both FINs a reset is not the reason: the end
/// that sends it has merely left TIME_WAIT.
pub(super) fn reason_of(closings: PerLeg<u8>) -> Option<CloseReason> {
    let fins = closings.map(|closing| closing & closing::FIN);
    if fins.iter().all(|fin| *fin != 0) {
        let first = if fins.client == closing::FIRST { Side::Client } else { Side::Server };
        return Some(CloseReason::closed_by(first));
    }
    let is_reset_by = |side: &Side| closings.of(*side) & closing::RESET != 0;
    let is_first = |side: &Side| closings.of(*side) & closing::RESET_SECOND == 0;
    let mut resets = Side::BOTH.into_iter().filter(is_reset_by);
    let reset = resets.clone().find(is_first).or_else(|| resets.next());
    reset.map(CloseReason::reset_by)
}

/// When the last packet of either end came ([`now_ms`](crate::clock::now_ms)).
pub(super) fn last_heard_ms(track: &Track) -> u64 {
    track.halves.iter().map(|half| ms_of_tick(half.heard)).max().unwrap_or_default()
}

/// What the next process must know of a connection. `tuples`: of each leg's packets as they arrive.
pub(super) fn record(kernel: &Packet, account: &Account, tuples: PerLeg<Tuple>) -> Record {
    let connection = &account.connection;
    let upstream = connection.upstream.get();
    let (facts, facts_length) = account.facts();
    let seconds = |bound: Option<Duration>| bound.map_or(0, |bound| bound.as_secs().max(1) as u32);
    Record {
        opened_ms: connection.opened_ms,
        names: [
            kernel.intern(&connection.listener.name),
            kernel.intern(connection.route.name()),
            upstream.map_or(0, |(pool, _)| kernel.intern(&pool.name)),
            upstream.map_or(0, |(_, server)| kernel.intern(&server.address)),
        ],
        from_client: tuples.client,
        from_server: tuples.server,
        client: address(connection.client.ip()),
        client_port: connection.client.port().to_be(),
        facts_length,
        idle_timeout: seconds(connection.route.idle_timeout()),
        max_age: seconds(connection.route.max_age()),
        facts,
    }
}

/// Raises a counter to this value. Never lowers it: several threads call this, and one may have an older value.
pub(super) fn raise(counter: &AtomicU64, value: u64) {
    counter.fetch_max(value, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::now_ms;

    const MINUTES: Timing = Timing { idle_ms: 60_000, interval_ms: 15_000, count: 4 };

    #[test]
    fn an_end_is_given_up_when_it_was_asked_in_vain_and_not_before() {
        let mut probed = Probed::default();
        let calls_for = |probed: &Probed, heard, ms| probed.calls_for(&MINUTES, heard, tick_of_ms(ms));
        assert_eq!(calls_for(&probed, 7, 59_999), Probing::Wait);
        // No probe was sent for a day.
        let (heard, mut ms) = (7, 86_400_000);
        for _ in 0..MINUTES.count {
            assert_eq!(calls_for(&probed, heard, ms), Probing::Probe);
            probed.note(heard, tick_of_ms(ms));
            assert_eq!(calls_for(&probed, heard, ms + 14_990), Probing::Wait);
            ms += 15_010;
        }
        assert_eq!(calls_for(&probed, heard, ms), Probing::GiveUp);
        // Its answer to the last one comes at the last moment.
        let heard = tick_of_ms(ms - 10);
        assert_eq!(calls_for(&probed, heard, ms), Probing::Wait);
        assert_eq!(calls_for(&probed, heard, ms + 60_000), Probing::Probe);
        probed.note(heard, tick_of_ms(ms + 60_000));
        assert_eq!(probed.probes, 1);
    }

    #[test]
    fn it_waits_until_it_calls_for_a_probe() {
        let now = now_ms();
        let tick = |ms_ago: u64| tick_of_ms(now - ms_ago);
        let probed = |probes, ms_ago| Probed { probes, at: tick(ms_ago) };
        for (what, probed, heard, from_now) in [
            ("never probed", Probed::default(), 20_000, 40_000),
            ("overdue", Probed::default(), 70_000, -10_000),
            ("an answer to the last probe", probed(3, 30_000), 20_000, 40_000),
            ("one that is not answered", probed(1, 5_000), 70_000, 10_000),
            ("the last that is not", probed(4, 16_000), 130_000, -1_000),
        ] {
            let until = probed.waits_until(&MINUTES, tick(heard));
            let expected = now.wrapping_add_signed(from_now);
            assert!(until.abs_diff(expected) <= 20, "{what}: {from_now} and not {until} at {now}");
            let waits = |ms: u64| probed.calls_for(&MINUTES, tick(heard), tick_of_ms(ms)) == Probing::Wait;
            assert!(waits(until - 20) && !waits(until + 20), "{what}");
        }
    }

    /// An answer counts even if it is long ago when the sweeper next looks.
    #[test]
    fn an_end_that_answers_each_probe_is_not_given_up() {
        let timing = Timing { idle_ms: 1000, interval_ms: 1000, count: 1 };
        let (mut probed, mut heard) = (Probed::default(), 0);
        for look in 1..100 {
            let now = tick_of_ms(look * 5000);
            assert_eq!(probed.calls_for(&timing, heard, now), Probing::Probe, "{look}");
            probed.note(heard, now);
            // In the same tick.
            heard = now;
        }
    }

    /// The programs ask once until they may ask again, and a sweep finds all the time that they have asked.
    #[test]
    fn a_flood_of_syns_causes_two_challenges_a_second() {
        let (mut challenged, mut is_asked) = (Challenged::default(), false);
        let (mut sent, mut pending) = (Vec::new(), Vec::new());
        for now in 1_000..11_000 {
            if pending.pop_if(|at| *at <= now).is_some() {
                is_asked = false;
            }
            let is_event = !is_asked;
            is_asked = true;
            let is_swept = now % 7 == 0;
            if (is_event || is_swept) && challenged.take(now) {
                sent.push(now);
                pending.push(now + CHALLENGE_MS);
            }
            assert!(pending.len() <= 1, "what clears the question of a later SYN");
        }
        assert_eq!(sent.len(), 20);
    }

    #[test]
    fn a_reset_after_both_fins_is_not_how_it_ended() {
        const FIRST: u8 = closing::FIRST;
        const SECOND: u8 = closing::SECOND;
        const RESET: u8 = closing::RESET;
        const LATER: u8 = RESET | closing::RESET_SECOND;
        for (closings, reason) in [
            ([0, 0], None),
            ([FIRST, 0], None),
            ([FIRST | closing::HANDOVER, 0], None),
            ([FIRST, SECOND], Some(CloseReason::ClientClosed)),
            ([SECOND | RESET, FIRST], Some(CloseReason::ServerClosed)),
            ([FIRST, RESET], Some(CloseReason::ServerReset)),
            ([RESET, FIRST], Some(CloseReason::ClientReset)),
            ([RESET, LATER], Some(CloseReason::ClientReset)),
            ([LATER, RESET], Some(CloseReason::ServerReset)),
            // The first has proved forged.
            ([LATER, 0], Some(CloseReason::ClientReset)),
        ] {
            assert_eq!(reason_of(closings.into()), reason, "{closings:?}");
        }
    }
}
