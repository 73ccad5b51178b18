//! The packet tier: the kernel forwards the connection packet by packet, and its sockets are closed without FIN or reset.
//!
//! `plan` looks at the client's handshake before a server is dialled. `begin` enters the flows; `terms` computes them.
//! `PendingHandover::finish` delivers what the sockets still hold. `SplicedConnection` is what this process then keeps of
//! the connection, until the sweeper ends it.

mod adopt;
mod ending;
mod glances;
mod grace;
mod handover;
mod lingering;
mod live;
mod loading;
#[cfg(feature = "kernel-log")]
mod log;
mod odd;
mod reroute;
mod spliced;
mod succession;
mod sweep;
pub(crate) mod terms;
mod thread;
mod ticks;
mod tier;
mod view;
mod ways;

pub(crate) use handover::PendingHandover;
pub use odd::{Loss, Losses};
pub use spliced::SplicedConnection;
pub use sweep::Sweeper;
pub use tier::{PacketTier, Plan};
