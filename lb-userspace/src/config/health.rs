//! Health of a pool's servers, as configured: how they are checked, and what becomes of one that fails.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::authorities::Authorities;
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

/// `health` of a pool: how its servers are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What a server is asked.
    pub check: Check,
    /// From the begin of one check of a server to that of the next, at most.
    pub interval: Duration,
    /// For one check; not zero, at most `interval`.
    pub timeout: Duration,
    /// Checks in a row that a server must pass to be up again; at least 1.
    pub rise: u32,
    /// Checks in a row that a server must fail to be down; at least 1.
    pub fall: u32,
    /// Where the check connects to; absent: where connections go.
    pub port: Option<u16>,
    /// Present: the check is done inside TLS. Always with [`Check::Tls`], never with [`Check::Tcp`].
    pub tls: Option<HealthTls>,
}

impl Health {
    /// One with the defaults of all other keys.
    pub fn new(check: Check) -> Self {
        Self {
            check,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
            port: None,
            tls: None,
        }
    }

    /// The role that the pool's servers must have, if any.
    pub fn role(&self) -> Option<Role> {
        match &self.check {
            Check::Redis { role, .. } | Check::Postgres { role, .. } => *role,
            Check::Tcp | Check::Tls | Check::Mysql { .. } | Check::Http { .. } => None,
        }
    }
}

/// What a health check asks a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It accepts a connection.
    Tcp,
    /// Its TLS handshake succeeds, with a certificate that is valid today.
    Tls,
    /// It answers Redis' PING.
    Redis {
        /// What its ROLE must be.
        role: Option<Role>,
        /// Who asks; absent: the default user, without a password.
        login: Option<Login>,
    },
    /// It takes PostgreSQL's startup message.
    Postgres {
        /// What it must be; only with a login.
        role: Option<Role>,
        /// Who logs in; absent: nobody, any answer to the startup message will do.
        login: Option<Login>,
        /// The database of the login.
        database: Box<str>,
    },
    /// It greets as MySQL and MariaDB do, and answers a login.
    Mysql {
        /// Who logs in; absent: nobody, any answer to the login will do.
        login: Option<Login>,
    },
    /// It answers an HTTP request.
    Http {
        /// The request's path; begins with a slash.
        path: Box<str>,
        /// The request's Host; absent: the server's address.
        host: Option<Box<str>>,
        /// What its status must be one of; empty: 200 to 399.
        status: Vec<u16>,
    },
}

/// What a server is among those that hold the same data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes: Redis' master, PostgreSQL's primary.
    Master,
    /// It follows another one: Redis' replica, PostgreSQL's standby.
    Replica,
}

/// Who a health check logs in as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user; `None`: Redis' default user.
    pub user: Option<Box<str>>,
    /// Without the line end of its file.
    pub password: Option<Secret>,
}

/// A password: wiped from memory, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// A copy of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Secret(Arc::new(Zeroizing::new(bytes.to_vec())))
    }

    /// Its bytes: at least one, none of them zero.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// TLS of a health check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthTls {
    /// What the server's certificate must lead to; not empty. Absent: its issuer is not looked at, but its dates and, where
    /// `server_name` is given, its names.
    pub ca: Option<Arc<Authorities>>,
    /// Sent as SNI, and what the certificate must be for; absent: the server's name or address.
    pub server_name: Option<ServerName<'static>>,
}

/// `eject` of a pool: when a server that fails connections has a rest from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eject {
    /// Failed connections in a row, none of them longer ago than `time`; at least 1.
    pub failures: u32,
    /// The first rest; each one that follows without a success between is twice as long as the one before, up to 32 times.
    pub time: Duration,
}

impl Default for Eject {
    fn default() -> Self {
        Self { failures: 3, time: Duration::from_secs(10) }
    }
}

/// `on_down` of a pool: what becomes of open connections to a server that goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// They go on.
    #[default]
    Keep,
    /// They are reset.
    Kill,
}
