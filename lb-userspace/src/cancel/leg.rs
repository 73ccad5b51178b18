//! The client's leg of a session that is to be cancelled by a key of the gateway's.

use super::watch::Watch;
use super::{Cancels, Entered, Session, random};
use crate::account::Connection;
use crate::scratch::Output;
use crate::sniff::TlsRequest;
use crate::splice::transport::{Failure, PeerEnd, Received, Transport};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};
use tokio::net::TcpStream;

/// A leg to a client. Of what it is sent, the key for its CancelRequest is changed; everything else passes as it is.
pub struct Keyed<T> {
    leg: T,
    state: State,
}

enum State {
    /// The key is still to come. Boxed: most of a session is past it.
    Watched(Box<Watched>),
    /// The session can be cancelled.
    Entered { _entered: Entered },
    /// There is no key.
    Plain,
}

/// A session whose key is still to come.
struct Watched {
    watch: Watch,
    cancels: Arc<Cancels>,
    connection: Arc<Connection>,
    address: SocketAddr,
    request: Option<TlsRequest>,
}

impl<T> Keyed<T> {
    /// A leg on which no PostgreSQL server speaks.
    pub fn plain(leg: T) -> Self {
        Self { leg, state: State::Plain }
    }

    /// The client's leg of `connection`, at the begin of its session with the server at `address`, which was asked for TLS by
    /// `request`. `gateway`: the number of this one.
    pub fn watched(
        leg: T,
        gateway: u16,
        cancels: Arc<Cancels>,
        connection: Arc<Connection>,
        address: SocketAddr,
        request: Option<TlsRequest>,
    ) -> Self {
        let watch = Watch::new(gateway);
        Self {
            leg,
            state: State::Watched(Box::new(Watched { watch, cancels, connection, address, request })),
        }
    }
}

impl Watched {
    /// `bytes`, as the client gets them; and the session's place among those that can be cancelled, once it has its key.
    fn pass(&mut self, bytes: &[u8]) -> (Vec<u8>, Option<Entered>) {
        let mut changed = bytes.to_vec();
        let mut is_random = true;
        let keys = self.watch.pass(&mut changed, |key| is_random = random(key));
        let entered = keys.filter(|_| is_random).map(|keys| {
            let session = Session {
                connection: self.connection.clone(),
                address: self.address,
                request: self.request,
                key: keys.server.into(),
            };
            Entered::new(self.cancels.clone(), keys.client.into(), session)
        });
        (changed, entered)
    }
}

impl<T: Transport> Transport for Keyed<T> {
    fn gives_to_splice(&self) -> bool {
        self.leg.gives_to_splice()
    }

    fn takes_from_splice(&self) -> bool {
        !matches!(self.state, State::Watched(_)) && self.leg.takes_from_splice()
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
        let State::Watched(watched) = &mut self.state else {
            return self.leg.write(bytes, records, delivered);
        };
        let (changed, entered) = watched.pass(bytes);
        match entered {
            Some(entered) => self.state = State::Entered { _entered: entered },
            None if watched.watch.is_done() => self.state = State::Plain,
            None => {}
        }
        self.leg.write(&changed, records, delivered)
    }

    fn end(&mut self, how: PeerEnd, records: &mut Output) -> Result<(), Failure> {
        self.leg.end(how, records)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, delivered: &AtomicU64) -> Poll<Result<(), Failure>> {
        self.leg.poll_flush(cx, delivered)
    }
}
