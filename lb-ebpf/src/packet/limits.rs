//! What holds for a packet while the sockets of its connection still have something to send.

/// Bounds on what a packet says while our sockets still send; see [`Handover`](lb_common::packet::Handover).
#[derive(Default)]
pub(super) struct HandoverLimits {
    pub(super) await_ack: Option<u32>,
    pub(super) tsecr_floor: Option<u32>,
    /// The largest right edge that may be advertised to the receiver.
    pub(super) window_end: Option<u32>,
}
