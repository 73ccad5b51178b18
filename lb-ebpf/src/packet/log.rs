//! Tells by aya-log why packets are not forwarded. Only in an object with the feature `log`: it costs every packet time.
//!
//! A drop is told at level info, a packet that goes up the stack at debug, and one whose tuple is no flow's, as nearly
//! every packet of a host, at trace. What is above `AYA_LOG_LEVEL`, which the loader sets, costs a comparison. What finds
//! no room in the ring buffer is lost, but drops are counted.

use aya_ebpf::{
    bindings::__sk_buff, helpers::bpf_skb_load_bytes, macros::map, maps::PerCpuArray, programs::TcContext,
};
use aya_log_ebpf::{
    log,
    macro_support::{Level, level_enabled},
};
use lb_common::packet::{Address, Count, MAPPED, Tuple};

use super::{
    error::{Error, Pass, verdict},
    layout::{IPV4, IPV6},
    parse::forward,
};

/// What is to be told of the packet in hand.
#[map]
static PACKET_LOGGED: PerCpuArray<Logged> = PerCpuArray::with_max_entries(1, 0);

struct Logged {
    /// As it arrived: by the time it is dropped it may have been translated.
    tuple: Tuple,
    /// Why it is not forwarded, as an index of [`REASONS`]; [`FORWARDED`]: it is.
    reason: u32,
}

const FORWARDED: u32 = u32::MAX;

/// What [`end`] says: of each [`Count`], then of each [`Pass`]. All of one length: with strings of several lengths the
/// verifier would follow the line that is written for each of them.
static REASONS: [[u8; LENGTH]; Count::ALL.len() + Pass::ALL.len()] = {
    let mut reasons = [[b' '; LENGTH]; Count::ALL.len() + Pass::ALL.len()];
    let mut i = 0;
    while i < reasons.len() {
        let (fate, name) = match i < Count::ALL.len() {
            true => ("dropped, ", Count::ALL[i].name()),
            false => ("passed up, ", Pass::ALL[i - Count::ALL.len()].name()),
        };
        put(&mut reasons[i], 0, fate.as_bytes());
        put(&mut reasons[i], fate.len(), name.as_bytes());
        i += 1;
    }
    reasons
};

/// Bytes of the longest.
const LENGTH: usize = 26;

const fn put(line: &mut [u8; LENGTH], at: usize, text: &[u8]) {
    let mut i = 0;
    while i < text.len() {
        line[at + i] = text[i];
        i += 1;
    }
}

/// Runs the program, and tells why it does not forward its packet.
#[inline(always)]
pub(super) fn logged<const LINK: usize>(skb: *mut __sk_buff) -> i32 {
    begin(skb, LINK as u32);
    let [verdict, reason] = decide::<LINK>(skb);
    // By way of the map, where the verifier forgets which reason it is, and follows `end` once for all of them.
    if let Some(logged) = in_hand() {
        logged.reason = reason;
    }
    end(skb);
    verdict.cast_signed()
}

/// The verdict, and what is to be told. A function of its own: all paths meet where it returns, and its stack has no room
/// for anything of the log.
#[inline(never)]
fn decide<const LINK: usize>(skb: *mut __sk_buff) -> [u32; 2] {
    let result = forward::<LINK>(&TcContext::new(skb));
    let reason = match result {
        Ok(_) => FORWARDED,
        Err(Error::Drop(reason)) => reason as u32,
        Err(Error::Pass(reason)) => Count::ALL.len() as u32 + reason as u32,
    };
    [verdict(result).cast_unsigned(), reason]
}

/// Notes what a packet is addressed by, after `link` bytes of link layer header. Zeros if it is no IP packet; its ports
/// as if a TCP header followed a plain IP header.
#[inline(never)]
fn begin(skb: *mut __sk_buff, link: u32) {
    let Some(Logged { tuple, .. }) = in_hand() else { return };
    *tuple = Tuple::default();
    let mut version = [0_u8; 1];
    load(skb, link, &mut version);
    let mut ports = [0_u16; 2];
    if version[0] >> 4 == 4 {
        let mut addresses = [0_u32; 2];
        load(skb, link + 12, &mut addresses);
        tuple.source = [0, 0, MAPPED, addresses[0]];
        tuple.destination = [0, 0, MAPPED, addresses[1]];
        load(skb, link + IPV4 as u32, &mut ports);
    } else if version[0] >> 4 == 6 {
        load(skb, link + 8, &mut tuple.source);
        load(skb, link + 24, &mut tuple.destination);
        load(skb, link + IPV6 as u32, &mut ports);
    }
    [tuple.source_port, tuple.destination_port] = ports;
}

/// Tells why the packet in hand is not forwarded, if it is not.
#[inline(never)]
fn end(skb: *mut __sk_buff) {
    let Some(Logged { tuple, reason }) = in_hand() else { return };
    let Some(text) = REASONS.get(*reason as usize) else { return };
    let level = if *reason == Count::ALL.len() as u32 + Pass::NoFlow as u32 {
        Level::Trace
    } else if *reason >= Count::ALL.len() as u32 {
        Level::Debug
    } else {
        Level::Info
    };
    if !level_enabled(level) {
        return;
    }
    log!(
        &TcContext::new(skb),
        target: "snisplice::kernel",
        level,
        "{:i} port {} to {:i} port {}: {}",
        bytes(&tuple.source),
        u16::from_be(tuple.source_port),
        bytes(&tuple.destination),
        u16::from_be(tuple.destination_port),
        // SAFETY: of whole names and ASCII.
        unsafe { core::str::from_utf8_unchecked(text) },
    );
}

impl Pass {
    const ALL: [Self; 10] = [
        Self::Tagged,
        Self::OtherProtocol,
        Self::Truncated,
        Self::Mapped,
        Self::NoFlow,
        Self::OddOfNoFlow,
        Self::OtherHost,
        Self::ForSocket,
        Self::NewConnection,
        Self::IcmpOfNoFlow,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Tagged => "vlan_tagged",
            Self::OtherProtocol => "other_protocol",
            Self::Truncated => "truncated",
            Self::Mapped => "mapped_address",
            Self::NoFlow => "no_flow",
            Self::OddOfNoFlow => "odd_of_no_flow",
            Self::OtherHost => "other_host",
            Self::ForSocket => "for_socket",
            Self::NewConnection => "new_connection",
            Self::IcmpOfNoFlow => "icmp_of_no_flow",
        }
    }
}

/// This CPU's.
#[inline(always)]
fn in_hand() -> Option<&'static mut Logged> {
    // SAFETY: a run is not interrupted by another one on its CPU, and uses one reference at a time. What it reads it has
    // written before, in `begin`.
    PACKET_LOGGED.get_ptr_mut(0).map(|logged| unsafe { &mut *logged })
}

#[inline(always)]
fn bytes(address: &Address) -> [u8; 16] {
    let [a, b, c, d] = address.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// Copies what the packet has at this offset; nothing, if it ends before.
#[inline(always)]
fn load<T, const N: usize>(skb: *mut __sk_buff, at: u32, to: &mut [T; N]) {
    // SAFETY: a helper that takes the context of this program type, and as much memory as it is told; only called with
    // integers, for which any bytes are a value.
    unsafe { bpf_skb_load_bytes(skb.cast(), at, to.as_mut_ptr().cast(), size_of::<[T; N]>() as u32) };
}
