//! The sweeper: follows the programs' events and the devices, and looks through the flow table now and then.

use super::lingering::Closed;
use super::live::{LINGER_MS, RESET_STANDS_MS};
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
use lb_common::packet::{Event, Record, Tuple, event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Least time between two looks at all connections.
const SWEEP: Duration = Duration::from_secs(1);

/// Time between two looks for events: only the most urgent ones wake the sweeper.
const EVENTS: Duration = Duration::from_millis(50);

/// Sweeps use at most 1/SHARE of the thread's time, keepalive probes not counted: those are due.
const SHARE: u32 = 20;

/// Least time between two challenge ACKs to one end (RFC 5961, section 10: they are to be limited). Per connection: a limit
/// that connections share would tell a stranger which one he has hit (CVE-2016-5696).
const CHALLENGE_MS: u64 = 500;

/// Events between two looks at the clock.
const MOST_EVENTS: usize = 4096;

/// Connections whose ends are probed between two looks for events: some 10 ms.
const MOST_PROBED: usize = 512;

/// [`LINGER_MS`] when the table is more than half full.
const SHORT_LINGER_MS: u64 = 5_000;

/// The thread; it ends when this is dropped.
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
                devices_changed: false,
                routes_changed: false,
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
    /// Readable when it is over. A thread that only looked now and then would keep a restart waiting.
    over: Arc<OwnedFd>,
    next: Instant,
    /// They are yet to be looked at.
    devices_changed: bool,
    routes_changed: bool,
    /// There are connections whose ways are yet to be looked at.
    is_behind: bool,
    /// The system's keepalive at the last look.
    system: Timing,
    /// Connections that want keepalive probes.
    quiet: Vec<u64>,
    /// Readable when the programs have something urgent to tell.
    events: OwnedFd,
}

impl Sweep {
    /// `false`: it is over.
    fn turn(&mut self) -> io::Result<bool> {
        if self.wait()? {
            return Ok(false);
        }
        self.tier.follow_events();
        let now = Instant::now();
        if !self.quiet.is_empty() {
            let left = self.quiet.len().saturating_sub(MOST_PROBED);
            self.quiet.drain(left..).for_each(|id| self.tier.probe(id, &self.system));
        } else if now >= self.next {
            self.tier.ports().follow_others();
            self.system = Timing::system();
            self.quiet = self.tier.sweep(&self.system);
            self.next = Instant::now() + SWEEP.max(now.elapsed() * SHARE);
        }
        // Last, for it may fail.
        self.follow_ways()?;
        Ok(true)
    }

    /// Follows changes of devices and routes. What fails is done again.
    fn follow_ways(&mut self) -> io::Result<()> {
        let changes = self.watch.changed()?;
        self.devices_changed |= changes.devices;
        self.routes_changed |= changes.routes;
        if self.devices_changed {
            self.tier.ways.follow_devices(&self.tier.kernel)?;
            self.devices_changed = false;
        }
        self.routes_changed |= self.tier.ways.ends_changed()?;
        // Before connections are looked at again: an error here ends none of them.
        self.routes_changed |= self.tier.ways.policies_changed()?;
        if std::mem::take(&mut self.routes_changed) {
            self.tier.routes_changed();
        }
        self.is_behind = self.tier.follow_routes();
        Ok(())
    }

    /// For an urgent event, a change of devices or routes, or the next look; whether it is over.
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

impl PacketTier {
    /// Follows what the programs tell, and does what has become due. Also called where a limit is met: the end of another
    /// connection may be among the events.
    pub(crate) fn follow_events(&self) {
        // Who comes second waits for what the first has taken: it may be what he is here for.
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
        let side = event.from_server as usize & 1;
        match event.kind {
            event::FINISHED => _ = self.finish_account(event.id),
            event::RESET => self.pending().resets.push_back((now + RESET_STANDS_MS, event.id)),
            event::REUSED => {
                let [client, server, ..] = event.number.to_le_bytes();
                self.reused(event.id, side, [client, server]);
            }
            event::TOO_BIG => self.say_too_big(event),
            event::CHALLENGE => self.challenge(event.id, side),
            event::WRONG_DEVICE => self.look_at_path(event),
            _ => {}
        }
    }

    /// Looks at every connection, and removes what is long closed; gives the connections that want keepalive probes.
    fn sweep(&self, system: &Timing) -> Vec<u64> {
        let now = now_ms();
        let quiet = self.look(now, system);
        self.forget_closed(now);
        self.forget_refusals();
        quiet
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
            // The later of both directions: one may be quiet while the other is not.
            let heard = self.kernel().track(slot).halves.each_ref().map(|half| ms_of_tick(half.heard));
            if closed.lingers(now, linger, heard) {
                self.lingering().push_again(now, closed);
            } else {
                tuples.iter().for_each(|tuple| self.kernel().remove(id, tuple));
                self.release(id, slot);
            }
        }
    }

    /// Asks an end what its SYN, or a reset that is not exact, meant.
    pub(super) fn challenge(&self, id: u64, side: usize) {
        let Some(record) = self.kernel().record(id) else { return };
        let Some(view) = self.view(id, &record) else { return };
        self.speak(&record, &view, side, &view.challenge(side));
        self.pending().asked.push_back((now_ms() + CHALLENGE_MS, view.flows[side].slot, side));
    }

    /// Sends an end (0: the client) a segment in the other's name.
    pub(super) fn speak(&self, record: &Record, view: &View, side: usize, segment: &Segment) {
        // It leaves as the packets of the other end do.
        let way = way(&view.flows[1 - side]);
        self.speak_by(way, [&record.from_client, &record.from_server][side], segment);
    }

    /// The same where the flows are gone, by the way that the routing table has now. `tuple`: what packets of the end arrive
    /// with.
    pub(super) fn speak_by_route(&self, tuple: &Tuple, segment: &Segment) {
        let [peer, local] = ends(tuple);
        match self.ways.way_of(local, peer, 0) {
            Ok(way) => self.speak_by(way, tuple, segment),
            Err(reason) => tracing::debug!(%peer, %reason, "no way to an end"),
        }
    }

    fn speak_by(&self, way: Way, tuple: &Tuple, segment: &Segment) {
        let [peer, local] = ends(tuple);
        if let Err(error) = self.injector.send(way, local, peer, segment) {
            tracing::debug!(%error, %peer, "cannot speak to an end");
        }
    }

    fn say_too_big(&self, event: &Event) {
        let Some(record) = self.kernel().record(event.id) else { return };
        let tuples = [&record.from_client, &record.from_server];
        let [tuple, back] = if event.from_server == 1 { [tuples[1], tuples[0]] } else { tuples };
        let Some(twin) = self.kernel().flow(back) else { return };
        let [peer, local] = ends(tuple);
        let (seq, mtu) = (event.number, event.mtu);
        if let Err(error) = self.injector.packet_too_big(way(&twin), local, peer, seq, mtu) {
            tracing::debug!(%error, %peer, "cannot say that a packet was too big");
        }
    }
}
