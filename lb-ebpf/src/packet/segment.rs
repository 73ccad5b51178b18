//! A TCP segment without fragmentation, IP options or extension headers: whether it may pass, and how it leaves.

use aya_ebpf::{helpers::bpf_l4_csum_replace, macros::map, maps::PerCpuArray, programs::TcContext};
use lb_common::packet::{
    self, Count, Flow, LOOPBACK, Path, Tuple, before, event,
    track::{Segment, asked, closing},
    translate::{Difference, Head, tcp},
};

use super::{
    bytes::writable,
    closing::admit,
    error::{Error, Pass, written},
    event::tell,
    halves::Halves,
    layout::{PACKET_HOST, TCP, TCP_CHECKSUM},
    limits::HandoverLimits,
    maps::{PACKET_FLOWS, PACKET_HANDOVERS, PACKET_PATHS},
    redirect::{Stamp, fits, send, way_of},
    sight::sight,
    track,
    write::{add_ethernet_header, write},
};

/// `length`: of the IP packet; 0 where it is longer than fits the field.
#[inline(always)]
pub(super) fn segment<const LINK: usize, const IP: usize>(
    ctx: &TcContext,
    tuple: &Tuple,
    head: &Head,
    length: u32,
) -> Result<i32, Error> {
    let Some(flow) = PACKET_FLOWS.get_ptr(tuple) else {
        sight::<LINK, IP>(ctx, tuple, head);
        return Err(Pass::NoFlow.into());
    };
    // SAFETY: the kernel unmaps no map value during this run. It may give it to another flow, which `Stamp` notices.
    let flow = unsafe { &*flow };
    let stamp = Stamp::of(flow);
    // SAFETY: fields of the program's context, which lives as long as the run.
    let (mark, kind, device) =
        unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).pkt_type, (*ctx.skb.skb).ifindex) };
    if mark == packet::FOR_SOCKET_MARK && device == LOOPBACK {
        // Too late, it would meet no socket and be answered with a reset.
        PACKET_HANDOVERS.get_ptr(flow.id).ok_or(Count::SocketGone)?;
        return Err(Pass::ForSocket.into());
    }
    if kind != PACKET_HOST {
        return Err(Pass::OtherHost.into());
    }
    let halves = Halves::of(flow).ok_or(Count::NotWritable)?;
    if device != flow.from && !comes_by(device, tuple, flow) {
        return Err(wrong_device(ctx, device, flow, &halves));
    }

    let length = if length == 0 { ctx.len() - LINK as u32 } else { length };
    let headers = (IP + head.length()) as u32;
    if head.length() < TCP || length < headers {
        return Err(Count::BadOptions.into());
    }
    let Work { segment, limits } = work().ok_or(Count::NotWritable)?;
    *segment = Segment {
        seq: head.sequence(),
        ack: head.acknowledgement(),
        payload: length - headers,
        window: head.window(),
        flags: head.flags(),
        ..Segment::default()
    };
    *limits = HandoverLimits::default();
    let mut handover = None;
    if halves.own_closing() & closing::HANDOVER != 0 {
        // SAFETY: as above; userspace replaces a handover whole.
        handover = unsafe { PACKET_HANDOVERS.get(flow.id) };
        match handover {
            Some(handover) => limits.await_ack = Some(handover.await_ack.of(flow.side())),
            None => halves.end_handover(),
        }
    }
    if head.has(tcp::SYN | tcp::RST) || halves.is_closing() {
        admit::<LINK, IP>(ctx, tuple, head, flow, &halves, (segment, stamp), limits.await_ack)?;
    }
    if let (Some(handover), Some(await_ack)) = (handover, limits.await_ack) {
        if segment.payload == 0 && !head.has(tcp::SYN | tcp::FIN | tcp::RST) && before(segment.ack, await_ack)
        {
            return Err(for_socket::<LINK, IP>(ctx, head, handover.promised.of(flow.side())));
        }
        limits.tsecr_floor = Some(handover.tsecr_floor.of(flow.side()));
        if segment.payload != 0 && before(halves.own_end(), segment.seq) {
            halves.note_beyond();
        }
        let receiver = flow.side().other();
        if halves.own_closing() & closing::BEYOND != 0
            || before(halves.peer_ack(), handover.await_ack.of(receiver))
        {
            let (promised, sent) = (handover.promised.of(receiver), halves.peer_end());
            // Never advertise a right edge below data already sent: the sender's ACKs would be dropped.
            limits.window_end = Some(if before(promised, sent) { sent } else { promised });
        }
    }
    fits(ctx, flow, head, headers, length)?;
    if LINK == 0 {
        add_ethernet_header(ctx)?;
    }
    write::<IP>(ctx, flow, head, segment, limits)?;
    let way = way_of(flow);
    if !stamp.holds(flow) {
        return Err(Count::FlowGone.into());
    }
    track::note(flow, &halves, segment, limits.await_ack);
    send(ctx, way)
}

/// Whether packets of this flow may come by that device too.
#[inline(never)]
pub(super) fn comes_by(device: u32, tuple: &Tuple, flow: &Flow) -> bool {
    PACKET_PATHS.get_ptr(Path { device, expected: flow.from, peer: tuple.source }).is_some()
}

/// A packet that came by the wrong device. Userspace is asked once in a while only: a stranger may send many.
#[inline(always)]
pub(super) fn wrong_device(ctx: &TcContext, device: u32, flow: &Flow, halves: &Halves) -> Error {
    // SAFETY: a field of the program's context, which lives as long as the run.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        // There may be a device for VLAN 0.
        return Pass::Tagged.into();
    }
    if halves.ask(asked::DEVICE) {
        tell(flow, event::WRONG_DEVICE, device, 0);
    }
    Count::WrongDevice.into()
}

/// Passes a pure ACK of bytes that our socket has sent up to that socket. A SEQ beyond the right edge of the socket's
/// window is lowered to that edge: the socket would drop the ACK.
#[inline(always)]
fn for_socket<const LINK: usize, const IP: usize>(ctx: &TcContext, head: &Head, window_end: u32) -> Error {
    if before(window_end, head.sequence())
        && let Err(reason) = set_sequence::<LINK, IP>(ctx, head, window_end)
    {
        return reason.into();
    }
    Pass::ForSocket.into()
}

#[inline(always)]
fn set_sequence<const LINK: usize, const IP: usize>(
    ctx: &TcContext,
    head: &Head,
    seq: u32,
) -> Result<(), Count> {
    let change = Difference::default().word(head.seq, seq.to_be());
    let checksum = (LINK + IP + TCP_CHECKSUM) as u32;
    // SAFETY: a helper that takes the context of this program type; the header's bounds are checked.
    unsafe {
        written(bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, change.sum().into(), 0))?;
        *writable(ctx, LINK + IP + 4)? = seq.to_be();
    }
    Ok(())
}

/// What is known of the packet in hand. In a map: the stack has no room for it, and there the verifier would follow each
/// of its values.
#[repr(C)]
struct Work {
    segment: Segment,
    limits: HandoverLimits,
}

#[map]
static PACKET_WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's.
#[inline(always)]
fn work() -> Option<&'static mut Work> {
    // SAFETY: a run is not interrupted by another one on its CPU, and takes one reference. Zeros, which the kernel begins
    // with, are a value.
    PACKET_WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}
