//! The packet tier: forwards the packets of spliced connections, and sights the SYNs of those to come.
//!
//! Runs at tc ingress of every device. A packet that is no business of ours goes on to the next program and up the
//! stack as if this one was not there. A packet of a [`Flow`] never goes up: it leaves translated, or, where it
//! cannot, it is dropped as on a lossy link; passed up, it would meet no socket, and the answer would be a reset.
//!
//! Checksums are changed by the kernel's helpers only, which know whether a sum is complete, partial or not yet
//! there; everything else is written into the packet afterwards, for the helpers may move it.

mod icmp;
mod inject;
mod odd;
mod track;

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_INGRESS, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP,
        TC_ACT_SHOT,
    },
    helpers::{
        bpf_check_mtu, bpf_ktime_get_coarse_ns, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_redirect_peer, bpf_skb_change_head, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    macros::{classifier, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    programs::TcContext,
};
use lb_common::packet::{
    self, Count, Event, Flow, Handover, LOOPBACK, MAPPED, Name, Path, Record, Sighting, Tuple, before, event,
    exit, flag,
    inject::{INJECTED_MARK, Way},
    options::{self, Scratch, SynOptions},
    sighted,
    track::{Segment, Track, asked, closing},
    translate::{Difference, Head, tcp},
};
use track::{Gate, Halves};

/// linux/bpf.h: elements are allocated when they are inserted.
const BPF_F_NO_PREALLOC: u32 = 1;
/// linux/bpf.h: userspace reads and writes the elements as memory.
const BPF_F_MMAPABLE: u32 = 1 << 10;
/// linux/bpf.h, Linux 6.16: leave CHECKSUM_COMPLETE alone, for IPv6 has no header checksum to balance the new address.
/// Not yet in aya's bindings.
const BPF_F_IPV6: u64 = 1 << 7;
/// linux/pkt_cls.h: on to the next program, then up the stack; the same number as TCX_NEXT.
const NEXT: i32 = -1;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: usize = 20;
/// Offset of the checksum in a TCP header.
const TCP_CHECKSUM: usize = 16;
const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;
/// Packets up to this size fit any device (RFC 8200, section 5).
const FITS_ANYWHERE: u32 = 1280;
/// linux/if_packet.h: the frame is addressed to this host. The IP stack takes no other.
const PACKET_HOST: u32 = 0;

#[map]
static PACKET_FLOWS: HashMap<Tuple, Flow> =
    HashMap::with_max_entries(packet::DEFAULT_FLOWS, BPF_F_NO_PREALLOC);
#[map]
static PACKET_TRACKS: Array<Track> = Array::with_max_entries(packet::DEFAULT_FLOWS / 2, BPF_F_MMAPABLE);
#[map]
static PACKET_PATHS: HashMap<Path, u32> = HashMap::with_max_entries(packet::MAX_PATHS, BPF_F_NO_PREALLOC);
#[map]
static PACKET_SIGHTINGS: LruHashMap<Tuple, Sighting> = LruHashMap::with_max_entries(packet::MAX_SIGHTINGS, 0);
#[map]
static PACKET_HANDOVERS: HashMap<u64, Handover> =
    HashMap::with_max_entries(packet::MAX_HANDOVERS, BPF_F_NO_PREALLOC);
#[map]
static PACKET_CONNECTIONS: HashMap<u64, Record> =
    HashMap::with_max_entries(packet::DEFAULT_FLOWS / 2, BPF_F_NO_PREALLOC);
#[map]
static PACKET_NAMES: HashMap<u64, Name> = HashMap::with_max_entries(packet::MAX_NAMES, BPF_F_NO_PREALLOC);
#[map]
static PACKET_PORTS: Array<u64> = Array::with_max_entries(2 * packet::PORT_WORDS, 0);
#[map]
static PACKET_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::Number as u32, 0);
#[map]
static PACKET_EVENTS: RingBuf = RingBuf::with_byte_size(packet::EVENTS_BYTES, 0);
/// The options of the packet in hand, before and after: too much for the stack, and the verifier follows a varying
/// index better into a map.
#[map]
static PACKET_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// For devices with an Ethernet header.
#[classifier]
pub fn packet_ethernet(ctx: TcContext) -> i32 {
    forward::<ETHERNET>(&ctx).unwrap_or(NEXT)
}

/// For devices whose packets begin with the IP header.
#[classifier]
pub fn packet_bare(ctx: TcContext) -> i32 {
    forward::<0>(&ctx).unwrap_or(NEXT)
}

/// `None`: not ours.
#[inline(always)]
fn forward<const LINK: usize>(ctx: &TcContext) -> Option<i32> {
    // SAFETY: fields of the program's context, which lives as long as the run.
    let (protocol, tagged) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_present) };
    // A tagged packet comes again, on its VLAN's own device.
    if tagged != 0 {
        return None;
    }
    // SAFETY: the same.
    let (mark, ifindex) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex) };
    if LINK == ETHERNET && mark == INJECTED_MARK && ifindex == LOOPBACK {
        let verdict = inject::follow(ctx.skb.skb);
        if verdict != NEXT {
            return Some(verdict);
        }
    }
    match protocol {
        ETH_P_IP => ipv4::<LINK>(ctx),
        ETH_P_IPV6 => ipv6::<LINK>(ctx),
        _ => None,
    }
}

#[inline(always)]
fn ipv4<const LINK: usize>(ctx: &TcContext) -> Option<i32> {
    let Some(ip) = read::<[u32; 5]>(ctx, LINK, IPV4 + TCP) else {
        // The last fragment of a packet may be shorter.
        return Some(odd::v4(ctx.skb.skb, LINK as u32));
    };
    let [version, ..] = ip[0].to_ne_bytes();
    let [.., protocol, _, _] = ip[2].to_ne_bytes();
    if protocol != PROTOCOL_TCP {
        return if protocol == PROTOCOL_ICMP { icmp::v4::<LINK>(ctx, &ip) } else { None };
    }
    let fragment = u16::from_be((ip[1] >> 16) as u16) & 0x3fff;
    if version != 0x45 || fragment != 0 {
        return Some(odd::v4(ctx.skb.skb, LINK as u32));
    }
    let head: Head = read(ctx, LINK + IPV4, TCP)?;
    let tuple = Tuple::v4(ip[3], ip[4], head.ports as u16, (head.ports >> 16) as u16);
    let total = u32::from(u16::from_be((ip[0] >> 16) as u16));
    segment::<LINK, IPV4>(ctx, &tuple, &head, total)
}

#[inline(always)]
fn ipv6<const LINK: usize>(ctx: &TcContext) -> Option<i32> {
    let Some(ip) = read::<[u32; 10]>(ctx, LINK, IPV6 + TCP) else {
        // The last fragment of a packet may be shorter.
        return Some(odd::v6(ctx.skb.skb, LINK as u32));
    };
    let [_, _, protocol, _] = ip[1].to_ne_bytes();
    if protocol != PROTOCOL_TCP {
        return match protocol {
            PROTOCOL_ICMPV6 => icmp::v6::<LINK>(ctx),
            _ if odd::is_extension(protocol) => Some(odd::v6(ctx.skb.skb, LINK as u32)),
            _ => None,
        };
    }
    // Never on a wire (RFC 4291, section 2.5.5.2); here it would pass for an IPv4 packet of the same addresses.
    if ip[4] == MAPPED && ip[2] | ip[3] == 0 {
        return None;
    }
    let head: Head = read(ctx, LINK + IPV6, TCP)?;
    let tuple = Tuple {
        source: [ip[2], ip[3], ip[4], ip[5]],
        destination: [ip[6], ip[7], ip[8], ip[9]],
        source_port: head.ports as u16,
        destination_port: (head.ports >> 16) as u16,
    };
    let payload = u32::from(u16::from_be(ip[1] as u16));
    let length = if payload == 0 { 0 } else { payload + IPV6 as u32 };
    segment::<LINK, IPV6>(ctx, &tuple, &head, length)
}

/// A TCP segment that has nothing odd about it. `length`: of the IP packet; 0 where it is longer than fits the field.
#[inline(always)]
fn segment<const LINK: usize, const IP: usize>(
    ctx: &TcContext,
    tuple: &Tuple,
    head: &Head,
    length: u32,
) -> Option<i32> {
    let Some(flow) = PACKET_FLOWS.get_ptr(tuple) else {
        sight::<LINK, IP>(ctx, tuple, head);
        return None;
    };
    // SAFETY: the kernel unmaps no map value during this run. It may give it to another flow, which `Stamp` notices.
    let flow = unsafe { &*flow };
    let stamp = Stamp::of(flow);
    // SAFETY: fields of the program's context, which lives as long as the run.
    let (mark, kind, device) =
        unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).pkt_type, (*ctx.skb.skb).ifindex) };
    if mark == packet::FOR_SOCKET_MARK && device == LOOPBACK {
        // Late, it would meet no socket any more.
        return match PACKET_HANDOVERS.get_ptr(flow.id) {
            Some(_) => None,
            None => drop_counted(Count::SocketGone),
        };
    }
    if kind != PACKET_HOST {
        // Seen by a promiscuous device; the stack takes no notice of it.
        return None;
    }
    let Some(halves) = Halves::of(flow) else { return drop_counted(Count::NotWritable) };
    if device != flow.from && !comes_by(device, tuple, flow) {
        refuse_device(device, flow, &halves);
        return Some(TC_ACT_SHOT);
    }

    let length = if length == 0 { ctx.len() - LINK as u32 } else { length };
    let headers = (IP + head.length()) as u32;
    if head.length() < TCP || length < headers {
        return drop_counted(Count::BadOptions);
    }
    let Some(Work { segment, limits }) = work() else { return drop_counted(Count::NotWritable) };
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
            Some(handover) => limits.await_ack = Some(of(&handover.await_ack, flow.side())),
            None => halves.end_handover(),
        }
    }
    if head.has(tcp::SYN | tcp::RST) || halves.is_closing() {
        match track::gate(flow, &halves, segment, limits.await_ack) {
            Gate::Open => {}
            Gate::ResetOutside => return drop_counted(Count::ResetOutside),
            Gate::BehindEnd => return drop_counted(Count::BehindEnd),
            Gate::ResetInexact => return track::ask(flow, &halves, Count::ResetInexact),
            Gate::SynOnLive => return track::ask(flow, &halves, Count::SynOnLive),
            Gate::Over => {
                if is_sighted(tuple, head) {
                    // A late copy of the closed connection's own SYN: it begins nothing new.
                    return drop_counted(Count::SynLate);
                }
                track::take_over(flow, &halves, tuple);
                sight::<LINK, IP>(ctx, tuple, head);
                return None;
            }
        }
    }
    if let (Some(handover), Some(await_ack)) = (handover, limits.await_ack) {
        if segment.payload == 0 && !head.has(tcp::SYN | tcp::FIN | tcp::RST) && before(segment.ack, await_ack)
        {
            // It acknowledges bytes that our socket sent; the far end's own come behind them.
            return for_socket::<LINK, IP>(ctx, head, of(&handover.promised, flow.side()));
        }
        limits.tsecr_floor = Some(of(&handover.tsecr_floor, flow.side()));
        if segment.payload != 0 && before(halves.own_end(), segment.seq) {
            halves.note_beyond();
        }
        let receiver = 1 - flow.side();
        if halves.own_closing() & closing::BEYOND != 0
            || before(halves.peer_ack(), of(&handover.await_ack, receiver))
        {
            let (promised, sent) = (of(&handover.promised, receiver), halves.peer_end());
            // A right edge below what has been sent would make its sender acknowledge from beyond it, and be dropped.
            limits.window_end = Some(if before(promised, sent) { sent } else { promised });
        }
    }
    leave::<LINK, IP>(ctx, flow, stamp, &halves, head, headers, length, segment, limits)
}

/// Whether packets of this flow may come by that device too.
#[inline(never)]
fn comes_by(device: u32, tuple: &Tuple, flow: &Flow) -> bool {
    PACKET_PATHS.get_ptr(Path { device, expected: flow.from, peer: tuple.source }).is_some()
}

/// Drops a packet that came by the wrong device. Userspace is told once in a while: a stranger may send many.
#[inline(always)]
fn refuse_device(device: u32, flow: &Flow, halves: &Halves) {
    if halves.ask(asked::DEVICE) {
        tell(flow, event::WRONG_DEVICE, device, 0);
    }
    count(Count::WrongDevice);
}

/// Which flow a map value belonged to when it was found. Since Linux 6.1 the kernel may give the memory of a value that was
/// removed to another one at once, also while a program works with it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp(u64);

impl Stamp {
    #[inline(always)]
    fn of(flow: &Flow) -> Self {
        // SAFETY: a reference is valid and aligned; volatile, for the memory may change.
        let (id, flags) =
            unsafe { (read_volatile(&raw const flow.id), read_volatile(&raw const flow.flags)) };
        // The other direction has the same id. So few connections have been here that the highest byte is free.
        Self(id ^ u64::from(flags) << 56)
    }

    /// Whether it still belongs to it: what was read before was that flow's.
    #[inline(always)]
    fn holds(self, flow: &Flow) -> bool {
        self == Self::of(flow)
    }
}

/// By a branch: the verifier rejects a variable offset into the stack.
#[inline(always)]
fn of(pair: &[u32; 2], side: usize) -> u32 {
    if side == 0 { pair[0] } else { pair[1] }
}

/// Passes a pure ACK up to our socket. Its SEQ is lowered to the right edge of the socket's window, beyond which the
/// socket would drop it.
#[inline(always)]
fn for_socket<const LINK: usize, const IP: usize>(
    ctx: &TcContext,
    head: &Head,
    window_end: u32,
) -> Option<i32> {
    if !before(window_end, head.sequence()) {
        return None;
    }
    let change = Difference::default().word(head.seq, window_end.to_be());
    let checksum = (LINK + IP + TCP_CHECKSUM) as u32;
    // SAFETY: a helper that takes the context of this program type; the header's bounds are checked.
    unsafe {
        if bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, change.sum().into(), 0) != 0 {
            return drop_counted(Count::NotWritable);
        }
        let Some(seq) = header::<u32>(ctx, LINK + IP + 4, 4) else {
            return drop_counted(Count::NotWritable);
        };
        *seq = window_end.to_be();
    }
    None
}

/// What is known of the packet in hand. Not on the stack, which has no room for it, and of which the verifier would follow
/// every value.
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

/// What a packet may not say while sockets still send; see [`Handover`].
#[derive(Default)]
struct HandoverLimits {
    await_ack: Option<u32>,
    tsecr_floor: Option<u32>,
    /// Where the window that the receiver is told ends at the latest.
    window_end: Option<u32>,
}

/// Sends a packet on its way: fits, translates, notes, redirects.
#[expect(clippy::too_many_arguments, reason = "inlined: a structure would take room on the stack")]
#[inline(always)]
fn leave<const LINK: usize, const IP: usize>(
    ctx: &TcContext,
    flow: &Flow,
    stamp: Stamp,
    halves: &Halves,
    head: &Head,
    headers: u32,
    length: u32,
    segment: &mut Segment,
    limits: &HandoverLimits,
) -> Option<i32> {
    if length > FITS_ANYWHERE && flow.exit != exit::LOCAL && !fits(ctx, flow, head, headers, length) {
        return drop_counted(Count::TooBig);
    }
    if LINK == 0 && !add_ethernet_header(ctx) {
        return drop_counted(Count::NotWritable);
    }
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
            let Some(scratch) = load_options(ctx, at, options_length) else {
                return drop_counted(Count::BadOptions);
            };
            if scratch.translate(flow, options_length, limits.tsecr_floor).is_err() {
                return drop_counted(Count::BadOptions);
            }
            if let Some(tsval) = scratch.tsval() {
                (segment.timestamps, segment.tsval) = (true, tsval);
            }
            for i in 0..options::MAX / 4 {
                difference = difference.word(word(&scratch.old, i), word(&scratch.new, i));
            }
        }
    }

    let checksum = (ETHERNET + IP + TCP_CHECKSUM) as u32;
    let skb = ctx.skb.skb;
    let written = if IP == IPV4 { write_ipv4(ctx, flow, checksum) } else { write_ipv6(ctx, flow, checksum) };
    match written {
        Written::Yes => {}
        Written::No => return drop_counted(Count::NotWritable),
        Written::Congested => return drop_counted(Count::Congestion),
    }
    // SAFETY: helpers that take the context of this program type, and the scratch of this CPU, which is `at least`
    // `options_length` (checked by `load_options`) bytes long.
    unsafe {
        if bpf_l4_csum_replace(skb, checksum, 0, difference.sum().into(), 0) != 0 {
            return drop_counted(Count::NotWritable);
        }
        if options_length > 0 && timestamps.is_none() {
            let (Some(scratch), Some(length)) = (scratch(), bounded(options_length)) else {
                return drop_counted(Count::BadOptions);
            };
            if bpf_skb_store_bytes(skb, at as u32, scratch.new.as_ptr().cast(), length, 0) != 0 {
                return drop_counted(Count::NotWritable);
            }
        }
        let Some(segment) = header::<[u32; 4]>(ctx, ETHERNET + IP, TCP) else {
            return drop_counted(Count::NotWritable);
        };
        *segment = new.words();
        if let Some(words) = timestamps {
            let Some(options) = header::<[u32; 3]>(ctx, ETHERNET + IP + TCP, 12) else {
                return drop_counted(Count::NotWritable);
            };
            *options = words;
        }
    }
    let way = way_of(flow);
    if !stamp.holds(flow) {
        return drop_counted(Count::FlowGone);
    }
    track::note(flow, halves, segment, limits.await_ack);
    redirect(ctx, way.ifindex, way.kind)
}

/// How the packets of a flow leave, as its memory has it now: whether that is still its own, a [`Stamp`] tells afterwards.
#[inline(always)]
fn way_of(flow: &Flow) -> Way {
    // SAFETY: as in `Stamp::of`.
    unsafe {
        Way { ifindex: read_volatile(&raw const flow.ifindex), kind: read_volatile(&raw const flow.exit) }
    }
}

/// Sends a packet, with room for an Ethernet header, on its way: out by the device, or into what is behind it.
#[inline(always)]
fn redirect(ctx: &TcContext, ifindex: u32, exit: u8) -> Option<i32> {
    // SAFETY: helpers without pointers of ours; the header's bounds are checked.
    unsafe {
        match exit {
            exit::LOCAL => {
                // The loopback device takes for another host's what is not addressed to its own address: zeros.
                let Some(addresses) = header::<[u16; 6]>(ctx, 0, 12) else {
                    return drop_counted(Count::NotWritable);
                };
                *addresses = [0; 6];
                Some(bpf_redirect(LOOPBACK, BPF_F_INGRESS.into()) as i32)
            }
            exit::PEER => Some(bpf_redirect_peer(ifindex, 0) as i32),
            _ => Some(bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32),
        }
    }
}

/// How writing the IP header went.
enum Written {
    Yes,
    No,
    /// The packet says that congestion was experienced, and the leg it leaves by has no word for it: it is to be
    /// dropped, which says the same (RFC 6040, section 4.2).
    Congested,
}

/// A function of its own, as the next one is: the stack of its caller has no room for the header.
#[inline(never)]
fn write_ipv4(ctx: &TcContext, flow: &Flow, checksum: u32) -> Written {
    let Some(old) = read::<[u32; 5]>(ctx, ETHERNET, IPV4) else { return Written::No };
    let mut new = old;
    (new[3], new[4]) = (flow.out.source[3], flow.out.destination[3]);
    let addresses = Difference::default().word(old[3], new[3]).word(old[4], new[4]);
    if flow.has(flag::STRIP_ECN) {
        let [version, service, length @ ..] = old[0].to_ne_bytes();
        if service & ECN == ECN {
            return Written::Congested;
        }
        new[0] = u32::from_ne_bytes([version, service & !ECN, length[0], length[1]]);
    }
    let sum = addresses.word(old[0], new[0]).apply((old[2] >> 16) as u16);
    new[2] = old[2] & 0xffff | u32::from(sum) << 16;
    // SAFETY: a helper that takes the context of this program type; the header's bounds are checked.
    unsafe {
        let flags = u64::from(BPF_F_PSEUDO_HDR);
        if bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, addresses.sum().into(), flags) != 0 {
            return Written::No;
        }
        let Some(ip) = header::<[u32; 5]>(ctx, ETHERNET, IPV4) else { return Written::No };
        *ip = new;
    }
    Written::Yes
}

#[inline(never)]
fn write_ipv6(ctx: &TcContext, flow: &Flow, checksum: u32) -> Written {
    let Some(old) = read::<[u32; 10]>(ctx, ETHERNET, IPV6) else { return Written::No };
    let (source, destination) = (&flow.out.source, &flow.out.destination);
    let addresses = Difference::default()
        .words(&[old[2], old[3], old[4], old[5]], source)
        .words(&[old[6], old[7], old[8], old[9]], destination);
    // SAFETY: helpers that take the context of this program type; the header's bounds are checked.
    unsafe {
        if flow.has(flag::STRIP_ECN) {
            let [version, class, label @ ..] = old[0].to_ne_bytes();
            if class & ECN << 4 == ECN << 4 {
                return Written::Congested;
            }
            let word = [version, class & !(ECN << 4), label[0], label[1]];
            let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
            if bpf_skb_store_bytes(ctx.skb.skb, ETHERNET as u32, word.as_ptr().cast(), 4, flags) != 0 {
                return Written::No;
            }
        }
        if !replace_ipv6_addresses(ctx, checksum, addresses) {
            return Written::No;
        }
        let Some(ip) = header::<[[u32; 4]; 2]>(ctx, ETHERNET + 8, 32) else { return Written::No };
        *ip = [*source, *destination];
    }
    Written::Yes
}

/// Corrects a checksum for addresses of the IPv6 header that change.
#[inline(always)]
fn replace_ipv6_addresses(ctx: &TcContext, checksum: u32, addresses: Difference) -> bool {
    let flags = u64::from(BPF_F_PSEUDO_HDR);
    // Kernels before 6.16 do not know the second flag and refuse; there a packet whose sum the device has made reaches
    // the next socket of this host with a sum that is made once more.
    [flags | BPF_F_IPV6, flags].into_iter().any(|flags| {
        // SAFETY: a helper that takes the context of this program type.
        unsafe { bpf_l4_csum_replace(ctx.skb.skb, checksum, 0, addresses.sum().into(), flags) == 0 }
    })
}

/// The two bits of ECN in the traffic class; both: congestion experienced (RFC 3168, section 5).
const ECN: u8 = 3;

/// Whether the packet, or each segment it will be cut into, fits the device it leaves by. If not, its sender is told,
/// by userspace.
#[inline(always)]
fn fits(ctx: &TcContext, flow: &Flow, head: &Head, headers: u32, length: u32) -> bool {
    let mut mtu = 0;
    // SAFETY: a helper that takes the context of this program type; a field of it.
    let segment = unsafe {
        // Only for the number: what it says of the packet counts merged segments as one packet, or not at all.
        bpf_check_mtu(ctx.as_ptr(), flow.ifindex, &mut mtu, 0, 0);
        (*ctx.skb.skb).gso_size
    };
    let size = if segment != 0 { headers + segment } else { length };
    if mtu == 0 || size <= mtu {
        return true;
    }
    tell(flow, event::TOO_BIG, head.sequence(), mtu);
    false
}

/// Puts an Ethernet header in front, which the ways out expect.
#[inline(always)]
fn add_ethernet_header(ctx: &TcContext) -> bool {
    // SAFETY: a helper that takes the context of this program type; the header's bounds are checked.
    unsafe {
        let protocol = (*ctx.skb.skb).protocol as u16;
        if bpf_skb_change_head(ctx.skb.skb, ETHERNET as u32, 0) != 0 {
            return false;
        }
        let Some(field) = header::<u16>(ctx, ETHERNET - 2, 2) else { return false };
        *field = protocol;
    }
    true
}

/// Whether this SYN was noted, and no other since.
#[inline(always)]
fn is_sighted(tuple: &Tuple, head: &Head) -> bool {
    // SAFETY: a number, which another CPU may replace as a whole.
    unsafe { PACKET_SIGHTINGS.get(tuple) }.is_some_and(|sighting| sighting.isn == head.sequence())
}

/// Notes a SYN toward a listener, or a SYN-ACK toward a source port of ours, and of what follows a SYN the first
/// acknowledgement number.
#[inline(always)]
fn sight<const LINK: usize, const IP: usize>(ctx: &TcContext, tuple: &Tuple, head: &Head) {
    let is_answer = head.has(tcp::SYN) && head.has(tcp::ACK);
    let bitmap = if is_answer { packet::PORT_WORDS } else { 0 };
    let port = u32::from(u16::from_be(tuple.destination_port));
    let Some(ports) = PACKET_PORTS.get(bitmap + (port >> 6)) else { return };
    if ports >> (port & 63) & 1 == 0 {
        return;
    }
    if !head.has(tcp::SYN) {
        return sight_acknowledgement(tuple, head);
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
    if is_answer {
        found.flags |= sighted::ACKNOWLEDGED;
    }
    let sighting = Sighting {
        isn: head.sequence(),
        // SAFETY: a field of the program's context, which lives as long as the run.
        ifindex: unsafe { (*ctx.skb.skb).ifindex },
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

/// A segment behind a SYN that was sighted.
#[inline(always)]
fn sight_acknowledgement(tuple: &Tuple, head: &Head) {
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

/// Copies options into this CPU's scratch, the rest of which is 0. `None`: there are not so many.
#[inline(always)]
fn load_options(ctx: &TcContext, at: usize, length: usize) -> Option<&'static mut Scratch> {
    let scratch = scratch()?;
    scratch.old = [0; options::MAX];
    let length = bounded(length)?;
    // SAFETY: a helper that takes the context of this program type; `length` is at most that of the array.
    let status =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, scratch.old.as_mut_ptr().cast(), length) };
    (status == 0).then_some(scratch)
}

/// This CPU's scratch.
#[inline(always)]
fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: a run is not interrupted by another one on its CPU, and uses one reference at a time.
    PACKET_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// 1 to 40. What is left out of account is that the length is a multiple of four, and so bounded, already: the verifier
/// does not follow that. Nor do verifiers before Linux 6.13 follow a comparison with the lower bound, which the compiler
/// folds into that with the upper one; so what is compared is one less, and cannot become 0 when the one is added.
#[inline(always)]
fn bounded(length: usize) -> Option<u32> {
    let less_one = core::hint::black_box((length as u32).wrapping_sub(1)) & 63;
    (less_one < options::MAX as u32).then_some(less_one + 1)
}

#[inline(always)]
fn word(bytes: &[u8; options::MAX], index: usize) -> u32 {
    let at = index * 4;
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A copy of what lies `at` this offset of the packet, of which at least `length` bytes must be there.
#[inline(always)]
fn read<T: Copy>(ctx: &TcContext, at: usize, length: usize) -> Option<T> {
    // SAFETY: only called with arrays of integers and with `Head`, for which any bytes are a value.
    header(ctx, at, length).map(|bytes: *mut T| unsafe { *bytes })
}

/// Where the packet has `length` bytes (at least a `T`) at this offset, within bounds; good until the next helper that
/// may move the packet. Not aligned to more than 2, which the architectures of the kernel's JITs do not mind.
#[inline(always)]
fn header<T>(ctx: &TcContext, at: usize, length: usize) -> Option<*mut T> {
    let end = at + if length < size_of::<T>() { size_of::<T>() } else { length };
    if ctx.data() + end > ctx.data_end() {
        // SAFETY: a helper that takes the context of this program type.
        if unsafe { bpf_skb_pull_data(ctx.skb.skb, end as u32) } != 0 || ctx.data() + end > ctx.data_end() {
            return None;
        }
    }
    Some((ctx.data() + at) as *mut T)
}

#[inline(always)]
fn tick() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> packet::TICK_SHIFT) as u32
}

/// Tells userspace something of a packet's connection; see [`Event`]. A function of its own, for an event takes room on
/// the stack.
#[inline(never)]
fn tell(flow: &Flow, kind: u32, number: u32, mtu: u32) {
    let event = Event { id: flow.id, kind, from_server: flow.side() as u32, number, mtu };
    // The end of a connection is no reason to wake anybody, which takes an interrupt: the sweeper looks often enough.
    // An end that waits for news of its path's MTU is, and one that is to be asked.
    let is_urgent = kind == event::TOO_BIG || kind == event::CHALLENGE;
    let flags = if is_urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    if PACKET_EVENTS.output(event, flags.into()).is_err() {
        count(Count::EventLost);
    }
}

#[inline(always)]
fn drop_counted(reason: Count) -> Option<i32> {
    count(reason);
    Some(TC_ACT_SHOT)
}

#[inline(always)]
fn count(what: Count) {
    if let Some(count) = PACKET_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's own counter.
        unsafe { *count += 1 };
    }
}
