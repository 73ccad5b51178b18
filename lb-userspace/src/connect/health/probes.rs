//! The probe of each kind of check.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::http::Http;
use super::mysql::Mysql;
use super::postgres::Postgres;
use super::probe::{Failure, Probe, Step};
use super::redis::Redis;
use crate::config::{Check, Health};
use bytes::BytesMut;

/// A check of a server whose address is `address`.
pub(super) fn probe(health: &Health, address: &str) -> Box<dyn Probe> {
    let inside: Box<dyn Probe> = match &health.check {
        Check::Tcp | Check::Tls => Box::new(Connected),
        Check::Redis { role, login } => Box::new(Redis::new(*role, login.as_ref())),
        Check::Postgres { role, login, database } => {
            return Box::new(Postgres::new(health.tls.is_some(), *role, login.clone(), database.clone()));
        }
        Check::Mysql { login } => return Box::new(Mysql::new(health.tls.is_some(), login.clone())),
        Check::Http { path, host, status } => {
            Box::new(Http::new(path, host.as_deref().unwrap_or(address), status.clone()))
        }
    };
    match health.tls {
        None => inside,
        Some(_) => Box::new(InTls { begun: false, inside }),
    }
}

/// Nothing is said.
struct Connected;

impl Probe for Connected {
    fn step(&mut self, _: &mut BytesMut) -> Step {
        Step::done(Ok::<_, Failure>(()))
    }
}

/// Another check, after a TLS handshake.
struct InTls {
    begun: bool,
    inside: Box<dyn Probe>,
}

impl Probe for InTls {
    fn step(&mut self, received: &mut BytesMut) -> Step {
        if std::mem::replace(&mut self.begun, true) { self.inside.step(received) } else { Step::StartTls }
    }
}
