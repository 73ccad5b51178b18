//! What the programs tell userspace, and the clock.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_ktime_get_coarse_ns,
};
use lb_common::packet::{self, Count, Event, Flow, event};

use super::maps::{PACKET_EVENTS, count};

/// Tells userspace something of a packet's connection; see [`Event`]. A function of its own, because an event takes room
/// on the stack.
#[inline(never)]
pub(super) fn tell(flow: &Flow, kind: u32, number: u32, mtu: u32) {
    let event = Event { id: flow.id, kind, from_server: flow.side() as u32, number, mtu };
    // A wake-up takes an interrupt. The end of a connection can wait for the next sweep; a sender that is to hear of an
    // MTU, or to be sent a challenge ACK, cannot.
    let is_urgent = kind == event::TOO_BIG || kind == event::CHALLENGE;
    let flags = if is_urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    if PACKET_EVENTS.output(event, flags.into()).is_err() {
        count(Count::EventLost);
    }
}

/// Now, in ticks ([`packet::TICK_SHIFT`]).
#[inline(always)]
pub(super) fn tick() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> packet::TICK_SHIFT) as u32
}
