//! `[[pool]]`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

use super::common::{CONNECTIONS, KEEPALIVE_EXAMPLE};
use super::health::ON_DOWN;
use crate::config::address::Origin;
use crate::config::model::{Balance, MinVersion, Pool, ProxyVersion, Server, SourceAddress};
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, duration, integers, one_of, word};

/// Of a server.
pub(in crate::config::toml) const SERVER_WEIGHT: RangeInclusive<i64> = 1..=256;

pub(in crate::config::toml) const BALANCES: [(&str, Balance); 4] = [
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("source-hash", Balance::SourceHash),
    ("random", Balance::Random),
];

pub(in crate::config::toml) const PROXY_VERSIONS: [(&str, ProxyVersion); 2] =
    [("v1", ProxyVersion::V1), ("v2", ProxyVersion::V2)];

pub(in crate::config::toml) const SOURCE_ADDRESSES: [(&str, SourceAddress); 2] =
    [("gateway", SourceAddress::Gateway), ("client", SourceAddress::Client)];

pub(in crate::config::toml) const MIN_VERSIONS: [(&str, MinVersion); 2] =
    [("1.2", MinVersion::Tls12), ("1.3", MinVersion::Tls13)];

pub(in crate::config::toml) const POOL: Table = Table {
    header: "[[pool]]",
    keys: &[
        Key {
            name: "name",
            example: r#""redis-1""#,
            meaning: "its unique name in routes, metrics and `drain`",
            values: Is("as for a listener"),
            default: None,
        },
        Key {
            name: "balance",
            example: r#""round-robin""#,
            meaning: "how a server is selected ([more](#balance))",
            values: Of(|| one_of(&BALANCES)),
            default: Some(Of(|| word(&BALANCES, &a_pool().balance))),
        },
        Key {
            name: "slow_start",
            example: r#""30s""#,
            meaning: "time in which a server that gets connections again (after it was drained, down or ejected) comes to its whole share; not with \
                      `source-hash`",
            values: Is("duration, not zero"),
            default: Some(Is("absent: at once")),
        },
        Key {
            name: "servers",
            example: r#"["10.0.0.11:6379"]"#,
            meaning: "servers of which any may take a connection; `\"10.0.0.11:6379\"` is short for \
                      `{ address = \"10.0.0.11:6379\" }`",
            values: Is("list of addresses or tables, [below](#servers)"),
            default: None,
        },
        Key {
            name: "connect_timeout",
            example: r#""2s""#,
            meaning: "limit of one attempt at one server: with all its addresses, the answer of a PostgreSQL or MySQL server to the request \
                      for TLS, and the TLS handshake; also of the wait for a place where all servers have their `max_connections`",
            values: Is("duration, not zero"),
            default: Some(Of(|| duration(a_pool().connect_timeout))),
        },
        Key {
            name: "send_proxy",
            example: r#""v2""#,
            meaning: "the PROXY header that is sent to servers first; version 2 also carries [what is known of the client's \
                      TLS](#proxy-headers)",
            values: Of(|| one_of(&PROXY_VERSIONS)),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "source",
            example: r#""client""#,
            meaning: "whose address servers see as that of the client; `client` needs routing that brings their answers back \
                      ([more](#source))",
            values: Of(|| one_of(&SOURCE_ADDRESSES)),
            default: Some(Of(|| word(&SOURCE_ADDRESSES, &a_pool().source))),
        },
        Key {
            name: "keepalive",
            example: KEEPALIVE_EXAMPLE,
            meaning: "TCP keepalive toward servers",
            values: Is("table, [below](#keepalive)"),
            default: Some(Is("the gateway's")),
        },
        Key {
            name: "health",
            example: r#"{ check = "tcp", interval = "5s", rise = 2, fall = 3 }"#,
            meaning: "how its servers are checked ([more](#health))",
            values: Is("table, [below](#health)"),
            default: Some(Is("absent: not at all")),
        },
        Key {
            name: "eject",
            example: r#"{ failures = 3, time = "10s" }"#,
            meaning: "when a server that fails connections gets none for a while ([more](#eject))",
            values: Is("table, [below](#eject)"),
            default: Some(Is("absent: never")),
        },
        Key {
            name: "on_down",
            example: r#""kill""#,
            meaning: "what becomes of open connections to a server that its checks find down: they go on, or are reset",
            values: Of(|| one_of(&ON_DOWN)),
            default: Some(Of(|| word(&ON_DOWN, &a_pool().on_down))),
        },
        Key {
            name: "http2",
            example: "true",
            meaning: "servers get requests of HTTP in HTTP/2; without `tls` by prior knowledge (h2c)",
            values: Is("boolean"),
            default: Some(Of(|| code(a_pool().http2))),
        },
        Key {
            name: "tls",
            example: r#"{ ca = "upstream-ca.crt", server_name = "redis.internal" }"#,
            meaning: "the gateway speaks TLS to the servers; not for a pool to which a route passes TLS through; `{}` for the \
                      defaults",
            values: Is("table, [below](#tls-toward-servers)"),
            default: Some(Is("absent: no TLS of the gateway's own")),
        },
    ],
};

/// One with nothing but defaults.
fn a_pool() -> Pool {
    Pool::new("".into(), Vec::new())
}

pub(in crate::config::toml) const SERVER: Table = Table {
    header: "a server",
    keys: &[
        Key {
            name: "address",
            example: r#""10.0.0.11:6379""#,
            meaning: "IP address or name, and port; or a service ([SRV records](#srv-records)). Unique in its pool",
            values: Is(
                "`\"10.0.0.11:6379\"`, `\"[2001:db8::1]:6379\"`, `\"redis.example.com:6379\"`, `\"srv:_redis._tcp.example.com\"`",
            ),
            default: None,
        },
        Key {
            name: "weight",
            example: "1",
            meaning: "relative to the pool's other servers; not for a service",
            values: Of(|| integers(&SERVER_WEIGHT)),
            default: Some(Of(|| code(a_server().weight))),
        },
        Key {
            name: "backup",
            example: "true",
            meaning: "takes connections only if no server that is not a backup is usable",
            values: Is("boolean"),
            default: Some(Is("`false`")),
        },
        Key {
            name: "max_connections",
            example: "500",
            meaning: "connections open at once; for a service, of each of its servers ([more](#full-servers))",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Is("absent: no limit of its own")),
        },
    ],
};

/// One with nothing but defaults.
fn a_server() -> Server {
    Server::new(Origin::Service("".into()))
}

pub(in crate::config::toml) const UPSTREAM_TLS: Table = Table {
    header: "tls of a pool",
    keys: &[
        Key {
            name: "ca",
            example: r#""upstream-ca.crt""#,
            meaning: "servers must show a certificate that is issued by one of these authorities, directly or through \
                      intermediates, or that is itself in this file (PEM)",
            values: Is("path"),
            default: Some(Is("the system's authorities")),
        },
        Key {
            name: "server_name",
            example: r#""redis.internal""#,
            meaning: "what the servers are called (SNI), and the name that their certificates must be for",
            values: Is("host name or IP address; of an IP address no SNI is sent"),
            default: Some(Is(
                "the server's host name; required for servers without one, unless there is a `san`",
            )),
        },
        Key {
            name: "san",
            example: r#"["DNS:redis.internal", "URI:spiffe://example.org/redis"]"#,
            meaning: "alternative names of which the certificate must have one, instead of the name that the server is called",
            values: Is("list of `\"DNS:…\"`, `\"IP:…\"`, `\"URI:…\"`, `\"email:…\"`, not empty"),
            default: Some(Is("absent: the name that the server is called")),
        },
        Key {
            name: "certificate",
            example: r#"{ chain = "gateway.crt", key = "gateway.key" }"#,
            meaning: "the gateway's own certificate, for servers that ask for one",
            values: Is("table, as [of a route](#certificate)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "alpn",
            example: r#"["postgresql"]"#,
            meaning: "protocols that are offered, in order of preference",
            values: Is("list of protocol names"),
            default: Some(Is("`[]`: the extension is not sent")),
        },
        Key {
            name: "min_version",
            example: r#""1.3""#,
            meaning: "oldest version of TLS that is offered",
            values: Of(|| one_of(&MIN_VERSIONS)),
            default: Some(Of(|| word(&MIN_VERSIONS, &MinVersion::Tls12))),
        },
    ],
};
