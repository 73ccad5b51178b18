//! The packet tier: the kernel forwards the connection packet by packet; its sockets are closed without a word.
//!
//! `plan` looks at the client's handshake before a server is dialled, `begin` puts the flows in, `Begun::finish` carries
//! over what the sockets still hold; `Live` is all that is left of the connection in this process, and the sweeper ends
//! it. `terms` has the arithmetic.

mod adopt;
mod ending;
mod grace;
mod handover;
mod lingering;
mod live;
mod loading;
#[cfg(feature = "kernel-log")]
mod log;
mod odd;
mod reroute;
mod sweep;
pub(crate) mod terms;
mod thread;
mod ticks;
mod tier;
mod view;
mod ways;

pub(crate) use handover::Begun;
pub use live::Live;
pub use odd::{Loss, Losses};
pub use sweep::Sweeper;
pub use tier::{PacketTier, Plan};
