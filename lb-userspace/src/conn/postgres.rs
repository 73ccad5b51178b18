//! PostgreSQL's CancelRequest, in clear text and where TLS ends here; and the key by which a session gets one.

use super::passage::Passage;
use crate::account::Account;
use crate::arrival::Arrival;
use crate::cancel::{Found, Keyed};
use crate::close::farewell;
use crate::config::LiveGateway;
use crate::connect::Endpoints;
use crate::reason::{CloseReason, RejectReason};
use crate::running::RunningGateway;
use crate::sniff::{self, Cancel, Opening, TlsRequest};
use crate::tls::{HandshakeError, Serving, Session};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// A CancelRequest outside of TLS: its key alone tells whom it is for.
pub(super) async fn cancel_in_clear_text(
    gateway: Arc<RunningGateway>,
    settings: Arc<LiveGateway>,
    worker: usize,
    task: Option<AbortHandle>,
    arrival: Arrival,
    cancel: Cancel,
) {
    let Arrival { visitor, client, .. } = arrival;
    let found = gateway.cancels.find(visitor.client.ip(), &cancel, &settings);
    let endpoints = Endpoints::of(visitor.client, visitor.local.as_deref(), &client);
    match &found {
        None => visitor.reject(&gateway.books, RejectReason::PostgresCancelCleartext),
        Some(peer @ Found::Peer(_)) => {
            visitor.reject(&gateway.books, RejectReason::PostgresCancelForwarded);
            peer.pass_on(&cancel, endpoints).await;
        }
        Some(found @ Found::Session(session)) => {
            let route = session.connection.route.clone();
            let account = Account::open(gateway.books.clone(), worker, task, visitor, route, None);
            if let Some((pool, server)) = session.connection.upstream.get() {
                account.connected(pool, server);
            }
            found.pass_on(&cancel, endpoints).await;
            account.close(CloseReason::CancelRequest);
        }
    }
    client.clean();
}

impl Passage {
    /// What a PostgreSQL client wants, once TLS is there: a session, unless it says otherwise in time.
    pub(super) async fn opening(
        &self,
        session: &mut Session<Serving>,
    ) -> Result<Option<Cancel>, HandshakeError> {
        let said = async {
            loop {
                match sniff::opening(session.early()) {
                    Opening::Incomplete => session.read_early(&self.client).await?,
                    Opening::Cancel(cancel) => return Ok(Some(cancel)),
                    Opening::Session => return Ok(None),
                }
            }
        };
        timeout(self.account.connection.listener.hello_timeout, said).await.unwrap_or(Ok(None))
    }

    /// A CancelRequest inside of TLS: its key tells whom it is for, whatever the route has for sessions.
    pub(super) async fn cancel(&mut self, mut session: Session<Serving>, cancel: Cancel) -> CloseReason {
        let client = self.account.connection.client.ip();
        let Some(found) = self.gateway.cancels.find(client, &cancel, &self.settings) else {
            return CloseReason::CancelUnknown;
        };
        if let Found::Session(target) = &found
            && let Some((pool, server)) = target.connection.upstream.get()
        {
            self.account.connected(pool, server);
        }
        found.pass_on(&cancel, self.endpoints().ok()).await;
        farewell(&self.client, &session.last_word(b"")).await;
        CloseReason::CancelRequest
    }

    /// The client's leg, on which the session gets its key if it is one of PostgreSQL. `request`: how the server was asked for
    /// TLS.
    pub(super) fn keyed<T>(&self, leg: T, server: &TcpStream, request: Option<TlsRequest>) -> Keyed<T> {
        // Only then: it is a system call.
        let Some(address) = self.is_postgres.then(|| server.peer_addr().ok()).flatten() else {
            return Keyed::plain(leg);
        };
        let (number, cancels) = (self.settings.peer_id, self.gateway.cancels.clone());
        Keyed::watched(leg, number, cancels, self.account.connection.clone(), address, request)
    }
}
