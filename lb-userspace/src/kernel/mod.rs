//! The kernel: what it can do, and the programs that snisplice loads into it. The only user of aya.
//!
//! Pinned programs and maps lie in `<bpffs>/v<ABI>/`, one file each, named as in [`lb_common`].

pub mod addresses;
pub mod arp;
pub mod batch;
mod bpf;
pub mod conntrack;
pub mod devices;
mod error;
mod exits;
pub mod foreign;
pub mod frames;
pub mod ipsec;
pub(crate) mod ktls;
pub mod listeners;
#[cfg(feature = "kernel-log")]
pub mod log;
pub mod needs;
mod netlink;
mod object;
pub mod odd;
pub mod packet;
pub mod pairs;
mod pins;
pub mod probe;
pub mod raw;
mod route;
pub mod routes;
pub mod sockmap;
pub(crate) mod tcp;
mod tracks;
pub(crate) mod tuples;
pub mod version;

pub use error::KernelError;
pub use object::OBJECT;
pub use packet::Packet;
pub use sockmap::Sockmap;
pub use sockmap::programs::{Kernel, load_and_pin};
pub use tracks::FinOrder;

use std::path::Path;

/// `snisplice unload`: detaches the packet tier's programs and removes all pins. `false`: nothing was pinned. Connections
/// of a running gateway in the sockmap tier go on until they end.
pub fn unload(bpffs: &Path) -> Result<bool, KernelError> {
    // First: which programs are meant is known by their pins.
    packet::detach(bpffs)?;
    pins::remove_all(bpffs)
}

/// Whether something is pinned.
pub fn is_loaded(bpffs: &Path) -> Result<bool, KernelError> {
    pins::are_there(bpffs)
}
