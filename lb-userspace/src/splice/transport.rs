//! What a relayed leg speaks: bytes as they are, or TLS around them.

use crate::reason::TlsError;
use crate::scratch::Output;
use crate::socket::read_once;
use crate::traffic::add;
use std::io::{self, ErrorKind::WouldBlock};
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// What ended a leg.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// Its socket: a reset, most of the time.
    Socket,
    /// Its TLS.
    Tls(TlsError),
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Failure::Socket
    }
}

/// What one read has given.
#[derive(Debug)]
pub struct Received<'b> {
    /// For the other leg. Empty where all that came was of the transport's own, or of a record that is not whole yet.
    pub bytes: &'b [u8],
    /// The read filled its buffer: there is more.
    pub filled: bool,
    /// The peer sends nothing any more.
    pub end: bool,
}

/// One leg of a relayed connection: the bytes of the application in and out.
pub trait Transport {
    /// The leg's socket.
    fn socket(&self) -> &TcpStream;

    /// The socket carries the application's bytes themselves: they may be moved in the kernel.
    fn is_plain(&self) -> bool;

    /// Ready when a read is worth a try.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>;

    /// Reads once, into `input`; `plaintext` is for what is made of it. `None`: there was nothing to read.
    fn read<'b>(
        &mut self,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Result<Option<Received<'b>>, Failure>;

    /// Sends bytes, and keeps what the socket does not take. `records` is for what is made of them. Counts what is
    /// delivered: into a plain socket what it takes, into TLS what is encrypted.
    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure>;

    /// Nothing more will be written: what the transport itself says then is sent behind the rest. The FIN is the relay's.
    fn end(&mut self, records: &mut Output) -> Result<(), Failure>;

    /// Sends what is kept; ready when nothing is left.
    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>>;
}

/// Bytes that a socket has not taken yet.
#[derive(Default)]
pub struct Kept {
    bytes: Vec<u8>,
    /// 0 <= sent <= bytes.len()
    sent: usize,
}

impl Kept {
    /// All of these are yet to be sent.
    pub fn new(bytes: Vec<u8>) -> Self {
        Kept { bytes, sent: 0 }
    }

    /// How many there are.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Sends what is kept; ready when nothing is left. `sent` is told how much the socket took.
    pub fn poll_flush(
        &mut self,
        to: &TcpStream,
        cx: &mut Context<'_>,
        mut sent: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.left() > 0 {
            match to.try_write(&self.bytes[self.sent..]) {
                Ok(taken) => {
                    self.sent += taken;
                    sent(taken);
                }
                Err(error) if error.kind() == WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        *self = Kept::default();
        Poll::Ready(Ok(()))
    }

    /// Sends `bytes` behind what is kept, at once if nothing is, and keeps what the socket does not take. How much it took.
    pub fn write(&mut self, bytes: &[u8], to: &TcpStream) -> io::Result<usize> {
        let sent = match self.left() {
            0 => match to.try_write(bytes) {
                Ok(sent) => sent,
                Err(error) if error.kind() == WouldBlock => 0,
                Err(error) => return Err(error),
            },
            _ => 0,
        };
        self.bytes.extend_from_slice(&bytes[sent..]);
        Ok(sent)
    }
}

/// A socket whose bytes are the application's.
pub struct Plain<'a> {
    socket: &'a TcpStream,
    kept: Kept,
}

impl<'a> Plain<'a> {
    /// `kept` goes out before anything else.
    pub fn new(socket: &'a TcpStream, kept: Vec<u8>) -> Self {
        Plain { socket, kept: Kept::new(kept) }
    }
}

impl Transport for Plain<'_> {
    fn socket(&self) -> &TcpStream {
        self.socket
    }

    fn is_plain(&self) -> bool {
        true
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.socket.poll_read_ready(cx).map_err(Failure::from)
    }

    fn read<'b>(
        &mut self,
        input: &'b mut [u8],
        _: &'b mut Output,
    ) -> Result<Option<Received<'b>>, Failure> {
        match read_once(self.socket, input) {
            Ok(read) => {
                Ok(Some(Received { filled: read == input.len(), end: read == 0, bytes: &input[..read] }))
            }
            Err(error) if error.kind() == WouldBlock => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write(&mut self, bytes: &[u8], _: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        add(delivered, self.kept.write(bytes, self.socket)?);
        Ok(())
    }

    fn end(&mut self, _: &mut Output) -> Result<(), Failure> {
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        self.kept.poll_flush(self.socket, cx, |sent| add(delivered, sent)).map_err(Failure::from)
    }
}
