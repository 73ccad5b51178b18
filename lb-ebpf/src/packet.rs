//! The packet tier: forwards the packets of spliced connections, and notes the SYNs of connections to come.
//!
//! Attached at tc ingress of every device. A packet that does not concern us goes on to the next program and up the
//! stack, as if this program was not there. A packet of a [`Flow`](lb_common::packet::Flow) never goes up: it leaves
//! translated, or it is dropped as on a lossy link. Up the stack it would meet no socket, and be answered with a reset. When a
//! connection is over, what may be about the next one with its tuple does go up.
//!
//! Each step returns `Ok` with the kernel's verdict, or an [`error::Error`], which [`error::verdict`] alone turns into
//! a verdict and a counter.
//!
//! Checksums are changed by the kernel's helpers only: they know whether a sum is complete, partial or still to be made
//! by the device. All else is written into the packet afterwards, because the helpers may move it.

mod bytes;
mod closing;
mod error;
mod event;
mod halves;
mod icmp;
mod inject;
mod layout;
mod limits;
#[cfg(feature = "log")]
mod log;
mod maps;
mod odd;
mod options;
mod parse;
mod redirect;
mod segment;
mod sight;
mod track;
mod write;

use aya_ebpf::{macros::classifier, programs::TcContext};
use layout::ETHERNET;
#[cfg(not(feature = "log"))]
use {error::verdict, parse::forward};

/// For devices with an Ethernet header.
#[classifier]
pub fn packet_ethernet(ctx: TcContext) -> i32 {
    run::<ETHERNET>(&ctx)
}

/// For devices whose packets begin with the IP header.
#[classifier]
pub fn packet_bare(ctx: TcContext) -> i32 {
    run::<0>(&ctx)
}

/// `LINK`: bytes of the link layer header.
#[inline(always)]
fn run<const LINK: usize>(ctx: &TcContext) -> i32 {
    #[cfg(feature = "log")]
    return log::logged::<LINK>(ctx.skb.skb);
    #[cfg(not(feature = "log"))]
    verdict(forward::<LINK>(ctx))
}
