//! Accept: listening sockets, and what is decided before a byte is read.

mod acl;
mod inherited;
mod listen;
mod proxy;

pub use acl::Acl;
pub use inherited::{InheritError, Inherited};
pub use listen::{Bind, ListenError, listen, listen_again};
pub use proxy::read_header;

use std::io;
use std::time::Duration;

/// The pause after accept(2) has failed because a resource is exhausted: the connection stays in the backlog, and trying
/// again at once would only spin.
pub const BACK_OFF: Duration = Duration::from_millis(100);

/// Whether accept(2) failed because the process or the machine has exhausted a resource. Other errors are of the one
/// client, which has gone (accept(2), "Error handling").
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
