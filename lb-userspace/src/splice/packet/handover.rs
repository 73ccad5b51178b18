//! Handover: a connection of two sockets becomes one of two flows, at any moment, without losing a byte.
//!
//! The bytes that the sockets have received on one leg and not yet delivered on the other are the *prefix*. The sockets
//! deliver the prefix, and nothing else. First the flows are entered: from then on the kernel forwards what arrives. Then
//! the bytes in each socket's receive queue are written to the other socket, which sends and retransmits them. Pure ACKs
//! below `await_ack` go to the socket. All others are forwarded, and replayed to the socket by an injected ACK, to stop its
//! retransmission. Once both ends have acknowledged the prefix, both sockets are closed in repair mode, without FIN or
//! reset.

use super::grace::Grace;
use super::terms::{LEAD, Terms};
use crate::kernel::raw::Injector;
use crate::kernel::tuples::ends;
use crate::kernel::{FinOrder, Packet, tcp};
use crate::reason::CloseReason;
use crate::socket::{finish, reset_on_close, write_all};
use lb_common::packet::{PerDirection, PerLeg, Side, Tuple, before};
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// The first pause between two checks whether a prefix is acknowledged, where a moment counts; each pause is twice as long as the
/// one before.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause between two looks whether a grace period is over, which takes 8 to 18 ms; where no moment counts, every one,
/// and the first pause.
const GRACE_PAUSE: Duration = Duration::from_millis(8);

/// How often an acknowledgement is replayed to a socket. If every replay is lost, the socket retransmits, and the receiver
/// drops the duplicate.
const REPLAYS: u8 = 3;

/// From when on acknowledgements are replayed. Linux retransmits after 200 ms, and a socket is closed within some 40 ms after all is
/// acknowledged, so mostly none is. Of
/// several segments the last one is sent again much sooner (tail loss probe, RFC 8985, section 7), so the acknowledgement of more
/// bytes than this is replayed at the first look.
const REPLAY_AFTER: (Duration, usize) = (Duration::from_millis(96), 1200);

/// A handover whose flows are in the table. Its sockets, in repair mode, may still have a prefix to deliver.
pub(crate) struct PendingHandover {
    pub(super) id: u64,
    pub(super) slot: u32,
    /// The tuple of each leg's packets as they arrive.
    pub(super) tuples: PerLeg<Tuple>,
    pub(super) terms: Terms,
    /// The [generation](super::ways::Ways::generation) of its ways.
    pub(super) asked: u64,
}

/// One direction: what one socket has received and the other must send.
struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    /// How much of [`tcp::Progress::received`] of `from` was taken from its queue, or read before; the FIN counts.
    seen: u64,
    /// The sequence number at which that count was 0.
    base: u32,
    /// Bytes at the head of `from`'s receive queue that were written to `to` and only peeked at here, not read.
    left: usize,
    /// The sender's FIN, once `from` has received it.
    fin: Option<FinOrder>,
    /// The FIN was sent on.
    fin_sent: bool,
    /// Sequence number after all that was written to `to`.
    written: u32,
    /// Bytes that were written to `to`.
    bytes: usize,
    /// When the first of them was.
    since: Instant,
    /// `to` has nothing left to deliver.
    is_done: bool,
    /// How often the acknowledgement of `written` was replayed to `to`.
    replays: u8,
}

impl PendingHandover {
    /// The slot of the connection's track, and [`Flow::origin`](lb_common::packet::Flow::origin) of both flows.
    pub(crate) fn place(&self) -> (u32, PerDirection<u64>) {
        (self.slot, self.terms.flows.map(|flow| flow.origin))
    }

    /// The [generation](super::ways::Ways::generation) of its ways.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// Delivers the prefix: `held`, which was read from the client before, and what the sockets have received since. Both
    /// sockets may be dropped a grace period after this has returned: the programs may just have left an ACK to one of them, to
    /// which this host would answer with a reset if it were closed. They send neither FIN nor reset, also if they are dropped
    /// with this future.
    pub(crate) async fn finish(
        self,
        (kernel, grace, injector): (&Packet, &Grace, &Injector),
        sockets: PerLeg<&TcpStream>,
        held: Vec<u8>,
    ) -> Result<(), CloseReason> {
        let Self { id, slot, tuples, terms, .. } = self;
        let PerLeg { client, server } = sockets;
        let mut handover = terms.handover;
        let since = Instant::now();
        let direction = |from, to, written, (seen, base)| Direction {
            from,
            to,
            seen,
            base,
            left: 0,
            fin: None,
            fin_sent: false,
            written,
            bytes: 0,
            since,
            is_done: false,
            replays: 0,
        };
        let mut request = direction(client, server, terms.written.server, terms.seen.client);
        let mut response = direction(server, client, terms.written.client, terms.seen.server);
        let mut tell_programs = |request: &Direction<'_>, response: &Direction<'_>| {
            handover.await_ack = PerDirection { request: response.written, response: request.written };
            for (promised, socket) in handover.promised.each_mut().into_iter().zip(sockets.iter()) {
                // After an error the older number stays, which is as safe.
                *promised = tcp::promised(socket.as_fd()).unwrap_or(*promised);
            }
            // Refused: the programs go on with the older numbers, which is slower and as safe.
            let _ = kernel.set_handover(id, &handover);
        };
        // `&` instead of `&&`: each call may replay an acknowledgement to its socket.
        let are_done = |request: &mut Direction<'_>, response: &mut Direction<'_>| {
            request.is_done(kernel, injector, slot, (Side::Server, &tuples.server))
                & response.is_done(kernel, injector, slot, (Side::Client, &tuples.client))
        };
        let hurry =
            |request: &Direction<'_>, response: &Direction<'_>| request.hurries() || response.hurries();
        let first_pause = |request: &Direction<'_>, response: &Direction<'_>| match hurry(request, response) {
            true => FIRST_PAUSE,
            false => GRACE_PAUSE,
        };
        let rest =
            async |request: &Direction<'_>, response: &Direction<'_>, pause| match hurry(request, response) {
                true => tokio::time::sleep(pause).await,
                false => grace.moment(pause).await,
            };
        // The flows are entered.
        let arrived = grace.begin();
        let mut held = Some(held);
        // The second round is for packets that had passed the programs before the flows were entered.
        for again in [false, true] {
            let mut pause = first_pause(&request, &response);
            while again && !grace.is_over(arrived) {
                rest(&request, &response, pause).await;
                are_done(&mut request, &mut response);
                pause = (pause * 2).min(GRACE_PAUSE);
            }
            let [by_client, by_server] = tcp::have_news([client.as_fd(), server.as_fd()]);
            let held = held.take().unwrap_or_default();
            let requested = request.look(held, by_client).map_err(|_| CloseReason::ClientReset)?;
            let responded = response.look(Vec::new(), by_server).map_err(|_| CloseReason::ServerReset)?;
            let news = requested.news || responded.news;
            // Before the write: if the socket's send buffer is full, the write waits for ACKs, and the programs must leave
            // those to the socket.
            if news {
                tell_programs(&request, &response);
            }
            // Both at once: an end may read only after it could write.
            tokio::try_join!(
                async { request.write(&requested.bytes).await.map_err(|_| CloseReason::ServerReset) },
                async { response.write(&responded.bytes).await.map_err(|_| CloseReason::ClientReset) },
            )?;
            // What passed the programs before the flows were entered is missing in their track; it is added here. Before a
            // FIN is sent: the programs accept its acknowledgement only if the track has the FIN.
            let ended =
                request.note_fin(&requested, response.fin) | response.note_fin(&responded, request.fin);
            for (side, direction) in [(Side::Client, &request), (Side::Server, &response)] {
                if news {
                    kernel.advance(slot, side, direction.received(), direction.fin);
                }
            }
            if ended {
                tell_programs(&request, &response);
            }
            request.send_fin().map_err(|_| CloseReason::ServerReset)?;
            response.send_fin().map_err(|_| CloseReason::ClientReset)?;
        }
        let mut pause = first_pause(&request, &response);
        while !are_done(&mut request, &mut response) {
            rest(&request, &response, pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        // Else an end to which they were sent would take a keepalive probe for an old segment, and not answer it (PAWS, RFC
        // 7323, section 5), if the other end has said nothing since.
        if terms.has_timestamps() && since.elapsed() >= LEAD {
            for (from, direction) in [(Side::Client, &request), (Side::Server, &response)] {
                if let Ok(last) = tcp::timestamp(direction.to.as_fd()) {
                    let delta = terms.flows.get(from).tsval_delta;
                    kernel.raise_tsval(slot, from, last.wrapping_sub(delta));
                }
            }
        }
        kernel.end_handover(id);
        Ok(())
    }
}

/// What one direction has to send on.
struct Arrived {
    bytes: Vec<u8>,
    /// A FIN follows the bytes.
    ends: bool,
    /// The socket has received a byte or the FIN since the last look.
    news: bool,
}

impl Direction<'_> {
    /// What is to be written next: `held`, and what has arrived since the last call, if `from` [has news](tcp::have_news).
    fn look(&mut self, held: Vec<u8>, has_news: bool) -> io::Result<Arrived> {
        let (ends, arrived) = if has_news { self.arrived()? } else { Default::default() };
        let news = ends || !arrived.is_empty();
        let mut bytes = held;
        bytes.extend(arrived);
        self.bytes += bytes.len();
        self.is_done &= bytes.is_empty() && !ends;
        self.written = self.written.wrapping_add(bytes.len() as u32).wrapping_add(ends.into());
        Ok(Arrived { bytes, ends, news })
    }

    /// Whether the FIN has arrived since the last call, and the bytes that have.
    fn arrived(&mut self) -> io::Result<(bool, Vec<u8>)> {
        if self.fin.is_some() {
            // Nothing follows a FIN. The socket may have left the connection by now.
            return Ok((false, Vec::new()));
        }
        let from = self.from.as_fd();
        // Before the queue is read: if there is a FIN, the queue then holds every byte before it.
        let progress = tcp::progress(from)?;
        if progress.is_closed {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if progress.received == self.seen {
            return Ok((false, Vec::new()));
        }
        let (arrived, left) = tcp::received(from, self.left, progress.has_fin)?;
        // Not `progress.received`: more may have come since.
        self.seen += arrived.len() as u64 + u64::from(progress.has_fin);
        self.left = left;
        if self.seen < progress.received {
            // Urgent data has come since the handover began. What is behind it cannot be taken: better an end than a gap.
            return Err(io::ErrorKind::InvalidData.into());
        }
        // A delayed ACK of the socket would come later than ACKs of the other end with higher numbers.
        tcp::flush_acknowledgement(from)?;
        Ok((progress.has_fin, arrived))
    }

    /// Sequence number after the last byte that was taken from `from`.
    fn received(&self) -> u32 {
        self.base.wrapping_add(self.seen as u32).wrapping_sub(u32::from(self.fin.is_some()))
    }

    /// Notes the FIN, if one follows what was written; whether one does. `other`: that of the other direction.
    fn note_fin(&mut self, written: &Arrived, other: Option<FinOrder>) -> bool {
        if written.ends {
            self.fin = Some(if other.is_none() { FinOrder::First } else { FinOrder::Second });
        }
        written.ends
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.leave_repair()?;
        let result = write_all(self.to, bytes).await;
        self.enter_repair()?;
        result
    }

    /// Sends the FIN on, once.
    fn send_fin(&mut self) -> io::Result<()> {
        if self.fin.is_some() && !self.fin_sent {
            self.fin_sent = true;
            self.leave_repair()?;
            finish(self.to)?;
            self.enter_repair()?;
        }
        Ok(())
    }

    /// Takes `to` out of repair mode: from here on it sends what is written.
    fn leave_repair(&self) -> io::Result<()> {
        // If the process dies meanwhile, the socket sends a reset: a FIN would look like a clean end.
        reset_on_close(self.to);
        tcp::leave_repair(self.to.as_fd())
    }

    /// Puts `to` back into repair mode: closed, it sends nothing.
    fn enter_repair(&self) -> io::Result<()> {
        tcp::enter_repair(self.to.as_fd())
    }

    /// Whether a tail loss probe may come before the next of the moments at which all tasks look.
    fn hurries(&self) -> bool {
        let (_, many) = REPLAY_AFTER;
        !self.is_done && self.bytes > many
    }

    /// Whether the receiver has acknowledged all that was written to its socket, or the connection is over. If the programs
    /// have forwarded the acknowledgement, replays it to the socket before that would retransmit. `back`: the tuple of the
    /// receiver's packets as they arrive.
    fn is_done(
        &mut self,
        kernel: &Packet,
        injector: &Injector,
        slot: u32,
        (receiver, back): (Side, &Tuple),
    ) -> bool {
        if self.is_done {
            return true;
        }
        let is_acknowledged = !before(kernel.track(slot).halves.get(receiver).ack, self.written);
        let (late, _) = REPLAY_AFTER;
        let replays = self.replays < REPLAYS && (self.hurries() || self.since.elapsed() >= late);
        // The programs tell, by memory. The socket is asked if they do not, or if it is to know.
        if is_acknowledged && !replays {
            return true;
        }
        let to = self.to.as_fd();
        let gone = |asked: io::Result<bool>| asked.unwrap_or(true);
        self.is_done = gone(tcp::is_acknowledged(to));
        if self.is_done {
            return true;
        }
        if !is_acknowledged {
            self.is_done = kernel.flow(back).is_none() || gone(tcp::is_closed(to));
            return self.is_done;
        }
        self.replays += 1;
        let [peer, local] = ends(back);
        let _ = tcp::select_receive(to)
            .and_then(|()| tcp::receive_next(to))
            .and_then(|next| injector.acknowledge(local, peer, next, self.written));
        self.is_done = gone(tcp::is_acknowledged(to));
        self.is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hint::spin_loop;
    use std::io::Write as _;
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::{Acquire, Release};
    use std::thread;

    /// Needs CAP_NET_ADMIN, as repair mode does. The programs are told what was counted: bytes between the count and the read
    /// would be missing in their track for good.
    #[tokio::test]
    async fn bytes_that_come_during_a_look_are_counted_when_they_are_taken() {
        const ROUNDS: usize = 1_000;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TcpStream::from_std(socket).unwrap();
        tcp::enter_repair(socket.as_fd()).unwrap();
        let mut direction = Direction {
            from: &socket,
            to: &socket,
            seen: 0,
            base: 0,
            left: 0,
            fin: None,
            fin_sent: false,
            written: 0,
            bytes: 0,
            since: Instant::now(),
            is_done: false,
            replays: 0,
        };
        let round = Arc::new(AtomicUsize::new(0));
        let begun = round.clone();
        let writer = thread::spawn(move || {
            peer.set_nodelay(true).unwrap();
            for round in 1..=ROUNDS {
                peer.write_all(b"x").unwrap();
                while begun.load(Acquire) < round {
                    thread::yield_now();
                }
                // Sooner or later during the look.
                (0..round % 256 * 8).for_each(|_| spin_loop());
                peer.write_all(b"y").unwrap();
            }
            peer
        });
        let mut taken = 0;
        for number in 1..=ROUNDS {
            while tcp::progress(socket.as_fd()).unwrap().received < 2 * number as u64 - 1 {
                thread::yield_now();
            }
            round.store(number, Release);
            while taken < 2 * number {
                taken += direction.arrived().unwrap().1.len();
                assert_eq!(direction.seen, taken as u64);
            }
        }
        drop(writer.join().unwrap());
        while !direction.arrived().unwrap().0 {}
        assert_eq!(direction.seen, 2 * ROUNDS as u64 + 1, "the FIN counts");
    }
}
