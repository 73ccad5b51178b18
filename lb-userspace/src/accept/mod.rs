//! Accept: listening sockets, and what is decided before a byte is read.

mod acl;
mod limit;
mod listen;
mod proxy;

pub use acl::Acl;
pub use limit::{Limit, Permit};
pub use listen::listen;
pub use proxy::read_header;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Pause after an accept that failed for want of a resource: the connection stays in the backlog, and trying
/// again at once would only spin.
pub const BACK_OFF: Duration = Duration::from_millis(100);

/// IPv4 as IPv4: a socket that is bound to `::` sees such addresses as `::ffff:192.0.2.1`. Done once, where an address
/// comes in.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, address.port()),
        // With its scope.
        _ => address,
    }
}

/// Whether accept failed because the process or the machine is short of something, rather than because this one
/// client went away (accept(2), "Error handling").
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
