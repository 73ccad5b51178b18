//! The tracker in the kernel: reads and stores halves, and says which packets may not pass. What a segment is worth is
//! decided in [`lb_common::packet::track`].

use core::ptr::{read_volatile, write_volatile};

use lb_common::packet::{
    Count, Event, Flow, Tuple, closings, event,
    track::{Bounds, Half, Reset, Segment, Verdict, closing},
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
        // SAFETY, here and below: elements of an array live as long as the program. Others store at the same time, each
        // field alone; volatile, so that loads are not joined or repeated, nor stores.
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
        // SAFETY: see `own_closing`.
        let closing = unsafe { read_volatile(&raw const (*self.peer).closing) };
        self.peer_end().wrapping_add(u32::from(closing & closing::FIN != 0))
    }

    /// A FIN or a reset of either end was noted.
    #[inline(always)]
    pub(super) fn is_closing(&self) -> bool {
        // SAFETY: see `own_closing`.
        let peer = unsafe { read_volatile(&raw const (*self.peer).closing) };
        (self.own_closing() | peer) & (closing::FIN | closing::RESET) != 0
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

    #[inline(always)]
    fn store_closing(&self, value: u8) {
        // SAFETY: see `own_closing`.
        unsafe { write_volatile(&raw mut (*self.own).closing, value) }
    }

    /// Both, each field as it is at some moment.
    #[inline(always)]
    fn load(&self) -> (Half, Half) {
        // SAFETY: see `own_closing`.
        unsafe { (load(self.own), load(self.peer)) }
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

/// # Safety
///
/// `half` points to one that lives.
#[inline(always)]
unsafe fn load(half: *const Half) -> Half {
    // SAFETY: the caller's; see `Halves::own_closing`.
    unsafe {
        Half {
            position: read_volatile(&raw const (*half).position),
            gap: read_volatile(&raw const (*half).gap),
            ack: read_volatile(&raw const (*half).ack),
            edge: read_volatile(&raw const (*half).edge),
            heard: read_volatile(&raw const (*half).heard),
            tsval: read_volatile(&raw const (*half).tsval),
            most: read_volatile(&raw const (*half).most),
            closing: read_volatile(&raw const (*half).closing),
            asked: 0,
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
    // SAFETY: see `Halves::own_closing`.
    unsafe {
        if read_volatile(&raw const (*halves.own).asked) == 0 {
            write_volatile(&raw mut (*halves.own).asked, 1);
            about(flow, event::CHALLENGE);
        }
    }
    drop_counted(reason)
}

/// A new connection has the tuple of one that is over.
#[inline(always)]
pub(super) fn take_over(flow: &Flow, halves: &Halves, tuple: &Tuple) {
    let (id, other) = (flow.id, flow.out.reversed());
    let (own, peer) = halves.load();
    let number = match flow.side() {
        0 => closings(own.closing, peer.closing),
        _ => closings(peer.closing, own.closing),
    };
    halves.store_closing(own.closing | closing::REUSED);
    let _ = PACKET_FLOWS.remove(other);
    let _ = PACKET_FLOWS.remove(tuple);
    count(Count::TakenOver);
    tell(Event { id, kind: event::REUSED, from_server: flow.side() as u32, number, mtu: 0 });
}

/// Notes what a packet tells that is about to leave. A function of its own, called last: the verifier follows it once
/// and not along each way that leads here, and what was dropped does not count.
#[inline(never)]
pub(super) fn note(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) {
    let (own, peer) = halves.load();
    if segment.flags & tcp::RST != 0 {
        if !own.has_reset() {
            count(Count::ResetExact);
            about(flow, event::RESET);
        }
        return halves.store(&own, &own.after_reset(tick()));
    }
    if segment.flags & tcp::SYN != 0 {
        return;
    }
    let bounds = Bounds::new(flow, &own, &peer, await_ack);
    let verdict = bounds.judge(segment);
    let odd = match verdict {
        Verdict::Counts | Verdict::Old => None,
        Verdict::Near => Some(Count::Near),
        Verdict::Keepalive => Some(Count::Keepalive),
        Verdict::TooOld => Some(Count::TooOld),
        Verdict::TooNew => Some(Count::TooNew),
        Verdict::NoAck => Some(Count::NoAck),
    };
    if let Some(odd) = odd {
        count(odd);
    }
    let new = own.after(verdict, segment, &peer, flow, tick());
    halves.store(&own, &new);
    if new.has_fin()
        && peer.has_fin()
        && !bounds.is_finished(&own, &peer)
        && Bounds::new(flow, &new, &peer, await_ack).is_finished(&new, &peer)
    {
        about(flow, event::FINISHED);
    }
}

/// Tells userspace something of a packet's connection.
#[inline(always)]
fn about(flow: &Flow, kind: u32) {
    tell(Event { id: flow.id, kind, from_server: flow.side() as u32, number: 0, mtu: 0 });
}
