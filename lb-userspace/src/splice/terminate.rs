//! Terminated routes: TLS ends here, the plaintext goes to the pool.
//!
//! rustls' unbuffered connection keeps no buffers of its own, so that an idle connection owns only its keys:
//! records are decrypted from the worker's buffer and plaintext is encrypted into it.

use super::{Side, idle_expired};
use crate::reason::{CloseReason, TlsError};
use crate::scratch::{self, Buffers, Output};
use crate::socket::{finish, read_once, read_some, reset_on_close, write_all};
use crate::tls;
use crate::traffic::{Traffic, add};
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConfig, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use std::future::poll_fn;
use std::io::{self, ErrorKind::WouldBlock};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::net::TcpStream;

/// Reads that one direction may do before the worker's other connections have their turn.
const TURN: usize = 16;

/// Bytes of ciphertext that may wait for a client that does not read, before nothing more is read from it.
const MAX_ANSWERS: usize = 16 * 1024;

/// Why a handshake did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The client's TLS was at fault, or ours does not suit it.
    #[error("{0}")]
    Tls(rustls::Error, TlsError),
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The client closed in the middle.
    #[error("the client closed during the handshake")]
    Closed,
    /// The client was too slow.
    #[error("the handshake took too long")]
    TimedOut,
}

impl HandshakeError {
    /// The cause, as operators see it.
    pub fn cause(&self) -> TlsError {
        match self {
            HandshakeError::Tls(_, cause) => *cause,
            HandshakeError::Io(_) => TlsError::Reset,
            HandshakeError::Closed => TlsError::Closed,
            HandshakeError::TimedOut => TlsError::Timeout,
        }
    }
}

/// A TLS session with a client, its handshake done.
pub struct Session {
    tls: UnbufferedServerConnection,
    /// Ciphertext received, of a record that is not whole yet.
    incoming: Vec<u8>,
    /// Plaintext that came with the end of the handshake.
    early: Vec<u8>,
    /// The client has sent close_notify.
    closed: bool,
}

impl Session {
    /// Does the handshake; `hello` holds the bytes received so far. The caller bounds the time.
    pub async fn accept(
        client: &TcpStream,
        hello: Vec<u8>,
        config: Arc<ServerConfig>,
    ) -> Result<Session, HandshakeError> {
        let failed = |error, received: &[u8]| {
            let cause = tls::cause(&error, received);
            HandshakeError::Tls(error, cause)
        };
        let tls = UnbufferedServerConnection::new(config).map_err(|error| failed(error, &[]))?;
        let mut session = Session { tls, incoming: hello, early: Vec::new(), closed: false };
        loop {
            let (mut plaintext, mut answer) = (Output::default(), Output::default());
            let Session { tls, incoming, closed, .. } = &mut session;
            let result = decrypt(tls, incoming, &mut plaintext, &mut answer, closed);
            write_all(client, answer.bytes()).await?;
            let consumed = result.map_err(|error| failed(error, &session.incoming))?;
            session.incoming.drain(..consumed);
            session.early.extend_from_slice(plaintext.bytes());
            if !session.tls.is_handshaking() {
                session.incoming.shrink_to_fit();
                return Ok(session);
            }
            if read_some(client, &mut session.incoming).await? == 0 {
                return Err(HandshakeError::Closed);
            }
        }
    }

    /// The records of the last thing that a client without a server is told, and of close_notify behind it.
    pub fn last_word(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut output = Output::default();
        let plaintext = Some(plaintext).filter(|plaintext| !plaintext.is_empty());
        let Session { tls, incoming, .. } = self;
        // Out of key material: it hears nothing.
        let _ = plaintext.map_or(Ok(()), |plaintext| encrypt(tls, incoming, Some(plaintext), &mut output));
        let _ = encrypt(tls, incoming, None, &mut output);
        output.bytes().to_vec()
    }

    /// The certificate that the client has shown, if it was asked for one and has.
    pub fn client_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.peer_certificates()?.first()
    }

    /// The protocol version agreed on.
    pub fn version(&self) -> Option<rustls::ProtocolVersion> {
        self.tls.protocol_version()
    }
}

/// Carries plaintext between the session and the server until both directions have ended, one leg is reset, or
/// nothing has moved for `idle`; or until TLS fails, with the cause.
pub async fn relay(
    session: Session,
    client: &TcpStream,
    server: &TcpStream,
    traffic: &Traffic,
    idle: Option<Duration>,
) -> Result<CloseReason, TlsError> {
    let Session { tls, incoming, early, closed } = session;
    let mut relay = Relay {
        tls,
        client,
        server,
        traffic,
        incoming,
        to_server: Pending { bytes: early, sent: 0 },
        to_client: Pending::default(),
        client_eof: closed,
        server_eof: false,
        request: None,
        response: None,
        first_closed: None,
    };
    tokio::select! {
        biased;
        end = poll_fn(|cx| relay.poll(cx)) => end,
        () = idle_expired(traffic, idle) => Ok(CloseReason::IdleTimeout),
    }
}

struct Relay<'a> {
    tls: UnbufferedServerConnection,
    client: &'a TcpStream,
    server: &'a TcpStream,
    traffic: &'a Traffic,
    /// Ciphertext of a record that is not whole yet.
    incoming: Vec<u8>,
    /// Plaintext the server has not taken.
    to_server: Pending,
    /// Ciphertext the client has not taken.
    to_client: Pending,
    /// close_notify or FIN received from the client.
    client_eof: bool,
    /// FIN received from the server; close_notify is queued.
    server_eof: bool,
    request: Option<End>,
    response: Option<End>,
    first_closed: Option<Side>,
}

#[derive(Clone, Copy)]
enum End {
    Closed,
    ReadFailed,
    WriteFailed,
    Tls(TlsError),
}

#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
}

impl Pending {
    /// Writes what is pending; ready when nothing is left.
    fn poll_flush(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            match to.try_write(&self.bytes[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        *self = Pending::default();
        Poll::Ready(Ok(()))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Writes `bytes` behind what is pending, at once if nothing is; keeps what `to` does not take.
    fn write(&mut self, bytes: &[u8], to: &TcpStream) -> io::Result<()> {
        let sent = match self.left() {
            0 => match to.try_write(bytes) {
                Ok(sent) => sent,
                Err(error) if error.kind() == WouldBlock => 0,
                Err(error) => return Err(error),
            },
            _ => 0,
        };
        self.bytes.extend_from_slice(&bytes[sent..]);
        Ok(())
    }
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<CloseReason, TlsError>> {
        let before = self.traffic.moved();
        scratch::with(|buffers| {
            if self.request.is_none()
                && let Poll::Ready(end) = self.poll_request(cx, buffers)
            {
                self.request = Some(end.err().unwrap_or(End::Closed));
            }
            if self.response.is_none()
                && let Poll::Ready(end) = self.poll_response(cx, buffers)
            {
                self.response = Some(end.err().unwrap_or(End::Closed));
            }
        });
        if self.traffic.moved() != before {
            self.traffic.active_ms.store(crate::clock::now_ms(), Relaxed);
        }
        let halves = [
            (Side::Client, self.request, self.response, self.server),
            (Side::Server, self.response, self.request, self.client),
        ];
        for (side, end, other, to) in halves {
            match end {
                Some(End::Closed) if self.first_closed.is_none() => {
                    self.first_closed = Some(side);
                    // With both at their end the sockets are closed at once, which says the same. A receiver that
                    // is gone shows when the other half reads from it.
                    if other.is_none() {
                        let _ = finish(to);
                    }
                }
                Some(End::ReadFailed) => return Poll::Ready(Ok(self.reset(side))),
                Some(End::Tls(cause)) => {
                    reset_on_close(self.server);
                    return Poll::Ready(Err(cause));
                }
                Some(End::Closed | End::WriteFailed) | None => {}
            }
        }
        match (self.request, self.response) {
            (Some(End::WriteFailed), Some(_)) => Poll::Ready(Ok(self.reset(Side::Server))),
            (Some(_), Some(End::WriteFailed)) => Poll::Ready(Ok(self.reset(Side::Client))),
            (Some(_), Some(_)) => Poll::Ready(Ok(self.first_closed.unwrap_or(Side::Client).closed())),
            _ => Poll::Pending,
        }
    }

    fn reset(&self, side: Side) -> CloseReason {
        reset_on_close(match side {
            Side::Client => self.server,
            Side::Server => self.client,
        });
        side.reset()
    }

    /// Client to server: ciphertext in, plaintext out.
    fn poll_request(&mut self, cx: &mut Context<'_>, buffers: &mut Buffers) -> Poll<Result<(), End>> {
        for _ in 0..TURN {
            let before = self.to_server.left();
            let flushed = self.to_server.poll_flush(self.server, cx);
            add(&self.traffic.bytes_in, before - self.to_server.left());
            ready!(flushed).map_err(|_| End::WriteFailed)?;
            if self.to_client.left() > MAX_ANSWERS {
                ready!(self.to_client.poll_flush(self.client, cx)).map_err(|_| End::ReadFailed)?;
            }
            if self.client_eof {
                return Poll::Ready(Ok(()));
            }
            ready!(self.client.poll_read_ready(cx)).map_err(|_| End::ReadFailed)?;
            let held = self.incoming.len();
            buffers.input[..held].copy_from_slice(&self.incoming);
            let read = match read_once(self.client, &mut buffers.input[held..]) {
                // A client that leaves without close_notify: many do. The server sees the same FIN.
                Ok(0) => {
                    self.client_eof = true;
                    continue;
                }
                Ok(read) => read,
                Err(error) if error.kind() == WouldBlock => continue,
                Err(_) => return Poll::Ready(Err(End::ReadFailed)),
            };
            self.decrypt(held + read, buffers)?;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Decrypts the whole records in `buffers.input[..length]`, passes the plaintext on, keeps the rest.
    fn decrypt(&mut self, length: usize, buffers: &mut Buffers) -> Result<(), End> {
        let Buffers { input, output } = buffers;
        output.clear();
        let mut answer = Output::default();
        let result = decrypt(&mut self.tls, &mut input[..length], output, &mut answer, &mut self.client_eof);
        // After our FIN the client gets no more answers (close_notify in answer to its own, a key update).
        if !answer.bytes().is_empty() && !self.server_eof {
            self.to_client.write(answer.bytes(), self.client).map_err(|_| End::ReadFailed)?;
        }
        let consumed = result.map_err(|error| {
            tracing::debug!(%error, "TLS error");
            End::Tls(tls::cause(&error, &[]))
        })?;
        self.incoming.clear();
        self.incoming.extend_from_slice(&input[consumed..length]);
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        let plaintext = output.bytes();
        if !plaintext.is_empty() {
            self.to_server.write(plaintext, self.server).map_err(|_| End::WriteFailed)?;
            add(&self.traffic.bytes_in, plaintext.len() - self.to_server.left());
        }
        Ok(())
    }

    /// Server to client: plaintext in, ciphertext out.
    fn poll_response(&mut self, cx: &mut Context<'_>, buffers: &mut Buffers) -> Poll<Result<(), End>> {
        for _ in 0..TURN {
            ready!(self.to_client.poll_flush(self.client, cx)).map_err(|_| End::WriteFailed)?;
            if self.server_eof {
                return Poll::Ready(Ok(()));
            }
            ready!(self.server.poll_read_ready(cx)).map_err(|_| End::ReadFailed)?;
            let Buffers { input, output } = &mut *buffers;
            let plaintext = match read_once(self.server, input) {
                Ok(0) => {
                    self.server_eof = true;
                    None
                }
                Ok(read) => Some(&input[..read]),
                Err(error) if error.kind() == WouldBlock => continue,
                Err(_) => return Poll::Ready(Err(End::ReadFailed)),
            };
            output.clear();
            encrypt(&mut self.tls, &mut self.incoming, plaintext, output).map_err(|error| {
                tracing::debug!(%error, "cannot encrypt");
                End::Tls(tls::cause(&error, &[]))
            })?;
            self.to_client.write(output.bytes(), self.client).map_err(|_| End::WriteFailed)?;
            add(&self.traffic.bytes_out, plaintext.map_or(0, <[u8]>::len));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Processes the records in `incoming`: plaintext and answers (handshake messages, alerts) are appended. Returns
/// how many bytes of `incoming` are done with. After an error `answer` ends with the alert.
fn decrypt(
    tls: &mut UnbufferedServerConnection,
    incoming: &mut [u8],
    plaintext: &mut Output,
    answer: &mut Output,
    closed: &mut bool,
) -> Result<usize, rustls::Error> {
    let mut consumed = 0;
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(&mut incoming[consumed..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plaintext.extend(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, answer),
            // The caller sends `answer` before it reads again.
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => *closed = true,
            Ok(
                ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_)
                | ConnectionState::Closed,
            ) => return Ok(consumed + discard),
            // 0-RTT is never offered (max_early_data_size is 0).
            Ok(_) => return Err(rustls::Error::General("unexpected TLS state".into())),
            Err(error) => {
                take_alert(tls, answer);
                return Err(error);
            }
        }
        consumed += discard;
    }
}

/// The alert that an error has queued. rustls may not look at what it has received any more: it would judge it anew, or
/// miss what it was promised.
fn take_alert(tls: &mut UnbufferedServerConnection, answer: &mut Output) {
    // What is queued comes before what is received.
    while tls.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = tls.process_tls_records(&mut []).state else {
            return;
        };
        encode(&mut data, answer);
    }
}

/// Appends `plaintext` as records, or close_notify for `None` (the server's end), behind what the session itself
/// has to say first (a key update). `incoming`: what [`decrypt`] has left; rustls may still refer to it.
fn encrypt(
    tls: &mut UnbufferedServerConnection,
    incoming: &mut Vec<u8>,
    plaintext: Option<&[u8]>,
    output: &mut Output,
) -> Result<(), rustls::Error> {
    loop {
        let UnbufferedStatus { discard, state } = tls.process_tls_records(incoming);
        let mut ended = false;
        match state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                ended = true;
                let mut failed = false;
                output.append(|out| {
                    let written = match plaintext {
                        Some(plaintext) => traffic.encrypt(plaintext, out),
                        None => traffic.queue_close_notify(out),
                    };
                    match written {
                        Ok(written) => Ok(written),
                        Err(EncryptError::InsufficientSize(size)) => Err(size.required_size),
                        Err(EncryptError::EncryptExhausted) => {
                            failed = true;
                            Ok(0)
                        }
                    }
                });
                if failed {
                    return Err(rustls::Error::EncryptError);
                }
            }
            ConnectionState::EncodeTlsData(mut data) => encode(&mut data, output),
            ConnectionState::TransmitTlsData(data) => data.done(),
            // Both close_notify are exchanged.
            ConnectionState::Closed => ended = true,
            ConnectionState::PeerClosed => {}
            _ => return Err(rustls::Error::General("unexpected TLS state".into())),
        }
        incoming.drain(..discard);
        if ended {
            return Ok(());
        }
    }
}

fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, output: &mut Output) {
    output.append(|out| match data.encode(out) {
        Ok(written) => Ok(written),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    });
}
