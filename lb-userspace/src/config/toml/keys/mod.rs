//! The keys of the file, each declared once: the reader, its hints and the tables of docs/configuration.md come from here.
//!
//! A new key has an entry here, with its default from the model where that stands; a field in the draft, which `read` fills;
//! and one in the model, which `check` fills. `SNISPLICE_WRITE_DOCS=1 cargo test -p snisplice --lib documentation` then writes
//! the documentation.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;
mod gateway;
mod listener;
mod pool;
mod route;

use super::key::Text::Is;
use super::key::{Key, Table};

pub(super) use common::{CONNECTIONS, KEEPALIVE, KEEPALIVE_COUNT, MAX_KEEPALIVE_SECONDS};
pub(super) use gateway::{ACCESS_LOG, FLOWS, GATEWAY, LOG_FORMATS, TIERS, WORKERS};
pub(super) use listener::{BACKLOG, LISTENER, PROTOCOLS};
pub(super) use pool::{
    BALANCES, CHECK_COUNT, CHECKS, HEALTH, POOL, PROXY_VERSIONS, SERVER, SERVER_WEIGHT, UPSTREAM_TLS,
};
pub(super) use route::{BACKEND, BACKEND_WEIGHT, CERTIFICATE, ON_REMOVAL, ROUTE, TLS_MODES};

/// Where a key that is unknown in one table may belong.
pub(super) const SECTIONS: [&Table; 4] = [&GATEWAY, &LISTENER, &ROUTE, &POOL];

/// The tables of the documentation: all but those that are refused.
pub(super) const DOCUMENTED: [&Table; 10] =
    [&ROOT, &GATEWAY, &ACCESS_LOG, &KEEPALIVE, &LISTENER, &ROUTE, &CERTIFICATE, &BACKEND, &POOL, &SERVER];

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
            default: Some(Is("at least one is required")),
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
    ],
};
