//! The end of a connection: which SYNs, resets and late segments may pass, and what is noted of the end.

use aya_ebpf::programs::TcContext;
use lb_common::packet::{
    Count, Flow, Side, Tuple, closings, event,
    track::{Bounds, Reset, Segment, asked, closing},
    translate::{Head, tcp},
};

use super::{
    error::{Error, Pass},
    event::{tell, tick},
    halves::Halves,
    maps::{PACKET_FLOWS, count},
    redirect::Stamp,
    sight::{is_sighted, sight},
};

/// Whether a SYN, a reset, or a segment after the first FIN may pass.
#[inline(always)]
pub(super) fn admit<const LINK: usize, const IP: usize>(
    ctx: &TcContext,
    tuple: &Tuple,
    head: &Head,
    flow: &Flow,
    halves: &Halves,
    (segment, stamp): (&Segment, Stamp),
    await_ack: Option<u32>,
) -> Result<(), Error> {
    match gate(flow, halves, segment, await_ack) {
        Gate::Open => Ok(()),
        Gate::ResetOutside => Err(Count::ResetOutside.into()),
        Gate::ResetOfNext => Err(Pass::NewConnection.into()),
        Gate::BehindEnd => Err(Count::BehindEnd.into()),
        Gate::ResetInexact => {
            ask_sender(flow, halves);
            Err(Count::ResetInexact.into())
        }
        Gate::SynOnLive => {
            ask_sender(flow, halves);
            Err(Count::SynOnLive.into())
        }
        Gate::Over => {
            if is_sighted(tuple, head) {
                // A late copy of the closed connection's own SYN: it begins nothing new.
                return Err(Count::SynLate.into());
            }
            if !stamp.holds(flow) {
                return Err(Count::FlowGone.into());
            }
            take_over(flow, halves, tuple);
            sight::<LINK, IP>(ctx, tuple, head);
            Err(Pass::NewConnection.into())
        }
    }
}

/// Whether a packet may pass.
#[repr(u32)]
enum Gate {
    /// It may.
    Open,
    /// It may not: a reset in the window, but not exact. Its sender is asked.
    ResetInexact,
    /// It may not: a reset outside the window.
    ResetOutside,
    /// The connection is finished, so that its port may be another's by now: the reset may refuse that one.
    ResetOfNext,
    /// It may not: a SYN on a live connection, or a SYN-ACK that does not repeat that of its beginning. Its sender is asked.
    SynOnLive,
    /// It may not: after both FINs, and not a retransmission.
    BehindEnd,
    /// It is a SYN, and the connection is over.
    Over,
}

/// A function of its own: the verifier follows it once, and its callers' stack has no room for two halves.
#[inline(never)]
fn gate(flow: &Flow, halves: &Halves, segment: &Segment, await_ack: Option<u32>) -> Gate {
    let (own, peer) = halves.load();
    let bounds = Bounds::new(flow, &own, &peer, await_ack);
    let is_finished = bounds.is_finished(&own, &peer);
    if segment.flags & tcp::RST != 0 {
        return match bounds.judge_reset(&own, segment.seq) {
            Reset::Exact | Reset::Again => Gate::Open,
            // Not to our own socket, which is still there in a handover, and may have repeated something too late.
            _ if is_finished && await_ack.is_none() => Gate::ResetOfNext,
            Reset::InWindow => Gate::ResetInexact,
            Reset::Elsewhere => Gate::ResetOutside,
        };
    }
    if segment.flags & tcp::SYN != 0 {
        return if is_finished || own.has_reset() || peer.has_reset() {
            Gate::Over
        } else if bounds.repeats_the_beginning(segment) {
            Gate::Open
        } else {
            Gate::SynOnLive
        };
    }
    if is_finished && !bounds.repeats_the_end(segment) { Gate::BehindEnd } else { Gate::Open }
}

/// Has userspace send the sender a challenge ACK, unless it was asked to already.
#[inline(always)]
fn ask_sender(flow: &Flow, halves: &Halves) {
    if halves.ask(asked::CHALLENGE) {
        tell(flow, event::CHALLENGE, 0, 0);
    }
}

/// A new connection has the tuple of one that is over.
#[inline(always)]
fn take_over(flow: &Flow, halves: &Halves, tuple: &Tuple) {
    let (own, peer) = (halves.own_closing(), halves.peer_closing());
    let number = match flow.side() {
        Side::Client => closings(own, peer),
        Side::Server => closings(peer, own),
    };
    halves.store_closing(own | closing::REUSED);
    tell(flow, event::REUSED, number, 0);
    let _ = PACKET_FLOWS.remove(flow.out.reversed());
    let _ = PACKET_FLOWS.remove(tuple);
    count(Count::TakenOver);
}

/// Notes an exact reset; whether it is the sender's first.
#[inline(never)]
pub(super) fn note_reset(halves: &Halves) -> bool {
    let own = halves.load_own();
    if own.has_reset() {
        return false;
    }
    count(Count::ResetExact);
    let peer_has_reset = halves.peer_closing() & closing::RESET != 0;
    halves.store(&own, &own.after_reset(peer_has_reset, tick()));
    true
}

/// Notes that a connection is finished; whether this is the first packet to show it.
#[inline(never)]
pub(super) fn note_finish(flow: &Flow, halves: &Halves, await_ack: Option<u32>) -> bool {
    let (own, peer) = halves.load();
    if (own.closing | peer.closing) & closing::FINISHED != 0
        || !Bounds::new(flow, &own, &peer, await_ack).is_finished(&own, &peer)
    {
        return false;
    }
    halves.store_closing(own.closing | closing::FINISHED);
    true
}
