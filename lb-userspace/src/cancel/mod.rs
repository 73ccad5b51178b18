//! cancel: PostgreSQL's CancelRequest, which comes on a connection of its own and names a session by a key alone.
//!
//! For a session of a terminated route the client gets a key of the gateway's instead of the server's (`watch`), with the
//! gateway's number (`peer_id`) and 48 random bits, or many more if the server's own key is long. So every CancelRequest
//! finds its session, whichever server that is with, and also in clear text; and one that comes to another gateway of the
//! same address finds its gateway.

mod leg;
mod watch;

pub use leg::Keyed;

use crate::account::Connection;
use crate::config::{ClientRate, LiveGateway, NewConnections};
use crate::connect::{self, Endpoints, Greeting};
use crate::serving::ClientLimit;
use crate::sniff::{Cancel, TlsRequest};
use crate::socket::{read_some, write_all};
use rustls::crypto::aws_lc_rs;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// CancelRequests of one client address: nobody guesses 48 bits at this rate, and nobody needs more.
const RATE: NewConnections =
    NewConnections { most: NonZeroU32::new(100).unwrap(), per: Duration::from_secs(1) };

/// Client addresses whose CancelRequests are counted at the most.
const REMEMBERED: usize = 4096;

/// How long another gateway may take to pass a CancelRequest on.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions that can be cancelled: each for as long as it lives, and so bounded as they are.
pub struct Cancels {
    sessions: Mutex<HashMap<Box<[u8]>, Arc<Session>>>,
    clients: ClientLimit,
}

impl Default for Cancels {
    fn default() -> Self {
        let rate = ClientRate { new: Some(RATE), open: None };
        Cancels { sessions: Mutex::default(), clients: ClientLimit::new(rate, REMEMBERED, None) }
    }
}

/// A session of a terminated route.
pub struct Session {
    /// Its account.
    pub connection: Arc<Connection>,
    /// Of the pool's servers, the address it is connected to.
    address: SocketAddr,
    /// How that was asked for TLS.
    request: Option<TlsRequest>,
    /// The key that the server has given it.
    key: Box<[u8]>,
}

/// Whom a CancelRequest is for.
pub enum Found {
    /// A session of this gateway.
    Session(Arc<Session>),
    /// Another gateway.
    Peer(SocketAddr),
}

impl Cancels {
    /// Whom a CancelRequest of this client is for: `None` also if it has sent too many.
    pub fn find(&self, client: IpAddr, cancel: &Cancel, gateway: &LiveGateway) -> Option<Found> {
        // A peer has counted the client itself.
        let is_peer = gateway.peers.iter().any(|peer| peer.address.ip() == client.to_canonical());
        if !is_peer {
            drop(self.clients.acquire(client).ok()?);
        }
        if let Some(session) = self.sessions().get(&cancel.key) {
            return Some(Found::Session(session.clone()));
        }
        let number = watch::gateway_of(&cancel.key)?;
        // Only once: two gateways may disagree about the numbers.
        let peer = gateway.peers.iter().find(|peer| peer.id == number && !cancel.forwarded)?;
        Some(Found::Peer(peer.address))
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Arc<Session>>> {
        // Never left half-changed.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a session among those that can be cancelled, until dropped.
struct Entered {
    cancels: Arc<Cancels>,
    key: Box<[u8]>,
}

impl Entered {
    fn new(cancels: Arc<Cancels>, key: Box<[u8]>, session: Session) -> Self {
        cancels.sessions().insert(key.clone(), Arc::new(session));
        Self { cancels, key }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.cancels.sessions().remove(&self.key);
    }
}

impl Found {
    /// Passes the request on, and waits until whom it is for has closed the connection: so the client knows when it is done.
    /// `endpoints`: the client's leg.
    pub async fn pass_on(&self, cancel: &Cancel, endpoints: Option<Endpoints>) {
        let passed = match self {
            Found::Session(session) => session.cancel(endpoints).await,
            Found::Peer(address) => forward(cancel, *address).await,
        };
        if let Err(error) = passed {
            tracing::debug!(%error, "a CancelRequest could not be passed on");
        }
    }
}

impl Session {
    /// Asks its server to cancel what it does.
    async fn cancel(&self, endpoints: Option<Endpoints>) -> io::Result<()> {
        let Some((pool, server)) = self.connection.upstream.get() else { return Ok(()) };
        let header = pool.send_proxy.zip(endpoints);
        let header = header.map(|(version, endpoints)| connect::proxy_header(version, endpoints, None, None));
        let (header, request) = (header.unwrap_or_default(), self.request);
        let greeting = Greeting { header, request, tls: request.is_some(), name: None };
        let asked = async {
            let (socket, tls) = connect::reach(pool, server, self.address, &greeting).await?;
            let request = Cancel { key: self.key.clone(), forwarded: false }.request();
            match tls {
                None => write_all(&socket, &request).await?,
                Some(mut tls) => write_all(&socket, &tls.last_word(&request)).await?,
            }
            closed(&socket).await;
            Ok(())
        };
        timeout(pool.connect_timeout, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Passes a CancelRequest on to another gateway.
async fn forward(cancel: &Cancel, peer: SocketAddr) -> io::Result<()> {
    let passed = async {
        let socket = TcpStream::connect(peer).await?;
        write_all(&socket, &Cancel { forwarded: true, ..cancel.clone() }.request()).await?;
        closed(&socket).await;
        Ok(())
    };
    timeout(PEER_TIMEOUT, passed).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits for the other end to close. A reset, too, says that it is done.
async fn closed(socket: &TcpStream) {
    while read_some(socket, &mut Vec::new()).await.is_ok_and(|read| read > 0) {}
}

/// Fills a key. An error of the system's source of random numbers leaves nothing that could be guessed: nobody gets such a key.
fn random(key: &mut [u8]) -> bool {
    aws_lc_rs::default_provider().secure_random.fill(key).is_ok()
}
