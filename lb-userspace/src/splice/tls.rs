//! A leg inside of TLS.

use super::transport::{Failure, Kept, Received, Transport, poll_read_once};
use crate::scratch::Output;
use crate::tls::Session;
use crate::traffic::add;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// Bytes of ciphertext that may wait for a peer that does not read, before nothing more is read from it.
const MAX_ANSWERS: usize = 16 * 1024;

/// A leg inside of TLS.
pub struct Tls<'a> {
    session: Session,
    socket: &'a TcpStream,
    /// Records that the socket has not taken yet.
    kept: Kept,
    /// close_notify was said.
    ended: bool,
}

impl<'a> Tls<'a> {
    /// `socket`: the one on which the handshake was done.
    pub fn new(session: Session, socket: &'a TcpStream) -> Self {
        Tls { session, socket, kept: Kept::default(), ended: false }
    }

    /// Sends the records of `plaintext`, or close_notify for `None`.
    fn send(&mut self, plaintext: Option<&[u8]>, records: &mut Output) -> Result<(), Failure> {
        records.clear();
        self.session.encrypt(plaintext, records).map_err(Failure::Tls)?;
        self.kept.write(records.bytes(), self.socket)?;
        Ok(())
    }
}

impl Transport for Tls<'_> {
    const SPLICES: bool = false;

    fn socket(&self) -> &TcpStream {
        self.socket
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>> {
        plaintext.clear();
        plaintext.extend(&self.session.take_early());
        if plaintext.bytes().is_empty() && !self.session.is_closed() {
            if self.kept.left() > MAX_ANSWERS {
                ready!(self.kept.poll_flush(self.socket, cx))?;
            }
            let held = self.session.incoming().len();
            let read = ready!(poll_read_once(self.socket, cx, &mut input[held..]))?;
            if read == 0 {
                // A peer that leaves without close_notify: many do. The other leg sees the same FIN.
                return Poll::Ready(Ok(Received { bytes: &[], end: true }));
            }
            input[..held].copy_from_slice(self.session.incoming());
            let mut answer = Output::default();
            let decrypted = self.session.decrypt(&mut input[..held + read], plaintext, &mut answer);
            // Behind our FIN there is nothing to be said.
            if !answer.bytes().is_empty() && !self.ended {
                self.kept.write(answer.bytes(), self.socket)?;
            }
            decrypted.map_err(Failure::Tls)?;
        }
        Poll::Ready(Ok(Received { bytes: plaintext.bytes(), end: self.session.is_closed() }))
    }

    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        self.send(Some(bytes), records)?;
        add(delivered, bytes.len());
        Ok(())
    }

    fn end(&mut self, records: &mut Output) -> Result<(), Failure> {
        self.ended = true;
        self.send(None, records)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, _: &AtomicU64) -> Poll<Result<(), Failure>> {
        self.kept.poll_flush(self.socket, cx).map_err(Failure::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Termination;
    use crate::reason::CloseReason;
    use crate::splice::relay::relay;
    use crate::tls::{Verifiers, server_config};
    use crate::traffic::Traffic;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::Ordering::Relaxed;
    use std::thread;

    const NAME: &str = "end.example.com";

    type End = StreamOwned<ClientConnection, std::net::TcpStream>;

    /// A session, and the end that has asked for it, in its own thread. What the end says at once comes with its handshake.
    async fn session(
        at_once: &'static [u8],
        go_on: impl FnOnce(End) + Send + 'static,
    ) -> (TcpStream, Session, thread::JoinHandle<()>) {
        let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let certificate = CertificateDer::from(certified.cert.der().to_vec());
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let termination =
            Termination { chain: vec![certificate], key, client_auth: None, not_after: u64::MAX };
        let config = server_config(&termination, &mut Verifiers::default(), std::iter::empty()).unwrap();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let end = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = TcpStream::from_std(socket).unwrap();
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

    fn numbers(from: usize) -> Vec<u8> {
        (from..from + 1_000_000).flat_map(usize::to_be_bytes).collect()
    }

    #[tokio::test]
    async fn both_legs_may_be_inside_of_tls() {
        let hears = |end: &mut End, from: usize| {
            let mut heard = Vec::new();
            // To close_notify: a bare FIN would be an error.
            end.read_to_end(&mut heard).unwrap();
            assert!(heard == [b"at once", &numbers(from)[..]].concat());
        };
        let (near, client, client_end) = session(b"at once", move |mut end| {
            end.write_all(&numbers(0)).unwrap();
            end.conn.send_close_notify();
            end.flush().unwrap();
            hears(&mut end, 5);
        })
        .await;
        let (far, server, server_end) = session(b"at once", move |mut end| {
            hears(&mut end, 0);
            end.write_all(&numbers(5)).unwrap();
            end.conn.send_close_notify();
            end.flush().unwrap();
        })
        .await;
        let traffic = Traffic::default();
        let end = relay(Tls::new(client, &near), Tls::new(server, &far), &traffic, None).await;
        assert_eq!(end, Ok(CloseReason::ClientClosed));
        assert_eq!(traffic.bytes_in.load(Relaxed), 7 + 8_000_000);
        assert_eq!(traffic.bytes_out.load(Relaxed), 7 + 8_000_000);
        drop((near, far));
        client_end.join().unwrap();
        server_end.join().unwrap();
    }
}
