//! `[[listener]]`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

use super::common::{CLIENT_RATE_EXAMPLE, CONNECTIONS, KEEPALIVE_EXAMPLE};
use crate::config::model::{Ech, Listener, Protocol, Refuse};
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, duration, integers, one_of, word};
use crate::ech::Mode;
use crate::sniff::{MAX_WINDOW, Starttls};

/// Of `hello_bytes`: clients of today send up to 2 kB.
pub(in crate::config::toml) const HELLO_BYTES: RangeInclusive<i64> = 512..=MAX_WINDOW as i64;

/// Of listen(2).
pub(in crate::config::toml) const BACKLOG: RangeInclusive<i64> = 1..=i32::MAX as i64;

pub(in crate::config::toml) const PROTOCOLS: [(&str, Protocol); 10] = [
    ("tls", Protocol::Tls),
    ("postgres", Protocol::Postgres),
    ("mysql", Protocol::Mysql),
    ("smtp", Protocol::Starttls(Starttls::Smtp)),
    ("imap", Protocol::Starttls(Starttls::Imap)),
    ("pop3", Protocol::Starttls(Starttls::Pop3)),
    ("ldap", Protocol::Starttls(Starttls::Ldap)),
    ("xmpp", Protocol::Starttls(Starttls::Xmpp)),
    ("http", Protocol::Http),
    ("tcp", Protocol::Tcp),
];

pub(in crate::config::toml) const REFUSALS: [(&str, Refuse); 2] =
    [("alert", Refuse::Alert), ("close", Refuse::Close)];

pub(in crate::config::toml) const LISTENER: Table = Table {
    header: "[[listener]]",
    keys: &[
        Key {
            name: "name",
            example: r#""databases""#,
            meaning: "its unique name in routes, metrics and the log",
            values: Is("1 to 253 bytes, no spaces, no `/`"),
            default: Some(Is("`\"listener-N\"` for the N-th in the file")),
        },
        Key {
            name: "bind",
            example: r#"["0.0.0.0:443", "[::]:443"]"#,
            meaning: "addresses to listen on; `[::]` accepts IPv6 only and can be used together with `0.0.0.0`",
            values: Is("list of IP addresses and ports"),
            default: None,
        },
        Key {
            name: "protocol",
            example: r#""tls""#,
            meaning: "what clients send first. `tls`: a ClientHello, or PostgreSQL's request for TLS. `postgres`: that \
                      request, or a ClientHello with ALPN `postgresql`; clients that fail are told why. `mysql`: MySQL's \
                      request for TLS, after [the gateway has greeted them](#mysql). `smtp` to `xmpp`: clear text with a \
                      command for TLS ([more](#starttls)). `http`: requests of HTTP without TLS. `tcp`: anything",
            values: Of(|| one_of(&PROTOCOLS)),
            default: Some(Of(|| word(&PROTOCOLS, &a_listener().protocol))),
        },
        Key {
            name: "hello_timeout",
            example: r#""5s""#,
            meaning: "time from accept to a complete ClientHello, including the PROXY header and what is said before TLS. The \
                      handshake of a terminated route gets the same time again",
            values: Is("duration, not zero"),
            default: Some(Of(|| duration(a_listener().hello_timeout))),
        },
        Key {
            name: "hello_bytes",
            example: "16384",
            meaning: "bytes that a client may send until its ClientHello is complete, TLS records and their headers included, \
                      without the PROXY header and what is said before TLS. Clients of today send 200 to 2000",
            values: Of(|| integers(&HELLO_BYTES)),
            default: Some(Of(|| code(a_listener().hello_bytes))),
        },
        Key {
            name: "proxy_protocol",
            example: "true",
            meaning: "peers in `trusted_proxies` must send a PROXY header first: version 1, or version 2 with up to 64 KiB of \
                      TLVs. Other peers must not",
            values: Is("boolean"),
            default: Some(Of(|| code(a_listener().proxy_protocol))),
        },
        Key {
            name: "trusted_proxies",
            example: r#"["10.0.0.0/8"]"#,
            meaning: "proxies whose PROXY header is believed, required with `proxy_protocol`; and whose `X-Forwarded-*` and \
                      `Forwarded` are, if the listener has requests of HTTP ([more](#forwarded-headers))",
            values: Is("list of networks"),
            default: Some(Is("`[]`")),
        },
        Key {
            name: "allow",
            example: r#"["10.0.0.0/8"]"#,
            meaning: "who may connect",
            values: Is("list of networks, not empty"),
            default: Some(Is("absent: everyone")),
        },
        Key {
            name: "deny",
            example: r#"["10.0.0.0/8"]"#,
            meaning: "who may not connect; takes precedence over `allow`",
            values: Is("list of networks"),
            default: Some(Is("`[]`")),
        },
        Key {
            name: "max_connections",
            example: "100000",
            meaning: "connections open at once on this listener",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Is("absent: the gateway's")),
        },
        Key {
            name: "client_rate",
            example: CLIENT_RATE_EXAMPLE,
            meaning: "what one client address may have of this listener",
            values: Is("table, [below](#client_rate)"),
            default: Some(Is("absent: no limit of its own")),
        },
        Key {
            name: "backlog",
            example: "4096",
            meaning: "connections per worker that the kernel queues until they are accepted; the kernel's limit is \
                      `net.core.somaxconn`",
            values: Of(|| integers(&BACKLOG)),
            default: Some(Of(|| code(a_listener().backlog))),
        },
        Key {
            name: "keepalive",
            example: KEEPALIVE_EXAMPLE,
            meaning: "TCP keepalive toward clients",
            values: Is("table, [below](#keepalive)"),
            default: Some(Is("the gateway's")),
        },
        Key {
            name: "freebind",
            example: "true",
            meaning: "listen also on addresses that the machine does not have yet (IP_FREEBIND). A standby node starts, and \
                      serves when it gets the address (VRRP). A mistyped address is then no error",
            values: Is("boolean"),
            default: Some(Of(|| code(a_listener().freebind))),
        },
        Key {
            name: "version",
            example: r#""8.4.6""#,
            meaning: "the version that `mysql` clients are greeted with",
            values: Is("1 to 64 printable bytes"),
            default: Some(Is("absent: the lowest of the servers'")),
        },
        Key {
            name: "plugin",
            example: r#""mysql_clear_password""#,
            meaning: "the authentication plugin that `mysql` clients are greeted with",
            values: Is("1 to 64 printable bytes"),
            default: Some(Is("absent: `caching_sha2_password`")),
        },
        Key {
            name: "ech",
            example: r#"{ keys = ["ech.pem"] }"#,
            meaning: "keys for Encrypted ClientHello: the route is chosen by the name inside it ([more](#ech)); not with `tcp`",
            values: Is("table, [below](#ech)"),
            default: Some(Is("absent: by the outer name")),
        },
        Key {
            name: "refuse",
            example: r#""close""#,
            meaning: "how a TLS client is refused that has no route. `alert`: with a TLS alert that says why. `close`: by the end \
                      of the connection alone; on a terminated route also one whose pool has no server, before TLS begins",
            values: Of(|| one_of(&REFUSALS)),
            default: Some(Of(|| word(&REFUSALS, &a_listener().refuse))),
        },
    ],
};

pub(in crate::config::toml) const ECH: Table = Table {
    header: "ech",
    keys: &[
        Key {
            name: "keys",
            example: r#"["ech.pem", "ech-old.pem"]"#,
            meaning: "key files (RFC 9934), as `snisplice ech-key` makes them; a private key may have several ECHConfigs; no two of the same number",
            values: Is("list of paths, not empty"),
            default: None,
        },
        Key {
            name: "mode",
            example: r#""split""#,
            meaning: "`shared`: the servers have the same keys, and get the ClientHello as it came. `split`: they have no key, \
                      and get the one inside",
            values: Of(|| one_of(&ECH_MODES)),
            default: Some(Of(|| word(&ECH_MODES, &Mode::default()))),
        },
        Key {
            name: "openings",
            example: "100",
            meaning: "encrypted ClientHellos that are opened for one client address per second; who sends more is turned away \
                      (`ech_rate`)",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Of(|| code(Ech::OPENINGS))),
        },
    ],
};

pub(in crate::config::toml) const ECH_MODES: [(&str, Mode); 2] =
    [("shared", Mode::Shared), ("split", Mode::Split)];

/// One with nothing but defaults.
fn a_listener() -> Listener {
    Listener::new("".into(), Vec::new())
}
