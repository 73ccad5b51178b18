//! `health`, `eject` and `on_down` of a pool.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::draft::CheckKind;
use crate::config::health::{Check, Eject, Health, OnDown, Role};
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, duration, integers, one_of};

/// Of `rise`, `fall` and `failures`.
pub(in crate::config::toml) const CHECK_COUNT: RangeInclusive<i64> = 1..=1000;

pub(in crate::config::toml) const PORT: RangeInclusive<i64> = 1..=65535;

/// RFC 9110, section 15.
pub(in crate::config::toml) const STATUS: RangeInclusive<i64> = 100..=599;

/// A server that is asked more often than this has nothing else to do.
pub(in crate::config::toml) const MIN_INTERVAL: Duration = Duration::from_millis(100);

pub(in crate::config) const CHECKS: [(&str, CheckKind); 6] = [
    ("tcp", CheckKind::Tcp),
    ("tls", CheckKind::Tls),
    ("redis", CheckKind::Redis),
    ("postgres", CheckKind::Postgres),
    ("mysql", CheckKind::Mysql),
    ("http", CheckKind::Http),
];

/// Both databases' words for both.
pub(in crate::config::toml) const ROLES: [(&str, Role); 4] = [
    ("master", Role::Master),
    ("replica", Role::Replica),
    ("primary", Role::Master),
    ("standby", Role::Replica),
];

pub(in crate::config::toml) const ON_DOWN: [(&str, OnDown); 2] =
    [("keep", OnDown::Keep), ("kill", OnDown::Kill)];

pub(in crate::config::toml) const HEALTH: Table = Table {
    header: "health",
    keys: &[
        Key {
            name: "check",
            example: r#""redis""#,
            meaning: "what a server is asked, see the next table",
            values: Of(|| one_of(&CHECKS)),
            default: None,
        },
        Key {
            name: "interval",
            example: r#""2s""#,
            meaning: "longest time from the start of one check of a server to the start of the next; a random tenth is taken off, so that servers are not checked in step",
            values: Is("duration, at least 100 ms"),
            default: Some(Of(|| duration(a_check().interval))),
        },
        Key {
            name: "timeout",
            example: r#""1s""#,
            meaning: "limit of one check, from the connect to the answer",
            values: Is("duration, not zero, at most `interval`"),
            default: Some(Of(|| format!("the smaller of {} and `interval`", duration(a_check().timeout)))),
        },
        Key {
            name: "rise",
            example: "2",
            meaning: "passed checks in a row after which a server that was down is up",
            values: Of(|| integers(&CHECK_COUNT)),
            default: Some(Of(|| code(a_check().rise))),
        },
        Key {
            name: "fall",
            example: "3",
            meaning: "failed checks in a row after which a server that was up is down",
            values: Of(|| integers(&CHECK_COUNT)),
            default: Some(Of(|| code(a_check().fall))),
        },
        Key {
            name: "port",
            example: "6379",
            meaning: "port that is checked, at the server's address",
            values: Of(|| integers(&PORT)),
            default: Some(Is("absent: where connections go")),
        },
        Key {
            name: "role",
            example: r#""master""#,
            meaning: "what the server must be; see [failover](#failover)",
            values: Of(|| one_of(&ROLES)),
            default: Some(Is("absent: any")),
        },
        Key {
            name: "user",
            example: r#""health""#,
            meaning: "who logs in; a `role` of `postgres` needs it",
            values: Is("1 to 128 bytes"),
            default: Some(Is("absent: `default` of Redis, nobody of PostgreSQL and MySQL")),
        },
        Key {
            name: "password_file",
            example: r#""health.password""#,
            meaning: "file with the password on one line; the line end is not part of it",
            values: Is("path"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "database",
            example: r#""app""#,
            meaning: "the database of the login",
            values: Is("1 to 128 bytes"),
            default: Some(Is("`\"postgres\"`")),
        },
        Key {
            name: "path",
            example: r#""/health""#,
            meaning: "the path of the request",
            values: Is("path of a URL"),
            default: Some(Is("`\"/\"`")),
        },
        Key {
            name: "host",
            example: r#""db.example.com""#,
            meaning: "the request's `Host`",
            values: Is("name, with a port if it is not 80"),
            default: Some(Is("absent: the server's address")),
        },
        Key {
            name: "status",
            example: "[200]",
            meaning: "what the status of the answer must be one of",
            values: Is("list of numbers from 100 to 599"),
            default: Some(Is("absent: 200 to 399")),
        },
        Key {
            name: "tls",
            example: r#"{ ca = "servers-ca.crt", server_name = "redis.internal" }"#,
            meaning: "the check is done inside TLS; not for `tcp`",
            values: Is("table of `ca` and `server_name`, both optional"),
            default: Some(Is("absent: without; `tls` and its defaults with `check = \"tls\"`")),
        },
    ],
};

/// One with nothing but defaults.
fn a_check() -> Health {
    Health::new(Check::Tcp)
}

pub(in crate::config::toml) const HEALTH_TLS: Table = Table {
    header: "tls of health",
    keys: &[
        Key {
            name: "ca",
            example: r#""servers-ca.crt""#,
            meaning: "authorities that the server's certificate must lead to (PEM)",
            values: Is("path"),
            default: Some(Is("absent: its issuer is not looked at")),
        },
        Key {
            name: "server_name",
            example: r#""redis.internal""#,
            meaning: "the name that is sent as SNI, and that the certificate must be for",
            values: Is("host name or IP address"),
            default: Some(Is("absent: the server's name or address")),
        },
    ],
};

pub(in crate::config::toml) const EJECT: Table = Table {
    header: "eject",
    keys: &[
        Key {
            name: "failures",
            example: "5",
            meaning: "failed connections in a row after which a server is ejected",
            values: Of(|| integers(&CHECK_COUNT)),
            default: Some(Of(|| code(Eject::default().failures))),
        },
        Key {
            name: "time",
            example: r#""30s""#,
            meaning: "how long it then gets no connections; also the longest time between two of these failures",
            values: Is("duration, not zero"),
            default: Some(Of(|| duration(Eject::default().time))),
        },
    ],
};
