//! Segments that the gateway sends to one end as if they came from the other, in numbers that the end accepts. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::kernel::raw::{Kind, Segment};
use lb_common::packet::track::{Bounds, Half, Track};
use lb_common::packet::{Flow, PerDirection, Side, flag};

/// A connection as the programs know it: both flows and the track.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) flows: PerDirection<Flow>,
    pub(super) track: Track,
}

impl View {
    /// Both ends have sent their FIN, and each has the other's acknowledgement.
    pub(super) fn is_finished(&self) -> bool {
        let [own, peer] = self.halves(Side::Client);
        self.bounds(Side::Client).is_finished(own, peer)
    }

    /// A keepalive probe for an end. Its sequence number is that of the last byte that the end has acknowledged (RFC 9293,
    /// section 3.8.4). The window is the other end's: some stacks would take 0 for a closed window.
    pub(super) fn probe(&self, to: Side) -> Segment {
        self.acknowledgement(to, self.track.halves.get(to).ack.wrapping_sub(1))
    }

    /// A challenge ACK for an end that has sent a SYN or an inexact reset (RFC 5961, sections 3.2 and 4.2). If the end no
    /// longer has the connection, it answers with a reset at exactly the number that is acknowledged here.
    pub(super) fn challenge(&self, to: Side) -> Segment {
        self.acknowledgement(to, self.track.halves.get(to).ack)
    }

    /// The resets for an end: one at the number that it has acknowledged and, if that is another number, one at the end of
    /// all that the other end has sent. It accepts the one or the other, depending on whether everything has arrived.
    pub(super) fn resets(&self, to: Side) -> impl Iterator<Item = Segment> {
        let [own, peer] = self.halves(to);
        let sent = peer.sent().wrapping_add(self.flows.get(to.other()).seq_delta);
        let other = (sent != own.ack).then_some(sent);
        let ack = own.sent();
        [Some(own.ack), other]
            .into_iter()
            .flatten()
            .map(move |seq| self.segment(to, Kind::Reset, seq, ack, 0))
    }

    /// The half of this end, and that of the other.
    fn halves(&self, of: Side) -> [&Half; 2] {
        [self.track.halves.get(of), self.track.halves.get(of.other())]
    }

    fn bounds(&self, of: Side) -> Bounds {
        let [own, peer] = self.halves(of);
        Bounds::new(self.flows.get(of), own, peer, None)
    }

    /// An acknowledgement for an end, of what the other end has acknowledged and of no more: what else has passed may have been
    /// lost behind the gateway, and the end sends only that again which is not acknowledged.
    fn acknowledgement(&self, to: Side, seq: u32) -> Segment {
        let peer = self.track.halves.get(to.other());
        self.segment(to, Kind::Ack, seq, self.bounds(to).acknowledged, peer.edge.wrapping_sub(peer.ack))
    }

    /// `window` in bytes.
    fn segment(&self, to: Side, kind: Kind, seq: u32, ack: u32, window: u32) -> Segment {
        let back = self.flows.get(to.other());
        let window = u16::try_from(window >> (back.promised_scale & 15)).unwrap_or(u16::MAX);
        let [own, peer] = self.halves(to);
        let timestamps =
            back.has(flag::TIMESTAMPS).then(|| (peer.tsval.wrapping_add(back.tsval_delta), own.tsval));
        Segment { kind, seq, ack, window, timestamps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::packet::Tuple;
    use lb_common::packet::track::closing;

    /// The client's sequence numbers are 500 000 further at the server, the server's 90 000 less at the client.
    fn view() -> View {
        let flow = |side: u8, seq_delta: u32, ack_delta: u32, tsval_delta: u32| Flow {
            id: 1,
            origin: 0,
            out: Tuple::default(),
            seq_delta,
            ack_delta,
            tsval_delta,
            tsecr_delta: 0,
            ifindex: 0,
            from: 0,
            slot: 0,
            own_scale: 7,
            peer_scale: 7,
            promised_scale: 3 + side,
            flags: flag::TIMESTAMPS | side,
            exit: 0,
            padding: [0; 3],
        };
        let half = |end: u32, ack, edge, tsval| Half {
            position: end.into(),
            gap: 0,
            ack,
            edge,
            heard: 0,
            tsval,
            most: 500,
            closing: 0,
            asked: 0,
        };
        View {
            flows: PerDirection {
                request: flow(0, 500_000, 90_000, 1_000),
                response: flow(flag::FROM_SERVER, 90_000_u32.wrapping_neg(), 500_000_u32.wrapping_neg(), 7),
            },
            // The client has sent up to 1 100 and acknowledged 2 000; the server has sent up to 92 050 and acknowledged what
            // is 1 060 to the client.
            track: Track {
                halves: [half(1_100, 2_000, 2_800, 44), half(92_050, 501_060, 501_860, 55)].into(),
            },
        }
    }

    #[test]
    fn a_probe_repeats_the_byte_before_the_one_that_is_expected() {
        let kind = Kind::Ack;
        // 800 bytes of the server's window, in units of 16; of the client's, in units of 8.
        let timestamps = Some((55 + 7, 44));
        assert_eq!(
            view().probe(Side::Client),
            Segment { kind, seq: 1_999, ack: 1_060, window: 50, timestamps }
        );
        let timestamps = Some((44 + 1_000, 55));
        assert_eq!(
            view().probe(Side::Server),
            Segment { kind, seq: 501_059, ack: 92_000, window: 100, timestamps }
        );
    }

    #[test]
    fn a_challenge_acknowledges_only_what_the_other_end_has() {
        // Though 40 bytes more have passed, without a hole.
        let timestamps = Some((55 + 7, 44));
        let expected = Segment { kind: Kind::Ack, seq: 2_000, ack: 1_060, window: 50, timestamps };
        assert_eq!(view().challenge(Side::Client), expected);
        assert_eq!(
            (view().challenge(Side::Server).seq, view().challenge(Side::Server).ack),
            (501_060, 92_000)
        );
    }

    #[test]
    fn resets_are_at_what_an_end_expects_for_certain_and_at_what_it_expects_if_nothing_was_lost() {
        let seqs = |view: &View, side| view.resets(side).map(|reset| reset.seq).collect::<Vec<_>>();
        let mut view = view();
        assert_eq!(seqs(&view, Side::Client), [2_000, 2_050]);
        assert_eq!(seqs(&view, Side::Server), [501_060, 501_100]);
        view.track.halves.server.closing = closing::FIRST;
        assert_eq!(seqs(&view, Side::Client), [2_000, 2_051]);
        (view.track.halves.server.closing, view.track.halves.client.ack) = (0, 2_050);
        assert_eq!(seqs(&view, Side::Client), [2_050]);
    }

    #[test]
    fn without_timestamps_nothing_is_said_of_them() {
        let mut view = view();
        view.flows.each_mut().into_iter().for_each(|flow| flow.flags &= !flag::TIMESTAMPS);
        assert_eq!(view.probe(Side::Client).timestamps, None);
    }
}
