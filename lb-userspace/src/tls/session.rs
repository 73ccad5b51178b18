//! A TLS session of a leg: its handshake, and its records.
//!
//! The only place that uses rustls' unbuffered connection. That keeps no buffers of its own, so that an idle connection owns
//! only its keys: records are decrypted from the worker's buffer and plaintext is encrypted into it.

use super::cause::cause;
use crate::reason::TlsError;
use crate::scratch::{self, Output};
use crate::socket::{read_some, write_all};
use rustls::ExtractedSecrets;
use rustls::client::{ClientConfig, ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConfig, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use std::io;
use std::mem;
use std::ops::DerefMut;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Bytes of a record at most, of which a peer may send a part (RFC 5246, section 6.2.3: it is TLS 1.2 that allows more).
const MAX_RECORD: usize = 5 + (16 * 1024) + 2048;

/// Bytes of plaintext in a full record (RFC 8446, section 5.1).
pub(crate) const FULL_RECORD: usize = 16 * 1024;

/// Whether a message probably goes on behind so many bytes of plaintext: full records are not its end. A peer with Nagle's
/// algorithm (RFC 896) keeps a short rest until these are acknowledged, which a delayed ACK does after 40 ms.
pub(crate) fn goes_on(plaintext: usize) -> bool {
    plaintext > 0 && plaintext.is_multiple_of(FULL_RECORD)
}

/// Received bytes that may wait for the rest of a handshake message (rustls takes 64 KiB of one) or of a record. Until a
/// message is whole, rustls needs the records in which it came: 23 bytes for each of its own, if there is one in a record.
const MAX_INCOMING: usize = scratch::SIZE - MAX_RECORD;

/// Why a handshake did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's TLS was at fault, or ours does not suit it.
    #[error("{0}")]
    Tls(rustls::Error, TlsError),
    /// The session broke after its handshake.
    #[error("{0}")]
    Failed(TlsError),
    /// The peer sent a handshake message in too many pieces.
    #[error("a handshake message in too many records")]
    TooFragmented,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The peer closed in the middle.
    #[error("the peer closed during the handshake")]
    Closed,
    /// The server has no name that TLS could ask for.
    #[error("the server has no name")]
    Nameless,
    /// The peer was too slow.
    #[error("the handshake took too long")]
    TimedOut,
}

impl HandshakeError {
    /// The cause, as operators see it.
    pub fn cause(&self) -> TlsError {
        match self {
            HandshakeError::Tls(_, cause) | HandshakeError::Failed(cause) => *cause,
            HandshakeError::TooFragmented => TlsError::ProtocolViolation,
            HandshakeError::Io(_) => TlsError::Reset,
            HandshakeError::Nameless => TlsError::CertificateName,
            HandshakeError::Closed => TlsError::Closed,
            HandshakeError::TimedOut => TlsError::Timeout,
        }
    }
}

/// Which end of a session the gateway is. Implemented by rustls' connections of both roles, which have no trait in common.
pub trait Role: DerefMut<Target = UnbufferedConnectionCommon<Self::Data>> {
    /// rustls' data of the role.
    type Data;

    /// What it says to the end of a handshake of TLS 1.3 is session tickets, and nothing that the peer waits for.
    const GIVES_TICKETS: bool;

    /// rustls' own of this name.
    fn process_tls_records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// rustls' `dangerous_into_kernel_connection`. The handshake is done, and nothing waits to be sent.
    fn into_kernel(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error>
    where
        Self: Sized;
}

/// The peer is a client.
pub type Serving = UnbufferedServerConnection;

/// The peer is a server.
pub type Dialling = UnbufferedClientConnection;

impl Role for Serving {
    type Data = ServerConnectionData;

    const GIVES_TICKETS: bool = true;

    fn process_tls_records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        (**self).process_tls_records(incoming)
    }

    fn into_kernel(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error> {
        self.dangerous_into_kernel_connection()
    }
}

impl Role for Dialling {
    type Data = ClientConnectionData;

    const GIVES_TICKETS: bool = false;

    fn process_tls_records<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        (**self).process_tls_records(incoming)
    }

    fn into_kernel(self) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error> {
        self.dangerous_into_kernel_connection()
    }
}

/// A TLS session with a peer, its handshake done.
pub struct Session<R> {
    tls: R,
    /// Ciphertext received, of a record or a handshake message that is not whole yet. At most [`MAX_INCOMING`] bytes.
    incoming: Vec<u8>,
    /// Plaintext that came with the end of the handshake, or was read before the relay.
    early: Vec<u8>,
    /// Records that go out before all others: the session tickets for a client that has asked something with the end of its
    /// handshake. They come with the answer, instead of waking it up before.
    held: Vec<u8>,
    /// The peer has sent close_notify.
    closed: bool,
    /// The peer may have said something since the last application data to it, to which rustls has an answer ready (a key
    /// update), which goes out with the next.
    may_owe: bool,
}

impl Session<Serving> {
    /// Does the handshake with a client; `hello` holds the bytes received so far. The caller bounds the time.
    pub async fn accept(
        client: &TcpStream,
        hello: Vec<u8>,
        config: Arc<ServerConfig>,
    ) -> Result<Self, HandshakeError> {
        let tls = UnbufferedServerConnection::new(config).map_err(|error| handshake_failed(error, &[]))?;
        Self::handshake(client, tls, hello).await
    }
}

impl Session<Dialling> {
    /// Does the handshake with a server, which must have a certificate that `config` takes for `name`. The caller bounds the
    /// time.
    pub async fn connect(
        server: &TcpStream,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, HandshakeError> {
        let tls =
            UnbufferedClientConnection::new(config, name).map_err(|error| handshake_failed(error, &[]))?;
        Self::handshake(server, tls, Vec::new()).await
    }
}

impl<R: Role> Session<R> {
    async fn handshake(socket: &TcpStream, tls: R, incoming: Vec<u8>) -> Result<Self, HandshakeError> {
        let (early, held) = (Vec::new(), Vec::new());
        let mut session = Session { tls, incoming, early, held, closed: false, may_owe: true };
        session.absorb(socket).await?;
        while session.tls.is_handshaking() {
            session.read_early(socket).await?;
        }
        session.incoming.shrink_to_fit();
        Ok(session)
    }

    /// Reads once, into [`early`](Self::early).
    pub(crate) async fn read_early(&mut self, socket: &TcpStream) -> Result<(), HandshakeError> {
        if self.closed || read_some(socket, &mut self.incoming).await? == 0 {
            return Err(HandshakeError::Closed);
        }
        self.absorb(socket).await
    }

    /// Decrypts what was received.
    async fn absorb(&mut self, socket: &TcpStream) -> Result<(), HandshakeError> {
        let (mut plaintext, mut answer) = (Output::default(), Output::default());
        let Session { tls, incoming, held, closed, may_owe, .. } = self;
        *may_owe = true;
        let was_handshaking = tls.is_handshaking();
        answer.extend(&mem::take(held));
        let result = decrypt(tls, incoming, &mut plaintext, &mut answer, closed);
        // Kept before anything is waited for: the caller may stop waiting.
        let result = result.map_err(|error| handshake_failed(error, incoming)).map(|decrypted| {
            self.incoming.drain(..decrypted.consumed);
            self.early.extend_from_slice(plaintext.bytes());
        });
        if R::GIVES_TICKETS && result.is_ok() && was_handshaking && self.is_asked_in_1_3() {
            self.held.extend_from_slice(answer.bytes());
        } else {
            let sent = write_all(socket, answer.bytes()).await;
            // An error of TLS tells more than that the peer did not wait for our alert.
            result?;
            sent?;
        }
        if self.incoming.len() > MAX_INCOMING {
            return Err(HandshakeError::TooFragmented);
        }
        Ok(())
    }

    /// A handshake of TLS 1.3 is done, and the peer waits for an answer to something else.
    fn is_asked_in_1_3(&self) -> bool {
        let is_1_3 = self.tls.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        is_1_3 && !self.tls.is_handshaking() && !self.early.is_empty() && !self.closed
    }

    /// The plaintext that was received and not taken.
    pub(crate) fn early(&self) -> &[u8] {
        &self.early
    }

    /// The records of the last thing that a client without a server is told, and of close_notify behind it.
    pub fn last_word(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut output = Output::default();
        let plaintext = Some(plaintext).filter(|plaintext| !plaintext.is_empty());
        // Out of key material: it hears nothing.
        let _ = plaintext.map_or(Ok(()), |plaintext| self.encrypt(Some(plaintext), &mut output));
        let _ = self.encrypt(None, &mut output);
        output.bytes().to_vec()
    }

    /// The certificate that the client has shown, if it was asked for one and has.
    pub fn client_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.peer_certificates()?.first()
    }

    /// The application's protocol that was agreed on (ALPN).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// The protocol version agreed on.
    pub fn version(&self) -> Option<rustls::ProtocolVersion> {
        self.tls.protocol_version()
    }

    /// Takes the plaintext that was received before the relay.
    pub(crate) fn take_early(&mut self) -> Vec<u8> {
        mem::take(&mut self.early)
    }

    /// Takes plaintext back that [`read`](Self::read) has given, to be taken early.
    pub(crate) fn put_back(&mut self, plaintext: &[u8]) {
        self.early.splice(..0, plaintext.iter().copied());
    }

    /// Waits for plaintext and appends it to `into`; `false`: the peer has ended.
    pub(crate) async fn read(
        &mut self,
        socket: &TcpStream,
        into: &mut Vec<u8>,
    ) -> Result<bool, HandshakeError> {
        loop {
            if !self.early.is_empty() {
                into.append(&mut self.early);
                return Ok(true);
            }
            let mut input = self.incoming.clone();
            if self.closed || read_some(socket, &mut input).await? == 0 {
                return Ok(false);
            }
            let (mut plaintext, mut answer) = (Output::default(), Output::default());
            let decrypted = self.decrypt(&mut input, &mut plaintext, &mut answer);
            if !answer.bytes().is_empty() {
                write_all(socket, answer.bytes()).await?;
            }
            decrypted.map_err(HandshakeError::Failed)?;
            self.early.extend_from_slice(plaintext.bytes());
        }
    }

    /// Sends `plaintext`.
    pub(crate) async fn write(&mut self, socket: &TcpStream, plaintext: &[u8]) -> Result<(), HandshakeError> {
        let mut records = Output::default();
        self.encrypt(Some(plaintext), &mut records).map_err(HandshakeError::Failed)?;
        Ok(write_all(socket, records.bytes()).await?)
    }

    /// The peer has sent close_notify: nothing comes behind what is decrypted.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// What was received and is not decrypted yet: at least a record less than [`scratch::SIZE`].
    pub(crate) fn incoming(&self) -> &[u8] {
        &self.incoming
    }

    /// Appends to `plaintext` what the whole records in `input` hold, and to `answer` what the session says to them by
    /// itself (close_notify to the peer's, a key update; at last an alert). `input` begins with
    /// [`incoming`](Self::incoming); the rest is kept.
    pub(crate) fn decrypt(
        &mut self,
        input: &mut [u8],
        plaintext: &mut Output,
        answer: &mut Output,
    ) -> Result<(), TlsError> {
        let Session { tls, incoming, held, closed, may_owe, .. } = self;
        answer.extend(&mem::take(held));
        let records = records(input);
        let Decrypted { consumed, payloads } =
            decrypt(tls, input, plaintext, answer, closed).map_err(failed)?;
        *may_owe |= payloads != records;
        let rest = &input[consumed..];
        if rest.len() > MAX_INCOMING {
            tracing::debug!("TLS error: a handshake message in too many records");
            return Err(TlsError::ProtocolViolation);
        }
        incoming.clear();
        incoming.extend_from_slice(rest);
        if incoming.is_empty() {
            *incoming = Vec::new();
        }
        Ok(())
    }

    /// Appends the records of `plaintext`, or close_notify for `None`.
    pub(crate) fn encrypt(&mut self, plaintext: Option<&[u8]>, records: &mut Output) -> Result<(), TlsError> {
        records.extend(&mem::take(&mut self.held));
        encrypt(&mut self.tls, &mut self.incoming, plaintext, records).map_err(failed)?;
        self.may_owe &= plaintext.is_none_or(<[u8]>::is_empty);
        Ok(())
    }

    /// rustls' connection.
    pub(super) fn connection(&self) -> &R {
        &self.tls
    }

    /// The same, of a session that is nothing else any more: it [is at rest](Self::is_at_rest).
    pub(super) fn into_connection(self) -> R {
        self.tls
    }

    /// Between two records in both directions, with nothing to be said by the session itself: here the kernel can go on.
    pub(crate) fn is_at_rest(&self) -> bool {
        let is_empty = self.incoming.is_empty() && self.early.is_empty() && self.held.is_empty();
        is_empty && !self.closed && !self.may_owe_update() && !self.tls.wants_write()
    }

    /// TLS 1.2 has no key updates.
    fn may_owe_update(&self) -> bool {
        self.may_owe && self.tls.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_2)
    }

    /// How long what was received and the next read may be together, so that the session [comes to rest](Self::is_at_rest)
    /// behind it: up to the end of the record that has begun to come. At most `room`, which is more than what was received.
    ///
    /// Of a handshake message that is not whole yet rustls has shifted the parts together, so that what looks like a header may
    /// be anything the peer has chosen.
    pub(crate) fn up_to_rest(&self, room: usize) -> usize {
        let received = self.incoming.len();
        if received == 0 || self.may_owe_update() { room } else { (received + self.missing()).min(room) }
    }

    fn missing(&self) -> usize {
        let mut rest = &self.incoming[..];
        while let Some(length) = record_length(rest) {
            match rest.get(length..) {
                Some(behind) => rest = behind,
                None => return length - rest.len(),
            }
        }
        HEADER - rest.len()
    }
}

/// Bytes of a record's header.
const HEADER: usize = 5;

/// Bytes of the record that begins here, as far as its header is there (RFC 8446, section 5.1).
fn record_length(bytes: &[u8]) -> Option<usize> {
    let [_, _, _, high, low, ..] = bytes else { return None };
    Some(HEADER + usize::from(u16::from_be_bytes([*high, *low])))
}

/// How many whole records there are.
fn records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Some(behind) = record_length(bytes).and_then(|length| bytes.get(length..)) {
        (bytes, count) = (behind, count + 1);
    }
    count
}

/// What ended a handshake. `received`: what rustls has not consumed.
fn handshake_failed(error: rustls::Error, received: &[u8]) -> HandshakeError {
    let cause = cause(&error, received);
    HandshakeError::Tls(error, cause)
}

/// What ended a session whose handshake was done.
fn failed(error: rustls::Error) -> TlsError {
    tracing::debug!(%error, "TLS error");
    cause(&error, &[])
}

/// What has become of received bytes.
struct Decrypted {
    /// Bytes that are done with.
    consumed: usize,
    /// Records with application data.
    payloads: usize,
}

/// Processes the records in `incoming`: plaintext and answers (handshake messages, alerts) are appended. After an error
/// `answer` ends with the alert.
fn decrypt(
    tls: &mut impl Role,
    incoming: &mut [u8],
    plaintext: &mut Output,
    answer: &mut Output,
    closed: &mut bool,
) -> Result<Decrypted, rustls::Error> {
    let (mut consumed, mut payloads) = (0, 0);
    loop {
        let UnbufferedStatus { mut discard, state } = tls.process_tls_records(&mut incoming[consumed..]);
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plaintext.extend(record.payload);
                    payloads += 1;
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
            ) => return Ok(Decrypted { consumed: consumed + discard, payloads }),
            // 0-RTT is never offered, to clients (max_early_data_size is 0) or to servers (enable_early_data is false).
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
fn take_alert(tls: &mut impl Role, answer: &mut Output) {
    // What is queued comes before what is received.
    while tls.wants_write() {
        let Ok(ConnectionState::EncodeTlsData(mut data)) = tls.process_tls_records(&mut []).state else {
            return;
        };
        encode(&mut data, answer);
    }
}

/// Appends `plaintext` as records, or close_notify for `None`, behind what the session itself has to say first (a key
/// update). `incoming`: what [`decrypt`] has left; rustls may still refer to it.
fn encrypt(
    tls: &mut impl Role,
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

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, output: &mut Output) {
    output.append(|out| match data.encode(out) {
        Ok(written) => Ok(written),
        Err(EncodeError::InsufficientSize(size)) => Err(size.required_size),
        Err(EncodeError::AlreadyEncoded) => Ok(0),
    });
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Termination;
    use crate::tls::{Verifiers, server_config};
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ClientConnection, RootCertStore, SupportedProtocolVersion};
    use std::io::{Read as _, Write as _};

    /// Both ends of a session in this version, its handshake done.
    pub(in crate::tls) fn handshaken(
        version: &'static SupportedProtocolVersion,
    ) -> (Serving, ClientConnection) {
        let certified = rcgen::generate_simple_self_signed(["name".to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert.der().to_vec());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let termination = Termination {
            chain: vec![certificate],
            key: PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap(),
            client_auth: None,
            not_after: u64::MAX,
            names: Default::default(),
            more: Vec::new(),
        };
        let config = server_config(&termination, &mut Verifiers::default(), std::iter::empty()).unwrap();
        let mut server = UnbufferedServerConnection::new(config).unwrap();
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(config), "name".try_into().unwrap()).unwrap();
        let mut incoming = Vec::new();
        while client.is_handshaking() || client.wants_write() {
            while client.wants_write() {
                client.write_tls(&mut incoming).unwrap();
            }
            let (mut plaintext, mut answer) = (Output::default(), Output::default());
            let decrypted = decrypt(&mut server, &mut incoming, &mut plaintext, &mut answer, &mut false);
            incoming.drain(..decrypted.unwrap().consumed);
            read(&mut client, answer.bytes());
        }
        (server, client)
    }

    fn read(client: &mut ClientConnection, mut records: &[u8]) {
        while !records.is_empty() {
            client.read_tls(&mut records).unwrap();
            client.process_new_packets().unwrap();
        }
    }

    fn session(version: &'static SupportedProtocolVersion) -> (Session<Serving>, ClientConnection) {
        let (tls, client) = handshaken(version);
        let (incoming, early, held) = Default::default();
        (Session { tls, incoming, early, held, closed: false, may_owe: true }, client)
    }

    fn said(client: &mut ClientConnection) -> Vec<u8> {
        let mut records = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut records).unwrap();
        }
        records
    }

    fn hears(session: &mut Session<Serving>, mut records: Vec<u8>) -> Vec<u8> {
        let (mut plaintext, mut answer) = (Output::default(), Output::default());
        session.decrypt(&mut records, &mut plaintext, &mut answer).unwrap();
        assert_eq!(answer.bytes(), b"");
        plaintext.bytes().to_vec()
    }

    #[test]
    fn a_session_is_at_rest_between_records_when_it_owes_nothing() {
        let (mut session, mut client) = session(&rustls::version::TLS13);
        assert!(!session.is_at_rest(), "the handshake may have ended with a key update");
        let answer = |session: &mut Session<Serving>, client: &mut ClientConnection| {
            let mut records = Output::default();
            session.encrypt(Some(b"answer"), &mut records).unwrap();
            read(client, records.bytes());
            let mut heard = [0; 6];
            client.reader().read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"answer");
        };
        answer(&mut session, &mut client);
        assert!(session.is_at_rest());

        client.writer().write_all(b"question").unwrap();
        let records = said(&mut client);
        for end in 1..records.len() {
            let mut part = records[..end].to_vec();
            let (mut plaintext, mut answer) = (Output::default(), Output::default());
            session.decrypt(&mut part, &mut plaintext, &mut answer).unwrap();
            assert!(!session.is_at_rest());
            assert_eq!(session.up_to_rest(scratch::SIZE), if end < HEADER { HEADER } else { records.len() });
        }
        assert_eq!(hears(&mut session, records), b"question");
        assert!(session.is_at_rest());

        client.refresh_traffic_keys().unwrap();
        client.writer().write_all(b"with new keys").unwrap();
        let records = said(&mut client);
        assert_eq!(hears(&mut session, records), b"with new keys");
        assert!(!session.is_at_rest(), "its own keys are due");
        session.incoming = vec![23, 3, 3];
        assert_eq!(
            session.up_to_rest(1000),
            1000,
            "an answer of the server's is waited for, and not the end of a record"
        );
        session.incoming = Vec::new();
        answer(&mut session, &mut client);
        assert!(session.is_at_rest());
    }

    #[test]
    fn a_read_never_goes_beyond_its_room_whatever_a_peer_makes_look_like_a_header() {
        let (mut session, _client) = session(&rustls::version::TLS13);
        session.encrypt(Some(b"word"), &mut Output::default()).unwrap();
        for received in [1, HEADER, MAX_INCOMING] {
            session.incoming = vec![0xff; received];
            let most = session.up_to_rest(scratch::SIZE);
            assert!((received + 1..=scratch::SIZE).contains(&most), "{received}: {most}");
        }
    }

    #[test]
    fn a_session_that_is_closed_is_not_the_kernels() {
        let (mut session, mut client) = session(&rustls::version::TLS12);
        assert!(session.is_at_rest(), "TLS 1.2 has no key updates");
        client.send_close_notify();
        let records = said(&mut client);
        hears(&mut session, records);
        assert!(!session.is_at_rest());
    }
}
