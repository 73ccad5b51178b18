//! The keys of the file, each declared once: the reader, its hints and the tables of docs/configuration.md come from here.
//!
//! A new key has an entry here, with its default from the model where that stands; a field in the draft, which `read` fills;
//! and one in the model, which `check` fills. `SNISPLICE_WRITE_DOCS=1 cargo test -p snisplice --lib documentation` then writes
//! the documentation.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;
mod gateway;
mod gateway_api;
mod health;
mod listener;
mod pool;
mod route;
mod rule;

use super::key::Text::Is;
use super::key::{Key, Table};

pub(in crate::config) use common::CLIENT_RATE_EXAMPLE;
pub(super) use common::{CLIENT_RATE, CONNECTIONS, KEEPALIVE, KEEPALIVE_COUNT, MAX_KEEPALIVE_SECONDS};
pub(super) use gateway::{ACCESS_LOG, FLOWS, GATEWAY, LOG_FORMATS, PEER, PEER_ID, TIERS, WORKERS};
pub(super) use gateway_api::{GATEWAY_API, MODES, MOST_PORTS, MOST_WATCHES, SOURCES};
pub(in crate::config) use health::CHECKS;
pub(super) use health::{CHECK_COUNT, EJECT, HEALTH, HEALTH_TLS, MIN_INTERVAL, ON_DOWN, PORT, ROLES, STATUS};
pub(super) use listener::{BACKLOG, ECH, ECH_MODES, HELLO_BYTES, LISTENER, PROTOCOLS, REFUSALS};
pub(super) use pool::{
    BALANCES, MIN_VERSIONS, POOL, PROXY_VERSIONS, SERVER, SERVER_WEIGHT, SOURCE_ADDRESSES, UPSTREAM_TLS,
};
pub(super) use route::{
    BACKEND, BACKEND_WEIGHT, CARRIED, CERTIFICATE, CLIENT_AUTH, CLIENT_AUTH_MODES, ON_REMOVAL, ROUTE,
    TLS_MODES,
};
pub(super) use rule::{
    ATTEMPTS, CORS, FAILURES, HEADER_CHANGES, MATCH, MAX_AGE, MIRROR, PERCENT, REDIRECT, REDIRECTIONS, RETRY,
    REWRITE, RULE, RULE_BACKEND, SCHEMES, SESSION, VALUE,
};
pub(in crate::config) use rule::{BACKOFF, REDIRECTION};

/// Where a key that is unknown in one table may belong.
pub(super) const SECTIONS: [&Table; 6] = [&GATEWAY, &LISTENER, &ROUTE, &POOL, &GATEWAY_API, &RULE];

/// The tables of the documentation: all but those that are refused.
pub(super) const DOCUMENTED: [&Table; 28] = [
    &ROOT,
    &GATEWAY,
    &ACCESS_LOG,
    &PEER,
    &KEEPALIVE,
    &LISTENER,
    &CLIENT_RATE,
    &ECH,
    &ROUTE,
    &CERTIFICATE,
    &CLIENT_AUTH,
    &BACKEND,
    &RULE,
    &MATCH,
    &RULE_BACKEND,
    &HEADER_CHANGES,
    &REWRITE,
    &REDIRECT,
    &MIRROR,
    &CORS,
    &RETRY,
    &SESSION,
    &POOL,
    &SERVER,
    &HEALTH,
    &EJECT,
    &UPSTREAM_TLS,
    &GATEWAY_API,
];

pub(super) const ROOT: Table = Table {
    header: "the top level",
    keys: &[
        Key {
            name: "gateway",
            example: "[gateway]",
            meaning: "what holds for the whole process",
            values: Is("table"),
            default: Some(Is("its keys' defaults")),
        },
        Key {
            name: "listener",
            example: "[[listener]]",
            meaning: "addresses on which clients arrive",
            values: Is("list of tables"),
            default: Some(Is("at least one is required without `[gateway_api]`")),
        },
        Key {
            name: "route",
            example: "[[route]]",
            meaning: "which clients of a listener go to which pools",
            values: Is("list of tables"),
            default: Some(Is("none")),
        },
        Key {
            name: "pool",
            example: "[[pool]]",
            meaning: "servers of which any may take a connection",
            values: Is("list of tables"),
            default: Some(Is("none")),
        },
        Key {
            name: "gateway_api",
            example: "[gateway_api]",
            meaning: "objects of Kubernetes, of which more listeners, routes and pools are made ([more](gateway-api.md))",
            values: Is("table, [below](#gateway_api)"),
            default: Some(Is("absent: none")),
        },
    ],
};
