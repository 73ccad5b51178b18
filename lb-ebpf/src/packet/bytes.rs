//! The packet's bytes, within bounds that the verifier accepts.

use aya_ebpf::{helpers::bpf_skb_pull_data, programs::TcContext};
use lb_common::packet::Count;

/// A copy of the `T` at this offset of the packet; `None`: the packet has fewer than `length` bytes from there.
#[inline(always)]
pub(super) fn read<T: Copy>(ctx: &TcContext, at: usize, length: usize) -> Option<T> {
    // SAFETY: only called with arrays of integers and with `Head`, for which any bytes are a value.
    header(ctx, at, length).map(|bytes: *mut T| unsafe { *bytes })
}

/// The `T` at this offset, to be written to.
#[inline(always)]
pub(super) fn writable<T>(ctx: &TcContext, at: usize) -> Result<*mut T, Count> {
    header(ctx, at, size_of::<T>()).ok_or(Count::NotWritable)
}

/// Where the packet has `length` bytes (at least a `T`) at this offset, within bounds; good until the next helper that
/// may move the packet. Aligned to 2, not more, which the architectures of the kernel's JITs do not mind.
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
