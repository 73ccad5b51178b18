//! Handover: from two sockets to two flows, at any moment, without losing a byte.
//!
//! A socket keeps its duty for the bytes it has accepted and not yet delivered on the other leg, the *prefix*, and for
//! nothing else. The flows go live first; then what is in the sockets' queues is written to the other socket, which
//! sends and retransmits it. Pure ACKs below `await_ack` go to the socket; all others are forwarded, and the socket is
//! told what they acknowledge by a segment of ours, so that it does not retransmit. Once the other end has all of it, both
//! sockets are closed in repair mode: without a word.

use super::grace::Grace;
use super::terms::Terms;
use crate::kernel::raw::Injector;
use crate::kernel::tuples::ends;
use crate::kernel::{Packet, tcp};
use crate::reason::CloseReason;
use crate::socket::{finish, reset_on_close, write_all};
use crate::splice::Side;
use lb_common::packet::track::closing;
use lb_common::packet::{Tuple, before};
use std::io;
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::time::Duration;
use tokio::net::TcpStream;

/// First pause between two looks whether a prefix is acknowledged; each is twice as long as the one before.
const FIRST_LOOK: Duration = Duration::from_millis(2);
const LAST_LOOK: Duration = Duration::from_millis(500);

/// How many times a socket is told what has arrived. If it hears of none, it may send something twice, and the receiver
/// knows what to do.
const TELLINGS: u8 = 3;

/// A connection whose flows are live and whose sockets, in repair mode, may still have something to do.
pub(crate) struct Begun {
    pub(super) id: u64,
    pub(super) slot: u32,
    /// By what packets arrive. Index 0: the client's.
    pub(super) tuples: [Tuple; 2],
    pub(super) terms: Terms,
    /// When its ways were asked for.
    pub(super) asked: u64,
}

/// One direction: what one socket has received and the other must send.
struct Direction<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    /// What `from` had received, by its own count ([`tcp::Progress`]), when it was last looked at.
    seen: u64,
    /// The sequence number that stands for 0 there.
    base: u32,
    /// So many of them are still at its head.
    left: usize,
    /// The place of the sender's FIN once the sender's socket has it ([`closing::FIN`]), else 0.
    fin: u8,
    /// It was passed on.
    fin_sent: bool,
    /// Sequence number behind all that `to` was given.
    written: u32,
    /// How many times `to` was told that this has arrived.
    told: u8,
}

impl Begun {
    /// The connection's slot, and where its bytes begin.
    pub(crate) fn place(&self) -> (u32, [u64; 2]) {
        (self.slot, [0, 1].map(|side| self.terms.flows[side].origin))
    }

    /// When its ways were asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// Carries the prefix over: `held`, read from the client before, and what the sockets have received since. Both
    /// sockets may be dropped when this returns, and also when it is cut short: without a word.
    pub(crate) async fn finish(
        self,
        (kernel, grace, injector): (&Packet, &Grace, &Injector),
        [client, server]: [&TcpStream; 2],
        held: Vec<u8>,
    ) -> Result<(), CloseReason> {
        let Self { id, slot, tuples, terms, .. } = self;
        let mut handover = terms.handover;
        let direction = |from, to, written, (seen, base)| Direction {
            from,
            to,
            seen,
            base,
            left: 0,
            fin: 0,
            fin_sent: false,
            written,
            told: 0,
        };
        let mut request = direction(client, server, terms.written[1], terms.seen[0]);
        let mut response = direction(server, client, terms.written[0], terms.seen[1]);
        let mut tell = |request: &Direction<'_>, response: &Direction<'_>| {
            handover.await_ack = [response.written, request.written].into();
            for (promised, socket) in handover.promised.each_mut().into_iter().zip([client, server]) {
                // What an error would leave there is older.
                *promised = tcp::promised(socket.as_fd()).unwrap_or(*promised);
            }
            // Without it the programs leave the sockets every acknowledgement: slower, and as safe.
            let _ = kernel.set_handover(id, &handover);
        };
        let settled = async |request: &mut Direction<'_>, response: &mut Direction<'_>| {
            let mut pause = FIRST_LOOK;
            // Both are asked each time, for both sockets may have to be told.
            while !(request.is_done(kernel, injector, slot, (1, &tuples[1]))
                & response.is_done(kernel, injector, slot, (0, &tuples[0])))
            {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_LOOK);
            }
        };
        let mut held = Some(held);
        // The second time, for what had passed the programs before the flows were there.
        for again in [false, true] {
            if again {
                let mut arrived = pin!(grace.wait());
                tokio::select! {
                    () = &mut arrived => {}
                    () = async {
                        tokio::time::sleep(FIRST_LOOK).await;
                        settled(&mut request, &mut response).await;
                    } => arrived.await,
                }
            }
            let requested =
                request.look(held.take().unwrap_or_default()).map_err(|_| Side::Client.reset())?;
            let responded = response.look(Vec::new()).map_err(|_| Side::Server.reset())?;
            let news = requested.news || responded.news;
            // Before it is written: a sender with a full buffer waits for the acknowledgement of all that it was given.
            if news {
                tell(&request, &response);
            }
            // At the same time: an end may read only when it has written.
            tokio::try_join!(
                async { request.write(&requested.bytes).await.map_err(|_| Side::Server.reset()) },
                async { response.write(&responded.bytes).await.map_err(|_| Side::Client.reset()) },
            )?;
            // The programs do not know of what passed them before the flows were there, unless more follows it. Before a
            // FIN is sent, for they take its acknowledgement only if they know of it.
            let ended = [request.end(&requested, response.fin), response.end(&responded, request.fin)];
            for (side, direction) in [&request, &response].into_iter().enumerate() {
                if news {
                    kernel.advance(slot, side, direction.received(), direction.fin);
                }
            }
            if ended != [false, false] {
                tell(&request, &response);
            }
            request.send_fin().map_err(|_| CloseReason::ServerReset)?;
            response.send_fin().map_err(|_| CloseReason::ClientReset)?;
        }
        settled(&mut request, &mut response).await;
        kernel.end_handover(id);
        // An acknowledgement may have been left to a socket just before, and would be answered with a reset without it.
        grace.wait().await;
        Ok(())
    }
}

/// What one direction has to pass on.
struct Arrived {
    bytes: Vec<u8>,
    /// And then the FIN.
    ends: bool,
    /// Some of it was not known before.
    news: bool,
}

impl Direction<'_> {
    /// What is to be written: `held`, and what has arrived since the last call.
    fn look(&mut self, held: Vec<u8>) -> io::Result<Arrived> {
        let (ends, arrived) = self.arrived()?;
        let news = ends || !arrived.is_empty();
        let mut bytes = held;
        bytes.extend(arrived);
        self.written = self.written.wrapping_add(bytes.len() as u32).wrapping_add(ends.into());
        Ok(Arrived { bytes, ends, news })
    }

    /// Whether the sender has sent its FIN since the last call, and the bytes that have arrived since.
    fn arrived(&mut self) -> io::Result<(bool, Vec<u8>)> {
        if self.fin != 0 {
            // It was passed on with all that came before it. The socket may be done with the connection by now.
            return Ok((false, Vec::new()));
        }
        let from = self.from.as_fd();
        // Asked before the queue is looked at: then that holds all that came before the FIN.
        let progress = tcp::progress(from)?;
        if progress.is_closed {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if progress.received == self.seen {
            return Ok((false, Vec::new()));
        }
        self.seen = progress.received;
        let (arrived, left) = tcp::received(from, self.left, progress.has_fin)?;
        self.left = left;
        // Its acknowledgement, delayed, would come between those of what follows.
        tcp::flush_acknowledgement(from)?;
        Ok((progress.has_fin, arrived))
    }

    /// Sequence number behind the last byte that the sender's socket had received when it was last looked at.
    fn received(&self) -> u32 {
        self.base.wrapping_add(self.seen as u32).wrapping_sub(u32::from(self.fin != 0))
    }

    /// Notes the end of this direction, if what has been written was its last; whether it was. `other_fin`: the place of
    /// the other direction's.
    fn end(&mut self, written: &Arrived, other_fin: u8) -> bool {
        if written.ends {
            self.fin = if other_fin == 0 { closing::FIRST } else { closing::SECOND };
        }
        written.ends
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.speak()?;
        let result = write_all(self.to, bytes).await;
        self.silence()?;
        result
    }

    /// Passes the FIN on, once.
    fn send_fin(&mut self) -> io::Result<()> {
        if self.fin != 0 && !self.fin_sent {
            self.fin_sent = true;
            self.speak()?;
            finish(self.to)?;
            self.silence()?;
        }
        Ok(())
    }

    /// From here on what is written is sent.
    fn speak(&self) -> io::Result<()> {
        // Should the process die meanwhile: a reset, not a FIN that looks like a clean end.
        reset_on_close(self.to);
        tcp::leave_repair(self.to.as_fd())
    }

    /// From here on closing the socket that writes says nothing, and it can be peeked at.
    fn silence(&self) -> io::Result<()> {
        tcp::enter_repair(self.to.as_fd())?;
        tcp::select_receive(self.to.as_fd())
    }

    /// Whether the receiver has all that the socket was given, or the connection is over. The receiver: its side (0: the
    /// client), and what its packets arrive with.
    fn is_done(
        &mut self,
        kernel: &Packet,
        injector: &Injector,
        slot: u32,
        (receiver, back): (usize, &Tuple),
    ) -> bool {
        let to = self.to.as_fd();
        let gone = |asked: io::Result<bool>| asked.unwrap_or(true);
        if gone(tcp::is_acknowledged(to)) {
            return true;
        }
        if kernel.flow(back).is_none() {
            return true;
        }
        if before(kernel.track(slot).halves.each_ref()[receiver].ack, self.written) {
            return gone(tcp::is_closed(to));
        }
        if self.told < TELLINGS {
            self.told += 1;
            let [peer, local] = ends(back);
            let _ =
                tcp::receive_next(to).and_then(|next| injector.acknowledge(local, peer, next, self.written));
            return gone(tcp::is_acknowledged(to));
        }
        true
    }
}
