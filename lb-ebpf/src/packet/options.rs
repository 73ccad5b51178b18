//! A packet's TCP options, copied to where [`Scratch`] reads and translates them.

use aya_ebpf::{helpers::bpf_skb_load_bytes, macros::map, maps::PerCpuArray, programs::TcContext};
use lb_common::packet::options::{MAX, Scratch};

/// The options of the packet in hand, before and after: too much for the stack, and the verifier follows a varying
/// index better into a map.
#[map]
static PACKET_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Copies options into this CPU's scratch and zeroes the rest of it. `None`: the packet has fewer bytes, or the length
/// is not one of options.
#[inline(always)]
pub(super) fn load_options(ctx: &TcContext, at: usize, length: usize) -> Option<&'static mut Scratch> {
    let scratch = scratch()?;
    scratch.old = [0; MAX];
    let length = bounded(length)?;
    // SAFETY: a helper that takes the context of this program type; `length` is at most that of the array.
    let status =
        unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), at as u32, scratch.old.as_mut_ptr().cast(), length) };
    (status == 0).then_some(scratch)
}

/// This CPU's scratch.
#[inline(always)]
pub(super) fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: a run is not interrupted by another one on its CPU, and uses one reference at a time.
    PACKET_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The length, if it is 1 to 40, in a form that verifiers before Linux 6.13 accept as a helper's size. They do not see
/// that a data offset bounds the length. Nor do they follow a comparison with the lower bound, which the compiler merges
/// with that of the upper one; so the length less one is compared, and cannot become 0 when one is added.
#[inline(always)]
pub(super) fn bounded(length: usize) -> Option<u32> {
    let less_one = core::hint::black_box((length as u32).wrapping_sub(1)) & 63;
    (less_one < MAX as u32).then_some(less_one + 1)
}

#[inline(always)]
pub(super) fn word(bytes: &[u8; MAX], index: usize) -> u32 {
    let at = index * 4;
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
