//! The sockmap tier: takes the bytes of one socket of a spliced connection and sends them by the other.
//!
//! There is no way to push back from here. The program counts, raises an event each [`sockmap::EVENT_STEP`]
//! bytes and goes on; userspace compares what was forwarded with what the peer's TCP took, and ends the splice
//! when the difference is too large.
//!
//! A lookup never misses: userspace inserts both flows and both targets before the sources, and removes them after the
//! sources. After a miss, bytes that TCP has acknowledged would be lost (SK_DROP) or stay in a queue that no process reads
//! (SK_PASS).

use aya_ebpf::{
    EbpfContext as _,
    bindings::sk_action::{SK_DROP, SK_PASS},
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_coarse_ns},
    macros::{map, stream_verdict},
    maps::{HashMap, RingBuf, SockHash},
    programs::SkBuffContext,
};
use lb_common::sockmap::{self, Flow, Segment, Verdict};

/// linux/bpf.h: elements are allocated when they are inserted, because the maps have room for the peak.
const BPF_F_NO_PREALLOC: u32 = 1;

#[map]
static SOCKMAP_SOURCES: SockHash<u64> = SockHash::with_max_entries(sockmap::DEFAULT_SOCKETS, 0);
#[map]
static SOCKMAP_TARGETS: SockHash<u64> = SockHash::with_max_entries(sockmap::DEFAULT_SOCKETS, 0);
#[map]
static SOCKMAP_FLOWS: HashMap<u64, Flow> =
    HashMap::with_max_entries(sockmap::DEFAULT_SOCKETS, BPF_F_NO_PREALLOC);
#[map]
static SOCKMAP_EVENTS: RingBuf = RingBuf::with_byte_size(sockmap::EVENTS_BYTES, 0);

/// SK_PASS with a redirect set: the kernel moves the segment to the peer. SK_DROP: it frees the segment.
#[stream_verdict]
pub fn sockmap_verdict(ctx: SkBuffContext) -> u32 {
    if redirect(&ctx).is_some() { SK_PASS } else { SK_DROP }
}

#[inline(always)]
fn redirect(ctx: &SkBuffContext) -> Option<()> {
    // SAFETY: a helper that takes the context of this program type.
    let source = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let flow = SOCKMAP_FLOWS.get_ptr_mut(source)?;
    // SAFETY: the kernel frees a map value only after this run. The program is the flow's only writer and runs
    // under the lock of its source; userspace only reads copies.
    let flow = unsafe { &mut *flow };

    // SAFETY: a helper without arguments.
    let now_ns = unsafe { bpf_ktime_get_coarse_ns() };
    let taken = match flow.admit(segment(ctx), now_ns) {
        Verdict::Take { skip } => take(ctx, flow, skip),
        Verdict::Refuse => None,
    };
    if flow.event_due() && SOCKMAP_EVENTS.output(source, 0).is_ok() {
        flow.event_sent();
    }
    taken
}

/// Sequence numbers of a segment in the receive queue.
///
/// The first two words of `cb` are the first two of the kernel's `struct tcp_skb_cb`: `seq` and `end_seq`. That
/// is not an ABI, so `Flow::admit` checks that they agree with the segment's length, each time.
#[inline(always)]
fn segment(ctx: &SkBuffContext) -> Segment {
    let skb = ctx.skb.skb;
    // SAFETY: fields of the program's context, which lives as long as the run.
    unsafe { Segment { seq: (*skb).cb[0], end_seq: (*skb).cb[1], len: (*skb).len } }
}

/// Cuts `skip` bytes off the head and redirects the rest. `None`: the segment is to be dropped, which is
/// harmless when nothing was left of it (a lone FIN: an empty segment would make the kernel close the pipe).
#[inline(always)]
fn take(ctx: &SkBuffContext, flow: &mut Flow, skip: u32) -> Option<()> {
    if skip > 0 && cut(ctx, skip).is_none() {
        flow.set_broken();
        return None;
    }
    if ctx.len() == 0 {
        return None;
    }
    if SOCKMAP_TARGETS.redirect_skb(ctx, flow.peer(), 0) != i64::from(SK_PASS) {
        flow.set_broken();
        return None;
    }
    Some(())
}

/// Cuts bytes off the head. The helper takes 4095 at a time; a segment has less than 512 KiB.
#[inline(always)]
fn cut(ctx: &SkBuffContext, mut bytes: u32) -> Option<()> {
    const STEP: u32 = 0xfff;
    for _ in 0..128 {
        let step = if bytes < STEP { bytes } else { STEP };
        ctx.skb.adjust_room(-(step as i32), 0, 0).ok()?;
        bytes -= step;
        if bytes == 0 {
            return Some(());
        }
    }
    None
}
