//! Fragments and packets with IPv4 options or IPv6 extension headers ([`lb_common::packet::odd`]): copied to userspace,
//! which sends them back whole and plain.
//!
//! By perf buffers: they alone take a packet of any length in one call on every supported kernel, and they refuse it if no
//! process reads them. Nothing here is inlined into the path of plain packets.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_CURRENT_CPU},
    helpers::{bpf_perf_event_output, bpf_skb_load_bytes},
    macros::map,
    maps::{LruHashMap, PerCpuArray, PerfEventArray},
};
use lb_common::packet::{
    Count, MAPPED, Tuple,
    odd::{self, Fragments, Odd},
};

use super::{
    error::{Error, Pass},
    event::tick,
    layout::{IPV4, IPV6, PROTOCOL_TCP},
    maps::PACKET_FLOWS,
};

/// Next header of an IPv6 fragment (RFC 8200, section 4.5).
const FRAGMENT: u8 = 44;
/// How long a note of whose fragments these are is valid, in ticks: 17 s, a little longer than userspace waits for them.
const NOTED: u32 = 1 << 14;

#[map]
static PACKET_ODD: PerfEventArray<Odd> = PerfEventArray::new(0);
#[map]
static PACKET_FRAGMENTS: LruHashMap<Fragments, u32> = LruHashMap::with_max_entries(odd::MAX_FRAGMENTS, 0);
/// What is known of the packet in hand: the stack is full with the caller's.
#[map]
static PACKET_ODD_WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

struct Work {
    tuple: Tuple,
    fragments: Fragments,
    odd: Odd,
}

/// Whether TCP may be behind an IPv6 header with this next header: hop-by-hop options, routing, fragment, destination
/// options.
#[inline(always)]
pub(super) fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | FRAGMENT | 60)
}

/// What becomes of an IPv4 packet whose TCP header does not follow 20 bytes of IP header, or is not whole.
#[inline(always)]
pub(super) fn v4(skb: *mut __sk_buff, link: u32) -> Error {
    error(look_v4(skb, link))
}

/// What becomes of an IPv6 packet with extension headers, or whose TCP header is not whole.
#[inline(always)]
pub(super) fn v6(skb: *mut __sk_buff, link: u32) -> Error {
    error(look_v6(skb, link))
}

#[inline(always)]
fn error(outcome: Option<Count>) -> Error {
    outcome.map_or(Error::Pass(Pass::OddOfNoFlow), Error::Drop)
}

/// As how the packet is counted, which ends here; `None`: it goes up the stack. One word, which is all that a BPF function
/// can return.
#[inline(never)]
fn look_v4(skb: *mut __sk_buff, link: u32) -> Option<Count> {
    let mut ip = [0_u32; 5];
    let work = work()?;
    if !load(skb, link, &mut ip) {
        return None;
    }
    let [version, ..] = ip[0].to_ne_bytes();
    let [_, protocol, _, _] = ip[2].to_ne_bytes();
    let length = u32::from(version & 15) * 4;
    let fragment = u16::from_be((ip[1] >> 16) as u16) & 0x3fff;
    if protocol != PROTOCOL_TCP || version >> 4 != 4 || length < IPV4 as u32 {
        return None;
    }
    if length == IPV4 as u32 && fragment == 0 {
        // Truncated.
        return None;
    }
    work.fragments.source = [0, 0, MAPPED, ip[3]];
    work.fragments.destination = [0, 0, MAPPED, ip[4]];
    work.fragments.id = ip[1] & 0xffff_u32.to_le();
    if fragment & 0x1fff != 0 {
        return later(skb, link, work);
    }
    first(skb, link, link + length, fragment != 0, work)
}

/// As [`look_v4`].
#[inline(never)]
fn look_v6(skb: *mut __sk_buff, link: u32) -> Option<Count> {
    let mut ip = [0_u32; 10];
    let work = work()?;
    if !load(skb, link, &mut ip) || ip[4] == MAPPED && ip[2] | ip[3] == 0 {
        return None;
    }
    work.fragments.source = [ip[2], ip[3], ip[4], ip[5]];
    work.fragments.destination = [ip[6], ip[7], ip[8], ip[9]];
    work.fragments.id = 0;
    let [_, _, mut next, _] = ip[1].to_ne_bytes();
    if next == PROTOCOL_TCP {
        // Truncated.
        return None;
    }
    let mut at = link + IPV6 as u32;
    let mut is_fragment = false;
    for _ in 0..odd::MAX_HEADERS {
        if !is_extension(next) {
            break;
        }
        let mut words = [0_u32; 2];
        if !load(skb, at, &mut words) {
            return None;
        }
        let [following, length, high, low] = words[0].to_ne_bytes();
        if next == FRAGMENT {
            let fragment = u16::from_be_bytes([high, low]);
            work.fragments.id = words[1];
            if fragment & 0xfff8 != 0 {
                return later(skb, link, work);
            }
            is_fragment = fragment & 1 != 0;
            at += 8;
        } else {
            at += (u32::from(length) + 1) * 8;
        }
        next = following;
    }
    if next != PROTOCOL_TCP {
        return None;
    }
    first(skb, link, at, is_fragment, work)
}

/// A packet that has ports, `at` this offset.
#[inline(always)]
fn first(skb: *mut __sk_buff, link: u32, at: u32, is_fragment: bool, work: &mut Work) -> Option<Count> {
    let mut ports = [0_u32];
    if !load(skb, at, &mut ports) {
        return None;
    }
    work.tuple.source = work.fragments.source;
    work.tuple.destination = work.fragments.destination;
    work.tuple.source_port = ports[0] as u16;
    work.tuple.destination_port = (ports[0] >> 16) as u16;
    work.fragments.of_one = 1;
    if PACKET_FLOWS.get_ptr(work.tuple).is_none() {
        if is_fragment {
            // An earlier packet with this identification was of a flow.
            let _ = PACKET_FRAGMENTS.remove(work.fragments);
        }
        return None;
    }
    if is_fragment {
        let now = tick();
        // Without the note the later fragments go up the stack and the packet is lost; its sender retransmits it.
        let _ = PACKET_FRAGMENTS.insert(work.fragments, now, 0);
        work.fragments.id = 0;
        work.fragments.of_one = 0;
        let _ = PACKET_FRAGMENTS.insert(work.fragments, now, 0);
    }
    take(skb, link, work)
}

/// A fragment that has no ports.
#[inline(always)]
fn later(skb: *mut __sk_buff, link: u32, work: &mut Work) -> Option<Count> {
    work.fragments.of_one = 1;
    if is_noted(&work.fragments) {
        return take(skb, link, work);
    }
    work.fragments.id = 0;
    work.fragments.of_one = 0;
    if is_noted(&work.fragments) {
        // Userspace may need it, if the first fragment follows and is of a flow; if not, it forgets this copy.
        copy(skb, link, work);
    }
    None
}

#[inline(always)]
fn is_noted(fragments: &Fragments) -> bool {
    // SAFETY: a number, which another CPU may replace as a whole.
    unsafe { PACKET_FRAGMENTS.get(fragments) }.is_some_and(|noted| tick().wrapping_sub(*noted) < NOTED)
}

/// From here on the packet is userspace's.
#[inline(always)]
fn take(skb: *mut __sk_buff, link: u32, work: &mut Work) -> Option<Count> {
    Some(if copy(skb, link, work) { Count::OddTaken } else { Count::OddLost })
}

/// Copies the packet to userspace; whether a process got it.
#[inline(always)]
fn copy(skb: *mut __sk_buff, link: u32, work: &mut Work) -> bool {
    // SAFETY: fields of the program's context, which lives as long as the run.
    let (length, ifindex, segment) = unsafe { ((*skb).len, (*skb).ifindex, (*skb).gso_size) };
    if length > odd::MAX_FRAME {
        return false;
    }
    work.odd = Odd { ifindex, length, link, segment };
    // aya's own call does not return whether it succeeded.
    let buffers = (&raw const PACKET_ODD).cast_mut().cast();
    // The upper half: how much of the packet goes along.
    let flags = u64::from(length) << 32 | u64::from(BPF_F_CURRENT_CPU as u32);
    let head = (&raw mut work.odd).cast();
    // SAFETY: a helper that takes the context of this program type, a map of the type that it asks for, and what lies in
    // a map, whole.
    unsafe { bpf_perf_event_output(skb.cast(), buffers, flags, head, size_of::<Odd>() as u64) == 0 }
}

/// Copies words of the packet from this offset. `false`: it ends before.
#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, at: u32, words: &mut [u32; N]) -> bool {
    // SAFETY: a helper that takes the context of this program type, and as much of the stack as it is told.
    unsafe { bpf_skb_load_bytes(skb.cast(), at, words.as_mut_ptr().cast(), 4 * N as u32) == 0 }
}

/// This CPU's.
#[inline(always)]
fn work() -> Option<&'static mut Work> {
    // SAFETY: a run is not interrupted by another one on its CPU, and takes this once.
    PACKET_ODD_WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
}
