//! A connection on its way, and the server it reaches.

use crate::account::Account;
use crate::close::LegSocket;
use crate::config::LiveGateway;
use crate::connect::SourcePort;
use crate::mysql::ServerError;
use crate::reason::CloseReason;
use crate::running::RunningGateway;
use crate::serving::{Permits, Route, ServerGuard};
use crate::tls::{Dialling, Session};
use std::sync::Arc;
use std::time::Instant;

/// A connection with a route.
pub(super) struct Passage {
    pub(super) gateway: Arc<RunningGateway>,
    pub(super) account: Account,
    pub(super) client: LegSocket,
    pub(super) route: Arc<Route>,
    /// When the route was known.
    pub(super) routed: Instant,
    pub(super) settings: Arc<LiveGateway>,
    pub(super) permits: Permits,
    /// As far as its ClientHello, and how it has come to that, tell.
    pub(super) is_postgres: bool,
}

/// No server takes the connection.
pub(super) struct Unconnected {
    pub(super) reason: CloseReason,
    /// What a MySQL server has said to that.
    pub(super) words: Option<Box<ServerError>>,
}

impl From<CloseReason> for Unconnected {
    fn from(reason: CloseReason) -> Self {
        Self { reason, words: None }
    }
}

/// A connected server.
pub(super) struct Upstream {
    pub(super) socket: LegSocket,
    /// Present: the gateway speaks TLS to it.
    pub(super) session: Option<Box<Session<Dialling>>>,
    /// A MySQL server's number of the connection.
    pub(super) thread: Option<u32>,
    pub(super) guard: ServerGuard,
    pub(super) port: Option<SourcePort>,
}
