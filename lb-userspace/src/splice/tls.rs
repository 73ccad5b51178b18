//! A leg inside of TLS.

use super::ktls::{Attempt, KernelRecords, Offload};
use super::transport::{Failure, Kept, PeerEnd, Received, Transport, poll_read_once};
use crate::kernel::tcp;
use crate::scratch::Output;
use crate::tls::{Role, Session, goes_on};
use crate::traffic::add;
use std::mem;
use std::ops::Deref;
use std::os::fd::AsFd as _;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// Bytes of ciphertext that may wait for a peer that does not read, before nothing more is read from it.
const MAX_ANSWERS: usize = 16 * 1024;

/// A leg inside of TLS. `S`: its socket, or a reference to it.
pub struct Tls<R: Role, S> {
    records: Records<R>,
    socket: S,
    /// What the socket has not taken yet: records, or plaintext if the kernel makes them.
    kept: Kept,
    /// The last word was said.
    ended: bool,
    /// Present while the kernel may take its records, and has not.
    offload: Option<Offload>,
}

/// Who makes and opens a leg's records.
enum Records<R: Role> {
    Own(Session<R>),
    Kernel(Box<KernelRecords<R>>),
    /// Nobody: the session failed when the kernel was to take them. The leg is not used any more.
    Nobody,
}

impl<R: Role, S: Deref<Target = TcpStream>> Tls<R, S> {
    /// `socket`: the one on which the handshake was done.
    pub fn new(session: Session<R>, socket: S) -> Self {
        let records = Records::Own(session);
        Tls { records, socket, kept: Kept::default(), ended: false, offload: None }
    }

    /// Lets the kernel take its records, once the connection is bulk.
    #[must_use]
    pub fn offload(mut self, offload: Option<Offload>) -> Self {
        self.offload = offload;
        self
    }

    /// Its socket.
    pub(crate) fn own_socket(&self) -> &S {
        &self.socket
    }

    /// Bytes of the peer that wait for the rest of their record.
    pub(crate) fn held(&self) -> usize {
        match &self.records {
            Records::Own(session) => session.incoming().len(),
            Records::Kernel(_) | Records::Nobody => 0,
        }
    }

    /// How many bytes the socket has not taken yet.
    pub(crate) fn left(&self) -> usize {
        self.kept.left()
    }

    /// Takes bytes back that [`poll_read`](Transport::poll_read) has given: they come first, once more. Not of a leg that the
    /// kernel may take.
    pub(crate) fn put_back(&mut self, bytes: &[u8]) {
        match &mut self.records {
            Records::Own(session) => session.put_back(bytes),
            Records::Kernel(_) | Records::Nobody => unreachable!("only a leg of requests takes bytes back"),
        }
    }

    /// Lets the kernel take the records, if it may and the time has come.
    fn hand_over(&mut self) -> Result<(), Failure> {
        let is_due = self.offload.as_ref().is_some_and(Offload::is_due);
        if !is_due || self.ended || self.kept.left() > 0 {
            return Ok(());
        }
        self.records = match mem::replace(&mut self.records, Records::Nobody) {
            Records::Own(session) if session.is_at_rest() => {
                let offload = self.offload.take().expect("it is due");
                match KernelRecords::take(session, &self.socket, offload).map_err(Failure::Tls)? {
                    Attempt::Taken(records) => Records::Kernel(records),
                    Attempt::Refused(session) => Records::Own(session),
                }
            }
            records => records,
        };
        Ok(())
    }
}

/// Sends the records of `plaintext`, or close_notify for `None`.
fn send<R: Role>(
    session: &mut Session<R>,
    plaintext: Option<&[u8]>,
    records: &mut Output,
    kept: &mut Kept,
    socket: &TcpStream,
) -> Result<(), Failure> {
    records.clear();
    session.encrypt(plaintext, records).map_err(Failure::Tls)?;
    kept.write(records.bytes(), socket)?;
    Ok(())
}

impl<R: Role, S: Deref<Target = TcpStream>> Transport for Tls<R, S> {
    fn gives_to_splice(&self) -> bool {
        false
    }

    fn takes_from_splice(&self) -> bool {
        matches!(self.records, Records::Kernel(_))
    }

    fn socket(&self) -> &TcpStream {
        &self.socket
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>> {
        self.hand_over()?;
        let session = match &mut self.records {
            Records::Own(session) => session,
            Records::Kernel(records) => return records.poll_read(&self.socket, cx, input),
            Records::Nobody => return Poll::Pending,
        };
        plaintext.clear();
        plaintext.extend(&session.take_early());
        if plaintext.bytes().is_empty() && !session.is_closed() {
            if self.kept.left() > MAX_ANSWERS {
                ready!(self.kept.poll_flush(&self.socket, cx))?;
            }
            let held = session.incoming().len();
            // Up to the end of a record, if the kernel is to have the next.
            let is_due = self.offload.as_ref().is_some_and(Offload::is_due);
            let most = if is_due { session.up_to_rest(input.len()) } else { input.len() };
            let read = ready!(poll_read_once(&self.socket, cx, &mut input[held..most]))?;
            let is_dry = read < most - held;
            if read == 0 {
                // Many leave so. The other leg sees the same FIN.
                return Poll::Ready(Ok(Received { bytes: &[], end: Some(PeerEnd::Cut) }));
            }
            input[..held].copy_from_slice(session.incoming());
            let mut answer = Output::default();
            let decrypted = session.decrypt(&mut input[..held + read], plaintext, &mut answer);
            // Behind our FIN there is nothing to be said.
            if !answer.bytes().is_empty() && !self.ended {
                self.kept.write(answer.bytes(), &self.socket)?;
            }
            decrypted.map_err(Failure::Tls)?;
            if is_dry && session.incoming().is_empty() && goes_on(plaintext.bytes().len()) {
                let _ = tcp::flush_acknowledgement(self.socket.as_fd());
            }
        }
        let end = session.is_closed().then_some(PeerEnd::Whole);
        Poll::Ready(Ok(Received { bytes: plaintext.bytes(), end }))
    }

    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        let Self { records: made_by, socket, kept, .. } = self;
        match made_by {
            Records::Own(session) => {
                send(session, Some(bytes), records, kept, socket)?;
                add(delivered, bytes.len());
                Ok(())
            }
            Records::Kernel(kernel) => kernel.write(bytes, kept, socket, delivered),
            Records::Nobody => Ok(()),
        }
    }

    fn end(&mut self, how: PeerEnd, records: &mut Output) -> Result<(), Failure> {
        self.ended = true;
        let Self { records: made_by, socket, kept, .. } = self;
        match (made_by, how) {
            (Records::Own(session), PeerEnd::Whole) => send(session, None, records, kept, socket),
            (Records::Own(_), PeerEnd::Cut) | (Records::Nobody, _) => Ok(()),
            (Records::Kernel(kernel), how) => {
                kernel.end(how);
                Ok(())
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        if let Records::Kernel(kernel) = &mut self.records {
            return kernel.poll_flush(&mut self.kept, &self.socket, cx, delivered);
        }
        ready!(self.kept.poll_flush(&self.socket, cx))?;
        self.hand_over()?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Authorities, MinVersion, Termination, UpstreamTls};
    use crate::reason::CloseReason;
    use crate::splice::relay::relay;
    use crate::tls::{Dialling, FULL_RECORD, ServerTls, Serving, Verifiers, server_config};
    use crate::traffic::Traffic;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection, StreamOwned};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;
    use std::thread;

    const NAME: &str = "end.example.com";

    type End<C> = StreamOwned<C, std::net::TcpStream>;

    fn certified() -> (Termination, RootCertStore) {
        let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let termination = Termination {
            chain: vec![certificate],
            key,
            client_auth: None,
            not_after: u64::MAX,
            names: Default::default(),
            more: Vec::new(),
        };
        (termination, roots)
    }

    /// The gateway's socket of a leg, and that of its end.
    fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let end = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (TcpStream::from_std(socket).unwrap(), end)
    }

    /// A session, and the client that has asked for it, in its own thread. What that says at once comes with its handshake.
    async fn accepted(
        at_once: &'static [u8],
        go_on: impl FnOnce(End<ClientConnection>) + Send + 'static,
    ) -> (TcpStream, Session<Serving>, thread::JoinHandle<()>) {
        let (termination, roots) = certified();
        let config = server_config(&termination, &mut Verifiers::default(), std::iter::empty()).unwrap();
        let (socket, end) = pair();
        let end = thread::spawn(move || {
            let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            let name = ServerName::try_from(NAME).unwrap();
            let tls = ClientConnection::new(Arc::new(config), name).unwrap();
            let mut end = StreamOwned::new(tls, end);
            end.write_all(at_once).unwrap();
            go_on(end);
        });
        let session = Session::accept(&socket, Vec::new(), config).await.unwrap();
        (socket, session, end)
    }

    /// A session that was asked for, and the server that has accepted it, in its own thread.
    async fn dialled(
        go_on: impl FnOnce(End<ServerConnection>) + Send + 'static,
    ) -> (TcpStream, Session<Dialling>, thread::JoinHandle<()>) {
        let (termination, roots) = certified();
        let certificates = termination.chain.clone();
        let tls = UpstreamTls {
            authorities: Arc::new(Authorities { certificates, roots }),
            server_name: None,
            san: Vec::new(),
            certificate: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls13,
        };
        let tls = ServerTls::new(&Arc::new(tls), false, None).unwrap();
        let (socket, end) = pair();
        let end = thread::spawn(move || {
            let config = server_config(&termination, &mut Verifiers::default(), std::iter::empty()).unwrap();
            go_on(StreamOwned::new(ServerConnection::new(config).unwrap(), end));
        });
        let (config, name) = tls.toward(&format!("{NAME}:1").parse().unwrap(), 0).unwrap();
        let session = Session::connect(&socket, config, name).await.unwrap();
        (socket, session, end)
    }

    fn numbers(from: usize) -> Vec<u8> {
        (from..from + 1_000_000).flat_map(usize::to_be_bytes).collect()
    }

    /// What has come to the client's end; loopback delivers within the call that sends.
    fn come(end: &std::net::TcpStream) -> usize {
        end.set_nonblocking(true).unwrap();
        let come = end.peek(&mut [0; 4096]);
        end.set_nonblocking(false).unwrap();
        come.unwrap_or(0)
    }

    /// Gives the answer to a client that has said this with the end of its handshake: what had come before the answer, and the
    /// session tickets.
    async fn tickets(question: &'static [u8], answer: &[u8]) -> (usize, u32) {
        let (sender, accepting) = std::sync::mpsc::channel();
        let (before, found) = std::sync::mpsc::channel();
        let expected = answer.to_vec();
        let (socket, session, end) = accepted(b"", move |mut end| {
            // Kept until the handshake's last message, and sent with it.
            end.conn.writer().write_all(question).unwrap();
            while end.conn.is_handshaking() || end.conn.wants_write() {
                end.conn.complete_io(&mut end.sock).unwrap();
            }
            accepting.recv().unwrap();
            before.send(come(&end.sock)).unwrap();
            let mut heard = vec![0; expected.len()];
            end.read_exact(&mut heard).unwrap();
            assert_eq!(heard, expected);
            before.send(end.conn.tls13_tickets_received() as usize).unwrap();
        })
        .await;
        sender.send(()).unwrap();
        let before = found.recv().unwrap();
        let mut leg = Tls::new(session, &socket);
        leg.write(answer, &mut Output::default(), &AtomicU64::new(0)).unwrap();
        let tickets = found.recv().unwrap();
        end.join().unwrap();
        (before, tickets as u32)
    }

    #[tokio::test]
    async fn session_tickets_come_with_the_answer_to_a_client_that_waits_for_one() {
        let (before, tickets) = tickets(b"question", b"answer").await;
        assert_eq!((before, tickets), (0, 2));
    }

    #[tokio::test]
    async fn session_tickets_come_at_once_to_a_client_that_has_asked_nothing() {
        let (before, tickets) = tickets(b"", b"greeting").await;
        assert!(before > 0);
        assert_eq!(tickets, 2);
    }

    #[tokio::test]
    async fn a_peer_that_keeps_the_end_of_a_message_back_is_acknowledged_at_once() {
        for length in [FULL_RECORD, 2 * FULL_RECORD] {
            let (go, goes) = std::sync::mpsc::channel::<()>();
            let (acknowledged, is_acknowledged) = std::sync::mpsc::channel();
            let (socket, session, end) = accepted(b"", move |mut end| {
                end.flush().unwrap();
                goes.recv().unwrap();
                end.write_all(&vec![1; length]).unwrap();
                goes.recv().unwrap();
                acknowledged.send(tcp::is_acknowledged(end.sock.as_fd()).unwrap()).unwrap();
                goes.recv().unwrap();
            })
            .await;
            // As between question and answer; a new socket acknowledges everything at once.
            tcp::delay_acknowledgement(socket.as_fd()).unwrap();
            go.send(()).unwrap();
            let mut leg = Tls::new(session, &socket);
            let (mut input, mut plaintext) = (vec![0; 1 << 17], Output::default());
            let mut read = 0;
            while read < length {
                let received = std::future::poll_fn(|cx| {
                    leg.poll_read(cx, &mut input, &mut plaintext).map_ok(|r| r.bytes.len())
                });
                read += received.await.unwrap();
            }
            go.send(()).unwrap();
            assert!(is_acknowledged.recv().unwrap(), "{length}");
            go.send(()).unwrap();
            end.join().unwrap();
        }
    }

    #[tokio::test]
    async fn both_legs_may_be_inside_of_tls() {
        fn hears(end: &mut impl Read, expected: &[u8]) {
            let mut heard = Vec::new();
            // To close_notify: a bare FIN would be an error.
            end.read_to_end(&mut heard).unwrap();
            assert!(heard == expected);
        }
        let (near, client, client_end) = accepted(b"at once", |mut end| {
            end.write_all(&numbers(0)).unwrap();
            end.conn.send_close_notify();
            end.flush().unwrap();
            hears(&mut end, &numbers(5));
        })
        .await;
        // It answers behind the client's end.
        let (far, server, server_end) = dialled(|mut end| {
            hears(&mut end, &[b"at once", &numbers(0)[..]].concat());
            end.write_all(&numbers(5)).unwrap();
            end.conn.send_close_notify();
            end.flush().unwrap();
        })
        .await;
        let traffic = Traffic::default();
        let end = relay(Tls::new(client, &near), Tls::new(server, &far), &traffic, None).await;
        assert_eq!(end, Ok(CloseReason::ClientClosed));
        assert_eq!(traffic.bytes_in.load(Relaxed), 7 + 8_000_000);
        assert_eq!(traffic.bytes_out.load(Relaxed), 8_000_000);
        drop((near, far));
        client_end.join().unwrap();
        server_end.join().unwrap();
    }

    #[tokio::test]
    async fn what_is_cut_off_before_close_notify_does_not_look_whole() {
        let (near, client, client_end) = accepted(b"", |mut end| {
            let mut heard = Vec::new();
            let error = end.read_to_end(&mut heard).unwrap_err();
            assert_eq!(
                (error.kind(), &heard[..]),
                (std::io::ErrorKind::UnexpectedEof, &b"the first half"[..])
            );
        })
        .await;
        let (far, server, server_end) = dialled(|mut end| {
            end.write_all(b"the first half").unwrap();
            end.flush().unwrap();
        })
        .await;
        let traffic = Traffic::default();
        let end = relay(Tls::new(client, &near), Tls::new(server, &far), &traffic, None).await;
        assert_eq!(end, Ok(CloseReason::ServerClosed));
        drop((near, far));
        client_end.join().unwrap();
        server_end.join().unwrap();
    }
}
