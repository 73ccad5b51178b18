//! A MySQL client whose TLS ends here: its login, and its KILL.

use super::passage::{Passage, Unconnected, Upstream};
use crate::close::{LegSocket, farewell};
use crate::mysql::{self, Kills, Login, LoginError, Offer};
use crate::reason::{CloseReason, FallbackReason};
use crate::scratch::Output;
use crate::serving::{Numbering, Threads};
use crate::sniff::TlsRequest;
use crate::splice::relay::relay;
use crate::splice::tls::Tls;
use crate::splice::transport::{Failure, PeerEnd, Received, Transport};
use crate::tls::{Dialling, HandshakeError, Serving, Session};
use lb_common::packet::Side;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The sequence number of a login, after an SSLRequest.
const LOGIN: u8 = 2;

impl Passage {
    /// connect, splice: the server gets the client's login, and asks it itself for what proves who it is.
    pub(super) async fn terminate_mysql(
        &mut self,
        mut session: Session<Serving>,
        offer: Offer,
        ticket: u64,
    ) -> CloseReason {
        let bound = self.account.connection.listener.hello_timeout;
        let login = match timeout(bound, login(&mut session, &self.client)).await {
            Err(_) => return CloseReason::ClientLogin,
            Ok(Err(HandshakeError::Io(_))) => return CloseReason::ClientReset,
            Ok(Err(error)) => return self.relayed(Err((Side::Client, error.cause()))),
            Ok(Ok(None)) => return CloseReason::ClientClosed,
            Ok(Ok(Some(payload))) => match payload.and_then(|payload| Login::read(&payload, offer)) {
                Ok(login) => login,
                Err(LoginError::Old) => {
                    return self
                        .refuse(session, &mysql::old_client_error(LOGIN + 1), CloseReason::ClientLogin)
                        .await;
                }
                Err(LoginError::Malformed) => return CloseReason::ClientLogin,
            },
        };
        let connected =
            self.connect(None, Some(TlsRequest::Mysql(login.asked())), Some(&session), false, ticket).await;
        // The port is given back after the socket is closed.
        let Upstream { port: _port, socket: server, session: upstream, thread, guard } = match connected {
            Ok(connected) => connected,
            Err(Unconnected { reason, words }) => {
                let error = match words {
                    Some(words) => words.packet(LOGIN + 1),
                    None => mysql::closed_error(LOGIN + 1, reason),
                };
                return self.refuse(session, &error, reason).await;
            }
        };
        // `check` insists on it: the client will send its password.
        let Some(mut upstream) = upstream else { return CloseReason::ServerPreamble };
        let packet = login.packet();
        // It may be longer than what a server that does not read has room for.
        let sent = timeout(bound, upstream.write(&server, &packet)).await;
        if let Err(error) = sent.unwrap_or(Err(HandshakeError::TimedOut)) {
            return match error {
                HandshakeError::Io(_) => CloseReason::ServerReset,
                error => self.relayed(Err((Side::Server, error.cause()))),
            };
        }
        self.copy_for(FallbackReason::TlsTerminated);
        self.keep_alive(&server);
        let Ok(address) = server.peer_addr() else { return CloseReason::ServerReset };
        let (threads, at) =
            (self.gateway.threads.clone(), Numbering { server: guard.server().state.clone(), address });
        let _entered = thread.and_then(|thread| threads.enter(offer.id, &at, thread));
        let kills = (!login.compresses()).then(|| Kills::new(login.has_query_attributes()));
        let near = Tls::new(session, &*self.client).offload(self.offload());
        let far = Tls::new(*upstream, &*server);
        let far = Killing { leg: far, kills, threads, at };
        let end = relay(near, far, &self.account.connection.traffic, self.route.idle_timeout()).await;
        server.clean();
        self.relayed(end)
    }

    /// The last word to a client that gets no server.
    async fn refuse(&self, mut session: Session<Serving>, error: &[u8], reason: CloseReason) -> CloseReason {
        farewell(&self.client, &session.last_word(error)).await;
        reason
    }
}

/// The payload of a client's login; `None`: it has gone. What follows is left in the session.
async fn login(
    session: &mut Session<Serving>,
    client: &LegSocket,
) -> Result<Option<Result<Vec<u8>, LoginError>>, HandshakeError> {
    let mut received = Vec::new();
    loop {
        match mysql::first(&received, mysql::MAX_LOGIN) {
            Ok(None) => {}
            Ok(Some((LOGIN, payload))) => {
                let payload = payload.to_vec();
                session.put_back(&received[mysql::HEADER + payload.len()..]);
                return Ok(Some(Ok(payload)));
            }
            Ok(Some(_)) | Err(_) => return Ok(Some(Err(LoginError::Malformed))),
        }
        if !session.read(client, &mut received).await? {
            return Ok(None);
        }
    }
}

/// The leg to a server, on which KILL has the server's numbers.
struct Killing<'a> {
    leg: Tls<Dialling, &'a TcpStream>,
    /// Absent: the packets are compressed.
    kills: Option<Kills>,
    threads: Arc<Threads>,
    at: Numbering,
}

impl Transport for Killing<'_> {
    fn gives_to_splice(&self) -> bool {
        false
    }

    fn takes_from_splice(&self) -> bool {
        false
    }

    fn socket(&self) -> &TcpStream {
        self.leg.socket()
    }

    fn poll_read<'b>(
        &mut self,
        cx: &mut Context<'_>,
        input: &'b mut [u8],
        plaintext: &'b mut Output,
    ) -> Poll<Result<Received<'b>, Failure>> {
        self.leg.poll_read(cx, input, plaintext)
    }

    fn write(&mut self, bytes: &[u8], records: &mut Output, delivered: &AtomicU64) -> Result<(), Failure> {
        let Self { leg, kills, threads, at } = self;
        let Some(kills) = kills else { return leg.write(bytes, records, delivered) };
        let passed = kills.pass(bytes, |ours| threads.at(ours, at));
        if passed.is_empty() { Ok(()) } else { leg.write(&passed, records, delivered) }
    }

    fn end(&mut self, how: PeerEnd, records: &mut Output) -> Result<(), Failure> {
        let rest = self.kills.as_mut().map(Kills::rest).unwrap_or_default();
        if !rest.is_empty() {
            self.leg.write(&rest, records, &AtomicU64::new(0))?;
        }
        self.leg.end(how, records)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        self.leg.poll_flush(cx, delivered)
    }
}
