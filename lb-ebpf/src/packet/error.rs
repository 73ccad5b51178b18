//! Why a packet is not forwarded, and what that means for it.

use aya_ebpf::bindings::TC_ACT_SHOT;
use lb_common::packet::Count;

use super::maps::count;

/// linux/pkt_cls.h: on to the next program, then up the stack; the same number as TCX_NEXT.
pub(super) const NEXT: i32 = -1;

/// Why a packet is not forwarded.
#[derive(Clone, Copy)]
pub(super) enum Error {
    /// It goes on to the next program and up the stack.
    Pass(#[cfg_attr(not(feature = "log"), expect(dead_code, reason = "told by the log"))] Pass),
    /// It is dropped, and counted as this.
    Drop(Count),
}

/// Why a packet goes up the stack. Not counted: most packets of most hosts do.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Pass {
    /// It has the tag of a VLAN: it comes again without one, on the VLAN's own device.
    Tagged,
    /// Neither TCP nor ICMP.
    OtherProtocol,
    /// It ends before the header does.
    Truncated,
    /// An IPv6 packet with an IPv4-mapped address.
    Mapped,
    /// Its tuple is no flow's.
    NoFlow,
    /// A fragment, or a packet with IP options or extension headers, of no flow.
    OddOfNoFlow,
    /// The frame is addressed to another host; a promiscuous device shows it.
    OtherHost,
    /// It is for one of our sockets, during a handover.
    ForSocket,
    /// A SYN that begins a new connection with the tuple of one that is over; or a reset or an ICMP error that may be about one,
    /// and otherwise meets no socket, and no answer.
    NewConnection,
    /// An ICMP message that is no error, or about a packet that no flow has sent.
    IcmpOfNoFlow,
}

impl From<Pass> for Error {
    #[inline(always)]
    fn from(reason: Pass) -> Self {
        Self::Pass(reason)
    }
}

impl From<Count> for Error {
    #[inline(always)]
    fn from(reason: Count) -> Self {
        Self::Drop(reason)
    }
}

/// What the kernel is told. The one place where a packet is dropped, and where that is counted.
#[inline(always)]
pub(super) fn verdict(result: Result<i32, Error>) -> i32 {
    let error = match result {
        Ok(verdict) => return verdict,
        Err(error) => error,
    };
    match error {
        Error::Pass(_) => NEXT,
        Error::Drop(reason) => {
            count(reason);
            TC_ACT_SHOT
        }
    }
}

/// What a helper returned that changes the packet.
#[inline(always)]
pub(super) fn written(status: i64) -> Result<(), Count> {
    if status == 0 { Ok(()) } else { Err(Count::NotWritable) }
}
