//! Writes a packet as it leaves: its Ethernet, IP and TCP headers, and all their checksums.

use aya_ebpf::{
    bindings::{BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM},
    helpers::{bpf_l4_csum_replace, bpf_skb_change_head, bpf_skb_store_bytes},
    programs::TcContext,
};
use lb_common::packet::{
    Count, Flow, flag,
    options::MAX,
    track::Segment,
    translate::{Difference, Head, tcp},
};

use super::{
    bytes::{read, writable},
    error::written,
    layout::{ETHERNET, IPV4, IPV6, TCP, TCP_CHECKSUM},
    limits::HandoverLimits,
    options::{bounded, load_options, scratch, word},
};

/// linux/bpf.h, Linux 6.16: leave CHECKSUM_COMPLETE alone, because IPv6 has no header checksum that balances the new
/// address. Not yet in aya's bindings.
const BPF_F_IPV6: u64 = 1 << 7;

/// The two bits of ECN in the traffic class; both: congestion experienced (RFC 3168, section 5).
const ECN: u8 = 3;

/// Translates the IP and TCP headers, and completes `segment` by what is in the options.
#[inline(always)]
pub(super) fn write<const IP: usize>(
    ctx: &TcContext,
    flow: &Flow,
    head: &Head,
    segment: &mut Segment,
    limits: &HandoverLimits,
) -> Result<(), Count> {
    let mut new = flow.translate(head);
    if let Some(end) = limits.window_end
        && head.has(tcp::ACK)
    {
        new = new.with_window_up_to(end, flow.promised_scale);
    }
    segment.leaving_window = new.window();
    let mut difference = Difference::default().words(&head.words(), &new.words());

    let at = ETHERNET + IP + TCP;
    let mut timestamps = None;
    let mut options_length = 0;
    if head.length() > TCP {
        options_length = head.length() - TCP;
        let first: [u32; 3] = read(ctx, at, 12).unwrap_or([0; 3]);
        // Two NOPs and the timestamps (RFC 7323, appendix A): what nearly every segment has, and nothing else.
        if options_length == 12 && first[0] == 0x0101_080a_u32.to_be() && flow.has(flag::TIMESTAMPS) {
            (segment.timestamps, segment.tsval) = (true, u32::from_be(first[1]));
            let (tsval, tsecr) = flow.timestamps(segment.tsval, u32::from_be(first[2]), limits.tsecr_floor);
            let new = [first[0], tsval.to_be(), tsecr.to_be()];
            difference = difference.words(&first, &new);
            timestamps = Some(new);
        } else {
            let scratch = load_options(ctx, at, options_length).ok_or(Count::BadOptions)?;
            scratch.translate(flow, options_length, limits.tsecr_floor).map_err(|_| Count::BadOptions)?;
            if let Some(tsval) = scratch.tsval() {
                (segment.timestamps, segment.tsval) = (true, tsval);
            }
            for i in 0..MAX / 4 {
                difference = difference.word(word(&scratch.old, i), word(&scratch.new, i));
            }
        }
    }

    let checksum = (ETHERNET + IP + TCP_CHECKSUM) as u32;
    let skb = ctx.skb.skb;
    if IP == IPV4 { write_ipv4(ctx, flow, checksum) } else { write_ipv6(ctx, flow, checksum) }?;
    // SAFETY: helpers that take the context of this program type, and the scratch of this CPU, which has room for the
    // longest options.
    unsafe {
        written(bpf_l4_csum_replace(skb, checksum, 0, difference.sum().into(), 0))?;
        if options_length > 0 && timestamps.is_none() {
            let scratch = scratch().ok_or(Count::BadOptions)?;
            let length = bounded(options_length).ok_or(Count::BadOptions)?;
            written(bpf_skb_store_bytes(skb, at as u32, scratch.new.as_ptr().cast(), length, 0))?;
        }
        *writable(ctx, ETHERNET + IP)? = new.words();
        if let Some(words) = timestamps {
            *writable(ctx, at)? = words;
        }
    }
    Ok(())
}

/// A function of its own, as the next one is: the stack of its caller has no room for the header.
#[inline(never)]
fn write_ipv4(ctx: &TcContext, flow: &Flow, checksum: u32) -> Result<(), Count> {
    let old: [u32; 5] = read(ctx, ETHERNET, IPV4).ok_or(Count::NotWritable)?;
    let mut new = old;
    (new[3], new[4]) = (flow.out.source[3], flow.out.destination[3]);
    let addresses = Difference::default().word(old[3], new[3]).word(old[4], new[4]);
    if flow.has(flag::STRIP_ECN) {
        let [version, service, length @ ..] = old[0].to_ne_bytes();
        if service & ECN == ECN {
            return Err(Count::Congestion);
        }
        new[0] = u32::from_ne_bytes([version, service & !ECN, length[0], length[1]]);
    }
    let sum = addresses.word(old[0], new[0]).apply((old[2] >> 16) as u16);
    new[2] = old[2] & 0xffff | u32::from(sum) << 16;
    // SAFETY: a helper that takes the context of this program type; the header's bounds are checked.
    unsafe {
        let flags = u64::from(BPF_F_PSEUDO_HDR);
        written(bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, addresses.sum().into(), flags))?;
        *writable(ctx, ETHERNET)? = new;
    }
    Ok(())
}

#[inline(never)]
fn write_ipv6(ctx: &TcContext, flow: &Flow, checksum: u32) -> Result<(), Count> {
    let old: [u32; 10] = read(ctx, ETHERNET, IPV6).ok_or(Count::NotWritable)?;
    let (source, destination) = (&flow.out.source, &flow.out.destination);
    let addresses = Difference::default()
        .words(&[old[2], old[3], old[4], old[5]], source)
        .words(&[old[6], old[7], old[8], old[9]], destination);
    // SAFETY: helpers that take the context of this program type; the header's bounds are checked.
    unsafe {
        if flow.has(flag::STRIP_ECN) {
            let [version, class, label @ ..] = old[0].to_ne_bytes();
            if class & ECN << 4 == ECN << 4 {
                return Err(Count::Congestion);
            }
            let word = [version, class & !(ECN << 4), label[0], label[1]];
            let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
            written(bpf_skb_store_bytes(ctx.skb.skb, ETHERNET as u32, word.as_ptr().cast(), 4, flags))?;
        }
        replace_ipv6_addresses(ctx, checksum, addresses)?;
        *writable(ctx, ETHERNET + 8)? = [*source, *destination];
    }
    Ok(())
}

/// Corrects a checksum for addresses of the IPv6 header that change.
#[inline(always)]
pub(super) fn replace_ipv6_addresses(
    ctx: &TcContext,
    checksum: u32,
    addresses: Difference,
) -> Result<(), Count> {
    let flags = u64::from(BPF_F_PSEUDO_HDR);
    // Kernels before 6.16 do not know the second flag and refuse. There, a packet whose sum the device has made
    // (CHECKSUM_COMPLETE) reaches the next socket of this host with a sum that the kernel has to make once more.
    let replaced = [flags | BPF_F_IPV6, flags].into_iter().any(|flags| {
        // SAFETY: a helper that takes the context of this program type.
        unsafe { bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, addresses.sum().into(), flags) == 0 }
    });
    if replaced { Ok(()) } else { Err(Count::NotWritable) }
}

/// Puts an Ethernet header in front, which the ways out expect.
#[inline(always)]
pub(super) fn add_ethernet_header(ctx: &TcContext) -> Result<(), Count> {
    // SAFETY: a helper that takes the context of this program type; the header's bounds are checked.
    unsafe {
        let protocol = (*ctx.skb.skb).protocol as u16;
        written(bpf_skb_change_head(ctx.skb.skb, ETHERNET as u32, 0))?;
        *writable(ctx, ETHERNET - 2)? = protocol;
    }
    Ok(())
}
