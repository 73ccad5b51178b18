//! The sockmap tier: the kernel moves the bytes between the two sockets; this task watches.
//!
//! The kernel's part knows no end and no limit, so userspace adds them: it passes on FIN and RST, ends idle
//! connections, and sends a connection back to the copy tier when its receiver does not keep up, because bytes
//! that the kernel has taken from one socket and not yet given to the other are bounded by nothing else.
//!
//! Each direction goes through
//!
//! ```text
//! redirecting --FIN--> flushing ----------------------------> finished
//!      |                                                          ^
//!      +--demoted--> (verdict stopped) flushing --> copying --FIN-+
//! ```
//!
//! on its own: while one waits for a stalled receiver the other must flow, or two programs that write before they
//! read would wait for each other for ever. When no direction is redirecting or flushing any more, and one is
//! copying, the connection is handed over.

use crate::kernel::Sockmap;
use crate::kernel::sockmap::{Pair, PairInsertError};
use crate::kernel::tcp;
use crate::reason::{CloseReason, FallbackReason};
use crate::scratch;
use crate::socket::{finish, reset_on_close};
use crate::traffic::Traffic;
use lb_common::packet::{PerDirection, PerLeg, Side};
use lb_common::sockmap::Flow;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::cell::Cell;
use std::io::{self, ErrorKind::WouldBlock};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::sleep;

/// Bytes of one direction that the kernel may hold between the two sockets before the connection is demoted. The
/// kernel reports once per [`EVENT_STEP`](lb_common::sockmap::EVENT_STEP), so the hard bound is the sum of the
/// two and of what arrives until this task has run.
pub const MAX_IN_FLIGHT: u64 = 4 << 20;

/// How long to wait before looking again whether the receiver's TCP has taken the rest.
const FLUSH_WAIT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// Looks at a socket that hung up, a millisecond apart, before its missing FIN counts as a fault of the kernel.
const FIN_ATTEMPTS: usize = 1000;

/// What is copied at once while a demoted connection waits for its other direction.
const COPY_SIZE: usize = 16 << 10;

/// How a connection left this tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is over; dropping the sockets does the rest.
    Closed(CloseReason),
    /// No byte was lost, nothing is held: the copy tier goes on with the same two sockets.
    Demoted(FallbackReason),
}

/// Carries bytes until both directions have ended, one leg is reset, nothing has moved for `idle`, or the copy
/// tier has to go on. Userspace must have written all that it has read.
///
/// A reset of one leg is passed on: the other socket is set to reset when it is closed. `traffic` is brought up to
/// date every mebibyte, on [`Sockmap::refresh`] and at the end, however it comes.
pub async fn splice(
    kernel: &Sockmap,
    client: &TcpStream,
    server: &TcpStream,
    traffic: &Traffic,
    idle: Option<Duration>,
) -> Outcome {
    let splice = match Splice::enter(kernel, client, server, traffic) {
        Ok(splice) => splice,
        Err(outcome) => return outcome,
    };
    // What came before is no silence.
    traffic.active_ms.store(crate::clock::now_ms(), Relaxed);
    let reason = tokio::select! {
        biased;
        ended = async { tokio::try_join!(splice.carry(Side::Client), splice.carry(Side::Server)) } => match ended {
            Ok(_) => CloseReason::closed_by(splice.first_closed.get().unwrap_or(Side::Client)),
            Err(reason) => splice.fail(reason),
        },
        reason = splice.handed_over() => return Outcome::Demoted(reason),
        () = splice.idle_expired(idle) => CloseReason::IdleTimeout,
        () = splice.keep_refreshed(kernel) => unreachable!("it never ends"),
    };
    Outcome::Closed(reason)
}

/// Where a direction is; see the picture above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Kernel,
    Copying,
    Finished,
}

/// How the kernel's work on a direction ended.
enum RedirectEnd {
    Fin,
    Demoted,
}

struct Splice<'a> {
    pair: Pair<'a>,
    directions: PerDirection<Direction<'a>>,
    traffic: &'a Traffic,
    /// Both directions go back to userspace.
    demoted: Cell<Option<FallbackReason>>,
    first_closed: Cell<Option<Side>>,
    phase_changed: Notify,
}

struct Direction<'a> {
    source: &'a TcpStream,
    target: &'a TcpStream,
    phase: Cell<Phase>,
    /// Bytes moved by userspace, before and after the kernel's work.
    copied: Cell<u64>,
    counter: &'a AtomicU64,
}

impl<'a> Splice<'a> {
    fn enter(
        kernel: &'a Sockmap,
        client: &'a TcpStream,
        server: &'a TcpStream,
        traffic: &'a Traffic,
    ) -> Result<Self, Outcome> {
        match kernel.insert(PerLeg { client: client.as_fd(), server: server.as_fd() }) {
            Ok(pair) => Ok(Self {
                demoted: Cell::new(pair.refusal().map(fallback)),
                pair,
                directions: PerDirection {
                    request: Direction::new(client, server, &traffic.bytes_in),
                    response: Direction::new(server, client, &traffic.bytes_out),
                },
                traffic,
                first_closed: Cell::new(None),
                phase_changed: Notify::new(),
            }),
            Err(PairInsertError::Broken) => {
                reset_on_close(client);
                reset_on_close(server);
                let reset = [(client, Side::Client), (server, Side::Server)]
                    .into_iter()
                    .find(|(leg, _)| is_closed(leg));
                Err(Outcome::Closed(
                    reset.map_or(CloseReason::KernelFault, |(_, side)| CloseReason::reset_by(side)),
                ))
            }
            Err(error) => Err(Outcome::Demoted(fallback(&error))),
        }
    }

    /// One direction, from the first byte until its FIN was passed on.
    async fn carry(&self, from: Side) -> Result<(), CloseReason> {
        let direction = self.directions.get(from);
        let end = match self.demoted.get() {
            None => self.redirect(from).await?,
            Some(_) => RedirectEnd::Demoted,
        };
        self.flush(from).await?;
        if let RedirectEnd::Demoted = end {
            self.enter_phase(from, Phase::Copying);
            direction.copy(from).await?;
        }
        self.first_closed.set(self.first_closed.get().or(Some(from)));
        finish(direction.target).map_err(|_| CloseReason::reset_by(from.other()))?;
        self.enter_phase(from, Phase::Finished);
        Ok(())
    }

    /// Watches while the kernel moves bytes.
    async fn redirect(&self, from: Side) -> Result<RedirectEnd, CloseReason> {
        loop {
            tokio::select! {
                biased;
                () = self.directions.get(from).hung_up() => {
                    self.await_fin(from).await?;
                    return Ok(RedirectEnd::Fin);
                }
                () = self.pair.event(from) => {}
            }
            self.publish();
            if self.in_flight(from)? > MAX_IN_FLIGHT {
                self.demoted.set(Some(FallbackReason::SockmapBackpressure));
                self.pair.wake(from.other());
            }
            if self.demoted.get().is_some() {
                self.stop(from)?;
                return Ok(RedirectEnd::Demoted);
            }
        }
    }

    /// The source has hung up. Returns when the verdict has seen its FIN, and so every byte before it.
    async fn await_fin(&self, from: Side) -> Result<(), CloseReason> {
        let direction = self.directions.get(from);
        for _ in 0..FIN_ATTEMPTS {
            if direction.has_failed() {
                return Err(CloseReason::reset_by(from));
            }
            // Poll says "hung up" some instructions before the FIN reaches the verdict; this waits for the
            // socket's lock, and so for the verdict.
            let _ = tcp::release(direction.source.as_fd());
            if self.flow(from)?.is_finished() {
                return Ok(());
            }
            if is_closed(direction.source) {
                return Err(CloseReason::reset_by(from));
            }
            sleep(Duration::from_millis(1)).await;
        }
        Err(CloseReason::KernelFault)
    }

    /// Ends the verdict's hold on a direction: from here on the source's bytes wait in its receive queue.
    fn stop(&self, from: Side) -> Result<(), CloseReason> {
        let direction = self.directions.get(from);
        match self.pair.stop(from, direction.source.as_fd()) {
            Ok(true) => Ok(()),
            _ if direction.has_failed() || is_closed(direction.source) => Err(CloseReason::reset_by(from)),
            _ => Err(CloseReason::KernelFault),
        }
    }

    /// Returns when the target's TCP has taken every byte that was forwarded: not one less, or a FIN would overtake
    /// it and leaving the map would drop it; and not one more, or the kernel has sent something twice.
    async fn flush(&self, from: Side) -> Result<(), CloseReason> {
        let (mut wait, longest) = FLUSH_WAIT;
        loop {
            let in_flight = self.in_flight(from)?;
            self.publish();
            if in_flight == 0 {
                return Ok(());
            }
            sleep(wait).await;
            wait = (wait * 2).min(longest);
        }
    }

    /// Bytes forwarded that the target's TCP has not taken.
    fn in_flight(&self, from: Side) -> Result<u64, CloseReason> {
        let target = self.directions.get(from).target;
        // In this order: what is taken was forwarded before.
        let sent = tcp::sent(target.as_fd()).map_err(|_| CloseReason::reset_by(from.other()))?;
        let forwarded = self.flow(from)?.forwarded();
        let taken = sent.bytes.saturating_sub(self.pair.sent_before(from.other()));
        match forwarded.checked_sub(taken) {
            Some(0) => Ok(0),
            Some(_) if sent.is_closed || has_error(target) => Err(CloseReason::reset_by(from.other())),
            Some(bytes) => Ok(bytes),
            None => Err(CloseReason::KernelFault),
        }
    }

    fn flow(&self, from: Side) -> Result<Flow, CloseReason> {
        match self.pair.flow(from) {
            Ok(flow) if !flow.is_broken() => Ok(flow),
            _ => Err(CloseReason::KernelFault),
        }
    }

    fn enter_phase(&self, from: Side, phase: Phase) {
        self.directions.get(from).phase.set(phase);
        self.phase_changed.notify_one();
    }

    /// Returns when userspace can go on: nothing is left in the kernel's hands, and not everything is finished.
    async fn handed_over(&self) -> FallbackReason {
        loop {
            self.phase_changed.notified().await;
            let phases = self.directions.each_ref().map(|direction| direction.phase.get());
            if let (false, Some(reason)) = (phases.contains(&Phase::Kernel), self.demoted.get())
                && phases.contains(&Phase::Copying)
            {
                return reason;
            }
        }
    }

    async fn idle_expired(&self, idle: Option<Duration>) {
        let Some(idle) = idle else {
            return std::future::pending().await;
        };
        loop {
            self.publish();
            let quiet = crate::clock::now_ms().saturating_sub(self.traffic.active_ms.load(Relaxed));
            match idle.checked_sub(Duration::from_millis(quiet)) {
                // Not before the next tick of the clocks compared, or this would spin within it.
                Some(left) => sleep(left.max(Duration::from_millis(10))).await,
                None => return,
            }
        }
    }

    async fn keep_refreshed(&self, kernel: &Sockmap) {
        loop {
            kernel.refreshed().await;
            self.publish();
        }
    }

    /// Brings the connection's counters up to date.
    fn publish(&self) {
        for from in Side::BOTH {
            let Ok(flow) = self.pair.flow(from) else {
                continue;
            };
            let direction = self.directions.get(from);
            direction.counter.store(direction.copied.get() + flow.forwarded(), Relaxed);
            self.traffic.active_ms.fetch_max(flow.active_ns() / 1_000_000, Relaxed);
        }
    }

    /// Sets the sockets up to pass on how the connection failed.
    fn fail(&self, reason: CloseReason) -> CloseReason {
        let [client, server] = self.directions.each_ref().map(|direction| direction.source);
        match reason {
            CloseReason::ClientReset => reset_on_close(server),
            CloseReason::ServerReset => reset_on_close(client),
            _ => {
                tracing::error!("the kernel lost or repeated bytes in the sockmap: resetting the connection");
                reset_on_close(client);
                reset_on_close(server);
            }
        }
        reason
    }
}

impl Drop for Splice<'_> {
    fn drop(&mut self) {
        self.publish();
    }
}

impl<'a> Direction<'a> {
    fn new(source: &'a TcpStream, target: &'a TcpStream, counter: &'a AtomicU64) -> Self {
        let copied = Cell::new(counter.load(Relaxed));
        Self { source, target, phase: Cell::new(Phase::Kernel), copied, counter }
    }

    /// Returns when the source has sent a FIN or failed. Its other readiness is the verdict's business.
    async fn hung_up(&self) {
        loop {
            match self.source.ready(Interest::READABLE | Interest::ERROR).await {
                Ok(ready) if !ready.is_read_closed() && !ready.is_error() => {
                    // Forget it, or this would return at once for ever.
                    let _: io::Result<()> = self.source.try_io(Interest::READABLE, || Err(WouldBlock.into()));
                }
                _ => return,
            }
        }
    }

    fn has_failed(&self) -> bool {
        has_error(self.source)
    }

    /// Moves bytes by userspace until the source's FIN. Holds none at any point where it waits: they are taken out
    /// of the source's queue only after the target has them. So it may be cut short.
    async fn copy(&self, from: Side) -> Result<(), CloseReason> {
        loop {
            match scratch::with(|buffers| self.copy_some(from, &mut buffers.input[..COPY_SIZE]))? {
                Step::Moved(0) => return Ok(()),
                Step::Moved(bytes) => self.copied.set(self.copied.get() + bytes as u64),
                Step::SourceEmpty => self.source.readable().await.map_err(|_| CloseReason::reset_by(from))?,
                Step::TargetFull => {
                    self.target.writable().await.map_err(|_| CloseReason::reset_by(from.other()))?
                }
            }
        }
    }

    fn copy_some(&self, from: Side, buffer: &mut [u8]) -> Result<Step, CloseReason> {
        let peek = || Ok(recv(self.source, &mut *buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1);
        let peeked = match self.source.try_io(Interest::READABLE, peek) {
            Ok(0) => return Ok(Step::Moved(0)),
            Ok(peeked) => peeked,
            Err(error) if error.kind() == WouldBlock => return Ok(Step::SourceEmpty),
            Err(_) => return Err(CloseReason::reset_by(from)),
        };
        let write = || Ok(send(self.target, &buffer[..peeked], SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?);
        let written = match self.target.try_io(Interest::WRITABLE, write) {
            Ok(written) => written,
            Err(error) if error.kind() == WouldBlock => return Ok(Step::TargetFull),
            Err(_) => return Err(CloseReason::reset_by(from.other())),
        };
        self.discard(&mut buffer[..written]).map_err(|_| CloseReason::reset_by(from))?;
        Ok(Step::Moved(written))
    }

    /// Takes bytes that were peeked at out of the receive queue.
    fn discard(&self, mut bytes: &mut [u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = recv(self.source, &mut *bytes, RecvFlags::DONTWAIT)?.1;
            if taken == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes = &mut bytes[taken..];
        }
        Ok(())
    }
}

fn fallback(error: &PairInsertError) -> FallbackReason {
    match error {
        PairInsertError::Full => FallbackReason::SockmapFull,
        PairInsertError::Refused(_) | PairInsertError::Broken => FallbackReason::SockmapRefused,
    }
}

fn is_closed(socket: &TcpStream) -> bool {
    tcp::is_closed(socket.as_fd()).unwrap_or(true)
}

/// What one attempt to copy came to.
enum Step {
    /// So many bytes; 0: the source has ended.
    Moved(usize),
    SourceEmpty,
    TargetFull,
}

/// Whether the socket has an error pending; asking clears it.
fn has_error(socket: &TcpStream) -> bool {
    !matches!(socket.take_error(), Ok(None))
}
