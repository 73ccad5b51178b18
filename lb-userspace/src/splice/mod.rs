//! Splice: bytes flow between the two legs. The tier is chosen per connection.

pub(crate) mod keepalive;
pub mod packet;
mod pipe;
pub mod relay;
pub mod sockmap;
pub mod tls;
pub mod transport;

use crate::reason::CloseReason;

/// Which leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Between the client and the gateway.
    Client,
    /// Between the gateway and the server.
    Server,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    pub(crate) fn closed(self) -> CloseReason {
        match self {
            Side::Client => CloseReason::ClientClosed,
            Side::Server => CloseReason::ServerClosed,
        }
    }

    pub(crate) fn reset(self) -> CloseReason {
        match self {
            Side::Client => CloseReason::ClientReset,
            Side::Server => CloseReason::ServerReset,
        }
    }
}
