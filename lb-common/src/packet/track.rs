//! What a socket would believe of a segment, told from outside both ends (window tracking). Pure; the same source for
//! kernel and host.
//!
//! A spliced connection has no socket here, so a stranger's segments would be believed by nobody and everybody. A
//! segment *counts* if the end that it is for would take it: RFC 9293, section 3.10.7.4, and RFC 5961. What does not
//! count moves nothing, and is forwarded all the same: the end answers by itself, as it would without us.
//!
//! Words: a segment comes from X and is for Y. Each end has a [`Half`], in the numbers that its own packets carry, and
//! its packets are the only ones that write there. [`Bounds`] translates both halves into X's numbers.
//!
//! Programs on two CPUs may serve one end at once, and userspace reads meanwhile. Each field is stored alone and only
//! moves forward, so who reads a mixture of old and new reads an older truth; a store that is lost to a race takes a
//! field back to an older truth too, which [`Verdict::Near`] heals.

use super::{Flow, before, translate::tcp};

/// One end of a connection: what its own segments have told. All numbers but the two ticks are as in its own packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Half {
    /// Sequence number behind its last byte seen, without the FIN. The upper half counts how often the lower one has
    /// wrapped, so that differences are bytes: see [`Flow::origin`].
    pub position: u64,
    /// Where the newest hole in its bytes ends: from here to `position` everything has passed.
    pub gap: u32,
    /// Its highest acknowledgement number.
    pub ack: u32,
    /// The right edge of the largest window that it has offered. Never goes back, though windows may (RFC 9293, section
    /// 3.8.6: "shrinking the window").
    pub edge: u32,
    /// When its last segment that counts came, in ticks ([`TICK_SHIFT`](super::TICK_SHIFT)).
    pub heard: u32,
    /// The newest TSval of its segments that count.
    pub tsval: u32,
    /// Its largest window field, unscaled.
    pub most: u16,
    /// See [`closing`].
    pub closing: u8,
    /// 1: it is to be sent a challenge ACK, or has just been. The program sets it, userspace clears it.
    pub asked: u8,
}

/// Bits of [`Half::closing`].
pub mod closing {
    /// It has sent its FIN: 0, [`FIRST`] or [`SECOND`].
    pub const FIN: u8 = 3;
    /// Its FIN came when the other end had sent none.
    pub const FIRST: u8 = 1;
    /// Its FIN came behind the other end's.
    pub const SECOND: u8 = 2;
    /// It has reset the connection, at exactly the number that the other end expects.
    pub const RESET: u8 = 4;
    /// Sockets of the gateway may still live: there may be a [`Handover`](super::super::Handover).
    pub const HANDOVER: u8 = 8;
    /// Besides, bytes have come from beyond what was known: what is before them may be in a socket.
    pub const BEYOND: u8 = 16;
    /// A new connection has the tuple; both flows are gone.
    pub const REUSED: u8 = 32;
    /// Userspace was told that the connection is finished.
    pub const FINISHED: u8 = 64;
}

impl Half {
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

    /// Sequence number behind its last byte.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.position as u32
    }

    /// Sequence number behind all that it has sent, the FIN included.
    #[inline(always)]
    pub const fn sent(&self) -> u32 {
        self.end().wrapping_add(self.has_fin() as u32)
    }
}

/// Both ends of a connection; 0: the client. One element of [`TRACKS`](super::TRACKS).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Track {
    /// Half 0 is written by the client's packets, half 1 by the server's.
    pub halves: [Half; 2],
}

/// A segment as it arrives, as far as it is judged.
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
    /// The window field with which it leaves.
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

    /// Sequence number behind its payload.
    #[inline(always)]
    const fn payload_end(&self) -> u32 {
        self.seq.wrapping_add(self.payload)
    }

    /// Sequence number behind all of it.
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
    /// The right edge of the window that Y gave X.
    pub limit: u32,
    /// Behind all that X has sent.
    pub sent: u32,
    /// What X has acknowledged of Y.
    pub acknowledges: u32,
    /// Behind all that Y has sent.
    pub peer_sent: u32,
    /// X's largest window, in bytes.
    pub own_window: u32,
    /// Y's largest window, in bytes.
    pub peer_window: u32,
    /// What Y expects next, if nothing was lost behind us.
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
            next: if before(acknowledged, own.gap) { acknowledged } else { own.sent() },
        }
    }

    /// Each end has sent its FIN and the other has acknowledged it. A stranger cannot fake it with one half.
    #[inline(always)]
    pub const fn is_finished(&self, own: &Half, peer: &Half) -> bool {
        own.has_fin()
            && peer.has_fin()
            && self.acknowledged == self.sent
            && self.acknowledges == self.peer_sent
    }

    /// Whether a segment belongs to a connection that [is finished](Self::is_finished): FINs and acknowledgements that
    /// are repeated.
    #[inline(always)]
    pub const fn repeats_the_end(&self, segment: &Segment) -> bool {
        !before(self.sent, segment.end()) && !before(self.peer_sent, segment.ack)
    }

    /// What a segment of X that is neither SYN nor RST is worth.
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

    /// What a reset of X is worth (RFC 5961, section 3.2). Its acknowledgement number plays no part: the answer of a
    /// host that has no such socket may have none.
    #[inline(always)]
    pub const fn judge_reset(&self, own: &Half, seq: u32) -> Reset {
        // Behind a FIN, Linux and macOS reset at the number of the FIN.
        let is_at_fin = own.has_fin() && self.next == self.sent && seq == self.next.wrapping_sub(1);
        if seq == self.next || is_at_fin {
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

/// What a segment that is neither SYN nor RST is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Y takes it.
    Counts,
    /// Somewhat beyond what is known: a store was lost to a race, or a window was promised that no packet has told. It
    /// tells how far X has come and that X lives, nothing else.
    Near,
    /// A question whether Y is still there, or for a larger window (RFC 9293, section 3.8.4): it tells that X lives.
    Keepalive,
    /// Nothing in it is new.
    Old,
    /// It acknowledges what is older than the largest window (RFC 5961, section 5.2).
    TooOld,
    /// It lies beyond the window, or acknowledges what was never sent.
    TooNew,
    /// It has no ACK flag: a socket drops it.
    NoAck,
}

/// What a reset is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// At exactly the number that Y expects: Y takes it.
    Exact,
    /// At what Y has acknowledged, after an exact one.
    Again,
    /// In the window: X is to be asked.
    InWindow,
    /// Anywhere else.
    Elsewhere,
}

/// How long after a reset more of the same end proves that somebody else has sent it: what came earlier may have been
/// overtaken. 100 ms.
pub const RESET_OVERTAKES_TICKS: u32 = 96;

impl Half {
    /// X's half after a segment of this worth.
    #[inline(always)]
    pub const fn after(
        mut self,
        verdict: Verdict,
        segment: &Segment,
        peer_has_fin: bool,
        flow: &Flow,
        tick: u32,
    ) -> Self {
        let counts = matches!(verdict, Verdict::Counts);
        if !counts && !matches!(verdict, Verdict::Near | Verdict::Keepalive) {
            return self;
        }
        let mut progress = false;
        if !matches!(verdict, Verdict::Keepalive) {
            // A FIN may overtake bytes. A segment with neither may be numbered one further: behind the FIN.
            let ahead = segment.payload_end().wrapping_sub(self.end());
            if (segment.payload != 0 || segment.has(tcp::FIN)) && ahead.wrapping_sub(1) < 1 << 31 {
                if before(self.end(), segment.seq) {
                    self.gap = segment.seq;
                }
                self.position += ahead as u64;
                // Bytes behind it prove that somebody else has sent it.
                self.closing &= !closing::FIN;
                progress = true;
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
            // The second is larger only where a small window was rounded up.
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
            // Who goes on has not reset.
            self.closing &= !closing::RESET;
            self.heard = tick;
        }
        self
    }

    /// X's half after an [exact](Reset::Exact) reset.
    #[inline(always)]
    pub const fn after_reset(mut self, tick: u32) -> Self {
        if !self.has_reset() {
            self.closing |= closing::RESET;
            self.heard = tick;
        }
        self
    }
}
