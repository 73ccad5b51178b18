//! Close: how a leg's socket is closed. The peer gets a FIN after a clean end, and a reset after any other.

use crate::socket::{self, reset_on_close};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use tokio::net::TcpStream;

/// How long, and how many bytes, a client that was turned away may go on sending before it is reset.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// The socket of a leg. If it is dropped before [`clean`](Self::clean), because the task was ended from outside, the peer
/// is reset.
pub struct LegSocket {
    socket: TcpStream,
    clean: Cell<bool>,
}

impl LegSocket {
    /// Takes a socket over.
    pub fn new(socket: TcpStream) -> Self {
        LegSocket { socket, clean: Cell::new(false) }
    }

    /// From here on dropping it closes it normally: with a FIN, if none was sent.
    pub fn clean(&self) {
        self.clean.set(true);
    }
}

impl Deref for LegSocket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.socket
    }
}

impl DerefMut for LegSocket {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.socket
    }
}

impl Drop for LegSocket {
    fn drop(&mut self) {
        if !self.clean.get() {
            reset_on_close(&self.socket);
        }
    }
}

/// Sends the last word to a client that is turned away, and then closes the socket after the client has stopped sending:
/// closing with unread bytes would send a reset, after which the client might not read the word.
pub async fn farewell(client: &LegSocket, word: &[u8]) {
    client.clean();
    if word.is_empty() || socket::write_all(client, word).await.is_err() {
        return;
    }
    linger(client).await;
}

/// Sends a FIN, and waits until the client has stopped sending.
pub async fn linger(client: &LegSocket) {
    let _ = socket::finish(client);
    let (time, mut bytes) = LINGER;
    let drained = async {
        while bytes > 0 {
            let read = socket::read_some(client, &mut Vec::new()).await;
            match read {
                Ok(read) if read > 0 => bytes = bytes.saturating_sub(read),
                _ => return,
            }
        }
    };
    let _ = tokio::time::timeout(time, drained).await;
}
