//! The sweeper: follows the programs' events and the devices, and looks through the flow table now and then.

use super::live::reason_of;
use super::terms::ends;
use super::{PacketTier, ms_of_tick, way};
use crate::account::CloseReason;
use crate::clock::now_ms;
use crate::connect::KEEPALIVE;
use crate::kernel::devices::Watch;
use crate::kernel::raw::{Kind, Segment};
use lb_common::packet::{Event, Flow, State, Tuple, event, flag};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Least time between two looks through the flow table.
const SWEEP: Duration = Duration::from_secs(1);

/// Time between two looks for events: only the most urgent ones wake the sweeper.
const EVENTS: Duration = Duration::from_millis(50);

/// A look takes at most this part of the sweeper's time: one in so many.
const SHARE: u32 = 20;

/// How long a reset must stand before it counts: one that somebody else has forged is followed by more packets.
const RESET_STANDS: Duration = Duration::from_millis(500);

/// Events between two looks at the clock.
const MOST_EVENTS: usize = 4096;

/// How long one end may be silent before it is asked whether it is still there: what keepalive does for a socket.
const KEEPALIVE_MS: u64 = KEEPALIVE.as_millis() as u64;
/// Time between two such questions, and how many may stay unanswered: Linux' own (tcp(7)).
const PROBE_MS: u64 = 75_000;
const PROBES: u64 = 9;

/// How long the flows of a closed connection stay for its last packets: as long as its ends remember it (TIME_WAIT).
const LINGER_MS: u64 = 60_000;

/// The same, when the table is more than half full.
const SHORT_LINGER_MS: u64 = 5_000;

/// A walk through the flow table takes milliseconds of a processor in one system call, however few flows there are. With
/// less than one connection in so many entries of the table, each one's flows are looked up instead.
const SPARSE: usize = 128;

/// Closed connections whose flows stay a while, the first to go first.
#[derive(Default)]
pub(super) struct Lingering(VecDeque<Closed>);

struct Closed {
    /// [`now_ms`] when it was last heard of.
    since: u64,
    id: u64,
    tuples: [Tuple; 2],
}

impl Lingering {
    pub(super) fn push(&mut self, since: u64, id: u64, tuples: [Tuple; 2]) {
        self.0.push_back(Closed { since, id, tuples });
    }

    /// One that has lingered for so long.
    fn pop(&mut self, now: u64, linger: u64) -> Option<(u64, [Tuple; 2])> {
        let over = self.0.front().is_some_and(|oldest| now.saturating_sub(oldest.since) >= linger);
        let closed = if over { self.0.pop_front() } else { None };
        // What a busy minute needed is not kept for ever.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2);
        }
        closed.map(|closed| (closed.id, closed.tuples))
    }
}

/// The thread; it ends when this is dropped.
pub struct Sweeper {
    /// An eventfd: written, it is over. A thread that only looked now and then would keep a restart waiting.
    over: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts it, in the network namespace of the calling thread.
    pub fn start(tier: Arc<PacketTier>) -> io::Result<Self> {
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (watch, seen) = (Watch::new()?, over.clone());
        let thread = std::thread::Builder::new().name("sweeper".into()).spawn(move || {
            let mut sweep = Sweep {
                tier,
                watch,
                over: seen,
                resets: Vec::new(),
                next: Instant::now() + SWEEP,
                turn: 0,
                devices_changed: false,
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
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        // An eventfd takes a first 1 (eventfd(2)).
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Sweep {
    tier: Arc<PacketTier>,
    watch: Watch,
    over: Arc<OwnedFd>,
    /// Connections whose reset is yet to stand, and until when.
    resets: Vec<(Instant, u64)>,
    next: Instant,
    turn: u32,
    /// They are yet to be looked at.
    devices_changed: bool,
}

impl Sweep {
    /// `false`: it is over.
    fn turn(&mut self) -> io::Result<bool> {
        if self.wait()? {
            return Ok(false);
        }
        self.devices_changed |= self.watch.changed()?;
        if self.devices_changed {
            self.tier.follow_devices()?;
            self.devices_changed = false;
        }
        let now = Instant::now();
        for event in self.tier.kernel().events(MOST_EVENTS) {
            self.follow(event, now);
        }
        let tier = &self.tier;
        self.resets.retain(|(stands_at, id)| {
            let stands = now >= *stands_at;
            if stands {
                tier.ended(*id);
            }
            !stands
        });
        if now >= self.next {
            self.turn = self.turn.wrapping_add(1);
            self.tier.sweep(self.turn)?;
            self.next = Instant::now() + SWEEP.max(now.elapsed() * SHARE);
        }
        Ok(true)
    }

    /// For an urgent event, a change of the devices or the next look; whether it is over.
    fn wait(&self) -> io::Result<bool> {
        let until = self.next.saturating_duration_since(Instant::now()).min(EVENTS);
        let until = Timespec::try_from(until).map_err(io::Error::other)?;
        self.tier.kernel().with_events_fd(|events| {
            let mut fds = [
                PollFd::new(&self.over, PollFlags::IN),
                PollFd::new(&self.watch, PollFlags::IN),
                PollFd::from_borrowed_fd(events, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&until)) {
                Err(rustix::io::Errno::INTR) | Ok(_) => Ok(!fds[0].revents().is_empty()),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn follow(&mut self, event: Event, now: Instant) {
        match event.kind {
            event::CLOSED => {
                let Some(record) = self.tier.kernel().record(event.id) else { return };
                let flows = self.tier.kernel().flows_of(event.id, &record);
                if flows.iter().flatten().any(|flow| !flow.state.is_finished()) {
                    self.resets.push((now + RESET_STANDS, event.id));
                } else {
                    self.tier.close(event.id, &record, &flows);
                }
            }
            event::REUSED => self.tier.lost(event.id, reason_of(&State::unpacked(event.seq))),
            event::TOO_BIG => self.tier.say_too_big(&event),
            _ => {}
        }
    }
}

impl PacketTier {
    /// The flows of all spliced connections, and maybe of closed ones.
    fn each_flow(&self, mut see: impl FnMut(&Tuple, &Flow)) -> io::Result<()> {
        let ids: Vec<u64> = self.lock().keys().copied().collect();
        if ids.len() * SPARSE >= self.kernel().capacity() as usize {
            return self.kernel().flows(see);
        }
        for id in ids {
            let Some(record) = self.kernel().record(id) else { continue };
            let tuples = [record.from_client, record.from_server];
            for (tuple, flow) in tuples.iter().zip(self.kernel().flows_of(id, &record)) {
                if let Some(flow) = flow {
                    see(tuple, &flow);
                }
            }
        }
        Ok(())
    }

    /// Brings the accounts of all spliced connections up to date.
    pub fn refresh(&self) {
        let result = self.each_flow(|_, flow| {
            if let Some(live) = self.lock().get(&flow.id) {
                live.note(flow);
            }
        });
        if let Err(error) = result {
            tracing::error!(%error, "cannot read the flow table");
        }
    }

    /// Notes traffic, ends what is idle or too old, and removes what is long closed.
    fn sweep(&self, turn: u32) -> io::Result<()> {
        let now = now_ms();
        let (mut ended, mut silent) = (Vec::new(), Vec::new());
        self.each_flow(|tuple, flow| {
            let mut live = self.lock();
            let Some(live) = live.get_mut(&flow.id) else { return };
            live.note(flow);
            live.seen = turn;
            let side = usize::from(flow.has(flag::FROM_SERVER));
            let quiet = now.saturating_sub(ms_of_tick(flow.active));
            // How many should have been asked by now.
            let due = if quiet < KEEPALIVE_MS { 0 } else { 1 + (quiet - KEEPALIVE_MS) / PROBE_MS };
            if due > PROBES {
                silent.push((flow.id, [CloseReason::ClientReset, CloseReason::ServerReset][side]));
            } else if due > live.probes[side].into() {
                self.probe(tuple, flow);
            }
            live.probes[side] = due as u8;
            if reason_of(&flow.state).is_some() && quiet > 1000 {
                ended.push(flow.id);
            }
        })?;
        self.forget_closed(now);
        for (id, side) in silent {
            self.end(id, side);
        }
        // Twice in the list, for both of its flows: the second time there is nothing left to end.
        ended.into_iter().for_each(|id| self.ended(id));

        let (mut expired, mut lost) = (Vec::new(), Vec::new());
        for (id, live) in self.lock().iter() {
            // Entered since the walk began: its turn is 0.
            if live.seen != 0 && live.seen != turn {
                lost.push(*id);
            } else if let Some(reason) = live.expired(now) {
                expired.push((*id, reason));
            }
        }
        lost.into_iter().for_each(|id| self.lost(id, None));
        for (id, reason) in expired {
            self.end(id, reason);
        }
        Ok(())
    }

    /// Removes the flows of closed connections that have been silent for long enough.
    fn forget_closed(&self, now: u64) {
        let connections = self.lock().len() + self.lingering().0.len();
        self.entries.store(connections as u64 * 2, Relaxed);
        let linger =
            if connections * 4 > self.kernel().capacity() as usize { SHORT_LINGER_MS } else { LINGER_MS };
        loop {
            let Some((id, tuples)) = self.lingering().pop(now, linger) else { return };
            // The later of both directions: one may be quiet while the other is not.
            let flows = tuples.map(|tuple| self.kernel().flow(&tuple).filter(|flow| flow.id == id));
            let active = flows.iter().flatten().map(|flow| ms_of_tick(flow.active)).max();
            if active.is_some_and(|active| now.saturating_sub(active) < linger) {
                self.lingering().push(now, id, tuples);
            } else {
                tuples.iter().for_each(|tuple| self.kernel().remove(id, tuple));
            }
        }
    }

    /// Asks an end whether it is still there. Its answer goes to the other end, to which it says nothing new.
    fn probe(&self, tuple: &Tuple, flow: &Flow) {
        let Some(twin) = self.kernel().flow(&flow.out.reversed()) else { return };
        let [peer, local] = ends(tuple);
        // It answers an acknowledgement of what is before the number that it expects.
        let (seq, ack) = (flow.ack.wrapping_sub(1), flow.end());
        let probe = Segment { kind: Kind::Ack, seq, ack, window: 0, timestamps: None };
        if let Err(error) = self.injector().send(way(&twin), local, peer, &probe) {
            tracing::debug!(%error, %peer, "cannot send a probe");
        }
    }

    fn say_too_big(&self, event: &Event) {
        let Some(record) = self.kernel().record(event.id) else { return };
        let tuples = [&record.from_client, &record.from_server];
        let [tuple, back] = if event.from_server == 1 { [tuples[1], tuples[0]] } else { tuples };
        let Some(twin) = self.kernel().flow(back) else { return };
        let [peer, local] = ends(tuple);
        let (seq, mtu) = (event.seq, event.mtu);
        if let Err(error) = self.injector().packet_too_big(way(&twin), local, peer, seq, mtu) {
            tracing::debug!(%error, %peer, "cannot say that a packet was too big");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_connections_go_in_order_and_none_too_early() {
        let mut lingering = Lingering::default();
        for id in 1..=100 {
            lingering.push(id * 10, id, [Tuple::default(); 2]);
        }
        let mut gone = |now, linger| {
            std::iter::from_fn(|| lingering.pop(now, linger)).map(|(id, _)| id).collect::<Vec<_>>()
        };
        assert_eq!(gone(1009, 1000), [0; 0]);
        assert_eq!(gone(1020, 1000), [1, 2]);
        // A clock that was read before the connection was closed.
        assert_eq!(gone(0, 1), [0; 0]);
        assert_eq!(gone(1020, 20), (3..=100).collect::<Vec<_>>());
        assert_eq!(gone(u64::MAX, 0), [0; 0]);
    }
}
