//! `[[route]]`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

use super::common::{CLIENT_RATE_EXAMPLE, CONNECTIONS};
use crate::config::draft::Tls;
use crate::config::draft::rule::Carried;
use crate::config::model::{Backend, MAX_WEIGHT, OnRemoval};
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, integers, one_of, word};

/// A backend may be there and take nothing.
pub(in crate::config::toml) const BACKEND_WEIGHT: RangeInclusive<i64> = 0..=MAX_WEIGHT as i64;

pub(in crate::config::toml) const TLS_MODES: [(&str, Tls); 2] =
    [("passthrough", Tls::Passthrough), ("terminate", Tls::Terminate)];

pub(in crate::config::toml) const CARRIED: [(&str, Carried); 2] =
    [("bytes", Carried::Bytes), ("http", Carried::Http)];

pub(in crate::config::toml) const ON_REMOVAL: [(&str, OnRemoval); 3] =
    [("keep", OnRemoval::Keep), ("drain", OnRemoval::Drain), ("kill", OnRemoval::Kill)];

pub(in crate::config::toml) const ROUTE: Table = Table {
    header: "[[route]]",
    keys: &[
        Key {
            name: "name",
            example: r#""redis-1""#,
            meaning: "its unique name in metrics and the log",
            values: Is("as for a listener"),
            default: Some(Is("its first `sni`, else `\"route-N\"`")),
        },
        Key {
            name: "listener",
            example: r#""databases""#,
            meaning: "the listener whose clients it takes",
            values: Is("name of a listener"),
            default: None,
        },
        Key {
            name: "sni",
            example: r#"["redis-1.example.com"]"#,
            meaning: "names it takes, of servers or (on an `http` listener) of hosts: exact, `\"*.example.com\"`, or `\"*\"` for every name and for clients without one",
            values: Is("list, not empty"),
            default: Some(Is("**required** unless the listener is `tcp`")),
        },
        Key {
            name: "protocol",
            example: r#""http""#,
            meaning: "what its connections carry. `http`: requests, which go where its rules say; the listener is `tls`, and the \
                      route terminates, or the listener is `http`. `bytes`: anything, which is passed on as it is",
            values: Of(|| one_of(&CARRIED)),
            default: Some(Is("on an `http` listener `\"http\"`, else `\"bytes\"`")),
        },
        Key {
            name: "alpn",
            example: r#"["postgresql"]"#,
            meaning: "takes only clients that offer one of these protocols; a terminated route also selects from them, in \
                      this order",
            values: Is("list of protocol names"),
            default: Some(Is("`[]`: any")),
        },
        Key {
            name: "tls",
            example: r#""terminate""#,
            meaning: "who ends the client's TLS: the server, or the gateway",
            values: Of(|| one_of(&TLS_MODES)),
            default: Some(Is("`\"passthrough\"`")),
        },
        Key {
            name: "certificate",
            example: r#"{ chain = "redis-1.crt", key = "redis-1.key" }"#,
            meaning: "the certificate that clients see, and its key; required with `terminate`, an error without",
            values: Is("table, [below](#certificate)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "client_ca",
            example: r#""clients-ca.crt""#,
            meaning: "clients must present a certificate that is issued by one of these authorities, directly or through \
                      intermediates, or that is itself in this file (PEM)",
            values: Is("path; only with `terminate`"),
            default: Some(Is("absent: no client certificates")),
        },
        Key {
            name: "client_auth",
            example: r#"{ ca = ["clients-ca.crt"], crl = ["clients.crl"] }"#,
            meaning: "the same, with more to choose",
            values: Is("table, [below](#client_auth); only with `terminate`, and without `client_ca`"),
            default: Some(Is("absent: no client certificates")),
        },
        Key {
            name: "backends",
            example: r#"["redis-1"]"#,
            meaning: "pools, by weight; `\"redis-1\"` is short for `{ pool = \"redis-1\" }`",
            values: Is("list of names or tables, [below](#backends)"),
            default: Some(Is("**required** unless `protocol` is `http`")),
        },
        Key {
            name: "rule",
            example: "[[route.rule]]",
            meaning: "with `protocol = \"http\"`: which requests go where",
            values: Is("list of tables, [below](#rules)"),
            default: Some(Is("**required** if `protocol` is `http`")),
        },
        Key {
            name: "retry_other_pool",
            example: "true",
            meaning: "if no server of the chosen pool can be reached, the route's other pools (but those of weight 0) are tried",
            values: Is("boolean"),
            default: Some(Is("`false`")),
        },
        Key {
            name: "idle_timeout",
            example: r#""1h""#,
            meaning: "ends a connection when no byte has moved for this time; keepalive moves none",
            values: Is("duration, not zero"),
            default: Some(Is("absent: never")),
        },
        Key {
            name: "max_age",
            example: r#""24h""#,
            meaning: "ends a connection this long after it was accepted, whatever it does",
            values: Is("duration, not zero"),
            default: Some(Is("absent: never")),
        },
        Key {
            name: "max_connections",
            example: "1000",
            meaning: "connections open at once on this route",
            values: Of(|| integers(&CONNECTIONS)),
            default: Some(Is("absent: no limit of its own")),
        },
        Key {
            name: "client_rate",
            example: CLIENT_RATE_EXAMPLE,
            meaning: "what one client address may have of this route",
            values: Is("table, [as for a listener](#client_rate)"),
            default: Some(Is("absent: no limit of its own")),
        },
        Key {
            name: "on_removal",
            example: r#""drain""#,
            meaning: "what happens to its open connections when a reload finds no route of this name any more \
                      ([more](#on_removal))",
            values: Of(|| one_of(&ON_REMOVAL)),
            default: Some(Of(|| word(&ON_REMOVAL, &OnRemoval::default()))),
        },
    ],
};

pub(in crate::config::toml) const CERTIFICATE: Table = Table {
    header: "certificate",
    keys: &[
        Key {
            name: "chain",
            example: r#""redis-1.crt""#,
            meaning: "the certificates, leaf first (PEM)",
            values: Is("path"),
            default: None,
        },
        Key {
            name: "key",
            example: r#""redis-1.key""#,
            meaning: "the private key of the leaf (PEM)",
            values: Is("path"),
            default: None,
        },
        Key {
            name: "passphrase_file",
            example: r#""redis-1.pass""#,
            meaning: "a file with the passphrase, if the key is encrypted",
            values: Is("path"),
            default: Some(Is("absent: none")),
        },
    ],
};

/// Whether clients must have a certificate.
pub(in crate::config::toml) const CLIENT_AUTH_MODES: [(&str, bool); 2] =
    [("required", true), ("optional", false)];

pub(in crate::config::toml) const CLIENT_AUTH: Table = Table {
    header: "client_auth",
    keys: &[
        Key {
            name: "ca",
            example: r#"["clients-ca.crt"]"#,
            meaning: "PEM files with the authorities that issue clients' certificates, directly or through intermediates; and \
                      with client certificates that are trusted themselves",
            values: Is("list of paths, not empty"),
            default: None,
        },
        Key {
            name: "crl",
            example: r#"["clients.crl"]"#,
            meaning: "PEM files with CRLs (RFC 5280, version 2, complete), each at most 4 MiB",
            values: Is("list of paths"),
            default: Some(Is("`[]`: nothing is revoked")),
        },
        Key {
            name: "mode",
            example: r#""optional""#,
            meaning: "`required`: a client without a certificate is turned away. `optional`: it is served. One that is shown \
                      must be good in both",
            values: Of(|| one_of(&CLIENT_AUTH_MODES)),
            default: Some(Is("`\"required\"`")),
        },
        Key {
            name: "subjects",
            example: r#"["CN=app1,O=Example"]"#,
            meaning: "who may come: whole subjects, compared byte by byte",
            values: Is("list"),
            default: Some(Is("`[]`")),
        },
        Key {
            name: "sans",
            example: r#"["DNS:app1.example.com"]"#,
            meaning: "who may come: subject alternative names, with their kind in front",
            values: Is("list of `\"DNS:…\"`, `\"IP:…\"`, `\"URI:…\"`, `\"email:…\"`"),
            default: Some(Is("`[]`")),
        },
    ],
};

pub(in crate::config::toml) const BACKEND: Table = Table {
    header: "a backend",
    keys: &[
        Key {
            name: "pool",
            example: r#""redis-1""#,
            meaning: "where connections go",
            values: Is("name of a pool"),
            default: None,
        },
        Key {
            name: "weight",
            example: "1",
            meaning: "its share of the sum of the route's weights; 0 takes nothing, and not all may be 0",
            values: Of(|| integers(&BACKEND_WEIGHT)),
            default: Some(Of(|| code(Backend::new(0).weight))),
        },
    ],
};
