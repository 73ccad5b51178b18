//! What a receiver would accept of a segment, computed from outside both ends (window tracking). Pure; the same source
//! for kernel and host.
//!
//! No socket of the gateway checks the segments of a spliced connection, so these rules do. A segment *counts* if its
//! receiver would accept it: RFC 9293, section 3.10.7.4, and RFC 5961. One that does not count changes nothing and is
//! forwarded all the same: the receiver answers it, as it would without a gateway.
//!
//! Below, X sends a segment to Y. Each end has a [`Half`], in the numbers that its own packets carry, which its packets
//! alone write. [`Bounds`] translates both halves into X's numbers.
//!
//! Programs on two CPUs may serve one end at once, and userspace reads meanwhile. Each field is stored alone and only
//! moves forward: a reader of old and new fields together sees a state that is valid, but older. So does one after a
//! store that was lost to a race, which [`Verdict::Near`] makes up for.

use core::ptr::read_volatile;

use super::{Flow, PerLeg, before, translate::tcp};

/// One end of a connection, by its own segments: all numbers but `heard` are as in its own packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Half {
    /// Sequence number after its last byte seen, without the FIN. The upper half counts how often the lower one has
    /// wrapped, so that differences are bytes: see [`Flow::origin`].
    pub position: u64,
    /// Where the newest hole in its bytes ends: all bytes from here to `position` have passed.
    pub gap: u32,
    /// Its highest acknowledgement number.
    pub ack: u32,
    /// The furthest right edge of a window that it has advertised. Never goes back, though a receiver may shrink its window
    /// (RFC 9293, section 3.8.6).
    pub edge: u32,
    /// When its last segment that counts came, in ticks ([`TICK_SHIFT`](super::TICK_SHIFT)).
    pub heard: u32,
    /// The newest TSval of its segments that count.
    pub tsval: u32,
    /// Its largest window field, unscaled.
    pub most: u16,
    /// See [`closing`].
    pub closing: u8,
    /// See [`asked`].
    pub asked: u8,
}

/// Bits of [`Half::asked`]: what userspace was asked to do. A program sets a bit and asks once; userspace clears it when
/// the program may ask again.
pub mod asked {
    /// To send it a challenge ACK.
    pub const CHALLENGE: u8 = 1;
    /// To look for a route to it by another device.
    pub const DEVICE: u8 = 2;
}

/// Bits of [`Half::closing`].
pub mod closing {
    /// It has sent its FIN: 0, [`FIRST`] or [`SECOND`].
    pub const FIN: u8 = 3;
    /// Its FIN came when the other end had sent none.
    pub const FIRST: u8 = 1;
    /// Its FIN came behind the other end's.
    pub const SECOND: u8 = 2;
    /// It has reset the connection, at exactly the sequence number that the other end expects.
    pub const RESET: u8 = 4;
    /// How far the handover has come: 0 (the sockets are closed), [`HANDOVER`], or [`HANDOVER`] and [`BEYOND`].
    pub const HANDOVER_STATE: u8 = HANDOVER | BEYOND;
    /// Sockets of the gateway may still live: there may be a [`Handover`](super::super::Handover).
    pub const HANDOVER: u8 = 8;
    /// Its bytes have come from beyond a hole: the bytes of the hole may be in a socket.
    pub const BEYOND: u8 = 16;
    /// A new connection has the tuple; both flows are removed.
    pub const REUSED: u8 = 32;
    /// Userspace was told that the connection is finished.
    pub const FINISHED: u8 = 64;
    /// Its reset came when the other end had reset the connection: an end that is reset answers so to what is still under way to it.
    pub const RESET_SECOND: u8 = 128;
}

impl Half {
    /// A copy. Volatile loads, one per field, because others store meanwhile: the compiler must not join or repeat them.
    ///
    /// # Safety
    ///
    /// `half` points to a half that stays mapped during the call.
    #[inline(always)]
    pub unsafe fn read_volatile(half: *const Self) -> Self {
        // SAFETY: the caller's contract; fields of a half are aligned, and any bits are a value of each.
        unsafe {
            Self {
                position: read_volatile(&raw const (*half).position),
                gap: read_volatile(&raw const (*half).gap),
                ack: read_volatile(&raw const (*half).ack),
                edge: read_volatile(&raw const (*half).edge),
                heard: read_volatile(&raw const (*half).heard),
                tsval: read_volatile(&raw const (*half).tsval),
                most: read_volatile(&raw const (*half).most),
                closing: read_volatile(&raw const (*half).closing),
                asked: read_volatile(&raw const (*half).asked),
            }
        }
    }

    /// A FIN was noted.
    #[inline(always)]
    pub const fn has_fin(&self) -> bool {
        self.closing & closing::FIN != 0
    }

    /// A reset was noted.
    #[inline(always)]
    pub const fn has_reset(&self) -> bool {
        self.closing & closing::RESET != 0
    }

    /// Sequence number after its last byte.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.position as u32
    }

    /// Sequence number after all that it has sent, its FIN included.
    #[inline(always)]
    pub const fn sent(&self) -> u32 {
        self.end().wrapping_add(self.has_fin() as u32)
    }
}

/// Both ends of a connection. One element of [`TRACKS`](super::TRACKS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Track {
    /// Each is written by its own end's packets.
    pub halves: PerLeg<Half>,
}

/// The fields of an arriving segment that the tracker needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Bytes of payload.
    pub payload: u32,
    /// TSval; only if `timestamps`.
    pub tsval: u32,
    /// The window field, unscaled.
    pub window: u16,
    /// The window field as forwarded.
    pub leaving_window: u16,
    /// See [`tcp`].
    pub flags: u8,
    /// Whether it has timestamps.
    pub timestamps: bool,
}

impl Segment {
    #[inline(always)]
    const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// Sequence number after its payload.
    #[inline(always)]
    const fn payload_end(&self) -> u32 {
        self.seq.wrapping_add(self.payload)
    }

    /// Sequence number after its payload and its FIN.
    #[inline(always)]
    const fn end(&self) -> u32 {
        self.payload_end().wrapping_add(self.has(tcp::FIN) as u32)
    }
}

/// What is known when a segment of X comes, in the numbers that X's packets carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What Y has acknowledged of X.
    pub acknowledged: u32,
    /// Right edge of the window that Y advertised to X.
    pub limit: u32,
    /// Sequence number after all that X has sent.
    pub sent: u32,
    /// What X has acknowledged of Y.
    pub acknowledges: u32,
    /// Sequence number after all that Y has sent.
    pub peer_sent: u32,
    /// X's largest window, in bytes.
    pub own_window: u32,
    /// Y's largest window, in bytes.
    pub peer_window: u32,
    /// What Y expects next, if nothing was lost between the gateway and Y.
    pub next: u32,
}

impl Bounds {
    /// `flow` is the one of X's packets. `await_ack`: up to where X may acknowledge what sockets of the gateway have sent
    /// it, while a handover lasts ([`Handover::await_ack`](super::Handover::await_ack)).
    #[inline(always)]
    pub const fn new(flow: &Flow, own: &Half, peer: &Half, await_ack: Option<u32>) -> Self {
        let acknowledged = peer.ack.wrapping_sub(flow.seq_delta);
        let peer_sent = peer.sent().wrapping_sub(flow.ack_delta);
        let peer_sent = match await_ack {
            Some(end) if before(peer_sent, end) => end,
            _ => peer_sent,
        };
        Self {
            acknowledged,
            limit: peer.edge.wrapping_sub(flow.seq_delta),
            sent: own.sent(),
            acknowledges: own.ack,
            peer_sent,
            own_window: (own.most as u32) << (flow.own_scale & 15),
            peer_window: (peer.most as u32) << (flow.peer_scale & 15),
            // What Y has acknowledged was sent, even if the store that noted it was lost.
            next: if before(acknowledged, own.gap) || before(own.sent(), acknowledged) {
                acknowledged
            } else {
                own.sent()
            },
        }
    }

    /// Each end has sent its FIN and the other has acknowledged it. A stranger who forges one end's packets cannot bring
    /// this about.
    #[inline(always)]
    pub const fn is_finished(&self, own: &Half, peer: &Half) -> bool {
        own.has_fin()
            && peer.has_fin()
            && self.acknowledged == self.sent
            && self.acknowledges == self.peer_sent
    }

    /// Whether a SYN of X can be the SYN-ACK that the connection began with: it is before all that Y has acknowledged. A server
    /// that missed the end of the handshake sends it again. At any other an end that knows RFC 793 only might reset.
    #[inline(always)]
    pub const fn repeats_the_beginning(&self, syn: &Segment) -> bool {
        syn.flags & tcp::ACK != 0 && before(syn.seq, self.acknowledged)
    }

    /// Whether a segment on a connection that [is finished](Self::is_finished) has nothing new: a retransmitted FIN or a
    /// repeated ACK.
    #[inline(always)]
    pub const fn repeats_the_end(&self, segment: &Segment) -> bool {
        !before(self.sent, segment.end()) && !before(self.peer_sent, segment.ack)
    }

    /// Judges a segment of X that is neither SYN nor RST.
    #[inline(always)]
    pub const fn judge(&self, segment: &Segment) -> Verdict {
        let Segment { seq, ack, .. } = *segment;
        if !segment.has(tcp::ACK) {
            return Verdict::NoAck;
        }
        if before(ack, self.acknowledges.wrapping_sub(self.own_window)) {
            return Verdict::TooOld;
        }
        if before(segment.end(), self.acknowledged) {
            let is_probe = seq == self.acknowledged.wrapping_sub(1) && segment.payload == 0;
            return if is_probe && !before(self.peer_sent, ack) { Verdict::Keepalive } else { Verdict::Old };
        }
        if !before(self.limit, seq) && !before(self.peer_sent, ack) {
            return Verdict::Counts;
        }
        let is_near = !before(self.limit.wrapping_add(self.peer_window), seq)
            && !before(ack, self.acknowledges)
            && !before(self.peer_sent.wrapping_add(self.own_window), ack);
        if is_near { Verdict::Near } else { Verdict::TooNew }
    }

    /// Judges a reset of X (RFC 5961, section 3.2) by its sequence number alone: the answer of a host that has no such
    /// socket may have no acknowledgement number.
    ///
    /// Who has no such connection answers a challenge ACK at the number that this acknowledges. Y expects just that if bytes
    /// behind it were lost on their way to Y; if not, the next acknowledgement of Y is a challenge, too.
    #[inline(always)]
    pub const fn judge_reset(&self, own: &Half, seq: u32) -> Reset {
        // After a FIN, Linux and macOS reset at the number of the FIN.
        let is_at_fin = own.has_fin() && self.next == self.sent && seq == self.next.wrapping_sub(1);
        let is_answer = own.asked & asked::CHALLENGE != 0 && seq == self.acknowledged;
        if seq == self.next || is_at_fin || is_answer {
            Reset::Exact
        } else if own.has_reset() && seq == self.acknowledged {
            Reset::Again
        } else if !before(seq, self.acknowledged) && !before(self.limit, seq) {
            Reset::InWindow
        } else {
            Reset::Elsewhere
        }
    }
}

/// The verdict on a segment that is neither SYN nor RST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Y accepts it.
    Counts,
    /// At most a window beyond what is known: a store was lost to a race, or our socket advertised a window of which no
    /// packet has told. It moves X's position and the time it was heard, nothing else.
    Near,
    /// A keepalive probe (RFC 9293, section 3.8.4) or a probe of a zero window: it moves the time X was heard.
    Keepalive,
    /// Y has acknowledged all of it: a retransmission.
    Old,
    /// Its acknowledgement is older than the largest window (RFC 5961, section 5.2).
    TooOld,
    /// It lies beyond the window, or its acknowledgement is beyond what was sent.
    TooNew,
    /// It has no ACK flag: the receiver drops it.
    NoAck,
}

/// The verdict on a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// At exactly the number that Y expects, or with which X answers a challenge ACK.
    Exact,
    /// At the number that Y has acknowledged, after an exact reset.
    Again,
    /// In the window, but not exact: X gets a challenge ACK.
    InWindow,
    /// Outside the window.
    Elsewhere,
}

/// How long after a reset a new segment of the same end proves the reset forged; earlier, the reset may have overtaken
/// it. 100 ms.
pub const RESET_OVERTAKES_TICKS: u32 = 96;

impl Half {
    /// X's half after a segment with this verdict. `acknowledged`: as [`Bounds::acknowledged`].
    #[inline(always)]
    pub const fn after(
        mut self,
        verdict: Verdict,
        segment: &Segment,
        peer_has_fin: bool,
        acknowledged: u32,
        flow: &Flow,
        tick: u32,
    ) -> Self {
        let counts = matches!(verdict, Verdict::Counts);
        if !counts && !matches!(verdict, Verdict::Near | Verdict::Keepalive) {
            return self;
        }
        let mut progress = false;
        if !matches!(verdict, Verdict::Keepalive) {
            // A FIN may overtake bytes. A segment without both may be numbered one further, after the FIN. Once Y has
            // acknowledged a FIN it accepts nothing that follows (RFC 9293, section 3.10.7.4, "eighth"): neither what a
            // stranger sends, nor the byte that old stacks put into a keepalive, which has the FIN's number.
            let ahead = segment.payload_end().wrapping_sub(self.end());
            let is_new = (segment.payload != 0 || segment.has(tcp::FIN))
                && ahead.wrapping_sub(1) < 1 << 31
                && !(self.has_fin() && acknowledged == self.sent());
            if is_new && counts {
                if before(self.end(), segment.seq) {
                    self.gap = segment.seq;
                }
                self.position += ahead as u64;
                // Bytes after the FIN prove it forged.
                self.closing &= !closing::FIN;
                progress = true;
            } else if is_new && !self.has_fin() {
                // It may be forged: treat its bytes as missing until Y acknowledges them.
                self.gap = segment.payload_end();
                self.position += ahead as u64;
            }
        }
        if counts {
            if segment.has(tcp::FIN) && segment.payload_end() == self.end() && !self.has_fin() {
                self.closing |= if peer_has_fin { closing::SECOND } else { closing::FIRST };
            }
            if before(self.ack, segment.ack) {
                self.ack = segment.ack;
                progress = true;
            }
            // `told` is the larger one only where a small window was rounded up.
            let offered = (segment.window as u32) << (flow.own_scale & 15);
            let told = (segment.leaving_window as u32) << (flow.promised_scale & 15);
            let edge = segment.ack.wrapping_add(if offered < told { told } else { offered });
            if before(self.edge, edge) {
                self.edge = edge;
            }
            if self.most < segment.window {
                self.most = segment.window;
            }
            if segment.timestamps && before(self.tsval, segment.tsval) {
                self.tsval = segment.tsval;
            }
        }
        if !self.has_reset() {
            self.heard = tick;
        } else if progress && tick.wrapping_sub(self.heard) >= RESET_OVERTAKES_TICKS {
            // An end that goes on has not reset.
            self.closing &= !(closing::RESET | closing::RESET_SECOND);
            self.heard = tick;
        }
        self
    }

    /// X's half after an [exact](Reset::Exact) reset.
    #[inline(always)]
    pub const fn after_reset(mut self, peer_has_reset: bool, tick: u32) -> Self {
        if !self.has_reset() {
            self.closing |=
                if peer_has_reset { closing::RESET | closing::RESET_SECOND } else { closing::RESET };
            self.heard = tick;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::super::translate::tests::flow;
    use super::*;
    use closing::{FIRST, RESET, RESET_SECOND, SECOND};
    use tcp::{ACK, FIN, RST};

    // In X's numbers; windows of 200 and of 400 bytes.
    const A: u32 = 1_000;
    const E: u32 = 1_100;
    const L: u32 = 1_400;
    const U: u32 = 5_000;
    const T: u32 = 5_050;
    const M: u32 = 200;
    const K: u32 = 400;

    fn scaled() -> Flow {
        Flow { own_scale: 1, peer_scale: 2, ..flow() }
    }

    fn own() -> Half {
        let position = 1 << 32 | u64::from(E);
        Half { position, gap: A, ack: U, edge: U + M, heard: 10, tsval: 70, most: 100, closing: 0, asked: 0 }
    }

    fn peer() -> Half {
        let [seq, ack] = [flow().seq_delta, flow().ack_delta];
        Half {
            position: 1 << 32 | u64::from(T.wrapping_add(ack)),
            gap: U.wrapping_add(ack),
            ack: A.wrapping_add(seq),
            edge: L.wrapping_add(seq),
            heard: 10,
            tsval: 90,
            most: 100,
            closing: 0,
            asked: 0,
        }
    }

    fn bounds(own: &Half, peer: &Half) -> Bounds {
        Bounds::new(&scaled(), own, peer, None)
    }

    fn segment(seq: u32, payload: u32, ack: u32) -> Segment {
        Segment { seq, payload, ack, window: 100, leaving_window: 100, flags: ACK, ..Segment::default() }
    }

    fn fin(segment: Segment) -> Segment {
        Segment { flags: ACK | FIN, ..segment }
    }

    fn judge(segment: &Segment) -> Verdict {
        bounds(&own(), &peer()).judge(segment)
    }

    /// What becomes of a half by a segment, judged as it is, at tick 20.
    fn after(own: Half, peer: &Half, segment: &Segment) -> Half {
        let bounds = bounds(&own, peer);
        own.after(bounds.judge(segment), segment, peer.has_fin(), bounds.acknowledged, &scaled(), 20)
    }

    #[test]
    fn both_halves_are_told_in_the_numbers_of_who_sends() {
        let expected = Bounds {
            acknowledged: A,
            limit: L,
            sent: E,
            acknowledges: U,
            peer_sent: T,
            own_window: M,
            peer_window: K,
            next: E,
        };
        assert_eq!(bounds(&own(), &peer()), expected);
        let closing = FIRST | closing::HANDOVER;
        let fins = bounds(&Half { closing, ..own() }, &Half { closing, ..peer() });
        assert_eq!(fins, Bounds { sent: E + 1, peer_sent: T + 1, next: E + 1, ..expected });
    }

    #[test]
    fn a_segment_counts_if_its_receiver_would_take_it() {
        for (what, segment, expected) in [
            ("the next", segment(E, 10, T), Verdict::Counts),
            ("no bytes", segment(E, 0, U), Verdict::Counts),
            ("once more", segment(A, 100, U), Verdict::Counts),
            ("all of it acknowledged, to the last byte", segment(A - 10, 10, U), Verdict::Counts),
            ("at the edge of the window", segment(L, 1_000, U), Verdict::Counts),
            ("beyond it", segment(L + 1, 0, U), Verdict::Near),
            ("a window beyond it", segment(L + K, 10, U), Verdict::Near),
            ("further", segment(L + K + 1, 10, U), Verdict::TooNew),
            ("acknowledges all", segment(E, 0, T), Verdict::Counts),
            ("acknowledges more", segment(E, 0, T + 1), Verdict::Near),
            ("acknowledges a window more", segment(E, 0, T + M), Verdict::Near),
            ("acknowledges what was never sent", segment(E, 0, T + M + 1), Verdict::TooNew),
            ("beyond both", segment(L + K, 0, T + M), Verdict::Near),
            ("beyond, acknowledging less than before", segment(L + 1, 10, U - 1), Verdict::TooNew),
            ("acknowledges what is a window old", segment(E, 10, U - M), Verdict::Counts),
            ("acknowledges what is older", segment(E, 10, U - M - 1), Verdict::TooOld),
            ("before all that is acknowledged", segment(A - 11, 10, U), Verdict::Old),
            ("the same with news", segment(A - 11, 10, T), Verdict::Old),
            ("a question", segment(A - 1, 0, T), Verdict::Keepalive),
            ("a question, of who knows too much", segment(A - 1, 0, T + 1), Verdict::Old),
            ("two before", segment(A - 2, 0, U), Verdict::Old),
            ("a FIN before", fin(segment(A - 1, 0, U)), Verdict::Counts),
            ("half the numbers away", segment(A ^ 1 << 31, 10, U), Verdict::Old),
            ("without an ACK", Segment { flags: FIN, ..segment(E, 10, U) }, Verdict::NoAck),
            ("without any flag, far away", Segment { flags: 0, ..segment(0, 0, 0) }, Verdict::NoAck),
        ] {
            assert_eq!(judge(&segment), expected, "{what}");
        }
    }

    #[test]
    fn in_a_handover_what_sockets_have_sent_may_be_acknowledged() {
        let until = |end| Bounds::new(&scaled(), &own(), &peer(), Some(end));
        assert_eq!(until(T + 500).judge(&segment(E, 0, T + 500)), Verdict::Counts);
        assert_eq!(until(T - 500).judge(&segment(E, 0, T)), Verdict::Counts);
    }

    #[test]
    fn bytes_move_the_position_once_and_a_hole_is_remembered() {
        let at =
            |position: u32, gap| Half { position: 1 << 32 | u64::from(position), gap, heard: 20, ..own() };
        for (what, segment, expected) in [
            ("the next", segment(E, 10, U), at(E + 10, A)),
            ("once more", segment(A, 100, U), at(E, A)),
            ("half of it new", segment(E - 10, 20, U), at(E + 10, A)),
            ("over a hole", segment(E + 5, 10, U), at(E + 15, E + 5)),
            ("no bytes, beyond", segment(E + 5, 0, U), at(E, A)),
        ] {
            assert_eq!(after(own(), &peer(), &segment), expected, "{what}");
        }
        let last = Half { position: 1 << 32 | 0xffff_fffa, gap: 0xffff_fffa, ..own() };
        let told = [0xffff_fffa, 400].map(|number: u32| number.wrapping_add(flow().seq_delta));
        let there = Half { ack: told[0], edge: told[1], ..peer() };
        assert_eq!(after(last, &there, &segment(0xffff_fffa, 10, U)).position, 2 << 32 | 4, "wrapped");
    }

    #[test]
    fn acknowledgement_window_and_timestamp_move_forward_only() {
        let stamped = |tsval| Segment { timestamps: true, tsval, ..segment(E, 0, U) };
        let unscaled = |window, leaving_window| Segment { window, leaving_window, ..segment(E, 0, U) };
        let now = Half { heard: 20, ..own() };
        for (what, segment, expected) in [
            ("more", segment(E, 0, T), Half { ack: T, edge: T + M, ..now }),
            ("less", segment(E, 0, U - 10), now),
            ("a larger window", unscaled(150, 0), Half { edge: U + 300, most: 150, ..now }),
            ("a smaller one", unscaled(50, 50), now),
            ("one that was rounded up", unscaled(1, 0x7001), Half { edge: U + 0x7001, ..now }),
            ("a timestamp", stamped(71), Half { tsval: 71, ..now }),
            ("an older one", stamped(69), now),
            ("none", Segment { tsval: 100, ..segment(E, 0, U) }, now),
        ] {
            assert_eq!(after(own(), &peer(), &segment), expected, "{what}");
        }
        let promised = Flow { promised_scale: 8, ..scaled() };
        let half = own().after(Verdict::Counts, &unscaled(1, 1), false, A, &promised, 20);
        assert_eq!(half.edge, U + 256, "by the scale that the other end was promised");
    }

    #[test]
    fn what_is_near_tells_how_far_its_sender_has_come_and_that_it_lives() {
        let everything = Segment { window: 9_999, timestamps: true, tsval: 99, ..segment(L + 1, 10, T) };
        let at = 1 << 32 | u64::from(L + 11);
        let expected = Half { position: at, gap: L + 11, heard: 20, ..own() };
        assert_eq!(after(own(), &peer(), &everything), expected);
        assert_eq!(after(own(), &peer(), &fin(everything)), expected);
        let without_bytes = Segment { payload: 0, ..everything };
        assert_eq!(after(own(), &peer(), &without_bytes), Half { heard: 20, ..own() });
    }

    /// A stranger hits what is near twice as often as what counts.
    #[test]
    fn what_is_near_takes_no_fin_back() {
        let ended = Half { closing: FIRST, ..own() };
        assert_eq!(after(ended, &peer(), &segment(L + 1, 10, T)), Half { heard: 20, ..ended });
    }

    /// Else a reset at the end of bytes that a stranger has made up would be exact.
    #[test]
    fn what_is_near_is_expected_only_when_the_other_end_has_acknowledged_it() {
        let half = after(own(), &peer(), &segment(E - 1, 50, T + 1));
        assert_eq!(half.end(), E + 49);
        let told = |ack: u32| Half { ack: ack.wrapping_add(flow().seq_delta), ..peer() };
        for (acknowledged, next) in [(A, A), (E, E), (E + 48, E + 48), (E + 49, E + 49)] {
            assert_eq!(bounds(&half, &told(acknowledged)).next, next);
        }
    }

    #[test]
    fn what_is_old_moves_nothing_and_a_question_is_heard() {
        let wide = |segment| Segment { window: 9_999, timestamps: true, tsval: 99, ..segment };
        for segment in [segment(A - 11, 10, T), segment(E, 10, U - M - 1), segment(E, 10, T + M + 1)] {
            assert_eq!(after(own(), &peer(), &wide(segment)), own(), "{segment:?}");
        }
        let unacknowledged = Segment { flags: 0, ..wide(segment(E, 10, T)) };
        assert_eq!(after(own(), &peer(), &unacknowledged), own());
        assert_eq!(after(own(), &peer(), &wide(segment(A - 1, 0, T))), Half { heard: 20, ..own() });
    }

    #[test]
    fn a_fin_is_noted_at_the_end_and_taken_back_by_bytes_behind_it() {
        let closing = |own: Half, peer: &Half, segment| {
            let half = after(own, peer, &segment);
            (half.closing, half.end())
        };
        let ended = |closing| Half { closing, ..peer() };
        let noted = Half { closing: FIRST, ..own() };
        for (what, own, peer, segment, expected) in [
            ("alone", own(), peer(), fin(segment(E, 0, U)), (FIRST, E)),
            ("with bytes", own(), peer(), fin(segment(E, 10, U)), (FIRST, E + 10)),
            ("with what is known", own(), peer(), fin(segment(A, 100, U)), (FIRST, E)),
            ("behind the other's", own(), ended(FIRST), fin(segment(E, 0, U)), (SECOND, E)),
            ("before the end", own(), peer(), fin(segment(A, 10, U)), (0, E)),
            ("before bytes that it has overtaken", own(), peer(), fin(segment(E + 9, 0, U)), (FIRST, E + 9)),
            ("once more", noted, ended(SECOND), fin(segment(E, 0, U)), (FIRST, E)),
            ("no bytes behind it", noted, peer(), segment(E + 1, 0, U), (FIRST, E)),
            ("bytes behind it", noted, peer(), segment(E, 10, U), (0, E + 10)),
            ("another behind it", noted, peer(), fin(segment(E, 10, U)), (FIRST, E + 10)),
        ] {
            assert_eq!(closing(own, &peer, segment), expected, "{what}");
        }
        let hole = after(own(), &peer(), &fin(segment(E + 9, 0, U)));
        assert_eq!(bounds(&hole, &peer()).next, A, "the bytes before it are missing");
        let lost = Half { position: own().position - 10, ..own() };
        let told = Half { ack: E.wrapping_add(flow().seq_delta), ..peer() };
        assert_eq!(bounds(&lost, &told).next, E, "what is acknowledged was sent, though a store was lost");
    }

    /// Nor is the byte of a keepalive (RFC 1122, section 4.2.3.6), which has the last number that was sent: the FIN's.
    #[test]
    fn behind_a_fin_that_is_acknowledged_nothing_is_new() {
        let ended = Half { closing: FIRST, ..own() };
        let told = Half { ack: (E + 1).wrapping_add(flow().seq_delta), ..peer() };
        for segment in [segment(E, 1, U), segment(E + 1, 10, U), fin(segment(E + 1, 0, U))] {
            assert_eq!(after(ended, &told, &segment), Half { heard: 20, ..ended }, "{segment:?}");
        }
    }

    #[test]
    fn a_reset_is_exact_at_what_the_receiver_expects() {
        let told = |ack: u32| Half { ack: ack.wrapping_add(flow().seq_delta), ..peer() };
        let hole = Half { gap: E - 20, ..own() };
        let ended = Half { closing: FIRST, ..own() };
        let reset = Half { closing: RESET, ..own() };
        let asked = Half { asked: asked::CHALLENGE, ..own() };
        let by_device = Half { asked: asked::DEVICE, ..own() };
        let rows = [
            ("the next", own(), peer(), E, Reset::Exact),
            ("what is acknowledged", own(), peer(), A, Reset::InWindow),
            ("between", own(), peer(), E - 1, Reset::InWindow),
            ("one further", own(), peer(), E + 1, Reset::InWindow),
            ("at the edge of the window", own(), peer(), L, Reset::InWindow),
            ("beyond it", own(), peer(), L + 1, Reset::Elsewhere),
            ("before the window", own(), peer(), A - 1, Reset::Elsewhere),
            ("half the numbers away", own(), peer(), A ^ 1 << 31, Reset::Elsewhere),
            ("what is acknowledged, before a hole", hole, peer(), A, Reset::Exact),
            ("the end, beyond the hole", hole, peer(), E, Reset::InWindow),
            ("the end, the hole being filled", hole, told(E - 20), E, Reset::Exact),
            ("behind the FIN", ended, peer(), E + 1, Reset::Exact),
            ("at the FIN", ended, peer(), E, Reset::Exact),
            ("at the FIN, that is acknowledged", ended, told(E + 1), E, Reset::Exact),
            ("before the FIN", ended, peer(), E - 1, Reset::InWindow),
            ("at the FIN, beyond a hole", Half { closing: FIRST, ..hole }, peer(), E, Reset::InWindow),
            ("before all of it", Half { closing: FIRST, ..hole }, peer(), A - 1, Reset::Elsewhere),
            ("once more", reset, peer(), E, Reset::Exact),
            ("once more, by what is acknowledged", reset, peer(), A, Reset::Again),
            ("once more, elsewhere in the window", reset, peer(), A + 1, Reset::InWindow),
            ("what is acknowledged, when X was asked", asked, peer(), A, Reset::Exact),
            ("the end, when X was asked", asked, peer(), E, Reset::Exact),
            ("between them", asked, peer(), A + 1, Reset::InWindow),
            ("before both", asked, peer(), A - 1, Reset::Elsewhere),
            ("what is acknowledged, when X was asked for a device", by_device, peer(), A, Reset::InWindow),
        ];
        for (what, own, peer, seq, expected) in rows {
            assert_eq!(bounds(&own, &peer).judge_reset(&own, seq), expected, "{what}");
        }
    }

    #[test]
    fn after_a_reset_the_clock_stands_until_more_proves_it_forged() {
        let reset = own().after_reset(false, 20);
        assert_eq!(reset, Half { closing: RESET, heard: 20, ..own() });
        assert_eq!(reset.after_reset(true, 30), reset, "once more");
        let second = own().after_reset(true, 20);
        assert_eq!(second, Half { closing: RESET | RESET_SECOND, ..reset });
        let after = |segment: &Segment, tick| {
            let verdict = bounds(&reset, &peer()).judge(segment);
            let [after, after_second] =
                [reset, second].map(|half| half.after(verdict, segment, false, A, &scaled(), tick));
            let is_second = if after.has_reset() { RESET_SECOND } else { 0 };
            assert_eq!(after_second, Half { closing: after.closing | is_second, ..after }, "{segment:?}");
            after
        };
        let late = 20 + RESET_OVERTAKES_TICKS;
        let bytes = segment(E, 10, U);
        let moved = Half { position: 1 << 32 | u64::from(E + 10), ..reset };
        assert_eq!(after(&bytes, late - 1), moved, "what it has overtaken");
        assert_eq!(after(&bytes, late), Half { closing: 0, heard: late, ..moved });
        let acknowledges = Half { ack: T, edge: T + M, closing: 0, heard: late, ..reset };
        assert_eq!(after(&segment(E, 0, T), late), acknowledges);
        for nothing_new in [segment(A, 100, U), segment(E, 0, U), segment(A - 1, 0, U)] {
            assert_eq!(after(&nothing_new, late), reset, "{nothing_new:?}");
        }
        // What anybody may have sent proves nothing.
        let near = after(&segment(L + 1, 10, T), late);
        assert_eq!((near.closing, near.heard), (RESET, 20));
    }

    #[test]
    fn it_is_finished_when_each_fin_is_acknowledged() {
        let [seq, ack] = [flow().seq_delta, flow().ack_delta];
        let own = Half { closing: FIRST, ack: T + 1, ..own() };
        let peer = Half { closing: SECOND, ack: (E + 1).wrapping_add(seq), ..peer() };
        let is_finished = |own: &Half, peer: &Half| bounds(own, peer).is_finished(own, peer);
        assert!(is_finished(&own, &peer));
        for (what, own, peer) in [
            ("one FIN", own, Half { closing: 0, position: peer.position + 1, ..peer }),
            ("the other", Half { closing: 0, position: own.position + 1, ..own }, peer),
            ("one is not acknowledged", own, Half { ack: E.wrapping_add(seq), ..peer }),
            ("the other is not", Half { ack: T, ..own }, peer),
        ] {
            assert!(!is_finished(&own, &peer), "{what}");
        }
        let mirrored = Flow { seq_delta: ack.wrapping_neg(), ack_delta: seq.wrapping_neg(), ..scaled() };
        assert!(Bounds::new(&mirrored, &peer, &own, None).is_finished(&peer, &own), "seen from there");

        let repeats = |segment: &Segment| bounds(&own, &peer).repeats_the_end(segment);
        for again in [fin(segment(E, 0, T + 1)), segment(E + 1, 0, T + 1), fin(segment(A, 100, U))] {
            assert!(repeats(&again), "{again:?}");
        }
        for more in [segment(E + 1, 1, T + 1), fin(segment(E + 1, 0, T + 1)), segment(E + 1, 0, T + 2)] {
            assert!(!repeats(&more), "{more:?}");
        }
    }

    #[test]
    fn a_syn_ack_is_of_the_beginning_only_before_what_was_acknowledged() {
        let bounds = bounds(&own(), &peer());
        let syn = |seq, flags| Segment { flags, ..segment(seq, 0, T) };
        assert!(bounds.repeats_the_beginning(&syn(A - 1, tcp::SYN | tcp::ACK)));
        assert!(!bounds.repeats_the_beginning(&syn(A - 1, tcp::SYN)));
        for seq in [A, A + 1, E] {
            assert!(!bounds.repeats_the_beginning(&syn(seq, tcp::SYN | tcp::ACK)), "{seq}");
        }
    }

    #[test]
    fn who_resets_with_whatever_acknowledgement_is_judged_by_the_number_alone() {
        // A segment's other numbers are not even looked at.
        let bounds = bounds(&own(), &peer());
        assert_eq!(bounds.judge_reset(&own(), segment(E, 0, T + M + 1).seq), Reset::Exact);
        assert_eq!(bounds.judge(&Segment { flags: RST, ..segment(E, 0, 0) }), Verdict::NoAck);
    }
}
