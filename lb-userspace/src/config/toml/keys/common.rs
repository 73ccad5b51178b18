//! What tables share.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

use crate::config::client_rate::NewConnections;
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, duration, integers};

/// Of any `max_connections`.
pub(in crate::config::toml) const CONNECTIONS: RangeInclusive<i64> = 1..=1_000_000_000;

/// linux/tcp.h: MAX_TCP_KEEPIDLE and MAX_TCP_KEEPINTVL, in seconds.
pub(in crate::config::toml) const MAX_KEEPALIVE_SECONDS: u16 = 32_767;

/// linux/tcp.h: up to MAX_TCP_KEEPCNT.
pub(in crate::config::toml) const KEEPALIVE_COUNT: RangeInclusive<i64> = 1..=127;

/// Of a `keepalive`, wherever it stands.
pub(in crate::config::toml) const KEEPALIVE_EXAMPLE: &str =
    r#"{ idle = "60s", interval = "15s", count = 4 }"#;

pub(in crate::config::toml) const KEEPALIVE: Table = Table {
    header: "keepalive",
    keys: &[
        Key {
            name: "idle",
            example: r#""60s""#,
            meaning: "silence of a peer before the first probe",
            values: Of(keepalive_seconds),
            default: Some(Is("the system's: `net.ipv4.tcp_keepalive_time`, on Linux 7200 s")),
        },
        Key {
            name: "interval",
            example: r#""15s""#,
            meaning: "time between two unanswered probes",
            values: Of(keepalive_seconds),
            default: Some(Is("the system's: `net.ipv4.tcp_keepalive_intvl`, on Linux 75 s")),
        },
        Key {
            name: "count",
            example: "4",
            meaning: "number of unanswered probes after which the connection ends (`client_reset`, `server_reset`)",
            values: Of(|| integers(&KEEPALIVE_COUNT)),
            default: Some(Is("the system's: `net.ipv4.tcp_keepalive_probes`, on Linux 9")),
        },
    ],
};

/// Of a `client_rate`, wherever it stands.
pub(in crate::config) const CLIENT_RATE_EXAMPLE: &str = r#"{ connections = 50, per = "1s", open = 500 }"#;

pub(in crate::config::toml) const CLIENT_RATE: Table = Table {
    header: "client_rate",
    keys: &[
        Key {
            name: "connections",
            example: "50",
            meaning: "new connections in the time `per`. A client that has opened none for that time may open as many at once; \
                      after that the next one is free each `per` divided by `connections`",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Is("absent: no limit")),
        },
        Key {
            name: "per",
            example: r#""1s""#,
            meaning: "that time",
            values: Is("duration, not zero"),
            default: Some(Of(|| duration(NewConnections::PER))),
        },
        Key {
            name: "open",
            example: "500",
            meaning: "connections open at once",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Is("absent: no limit")),
        },
    ],
};

fn keepalive_seconds() -> String {
    format!("whole seconds, `\"1s\"` to `\"{MAX_KEEPALIVE_SECONDS}s\"`")
}
