//! The sweeper: a thread that handles the programs' events, follows devices and routes, and regularly looks for spliced
//! connections of which something is due (a sweep).

use super::lingering::Closed;
use super::spliced::{CHALLENGE_MS, LINGER_MS, RESET_STANDS_MS};
use super::thread::StoppableThread;
use super::ticks::ms_of_tick;
use super::tier::PacketTier;
use super::view::View;
use super::ways::way;
use crate::clock::now_ms;
use crate::kernel::devices::Watch;
use crate::kernel::raw::Segment;
use crate::kernel::tuples::ends;
use crate::splice::keepalive::Timing;
use lb_common::packet::inject::Way;
use lb_common::packet::track::asked;
use lb_common::packet::{Event, Record, Side, Tuple, event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two sweeps.
const SWEEP: Duration = Duration::from_secs(1);

/// Time between two reads of the events: only urgent ones wake the sweeper.
const EVENTS: Duration = Duration::from_millis(50);

/// Sweeps use at most 1/SHARE of the thread's time, without the keepalive probes, which cannot wait.
const SHARE: u32 = 20;

/// Least time between two sweeps for each slot. To pass over one takes some 10 ns, so where nothing is due of very many
/// connections, sweeps use 0.3 % of the thread's time.
const PER_SLOT: Duration = Duration::from_micros(4);

/// How long a sweep goes on before the events are read again.
const PORTION: Duration = Duration::from_millis(5);

/// Most events that are handled before the clock is read again.
const MOST_EVENTS: usize = 4096;

/// Connections whose ends are probed between two reads of the events: about 10 ms of work.
const MOST_PROBED: usize = 512;

/// Instead of [`LINGER_MS`] when the flow table is more than half full.
const SHORT_LINGER_MS: u64 = 5_000;

/// The sweeper's thread; it ends when this is dropped.
pub struct Sweeper {
    _thread: StoppableThread,
}

impl Sweeper {
    /// Starts it, in the network namespace of the calling thread.
    pub fn start(tier: Arc<PacketTier>) -> io::Result<Self> {
        let watch = Watch::new()?;
        let events = tier.kernel().events_fd()?;
        let thread = StoppableThread::start("sweeper", move |over| {
            let mut sweep = Sweep {
                tier,
                watch,
                over,
                next: Instant::now() + SWEEP,
                swept: 0,
                spent: Duration::ZERO,
                devices_changed: false,
                routes_changed: false,
                recheck: Recheck::default(),
                is_behind: false,
                system: Timing::system(),
                quiet: Vec::new(),
                events,
            };
            loop {
                match sweep.turn() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        tracing::error!(%error, "the packet tier's sweeper");
                        std::thread::sleep(SWEEP);
                    }
                }
            }
        })?;
        Ok(Self { _thread: thread })
    }
}

struct Sweep {
    tier: Arc<PacketTier>,
    watch: Watch,
    /// Readable when the thread is to end. It is polled, so that a restart need not wait for the thread's next turn.
    over: Arc<OwnedFd>,
    /// When the next sweep is due, or that which is under way goes on.
    next: Instant,
    /// The slot at which the sweep goes on; 0: none is under way.
    swept: usize,
    /// How long it has taken until now.
    spent: Duration,
    /// A change was noticed and is yet to be followed.
    devices_changed: bool,
    routes_changed: bool,
    recheck: Recheck,
    /// There are connections whose ways are yet to be asked for anew.
    is_behind: bool,
    /// The system's keepalive settings at the last sweep.
    system: Timing,
    /// Connections whose ends are to be sent keepalive probes.
    quiet: Vec<u64>,
    /// Readable when there is an urgent event.
    events: OwnedFd,
}

impl Sweep {
    /// Waits, and does what is due. `false`: the thread is to end.
    fn turn(&mut self) -> io::Result<bool> {
        if self.wait()? {
            return Ok(false);
        }
        // Until the turn is over.
        let tier = self.tier.clone();
        let frozen = tier.frozen();
        if frozen.is_some() {
            drop(frozen);
            // Events that nobody reads would wake it at once. What happens meanwhile is looked at afterwards.
            std::thread::sleep(EVENTS);
            (self.devices_changed, self.routes_changed) = (true, true);
            return Ok(true);
        }
        self.tier.follow_events_now();
        if !self.quiet.is_empty() {
            let left = self.quiet.len().saturating_sub(MOST_PROBED);
            self.quiet.drain(left..).for_each(|id| self.tier.probe(id, &self.system));
        } else if Instant::now() >= self.next {
            self.sweep();
        }
        // Last, because it may fail.
        self.follow_ways()?;
        Ok(true)
    }

    /// Does a portion of a sweep.
    fn sweep(&mut self) {
        let began = Instant::now();
        if self.swept == 0 {
            self.tier.ports().follow_others();
            let system = Timing::system();
            if system != self.system {
                self.system = system;
                self.tier.look_at_all();
            }
        }
        while let Some(next) = self.tier.look(self.swept, now_ms(), &self.system, &mut self.quiet) {
            self.swept = next;
            if began.elapsed() >= PORTION {
                self.spent += began.elapsed();
                return;
            }
        }
        self.tier.end_sweep();
        let spent = std::mem::take(&mut self.spent) + began.elapsed();
        let slots = u32::try_from(std::mem::take(&mut self.swept)).unwrap_or(u32::MAX);
        self.next = Instant::now() + SWEEP.max(spent * SHARE).max(PER_SLOT * slots);
    }

    /// Follows changes of devices and routes. What fails is tried again at the next turn.
    fn follow_ways(&mut self) -> io::Result<()> {
        let changes = self.watch.changed()?;
        self.devices_changed |= changes.devices;
        self.routes_changed |= changes.routes;
        if self.devices_changed {
            self.tier.ways.follow_devices(&self.tier.kernel)?;
            self.devices_changed = false;
        }
        self.routes_changed |= self.tier.ways.ends_changed()?;
        // Before the connections are looked at: an error here must not end any of them.
        self.routes_changed |= self.tier.ways.policies_changed()?;
        if self.recheck.take_due(now_ms(), std::mem::take(&mut self.routes_changed)) {
            self.tier.routes_changed();
        }
        self.is_behind = self.tier.follow_routes();
        Ok(())
    }

    /// Waits for an urgent event, a change of devices or routes, or the next turn; whether the thread is to end.
    fn wait(&self) -> io::Result<bool> {
        let until = self.next.saturating_duration_since(Instant::now()).min(EVENTS);
        let until = if self.is_behind || !self.quiet.is_empty() { Duration::ZERO } else { until };
        let until = Timespec::try_from(until).map_err(io::Error::other)?;
        let mut fds = vec![
            PollFd::new(&self.over, PollFlags::IN),
            PollFd::new(&self.watch, PollFlags::IN),
            PollFd::new(&self.events, PollFlags::IN),
        ];
        fds.extend(self.tier.ways.news().map(|news| PollFd::from_borrowed_fd(news, PollFlags::IN)));
        match poll(&mut fds, Some(&until)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(error) => Err(error.into()),
        }
    }
}

/// How long after its notification a change of routes is taken to be made.
const SETTLED_MS: u64 = 200;

/// When connections are to be looked at because of changes: at once, and again [`SETTLED_MS`] after the last one. The kernel tells
/// of some a moment before it makes them, such as an IPv4 route that is deleted, or all those of a device that is set down.
#[derive(Default)]
struct Recheck {
    /// When the second look is due ([`now_ms`]).
    again: Option<u64>,
}

impl Recheck {
    /// Whether they are to be looked at now.
    fn take_due(&mut self, now: u64, is_changed: bool) -> bool {
        if is_changed {
            self.again = Some(now + SETTLED_MS);
        }
        is_changed || self.again.take_if(|again| *again <= now).is_some()
    }
}

impl PacketTier {
    /// Handles the programs' events, and does what has become due. Workers call it too when a limit is reached: the events
    /// may tell of a connection that has ended.
    pub(crate) fn follow_events(&self) {
        let frozen = self.frozen();
        if frozen.is_none() {
            self.follow_events_now();
        }
    }

    fn follow_events_now(&self) {
        // A second caller waits until the first has handled what it has read: that may be the end which frees a place.
        let _following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now_ms();
        for event in self.kernel().events(MOST_EVENTS) {
            self.follow(&event, now);
        }
        loop {
            let mut pending = self.pending();
            let stands = pending.resets.pop_front_if(|(at, _)| *at <= now);
            let rested = pending.asked.pop_front_if(|(at, ..)| *at <= now);
            drop(pending);
            if let Some((_, id)) = stands {
                self.end_reset(id);
            }
            if let Some((_, slot, side)) = rested {
                self.kernel().was_asked(slot, side, asked::CHALLENGE);
            }
            if stands.is_none() && rested.is_none() {
                return;
            }
        }
    }

    fn follow(&self, event: &Event, now: u64) {
        let side = event.side();
        match event.kind {
            event::FINISHED => _ = self.finish_account(event.id),
            event::RESET => self.pending().resets.push_back((now + RESET_STANDS_MS, event.id)),
            event::REUSED => self.reused(event.id, side, event.closings()),
            event::TOO_BIG => self.send_too_big(event),
            event::CHALLENGE => self.challenge(event.id, side),
            event::WRONG_DEVICE => self.look_at_path(event),
            _ => {}
        }
    }

    /// What a sweep does beside looking at connections: removes the flows of those that have lingered.
    fn end_sweep(&self) {
        self.forget_closed(now_ms());
        self.forget_refusals();
    }

    /// Removes the flows of closed connections that have been silent for long enough.
    fn forget_closed(&self, now: u64) {
        let connections = self.lock().len() + self.lingering().len();
        self.entries.store(connections as u64 * 2, Relaxed);
        let linger =
            if connections * 4 > self.kernel().capacity() as usize { SHORT_LINGER_MS } else { LINGER_MS };
        loop {
            let Some(closed) = self.lingering().pop(now, linger) else { return };
            let Closed { id, slot, tuples, .. } = closed;
            let heard = self.kernel().track(slot).halves.map(|half| ms_of_tick(half.heard));
            if closed.lingers(now, linger, heard) {
                self.lingering().push_again(now, closed);
            } else {
                tuples.iter().for_each(|tuple| self.kernel().remove(id, tuple));
                self.release(id, slot);
            }
        }
    }

    /// Sends an end a challenge ACK, because of a SYN or of a reset that is not exact; unless it was sent one just now, which a
    /// sweep does not know.
    pub(super) fn challenge(&self, id: u64, side: Side) {
        let Some(record) = self.kernel().record(id) else { return };
        let Some(view) = self.view(id, &record) else { return };
        let now = now_ms();
        if !self.lock().get_mut(id).is_some_and(|live| live.take_challenge(side, now)) {
            return;
        }
        self.send(&record, &view, side, &view.challenge(side));
        self.pending().asked.push_back((now + CHALLENGE_MS, view.flows.of(side).slot, side));
    }

    /// Sends the end at this side a segment that seems to come from the other end.
    pub(super) fn send(&self, record: &Record, view: &View, side: Side, segment: &Segment) {
        // By the way of the other end's packets.
        let way = way(view.flows.get(side.other()));
        self.send_by(way, record.tuples().get(side), segment);
    }

    /// As [`send`](Self::send) where the flows are gone: by the way that the routing table has now. `tuple`: of the end's
    /// packets as they arrive.
    pub(super) fn send_by_route(&self, tuple: &Tuple, segment: &Segment) {
        let [peer, local] = ends(tuple);
        match self.ways.way_of(local, peer, 0) {
            Ok(way) => self.send_by(way, tuple, segment),
            Err(reason) => tracing::debug!(%peer, %reason, "no way to an end"),
        }
    }

    fn send_by(&self, way: Way, tuple: &Tuple, segment: &Segment) {
        let [peer, local] = ends(tuple);
        if let Err(error) = self.injector.send(way, local, peer, segment) {
            tracing::debug!(%error, %peer, "cannot send a segment to an end");
        }
    }

    /// Tells the sender of a packet that was too big, by ICMP.
    fn send_too_big(&self, event: &Event) {
        let Some(record) = self.kernel().record(event.id) else { return };
        let side = event.side();
        let Some(back) = self.kernel().flow(record.tuples().get(side.other())) else { return };
        let [peer, local] = ends(record.tuples().get(side));
        let (seq, mtu) = (event.number, event.mtu);
        if let Err(error) = self.injector.packet_too_big(way(&back), local, peer, seq, mtu) {
            tracing::debug!(%error, %peer, "cannot tell an end that a packet was too big");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_looked_at_at_once_and_once_more_a_moment_after_the_last() {
        let mut recheck = Recheck::default();
        let mut at = |now, is_changed| recheck.take_due(now, is_changed);
        assert!(!at(0, false), "nothing has changed");
        assert!(at(1000, true));
        assert!(!at(1000, false));
        assert!(at(1100, true), "another change");
        assert!(!at(1000 + SETTLED_MS, false), "a moment after the first");
        assert!(at(1100 + SETTLED_MS, false), "a moment after the last");
        assert!(!at(1100 + 2 * SETTLED_MS, false), "only once");
    }
}
