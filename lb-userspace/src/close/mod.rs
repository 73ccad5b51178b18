//! Close: how a leg ends, so that its peer learns the truth: a FIN after a clean end, a reset after any other.

use crate::socket::{self, reset_on_close};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::time::Duration;
use tokio::net::TcpStream;

/// How long, and how much, a client that was turned away may go on sending before it is cut off.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

/// One leg of a connection. Dropped before its end was seen (the task was ended from outside), it is reset.
pub struct LegSocket {
    socket: TcpStream,
    clean: Cell<bool>,
}

impl LegSocket {
    /// Takes a socket over.
    pub fn new(socket: TcpStream) -> Self {
        LegSocket { socket, clean: Cell::new(false) }
    }

    /// From here on dropping it closes it as the kernel does: with a FIN, if none was sent.
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

/// Says the last word to a client that is turned away and closes in such a way that it hears it: closing with
/// unread bytes would send a reset, and the reset would overtake the word.
pub async fn farewell(client: &LegSocket, word: &[u8]) {
    client.clean();
    if word.is_empty() || socket::write_all(client, word).await.is_err() {
        return;
    }
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
