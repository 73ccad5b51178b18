//! The sockmap tier: maps, and the rule by which the verdict program admits a segment.
//!
//! Each socket of a spliced connection is named by its cookie. Three maps hold it:
//!
//! | map | type | holds | written by |
//! |---|---|---|---|
//! | [`FLOWS`] | hash | the [`Flow`] that starts at the socket | userspace inserts and removes, the verdict updates |
//! | [`TARGETS`] | sockhash without a program | every socket that may be sent to | userspace |
//! | [`SOURCES`] | sockhash with the verdict program | every socket whose bytes the verdict takes | userspace |
//!
//! Two sockhashes, because leaving one must not end the other: a socket whose bytes are no longer taken still
//! has bytes of its peer queued inside the kernel, and the kernel drops those when the socket leaves its last map.

/// Socket hash with the verdict program attached.
pub const SOURCES: &str = "SOCKMAP_SOURCES";
/// Socket hash without a program.
pub const TARGETS: &str = "SOCKMAP_TARGETS";
/// Hash: cookie of the source -> [`Flow`].
pub const FLOWS: &str = "SOCKMAP_FLOWS";
/// Ring buffer of source cookies (`u64`): userspace should look at that flow.
pub const EVENTS: &str = "SOCKMAP_EVENTS";
/// The verdict program.
pub const VERDICT: &str = "sockmap_verdict";

/// Sockets that the maps take unless the loader says otherwise: two per connection.
pub const DEFAULT_SOCKETS: u32 = 1 << 17;

/// Size of the ring buffer. An event that finds no room is raised again by the next segment.
pub const EVENTS_BYTES: u32 = 1 << 18;

/// Bytes between two events of one flow. It bounds the rate of events, and how far the flow can run ahead of userspace.
pub const EVENT_STEP: u64 = 1 << 20;

/// One direction of a spliced connection. The verdict program is its only writer while the source is in
/// [`SOURCES`], and it runs under that socket's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    peer: u64,
    forwarded: u64,
    event_at: u64,
    active_ns: u64,
    next_seq: u32,
    state: u32,
}

/// No FIN so far.
const OPEN: u32 = 0;
/// All bytes before the FIN are forwarded.
const FINISHED: u32 = 1;
/// The kernel skipped bytes, or its `cb` is laid out differently; nothing was forwarded since.
const BROKEN: u32 = 2;

/// What TCP says about a segment in a socket's receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of the first byte.
    pub seq: u32,
    /// Sequence number after the segment; a FIN counts as one.
    pub end_seq: u32,
    /// Bytes.
    pub len: u32,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Cut `skip` bytes off its head; drop it if nothing is left, else redirect it.
    Take {
        /// Bytes that were forwarded, or read by userspace, before.
        skip: u32,
    },
    /// The stream cannot be continued without losing bytes.
    Refuse,
}

impl Flow {
    /// A flow to the socket `peer` whose first byte has the sequence number `next_seq`.
    pub const fn new(peer: u64, next_seq: u32, now_ns: u64) -> Self {
        Self { peer, forwarded: 0, event_at: EVENT_STEP, active_ns: now_ns, next_seq, state: OPEN }
    }

    /// Cookie of the socket that the bytes leave by.
    pub const fn peer(&self) -> u64 {
        self.peer
    }

    /// Bytes handed to the peer's queue.
    pub const fn forwarded(&self) -> u64 {
        self.forwarded
    }

    /// When the last segment came (CLOCK_MONOTONIC).
    pub const fn active_ns(&self) -> u64 {
        self.active_ns
    }

    /// Sequence number of the next byte to forward.
    pub const fn next_seq(&self) -> u32 {
        self.next_seq
    }

    /// Whether all bytes before the source's FIN are forwarded.
    pub const fn is_finished(&self) -> bool {
        self.state == FINISHED
    }

    /// Whether the stream has a hole.
    pub const fn is_broken(&self) -> bool {
        self.state == BROKEN
    }

    /// Admits the next segment of the receive queue.
    ///
    /// The kernel hands a verdict program whole segments, also where their head was read before: by userspace
    /// before the socket entered the map, or, after a loss, as the head of an overlapping retransmission. Only
    /// the sequence numbers tell, so they decide; and they show any byte that the kernel left out.
    #[inline(always)]
    pub fn admit(&mut self, segment: Segment, now_ns: u64) -> Verdict {
        let end = segment.seq.wrapping_add(segment.len);
        // 1 with a FIN, else 0; anything else is a kernel that lays its segments out differently.
        let fin = segment.end_seq.wrapping_sub(end);
        // "Negative" (huge) when the segment begins behind the next byte: a hole.
        let skip = self.next_seq.wrapping_sub(segment.seq);
        if self.state == BROKEN || fin > 1 || skip > segment.len {
            self.state = BROKEN;
            return Verdict::Refuse;
        }
        self.forwarded += (segment.len - skip) as u64;
        self.next_seq = end;
        self.active_ns = now_ns;
        if fin == 1 {
            self.state = FINISHED;
        }
        Verdict::Take { skip }
    }

    /// The stream has a hole.
    #[inline(always)]
    pub fn set_broken(&mut self) {
        self.state = BROKEN;
    }

    /// Whether userspace is to be told, and has not been for this step.
    #[inline(always)]
    pub const fn event_due(&self) -> bool {
        self.state == BROKEN || self.forwarded >= self.event_at
    }

    /// Userspace was told.
    #[inline(always)]
    pub fn event_sent(&mut self) {
        self.event_at = self.forwarded + EVENT_STEP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = u32::MAX - 5;

    fn flow() -> Flow {
        Flow::new(1, START, 0)
    }

    fn data(seq: u32, len: u32) -> Segment {
        Segment { seq, end_seq: seq.wrapping_add(len), len }
    }

    fn with_fin(segment: Segment) -> Segment {
        Segment { end_seq: segment.end_seq.wrapping_add(1), ..segment }
    }

    #[test]
    fn segments_in_order_pass_whole_across_the_wrap_of_the_sequence() {
        let mut flow = flow();
        for i in 0..4 {
            assert_eq!(flow.admit(data(START.wrapping_add(i * 10), 10), 7), Verdict::Take { skip: 0 });
        }
        assert_eq!((flow.forwarded(), flow.next_seq(), flow.active_ns()), (40, START.wrapping_add(40), 7));
    }

    #[test]
    fn bytes_that_have_passed_before_are_cut_off() {
        let mut flow = flow();
        assert_eq!(flow.admit(data(START.wrapping_sub(3), 10), 0), Verdict::Take { skip: 3 });
        assert_eq!(flow.admit(data(START.wrapping_sub(3), 10), 0), Verdict::Take { skip: 10 });
        assert_eq!(flow.forwarded(), 7);
    }

    #[test]
    fn a_hole_breaks_the_flow_for_good() {
        let mut flow = flow();
        assert_eq!(flow.admit(data(START.wrapping_add(1), 10), 0), Verdict::Refuse);
        assert_eq!(flow.admit(data(START, 10), 0), Verdict::Refuse);
        assert!(flow.is_broken() && flow.event_due());
        assert_eq!(flow.forwarded(), 0);
    }

    #[test]
    fn a_segment_older_than_the_flow_breaks_it() {
        let mut flow = flow();
        assert_eq!(flow.admit(data(START.wrapping_sub(20), 10), 0), Verdict::Refuse);
    }

    #[test]
    fn lengths_that_contradict_the_sequence_break_the_flow() {
        for end in [9, 12, 0] {
            let mut flow = flow();
            let segment = Segment { seq: START, end_seq: START.wrapping_add(end), len: 10 };
            assert_eq!(flow.admit(segment, 0), Verdict::Refuse, "{end}");
        }
    }

    #[test]
    fn a_fin_finishes_the_flow_alone_with_data_and_with_old_data() {
        for (segment, skip, forwarded) in
            [(data(START, 0), 0, 0), (data(START, 10), 0, 10), (data(START.wrapping_sub(10), 10), 10, 0)]
        {
            let mut flow = flow();
            assert_eq!(flow.admit(with_fin(segment), 0), Verdict::Take { skip });
            assert!(flow.is_finished());
            assert_eq!(flow.forwarded(), forwarded);
        }
    }

    #[test]
    fn an_event_is_due_once_a_step() {
        let mut flow = Flow::new(1, 0, 0);
        let mut events = 0;
        for i in 0..64 {
            flow.admit(data(i << 16, 1 << 16), 0);
            if flow.event_due() {
                flow.event_sent();
                events += 1;
            }
        }
        assert_eq!(events, flow.forwarded() / EVENT_STEP);
    }
}
