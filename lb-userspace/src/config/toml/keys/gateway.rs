//! `[gateway]`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

use super::common::{CONNECTIONS, KEEPALIVE_EXAMPLE};
use crate::config::model::{AccessLog, FixedGateway, LiveGateway, LogFormat};
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, duration, integers, one_of, quoted, word};
use crate::config::toml::value::{MAX_STATE_DIR, MIN_SOURCE_PORT, MIN_SOURCE_PORTS};
use crate::reason::Tier;

/// Worker threads.
pub(in crate::config::toml) const WORKERS: RangeInclusive<i64> = 0..=1024;

/// Of `flow_table`: two per connection. The upper end is where a flow table would be larger than most machines.
pub(in crate::config::toml) const FLOWS: RangeInclusive<i64> = 2..=100_000_000;

pub(in crate::config::toml) const TIERS: [(&str, Tier); 4] =
    [("packet", Tier::Packet), ("sockmap", Tier::Sockmap), ("ktls", Tier::Ktls), ("copy", Tier::Copy)];

pub(in crate::config::toml) const LOG_FORMATS: [(&str, LogFormat); 2] =
    [("json", LogFormat::Json), ("text", LogFormat::Text)];

pub(in crate::config::toml) const GATEWAY: Table = Table {
    header: "[gateway]",
    keys: &[
        Key {
            name: "workers",
            example: "0",
            meaning: "worker threads; 0: one per core",
            values: Of(|| integers(&WORKERS)),
            default: Some(Of(|| code(FixedGateway::default().workers))),
        },
        Key {
            name: "interfaces",
            example: r#"["eth0"]"#,
            meaning: "devices for the packet tier's programs, including those that appear later",
            values: Is("`\"auto\"` or a list of names"),
            default: Some(Is("`\"auto\"`")),
        },
        Key {
            name: "tiers",
            example: r#"["packet", "copy"]"#,
            meaning: "the order in which tiers are tried for a connection; if `copy` is missing, it is added at the end",
            values: Of(|| format!("list of {}", one_of(&TIERS))),
            default: Some(Of(|| code(tiers(&LiveGateway::default().tiers)))),
        },
        Key {
            name: "bpffs",
            example: r#""/sys/fs/bpf/snisplice""#,
            meaning: "directory in which the kernel programs are pinned and found again; it belongs to this user alone. \
                      Each gateway on a host needs its own",
            values: Is("absolute path"),
            default: Some(Of(|| quoted(FixedGateway::default().bpffs.display()))),
        },
        Key {
            name: "state_dir",
            example: r#""/run/snisplice""#,
            meaning: "directory of the admin socket and its lock. Each gateway on a host needs its own",
            values: Of(|| format!("absolute path, at most {MAX_STATE_DIR} bytes")),
            default: Some(Of(|| quoted(FixedGateway::default().state_dir.display()))),
        },
        Key {
            name: "admin",
            example: r#""127.0.0.1:9900""#,
            meaning: "address of metrics, health checks and the [status page](admin.md); read-only, without password",
            values: Is("IP address and port"),
            default: Some(Is("absent: off")),
        },
        Key {
            name: "watch",
            example: "true",
            meaning: "reload when the content of this file, or of a certificate, key or passphrase file it names, \
                      changes. The gateway looks every second, and reloads when nothing has changed for a second \
                      ([more](operating.md#reload))",
            values: Is("boolean"),
            default: Some(Of(|| code(FixedGateway::default().watch))),
        },
        Key {
            name: "access_log",
            example: r#"{ path = "-", format = "json" }"#,
            meaning: "one line per connection, when it ends",
            values: Is("table, [below](#access_log)"),
            default: Some(Is("absent: off")),
        },
        Key {
            name: "max_connections",
            example: "200000",
            meaning: "connections open at once, including clients not yet routed",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Of(|| code(LiveGateway::default().max_connections))),
        },
        Key {
            name: "drain_timeout",
            example: r#""30s""#,
            meaning: "how long a stop waits for live connections to end; `\"0s\"`: not at all. Those of the packet tier go on",
            values: Is("duration"),
            default: Some(Of(|| duration(LiveGateway::default().drain_timeout))),
        },
        Key {
            name: "source_ports",
            example: r#""10240-29999""#,
            meaning: "local ports of the packet tier's connections to servers; they limit its connections per server address",
            values: Of(|| format!("range of at least {MIN_SOURCE_PORTS} ports, from {MIN_SOURCE_PORT} on")),
            default: Some(Of(|| {
                let ports = FixedGateway::default().source_ports;
                quoted(format!("{}-{}", ports.start(), ports.end()))
            })),
        },
        Key {
            name: "flow_table",
            example: "1048576",
            meaning: "entries of the packet tier's flow table; a connection takes two",
            values: Of(|| integers(&FLOWS)),
            default: Some(Of(|| code(FixedGateway::default().flow_table))),
        },
        Key {
            name: "keepalive",
            example: KEEPALIVE_EXAMPLE,
            meaning: "TCP keepalive, unless the listener or pool sets its own",
            values: Is("table, [below](#keepalive)"),
            default: Some(Is("the system's")),
        },
        Key {
            name: "peer_id",
            example: "1",
            meaning: "the number of this gateway among several behind one address ([more](#several-gateways))",
            values: Of(|| integers(&PEER_ID)),
            default: Some(Of(|| code(LiveGateway::default().peer_id))),
        },
        Key {
            name: "peers",
            example: r#"[{ id = 2, address = "10.0.0.2:5432" }]"#,
            meaning: "the other gateways behind the same address",
            values: Is("list of tables, [below](#several-gateways)"),
            default: Some(Is("absent: none")),
        },
    ],
};

/// Numbers of gateways: two bytes of a key.
pub(in crate::config::toml) const PEER_ID: RangeInclusive<i64> = 0..=u16::MAX as i64;

pub(in crate::config::toml) const PEER: Table = Table {
    header: "a peer",
    keys: &[
        Key {
            name: "id",
            example: "2",
            meaning: "its `peer_id`",
            values: Of(|| integers(&PEER_ID)),
            default: None,
        },
        Key {
            name: "address",
            example: r#""10.0.0.2:5432""#,
            meaning: "where it listens with `protocol` `postgres` or `tls`: an address of its own, not the common one, and \
                      without `proxy_protocol` for this gateway",
            values: Is("IP address and port"),
            default: None,
        },
    ],
};

/// A list as it stands in the file.
fn tiers(tiers: &[Tier]) -> String {
    let words: Vec<_> = tiers.iter().map(|tier| format!("\"{tier}\"")).collect();
    format!("[{}]", words.join(", "))
}

pub(in crate::config::toml) const ACCESS_LOG: Table = Table {
    header: "access_log",
    keys: &[
        Key {
            name: "path",
            example: r#""-""#,
            meaning: "a file to append to, or `\"-\"` for standard output",
            values: Is("absolute path, or `\"-\"`"),
            default: Some(Is("`\"-\"`")),
        },
        Key {
            name: "format",
            example: r#""json""#,
            meaning: "one JSON object per line, or text for people",
            values: Of(|| one_of(&LOG_FORMATS)),
            default: Some(Of(|| word(&LOG_FORMATS, &AccessLog::default().format))),
        },
    ],
};
