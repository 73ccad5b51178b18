//! Notes the handshakes of connections to come: SYNs toward listeners, SYN-ACKs toward source ports of ours.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use lb_common::packet::{
    self, Count, Sighting, Tuple,
    options::SynOptions,
    sighted,
    translate::{Head, tcp},
};

use super::{
    bytes::read,
    layout::TCP,
    maps::{PACKET_PORTS, PACKET_SIGHTINGS, count},
    options::load_options,
};

/// Whether this SYN was noted, and no other since.
#[inline(always)]
pub(super) fn is_sighted(tuple: &Tuple, head: &Head) -> bool {
    // SAFETY: a number, which another CPU may replace as a whole.
    unsafe { PACKET_SIGHTINGS.get(tuple) }.is_some_and(|sighting| sighting.isn == head.sequence())
}

/// Notes a SYN toward a listener, a SYN-ACK toward a source port of ours, or the first acknowledgement number of what
/// follows a SYN.
#[inline(always)]
pub(super) fn sight<const LINK: usize, const IP: usize>(ctx: &TcContext, tuple: &Tuple, head: &Head) {
    let is_answer = head.has(tcp::SYN) && head.has(tcp::ACK);
    let bitmap = if is_answer { packet::PORT_WORDS } else { 0 };
    let port = u32::from(u16::from_be(tuple.destination_port));
    let Some(ports) = PACKET_PORTS.get(bitmap + (port >> 6)) else { return };
    if ports >> (port & 63) & 1 != 0 {
        note::<LINK, IP>(ctx.skb.skb, tuple);
    }
}

/// A function of its own, which reads the header anew: a copy of it would take the caller stack, and there is none left.
/// The verifier follows it once, and not along every path on which a segment has no flow.
#[inline(never)]
fn note<const LINK: usize, const IP: usize>(skb: *mut __sk_buff, tuple: &Tuple) {
    let ctx = &TcContext::new(skb);
    let Some(head) = read::<Head>(ctx, LINK + IP, TCP) else { return };
    if !head.has(tcp::SYN) {
        return note_acknowledgement(tuple, &head);
    }
    let mut found = SynOptions::NONE;
    if head.length() > TCP {
        let length = head.length() - TCP;
        let Some(scratch) = load_options(ctx, LINK + IP + TCP, length) else { return };
        let Ok(read) = scratch.read_syn(length) else { return };
        found = read;
    }
    let [offset, ..] = head.control.to_ne_bytes();
    if offset & tcp::AE != 0 {
        found.flags |= sighted::ACCURATE_ECN;
    }
    if head.has(tcp::ACK) {
        found.flags |= sighted::ACKNOWLEDGED;
    }
    let sighting = Sighting {
        isn: head.sequence(),
        // SAFETY: a field of the program's context, which lives as long as the run.
        ifindex: unsafe { (*skb).ifindex },
        tsval: found.tsval,
        mss: found.mss,
        flags: found.flags,
        window_scale: found.window_scale,
        ack: head.acknowledgement(),
    };
    if PACKET_SIGHTINGS.insert(tuple, sighting, 0).is_ok() {
        count(Count::Sighted);
    }
}

/// The first segment that follows a SYN which was sighted.
#[inline(always)]
fn note_acknowledgement(tuple: &Tuple, head: &Head) {
    let Some(sighting) = PACKET_SIGHTINGS.get_ptr_mut(tuple) else { return };
    // SAFETY: a value of the map, which the kernel does not free during this run; each store is of an aligned number, and
    // who reads the flag between the two reads the number of a SYN, which is 0 and fits no socket.
    unsafe {
        if (*sighting).flags & sighted::ACKNOWLEDGED == 0 && head.has(tcp::ACK) {
            (*sighting).ack = head.acknowledgement();
            (*sighting).flags |= sighted::ACKNOWLEDGED;
        }
    }
}
