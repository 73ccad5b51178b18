//! What the gateway says to one end in the other's name, in numbers that the end takes. Pure.

use lb_common::packet::track::{Bounds, Track};
use lb_common::packet::{Flow, flag};

/// A connection as the programs have it: both flows and what their packets have told.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) flows: [Flow; 2],
    pub(super) track: Track,
}

/// The numbers of a segment without payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) seq: u32,
    pub(super) ack: u32,
    /// As it stands in the header.
    pub(super) window: u16,
    /// TSval and TSecr, where the connection has them: without, an end may drop the segment (RFC 7323, section 3.2).
    pub(super) timestamps: Option<(u32, u32)>,
}

impl View {
    /// Both ends have sent their FIN, and each has the other's acknowledgement.
    pub(super) fn is_finished(&self) -> bool {
        let [own, peer] = &self.track.halves;
        self.bounds(0).is_finished(own, peer)
    }

    /// A keepalive probe for an end (0: the client): from the byte before the one that it expects (RFC 9293, section
    /// 3.8.4). The window is that of the other end: with 0, some stacks would take it for shut.
    pub(super) fn probe(&self, to: usize) -> Words {
        let [own, peer] = [&self.track.halves[to], &self.track.halves[1 - to]];
        let acknowledged = self.bounds(to).acknowledged;
        self.words(to, own.ack.wrapping_sub(1), acknowledged, peer.edge.wrapping_sub(peer.ack))
    }

    /// A challenge ACK for an end that has sent a SYN or an inexact reset (RFC 5961, sections 3.2 and 4.2). If it has no
    /// such connection any more, it answers with a reset at exactly the number that is acknowledged here.
    pub(super) fn challenge(&self, to: usize) -> Words {
        let [own, peer] = [&self.track.halves[to], &self.track.halves[1 - to]];
        self.words(to, own.ack, self.bounds(to).next, peer.edge.wrapping_sub(peer.ack))
    }

    /// The resets that end an end: at what it has acknowledged, and at what it expects if everything has arrived, should
    /// that be another number.
    pub(super) fn resets(&self, to: usize) -> impl Iterator<Item = Words> {
        let [own, peer] = [&self.track.halves[to], &self.track.halves[1 - to]];
        let sent = peer.sent().wrapping_add(self.flows[1 - to].seq_delta);
        let other = (sent != own.ack).then_some(sent);
        let ack = own.sent();
        [Some(own.ack), other].into_iter().flatten().map(move |seq| self.words(to, seq, ack, 0))
    }

    fn bounds(&self, of: usize) -> Bounds {
        Bounds::new(&self.flows[of], &self.track.halves[of], &self.track.halves[1 - of], None)
    }

    fn words(&self, to: usize, seq: u32, ack: u32, window: u32) -> Words {
        let back = &self.flows[1 - to];
        let window = u16::try_from(window >> (back.promised_scale & 15)).unwrap_or(u16::MAX);
        let [own, peer] = [&self.track.halves[to], &self.track.halves[1 - to]];
        let timestamps =
            back.has(flag::TIMESTAMPS).then(|| (peer.tsval.wrapping_add(back.tsval_delta), own.tsval));
        Words { seq, ack, window, timestamps }
    }
}
