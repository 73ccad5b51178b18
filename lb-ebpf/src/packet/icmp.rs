//! ICMP errors about packets that a flow has sent: they are translated and forwarded to the packet's sender.

use aya_ebpf::{helpers::bpf_l4_csum_replace, programs::TcContext};
use lb_common::packet::{
    Count, Flow, Tuple, before,
    icmp::{self, HEADER, QUOTED, Quote},
    track::closing,
    translate::Difference,
};

use super::{
    bytes::{read, writable},
    error::{Error, Pass, written},
    halves::Halves,
    layout::{ETHERNET, FITS_ANYWHERE, IPV4, IPV6, PACKET_HOST, PROTOCOL_TCP},
    maps::{PACKET_FLOWS, PACKET_HANDOVERS, count},
    redirect::{Stamp, send, way_of},
    segment::{comes_by, wrong_device},
    write::{add_ethernet_header, replace_ipv6_addresses},
};

/// Offset of the checksum in an ICMP header.
const CHECKSUM: usize = 2;

/// An ICMP packet.
#[inline(always)]
pub(super) fn v4<const LINK: usize>(ctx: &TcContext, outer: &[u32; 5]) -> Result<i32, Error> {
    const INNER: usize = IPV4 + HEADER;
    if outer[0].to_ne_bytes()[0] != 0x45 || outer[1] & FRAGMENT != 0 {
        return Err(Pass::IcmpOfNoFlow.into());
    }
    let kind: u8 = quoted(read(ctx, LINK + IPV4, HEADER))?;
    if !icmp::is_error(kind) {
        return Err(Pass::IcmpOfNoFlow.into());
    }
    let inner: [u32; 5] = quoted(read(ctx, LINK + INNER, IPV4 + QUOTED))?;
    let quote: Quote = quoted(read(ctx, LINK + INNER + IPV4, QUOTED))?;
    if inner[0].to_ne_bytes()[0] != 0x45 || inner[2].to_ne_bytes()[1] != PROTOCOL_TCP {
        return Err(Pass::IcmpOfNoFlow.into());
    }
    // The quoted packet went away from us; its flow's twin is found by what comes back.
    let sent = Tuple::v4(inner[3], inner[4], quote[0] as u16, (quote[0] >> 16) as u16);
    // SAFETY: the kernel unmaps no map value during this run; `Stamp` notices when it is another flow's.
    let flow = unsafe { &*PACKET_FLOWS.get_ptr(sent.reversed()).ok_or(Pass::IcmpOfNoFlow)? };
    let stamp = Stamp::of(flow);
    let code: [u8; 2] = quoted(read(ctx, LINK + IPV4, HEADER))?;
    let mtu = (code == icmp::FRAGMENTATION_NEEDED).then_some(()).and_then(|()| {
        let mtu: u16 = read(ctx, LINK + IPV4 + icmp::MTU, 2)?;
        Some(u32::from(u16::from_be(mtu)))
    });
    let length = u32::from(u16::from_be((inner[0] >> 16) as u16));
    judge(ctx, &sent, flow, &quote)?;
    // Routers older than RFC 1191 say 0.
    if mtu.is_some_and(|mtu| mtu != 0 && length <= mtu) {
        return Err(Count::IcmpUnrelated.into());
    }
    if LINK == 0 {
        add_ethernet_header(ctx)?;
    }

    let tuple = flow.quoted_tuple();
    let quote_new = flow.quote(&quote);
    let (source, destination) = (flow.out.source[3], flow.out.destination[3]);
    let outer_change = Difference::default().word(outer[3], source).word(outer[4], destination);
    let inner_change =
        Difference::default().word(inner[3], tuple.source[3]).word(inner[4], tuple.destination[3]);
    // The quoted header keeps its sum, its checksum included.
    let change = Difference::default().words(&quote, &quote_new);
    let checksum = (ETHERNET + IPV4 + CHECKSUM) as u32;
    // SAFETY: a helper that takes the context of this program type; the headers' bounds are checked.
    unsafe {
        written(bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, change.sum().into(), 0))?;
        *writable(ctx, ETHERNET)? =
            [outer[0], outer[1], with_checksum(outer[2], outer_change), source, destination];
        *writable(ctx, ETHERNET + INNER)? = [
            inner[0],
            inner[1],
            with_checksum(inner[2], inner_change),
            tuple.source[3],
            tuple.destination[3],
            quote_new[0],
            quote_new[1],
        ];
    }
    let way = way_of(flow);
    if !stamp.holds(flow) {
        return Err(Count::FlowGone.into());
    }
    count(Count::IcmpTranslated);
    send(ctx, way)
}

/// An ICMPv6 packet.
#[inline(always)]
pub(super) fn v6<const LINK: usize>(ctx: &TcContext) -> Result<i32, Error> {
    const INNER: usize = IPV6 + HEADER;
    /// Before the addresses.
    const REST: usize = 8;
    let kind: u8 = quoted(read(ctx, LINK + IPV6, HEADER))?;
    if !icmp::is_error_v6(kind) {
        return Err(Pass::IcmpOfNoFlow.into());
    }
    let outer: [[u32; 4]; 2] = quoted(read(ctx, LINK + REST, 32))?;
    let protocol: u8 = quoted(read(ctx, LINK + INNER + 6, IPV6 + QUOTED - 6))?;
    let inner: [[u32; 4]; 2] = quoted(read(ctx, LINK + INNER + REST, 32))?;
    let quote: Quote = quoted(read(ctx, LINK + INNER + IPV6, QUOTED))?;
    if protocol != PROTOCOL_TCP {
        return Err(Pass::IcmpOfNoFlow.into());
    }
    let sent = Tuple {
        source: inner[0],
        destination: inner[1],
        source_port: quote[0] as u16,
        destination_port: (quote[0] >> 16) as u16,
    };
    // SAFETY: as in `v4`.
    let flow = unsafe { &*PACKET_FLOWS.get_ptr(sent.reversed()).ok_or(Pass::IcmpOfNoFlow)? };
    let stamp = Stamp::of(flow);
    let mtu = (kind == icmp::PACKET_TOO_BIG).then_some(()).and_then(|()| {
        let mtu: [u16; 2] = read(ctx, LINK + IPV6 + icmp::MTU_V6, 4)?;
        Some(u32::from(u16::from_be(mtu[0])) << 16 | u32::from(u16::from_be(mtu[1])))
    });
    let payload: u16 = quoted(read(ctx, LINK + INNER + 4, IPV6 + QUOTED - 4))?;
    let length = u32::from(u16::from_be(payload)) + IPV6 as u32;
    judge(ctx, &sent, flow, &quote)?;
    // No link takes less (RFC 8200, section 5).
    if mtu.is_some_and(|mtu| mtu < FITS_ANYWHERE || length <= mtu) {
        return Err(Count::IcmpUnrelated.into());
    }
    if LINK == 0 {
        add_ethernet_header(ctx)?;
    }

    let tuple = flow.quoted_tuple();
    let quote_new = flow.quote(&quote);
    let addresses =
        Difference::default().words(&outer[0], &flow.out.source).words(&outer[1], &flow.out.destination);
    let change = Difference::default()
        .words(&inner[0], &tuple.source)
        .words(&inner[1], &tuple.destination)
        .words(&quote, &quote_new);
    let checksum = (ETHERNET + IPV6 + CHECKSUM) as u32;
    // SAFETY: as in `v4`.
    unsafe {
        replace_ipv6_addresses(ctx, checksum, addresses)?;
        written(bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, change.sum().into(), 0))?;
        *writable(ctx, ETHERNET + REST)? = [flow.out.source, flow.out.destination];
        *writable(ctx, ETHERNET + INNER + REST)? = [tuple.source, tuple.destination];
        *writable(ctx, ETHERNET + INNER + IPV6)? = quote_new;
    }
    let way = way_of(flow);
    if !stamp.holds(flow) {
        return Err(Count::FlowGone.into());
    }
    count(Count::IcmpTranslated);
    send(ctx, way)
}

/// What is read of an ICMP message: one that ends before is about no flow.
#[inline(always)]
fn quoted<T>(read: Option<T>) -> Result<T, Pass> {
    read.ok_or(Pass::IcmpOfNoFlow)
}

/// Whether an error is about bytes that are under way (RFC 5927, section 4.1), and comes from where they went. `flow` is
/// that of the packets that come back from there.
#[inline(always)]
fn judge(ctx: &TcContext, sent: &Tuple, flow: &Flow, quote: &Quote) -> Result<(), Error> {
    let halves = Halves::of(flow).ok_or(Count::NotWritable)?;
    // While the sockets live, the error may be about a packet of theirs, so they get it. If it is about a forwarded packet
    // the socket ignores it, and the next such packet causes another error.
    if halves.own_closing() & closing::HANDOVER != 0 && PACKET_HANDOVERS.get_ptr(flow.id).is_some() {
        return Err(Pass::ForSocket.into());
    }
    // SAFETY: fields of the program's context, which lives as long as the run.
    let (kind, device) = unsafe { ((*ctx.skb.skb).pkt_type, (*ctx.skb.skb).ifindex) };
    if kind != PACKET_HOST {
        return Err(Pass::OtherHost.into());
    }
    if device != flow.from && !comes_by(device, &sent.reversed(), flow) {
        return Err(wrong_device(ctx, device, flow, &halves));
    }
    let seq = u32::from_be(quote[1]);
    let end = halves.peer_sent().wrapping_sub(flow.ack_delta);
    if before(seq, halves.own_ack()) || before(end, seq) {
        // The port of a finished connection may be another's by now; not in a handover, when our own socket is still there.
        let state = halves.own_closing() | halves.peer_closing();
        let is_finished = state & closing::FINISHED != 0 && state & closing::HANDOVER == 0;
        return Err(if is_finished { Pass::NewConnection.into() } else { Count::IcmpUnrelated.into() });
    }
    Ok(())
}

/// More fragments, or an offset: the second word of an IPv4 header.
const FRAGMENT: u32 = (0x3fff_u16.to_be() as u32) << 16;

/// The third word of an IPv4 header after a change elsewhere in it.
#[inline(always)]
fn with_checksum(word: u32, change: Difference) -> u32 {
    word & 0xffff | u32::from(change.apply((word >> 16) as u16)) << 16
}
