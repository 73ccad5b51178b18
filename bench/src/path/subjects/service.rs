//! What clients reach through a subject, and at which ports.

use std::net::SocketAddr;

use snisplice_tests::topology;

use crate::path::topology::{
    BULK_TLS_PORT, HTTP_TLS_PORT, IPERF_PORT, REDIS_PORT, REDIS_TLS_PORT, SECOND_TLS_PORT,
};

/// What clients reach through a subject; the listening ports are the same for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Service {
    /// Plain TCP to iperf3.
    Iperf,
    /// Plain TCP to Redis.
    RedisPlain,
    /// Passed through by SNI to a Redis that speaks TLS.
    RedisTls,
    /// The same to another one.
    SecondTls,
    /// TLS ends at the subject, plain TCP to Redis.
    RedisTerminated,
    /// Passed through by SNI to either Redis that speaks TLS.
    PairTls,
    /// The same, where connections alone show whether a server works.
    PairObserved,
    /// Passed through by SNI to the server of bytes.
    BulkTls,
    /// TLS ends at the subject, plain TCP to the server of bytes.
    BulkTerminated,
    /// One of many names, passed through by SNI to Redis.
    Routes,
    /// HTTP whose TLS ends at the subject, by its path to the server of HTTP.
    Http,
}

/// Where a client connects to and which name it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) sni: String,
}

pub(crate) const PASSTHROUGH: u16 = 7001;
pub(super) const TERMINATED: u16 = 7002;
pub(super) const TCP_IPERF: u16 = 7003;
pub(super) const TCP_REDIS: u16 = 7004;
pub(super) const HTTP: u16 = 7007;
/// The relay does not read names, so it has a port for each server.
pub(super) const RELAY_BULK: u16 = 7005;
pub(super) const RELAY_SECOND: u16 = 7006;

impl Service {
    pub(super) fn port(self) -> u16 {
        match self {
            Service::Iperf => TCP_IPERF,
            Service::RedisPlain => TCP_REDIS,
            Service::RedisTerminated | Service::BulkTerminated => TERMINATED,
            Service::Http => HTTP,
            _ => PASSTHROUGH,
        }
    }

    /// The server's own port, for the bare route.
    fn server_port(self) -> u16 {
        match self {
            Service::Iperf => IPERF_PORT,
            Service::RedisPlain => REDIS_PORT,
            Service::RedisTls | Service::RedisTerminated | Service::Routes => REDIS_TLS_PORT,
            Service::SecondTls | Service::PairTls | Service::PairObserved => SECOND_TLS_PORT,
            Service::BulkTls | Service::BulkTerminated => BULK_TLS_PORT,
            Service::Http => HTTP_TLS_PORT,
        }
    }

    /// The server itself, by the bare route.
    pub(crate) fn direct(self) -> SocketAddr {
        topology::server(self.server_port())
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Service::BulkTls | Service::BulkTerminated => "bulk",
            Service::SecondTls => "second",
            Service::PairTls => "pair",
            Service::PairObserved => "observed",
            Service::Routes => "r{}",
            Service::Http => "http",
            _ => "redis",
        }
    }

    pub(super) fn is_terminated(self) -> bool {
        matches!(self, Service::RedisTerminated | Service::BulkTerminated | Service::Http)
    }
}
