//! The halves of a connection's track in the map, field by field: other CPUs store at the same time.

use core::ptr::{read_volatile, write_volatile};

use lb_common::packet::{
    Flow,
    track::{Half, closing},
};

use super::maps::PACKET_TRACKS;

/// The two halves of a packet's connection: its sender's own, and the peer's.
pub(super) struct Halves {
    own: *mut Half,
    peer: *mut Half,
}

impl Halves {
    /// `None`: there is no such slot.
    #[inline(always)]
    pub(super) fn of(flow: &Flow) -> Option<Self> {
        let halves = PACKET_TRACKS.get_ptr_mut(flow.slot)?.cast::<Half>();
        let side = flow.side() as usize;
        // By arithmetic: the verifier would follow all that comes after a branch twice.
        // SAFETY: a track is two halves, the client's first (asserted in `lb_common::packet::legs`).
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

    /// The sequence number after all that the peer has sent, its FIN included.
    #[inline(always)]
    pub(super) fn peer_sent(&self) -> u32 {
        self.peer_end().wrapping_add(u32::from(self.peer_closing() & closing::FIN != 0))
    }

    /// Whether a FIN or a reset of either end was noted.
    #[inline(always)]
    pub(super) fn is_closing(&self) -> bool {
        (self.own_closing() | self.peer_closing()) & (closing::FIN | closing::RESET) != 0
    }

    #[inline(always)]
    pub(super) fn peer_closing(&self) -> u8 {
        // SAFETY: see `own_closing`.
        unsafe { read_volatile(&raw const (*self.peer).closing) }
    }

    #[inline(always)]
    pub(super) fn both_have_fins(&self) -> bool {
        self.own_closing() & closing::FIN != 0 && self.peer_closing() & closing::FIN != 0
    }

    /// Notes that the sockets are closed.
    #[inline(always)]
    pub(super) fn end_handover(&self) {
        self.store_closing(self.own_closing() & !closing::HANDOVER_STATE);
    }

    /// Notes that bytes came from beyond a hole, whose own bytes may be in a socket.
    #[inline(always)]
    pub(super) fn note_beyond(&self) {
        let old = self.own_closing();
        if old & closing::BEYOND == 0 {
            self.store_closing(old | closing::BEYOND);
        }
    }

    /// Notes that userspace is asked to do this ([`asked`](lb_common::packet::track::asked)); `false`: it was already.
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
    pub(super) fn store_closing(&self, value: u8) {
        // SAFETY: see `own_closing`.
        unsafe { write_volatile(&raw mut (*self.own).closing, value) }
    }

    /// A copy of the sender's half, each field as it is at some moment.
    #[inline(always)]
    pub(super) fn load_own(&self) -> Half {
        // SAFETY: see `own_closing`.
        unsafe { Half::read_volatile(self.own) }
    }

    /// Copies of both, the sender's first.
    #[inline(always)]
    pub(super) fn load(&self) -> (Half, Half) {
        // SAFETY: see `own_closing`.
        (self.load_own(), unsafe { Half::read_volatile(self.peer) })
    }

    /// Stores the fields that differ, and no others: another CPU may be changing those.
    #[inline(always)]
    pub(super) fn store(&self, old: &Half, new: &Half) {
        // SAFETY: see `own_closing`.
        unsafe {
            if old.gap != new.gap {
                write_volatile(&raw mut (*self.own).gap, new.gap);
            }
            // After the hole: a reader between the two stores takes the bytes before the hole for missing, not for arrived.
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
