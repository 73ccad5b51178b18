//! The tracker in the kernel: notes what a segment tells in the halves of its connection. What they come to by it is computed
//! in [`lb_common::packet::track`].

use lb_common::packet::{
    Count, Flow, event,
    track::{Bounds, Segment, Verdict, closing},
    translate::tcp,
};

use super::{
    closing::{note_finish, note_reset},
    event::{tell, tick},
    halves::Halves,
    maps::count,
};

/// Notes what a packet tells that is about to leave: called last, because a dropped packet tells nothing. By functions of
/// their own: the verifier follows each once rather than along every path to here, and the stack has no room for all.
#[inline(always)]
pub(super) fn note(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) {
    if segment.flags & tcp::RST != 0 {
        if note_reset(halves) {
            tell(flow, event::RESET, 0, 0);
        }
    } else if segment.flags & tcp::SYN == 0 {
        let verdict = judge(flow, halves, segment, await_ack);
        if matches!(verdict, Verdict::Counts | Verdict::Near | Verdict::Keepalive) {
            follow(flow, halves, segment, verdict);
            if halves.both_have_fins() && note_finish(flow, halves, await_ack) {
                tell(flow, event::FINISHED, 0, 0);
            }
        }
    }
}

#[inline(never)]
fn judge(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) -> Verdict {
    let (own, peer) = halves.load();
    let verdict = Bounds::new(flow, &own, &peer, await_ack).judge(segment);
    count(match verdict {
        Verdict::Counts | Verdict::Old => return verdict,
        Verdict::Near => Count::Near,
        Verdict::Keepalive => Count::Keepalive,
        Verdict::TooOld => Count::TooOld,
        Verdict::TooNew => Count::TooNew,
        Verdict::NoAck => Count::NoAck,
    });
    verdict
}

#[inline(never)]
fn follow(flow: &Flow, halves: &Halves, segment: &Segment, verdict: Verdict) {
    let own = halves.load_own();
    let peer_has_fin = halves.peer_closing() & closing::FIN != 0;
    let acknowledged = halves.peer_ack().wrapping_sub(flow.seq_delta);
    let new = own.after(verdict, segment, peer_has_fin, acknowledged, flow, tick());
    halves.store(&own, &new);
}
