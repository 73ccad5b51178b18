//! The tracker in the kernel: reads and stores halves, and says which packets may not pass. What a segment is worth is
//! decided in [`lb_common::packet::track`].

use core::ptr::{read_volatile, write_volatile};

use lb_common::packet::{
    Count, Flow, Tuple, closings, event,
    track::{Bounds, Half, Reset, Segment, Verdict, asked, closing},
    translate::tcp,
};

use super::{PACKET_FLOWS, PACKET_TRACKS, count, drop_counted, tell, tick};

/// The two halves of a packet's connection, as seen by its sender.
pub(super) struct Halves {
    own: *mut Half,
    peer: *mut Half,
}

impl Halves {
    /// `None`: there is no such slot.
    #[inline(always)]
    pub(super) fn of(flow: &Flow) -> Option<Self> {
        let halves = PACKET_TRACKS.get_ptr_mut(flow.slot)?.cast::<Half>();
        let side = flow.side();
        // SAFETY: a track has two halves, and nothing else.
        unsafe { Some(Self { own: halves.add(side), peer: halves.add(1 - side) }) }
    }

    #[inline(always)]
    pub(super) fn own_closing(&self) -> u8 {
        // SAFETY: elements of an array live as long as the program. Others store at the same time, each field alone;
        // volatile, so that loads are not joined or repeated, nor stores.
        unsafe { read_volatile(&raw const (*self.own).closing) }
    }

    #[inline(always)]
    pub(super) fn own_end(&self) -> u32 {
        // SAFETY: see `own_closing`.
        unsafe { read_volatile(&raw const (*self.own).position) as u32 }
    }

    #[inline(always)]
    pub(super) fn own_ack(&self) -> u32 {
        // SAFETY: see `own_closing`.
        unsafe { read_volatile(&raw const (*self.own).ack) }
    }

    #[inline(always)]
    pub(super) fn peer_ack(&self) -> u32 {
        // SAFETY: see `own_closing`.
        unsafe { read_volatile(&raw const (*self.peer).ack) }
    }

    #[inline(always)]
    pub(super) fn peer_end(&self) -> u32 {
        // SAFETY: see `own_closing`.
        unsafe { read_volatile(&raw const (*self.peer).position) as u32 }
    }

    /// Sequence number behind all that the peer has sent, its FIN included.
    #[inline(always)]
    pub(super) fn peer_sent(&self) -> u32 {
        self.peer_end().wrapping_add(u32::from(self.peer_closing() & closing::FIN != 0))
    }

    /// A FIN or a reset of either end was noted.
    #[inline(always)]
    pub(super) fn is_closing(&self) -> bool {
        (self.own_closing() | self.peer_closing()) & (closing::FIN | closing::RESET) != 0
    }

    #[inline(always)]
    fn peer_closing(&self) -> u8 {
        // SAFETY: see `own_closing`.
        unsafe { read_volatile(&raw const (*self.peer).closing) }
    }

    #[inline(always)]
    fn both_have_fins(&self) -> bool {
        self.own_closing() & closing::FIN != 0 && self.peer_closing() & closing::FIN != 0
    }

    /// The sockets are gone.
    #[inline(always)]
    pub(super) fn end_handover(&self) {
        self.store_closing(self.own_closing() & !(closing::HANDOVER | closing::BEYOND));
    }

    /// What is before these bytes may be in a socket.
    #[inline(always)]
    pub(super) fn note_beyond(&self) {
        let old = self.own_closing();
        if old & closing::BEYOND == 0 {
            self.store_closing(old | closing::BEYOND);
        }
    }

    /// Notes that userspace is asked to do this; whether it has not been asked already.
    #[inline(always)]
    pub(super) fn ask(&self, what: u8) -> bool {
        // SAFETY: see `own_closing`.
        unsafe {
            let asked = read_volatile(&raw const (*self.own).asked);
            if asked & what == 0 {
                write_volatile(&raw mut (*self.own).asked, asked | what);
            }
            asked & what == 0
        }
    }

    #[inline(always)]
    fn store_closing(&self, value: u8) {
        // SAFETY: see `own_closing`.
        unsafe { write_volatile(&raw mut (*self.own).closing, value) }
    }

    /// Both, each field as it is at some moment.
    #[inline(always)]
    fn load(&self) -> (Half, Half) {
        // SAFETY: see `own_closing`.
        unsafe { (Half::read_volatile(self.own), Half::read_volatile(self.peer)) }
    }

    /// Stores what has changed, and nothing else: that may be changed elsewhere at the same time.
    #[inline(always)]
    fn store(&self, old: &Half, new: &Half) {
        // SAFETY: see `own_closing`.
        unsafe {
            if old.gap != new.gap {
                write_volatile(&raw mut (*self.own).gap, new.gap);
            }
            // Behind the hole: who reads between the two takes what is before the hole for missing, not for arrived.
            if old.position != new.position {
                write_volatile(&raw mut (*self.own).position, new.position);
            }
            if old.ack != new.ack {
                write_volatile(&raw mut (*self.own).ack, new.ack);
            }
            if old.edge != new.edge {
                write_volatile(&raw mut (*self.own).edge, new.edge);
            }
            if old.heard != new.heard {
                write_volatile(&raw mut (*self.own).heard, new.heard);
            }
            if old.tsval != new.tsval {
                write_volatile(&raw mut (*self.own).tsval, new.tsval);
            }
            if old.most != new.most {
                write_volatile(&raw mut (*self.own).most, new.most);
            }
            if old.closing != new.closing {
                write_volatile(&raw mut (*self.own).closing, new.closing);
            }
        }
    }
}

/// Whether a packet may pass.
#[repr(u32)]
pub(super) enum Gate {
    /// It may.
    Open,
    /// It may not: a reset in the window, but not exact. Its sender is to be asked.
    ResetInexact,
    /// It may not: a reset outside of the window.
    ResetOutside,
    /// It may not: a SYN on a live connection. Its sender is to be asked.
    SynOnLive,
    /// It may not: more than a repetition, behind both FINs.
    BehindEnd,
    /// It is a SYN, and the connection is over.
    Over,
}

/// What becomes of a SYN, of a reset, and of anything after both FINs.
#[inline(never)]
pub(super) fn gate(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) -> Gate {
    let (own, peer) = halves.load();
    let bounds = Bounds::new(flow, &own, &peer, await_ack);
    if segment.flags & tcp::RST != 0 {
        return match bounds.judge_reset(&own, segment.seq) {
            Reset::Exact | Reset::Again => Gate::Open,
            Reset::InWindow => Gate::ResetInexact,
            Reset::Elsewhere => Gate::ResetOutside,
        };
    }
    let is_finished = bounds.is_finished(&own, &peer);
    if segment.flags & tcp::SYN != 0 {
        return if is_finished || own.has_reset() || peer.has_reset() {
            Gate::Over
        } else if segment.flags & tcp::ACK == 0 {
            Gate::SynOnLive
        } else {
            Gate::Open
        };
    }
    if is_finished && !bounds.repeats_the_end(segment) { Gate::BehindEnd } else { Gate::Open }
}

/// Drops a packet and has its sender asked, unless that is under way.
#[inline(always)]
pub(super) fn ask(flow: &Flow, halves: &Halves, reason: Count) -> Option<i32> {
    if halves.ask(asked::CHALLENGE) {
        tell(flow, event::CHALLENGE, 0, 0);
    }
    drop_counted(reason)
}

/// A new connection has the tuple of one that is over.
#[inline(always)]
pub(super) fn take_over(flow: &Flow, halves: &Halves, tuple: &Tuple) {
    let (own, peer) = (halves.own_closing(), halves.peer_closing());
    let number = if flow.side() == 0 { closings(own, peer) } else { closings(peer, own) };
    halves.store_closing(own | closing::REUSED);
    tell(flow, event::REUSED, number, 0);
    let _ = PACKET_FLOWS.remove(flow.out.reversed());
    let _ = PACKET_FLOWS.remove(tuple);
    count(Count::TakenOver);
}

/// Notes what a packet tells that is about to leave: called last, for what was dropped does not count. In functions of
/// their own: the verifier follows each once and not along every way that leads here, and the stack has no room for all.
#[inline(always)]
pub(super) fn note(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) {
    if segment.flags & tcp::RST != 0 {
        if note_reset(halves) {
            tell(flow, event::RESET, 0, 0);
        }
    } else if segment.flags & tcp::SYN == 0 {
        let verdict = judge(flow, halves, segment, await_ack);
        if matches!(verdict, Verdict::Counts | Verdict::Near | Verdict::Keepalive) {
            follow(flow, halves, segment, verdict);
            if halves.both_have_fins() && note_finish(flow, halves, await_ack) {
                tell(flow, event::FINISHED, 0, 0);
            }
        }
    }
}

/// Notes an exact reset; whether it is the first.
#[inline(never)]
fn note_reset(halves: &Halves) -> bool {
    // SAFETY: see `Halves::own_closing`.
    let own = unsafe { Half::read_volatile(halves.own) };
    if own.has_reset() {
        return false;
    }
    count(Count::ResetExact);
    halves.store(&own, &own.after_reset(tick()));
    true
}

#[inline(never)]
fn judge(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) -> Verdict {
    let (own, peer) = halves.load();
    let verdict = Bounds::new(flow, &own, &peer, await_ack).judge(segment);
    count(match verdict {
        Verdict::Counts | Verdict::Old => return verdict,
        Verdict::Near => Count::Near,
        Verdict::Keepalive => Count::Keepalive,
        Verdict::TooOld => Count::TooOld,
        Verdict::TooNew => Count::TooNew,
        Verdict::NoAck => Count::NoAck,
    });
    verdict
}

#[inline(never)]
fn follow(flow: &Flow, halves: &Halves, segment: &Segment, verdict: Verdict) {
    // SAFETY: see `Halves::own_closing`.
    let own = unsafe { Half::read_volatile(halves.own) };
    let peer_has_fin = halves.peer_closing() & closing::FIN != 0;
    let acknowledged = halves.peer_ack().wrapping_sub(flow.seq_delta);
    let new = own.after(verdict, segment, peer_has_fin, acknowledged, flow, tick());
    halves.store(&own, &new);
}

/// Notes that a connection is finished; whether this is the first of its last packets that says so.
#[inline(never)]
fn note_finish(flow: &Flow, halves: &Halves, await_ack: Option<u32>) -> bool {
    let (own, peer) = halves.load();
    if (own.closing | peer.closing) & closing::FINISHED != 0
        || !Bounds::new(flow, &own, &peer, await_ack).is_finished(&own, &peer)
    {
        return false;
    }
    halves.store_closing(own.closing | closing::FINISHED);
    true
}
