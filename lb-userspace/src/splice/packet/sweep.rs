//! The sweeper: follows the programs' events and the devices, and looks through the flow table now and then.

use super::live::reason_of;
use super::terms::ends;
use super::{PacketTier, ms_of_tick};
use crate::account::CloseReason;
use crate::clock::now_ms;
use crate::connect::KEEPALIVE;
use crate::kernel::devices::Watch;
use lb_common::packet::{Event, Flow, Tuple, event, flag};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Least time between two looks through the flow table.
const SWEEP: Duration = Duration::from_secs(1);

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

/// The thread; it ends when this is dropped.
pub struct Sweeper {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeper {
    /// Starts it, in the network namespace of the calling thread.
    pub fn start(tier: Arc<PacketTier>) -> io::Result<Self> {
        let over = Arc::<AtomicBool>::default();
        let (watch, seen) = (Watch::new()?, over.clone());
        let thread = std::thread::Builder::new().name("sweeper".into()).spawn(move || {
            let mut sweep = Sweep {
                tier,
                watch,
                resets: Vec::new(),
                next: Instant::now() + SWEEP,
                turn: 0,
                devices_changed: false,
            };
            while !seen.load(Relaxed) {
                if let Err(error) = sweep.turn() {
                    tracing::error!(%error, "the packet tier's sweeper");
                    std::thread::sleep(SWEEP);
                }
            }
        })?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Sweep {
    tier: Arc<PacketTier>,
    watch: Watch,
    /// Connections whose reset is yet to stand, and until when.
    resets: Vec<(Instant, u64)>,
    next: Instant,
    turn: u32,
    /// They are yet to be looked at.
    devices_changed: bool,
}

impl Sweep {
    fn turn(&mut self) -> io::Result<()> {
        self.wait()?;
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
        Ok(())
    }

    /// Until there is something to do.
    fn wait(&self) -> io::Result<()> {
        // Short enough for a process that ends.
        const LONGEST: Duration = Duration::from_millis(100);
        let until = self.next.saturating_duration_since(Instant::now()).min(LONGEST);
        let until = Timespec::try_from(until).map_err(io::Error::other)?;
        self.tier.kernel().with_events_fd(|events| {
            let mut fds =
                [PollFd::from_borrowed_fd(events, PollFlags::IN), PollFd::new(&self.watch, PollFlags::IN)];
            match poll(&mut fds, Some(&until)) {
                Err(rustix::io::Errno::INTR) | Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn follow(&mut self, event: Event, now: Instant) {
        match event.kind {
            event::CLOSED => {
                let Some(record) = self.tier.kernel().record(event.id) else { return };
                let flow = self.tier.kernel().flow(&record.from_client);
                match flow {
                    Some(flow) if !flow.state.is_finished() => {
                        self.resets.push((now + RESET_STANDS, event.id))
                    }
                    _ => self.tier.ended(event.id),
                }
            }
            event::REUSED => self.tier.lost(event.id),
            event::TOO_BIG => self.tier.say_too_big(&event),
            _ => {}
        }
    }
}

impl PacketTier {
    /// Brings the accounts of all spliced connections up to date.
    pub fn refresh(&self) {
        let result = self.kernel().flows(|_, flow| {
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
        let (mut entries, mut ended, mut stale) = (0_u64, Vec::new(), Vec::<(Tuple, u64)>::new());
        let mut silent = Vec::new();
        // The later of both directions: a flow may be quiet while its twin is not.
        let mut rest: HashMap<u64, u64> = HashMap::new();
        self.kernel().flows(|tuple, flow| {
            entries += 1;
            let mut live = self.lock();
            match live.get_mut(&flow.id) {
                Some(live) => {
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
                    if reason_of(&flow.state).is_some() && now.saturating_sub(ms_of_tick(flow.active)) > 1000
                    {
                        ended.push(flow.id);
                    }
                }
                None => {
                    let active = rest.entry(flow.id).or_default();
                    *active = ms_of_tick(flow.active).max(*active);
                    stale.push((*tuple, flow.id));
                }
            }
        })?;
        self.entries.store(entries, Relaxed);
        let linger = if entries * 2 > self.kernel().capacity().into() { SHORT_LINGER_MS } else { LINGER_MS };
        for (tuple, id) in stale {
            if now.saturating_sub(rest[&id]) >= linger {
                self.kernel().remove(id, &tuple);
            }
        }
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
        lost.into_iter().for_each(|id| self.lost(id));
        for (id, reason) in expired {
            self.end(id, reason);
        }
        Ok(())
    }

    /// Asks an end whether it is still there. Its answer goes to the other end, to which it says nothing new.
    fn probe(&self, tuple: &Tuple, flow: &Flow) {
        let [peer, local] = ends(tuple);
        if let Err(error) = self.injector().probe(local, peer, flow.ack, flow.end()) {
            tracing::debug!(%error, %peer, "cannot send a probe");
        }
    }

    fn say_too_big(&self, event: &Event) {
        let Some(record) = self.kernel().record(event.id) else { return };
        let tuple = if event.from_server == 1 { &record.from_server } else { &record.from_client };
        let [peer, local] = ends(tuple);
        if let Err(error) = self.injector().packet_too_big(local, peer, event.seq, event.mtu) {
            tracing::debug!(%error, %peer, "cannot say that a packet was too big");
        }
    }
}
