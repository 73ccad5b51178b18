//! `[[route.rule]]`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;
use std::time::Duration;

use http::StatusCode;

use super::health::PORT;
use super::route::BACKEND_WEIGHT;
use crate::config::toml::key::Text::{Is, Of};
use crate::config::toml::key::{Key, Table, code, duration, integers, one_of};

/// Of `attempts`.
pub(in crate::config::toml) const ATTEMPTS: RangeInclusive<i64> = 1..=10;

/// Of statuses that are tried again.
pub(in crate::config::toml) const FAILURES: RangeInclusive<i64> = 400..=599;

/// Of `percent`.
pub(in crate::config::toml) const PERCENT: RangeInclusive<i64> = 0..=100;

/// Of a redirect.
pub(in crate::config::toml) const REDIRECTIONS: [u16; 5] = [301, 302, 303, 307, 308];

/// Of a redirect that does not say it.
pub(in crate::config) const REDIRECTION: StatusCode = StatusCode::FOUND;

pub(in crate::config::toml) const SCHEMES: [(&str, &str); 2] = [("http", "http"), ("https", "https")];

/// Before another attempt, unless it is said.
pub(in crate::config) const BACKOFF: Duration = Duration::from_millis(25);

/// How long browsers may remember the answer to a preflight, unless it is said.
pub(in crate::config::toml) const MAX_AGE: Duration = Duration::from_secs(5);

const CHANGES_EXAMPLE: &str = r#"{ set = { x-env = "prod" }, remove = ["x-debug"] }"#;

pub(in crate::config::toml) const RULE: Table = Table {
    header: "[[route.rule]]",
    keys: &[
        Key {
            name: "name",
            example: r#""reviews""#,
            meaning: "what metrics and the log call it",
            values: Is("as for a listener"),
            default: Some(Is("the route's")),
        },
        Key {
            name: "hosts",
            example: r#"["www.example.com"]"#,
            meaning: "the hosts whose requests it takes, of those that are the route's",
            values: Is("list as `sni` of a route, not empty"),
            default: Some(Is("absent: all of the route")),
        },
        Key {
            name: "match",
            example: r#"[{ path_prefix = "/details" }]"#,
            meaning: "what requests must have; one of the list is enough ([more](#match))",
            values: Is("list of tables, [below](#match); at most 64"),
            default: Some(Is("absent: every request")),
        },
        Key {
            name: "backends",
            example: r#"["reviews"]"#,
            meaning: "pools, by weight, for each request anew",
            values: Is("list of names or tables, [below](#backends-of-a-rule)"),
            default: Some(Is("**required** without `redirect`")),
        },
        Key {
            name: "request_headers",
            example: CHANGES_EXAMPLE,
            meaning: "changes of the headers that servers get",
            values: Is("table, [below](#header-changes)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "response_headers",
            example: CHANGES_EXAMPLE,
            meaning: "changes of the headers that clients get",
            values: Is("table, [below](#header-changes)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "rewrite",
            example: r#"{ path_prefix = "/v2" }"#,
            meaning: "another host or path for the servers",
            values: Is("table, [below](#rewrite)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "redirect",
            example: r#"{ scheme = "https", status = 301 }"#,
            meaning: "the answer, instead of a server's",
            values: Is("table, [below](#redirect); without `backends`"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "mirror",
            example: r#"[{ pool = "shadow", percent = 10 }]"#,
            meaning: "copies of requests; their answers are dropped",
            values: Is("list of tables, [below](#mirror)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "cors",
            example: r#"{ origins = ["https://*.example.com"] }"#,
            meaning: "which other sites' scripts may send requests, answered for the servers",
            values: Is("table, [below](#cors)"),
            default: Some(Is("absent: servers answer themselves")),
        },
        Key {
            name: "request_timeout",
            example: r#""30s""#,
            meaning: "limit from the request's head to the end of the answer, with all that is tried again; then 504",
            values: Is("duration, not zero"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "backend_timeout",
            example: r#""10s""#,
            meaning: "limit of one attempt at a server; then 504, or another attempt",
            values: Is("duration, not zero, at most `request_timeout`"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "retry",
            example: r#"{ attempts = 2, statuses = [502, 503] }"#,
            meaning: "which failures are tried again",
            values: Is("table, [below](#retry)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "session",
            example: r#"{ cookie = "server" }"#,
            meaning: "keeps a client at the server that has answered its first request",
            values: Is("table, [below](#session)"),
            default: Some(Is("absent: no")),
        },
    ],
};

pub(in crate::config::toml) const MATCH: Table = Table {
    header: "match",
    keys: &[
        Key {
            name: "path",
            example: r#""/login""#,
            meaning: "the path, without the query",
            values: Is("path"),
            default: Some(Is("absent: any")),
        },
        Key {
            name: "path_prefix",
            example: r#""/api""#,
            meaning: "what the path begins with, in whole segments: `/api` and `/api/x`, not `/apis`",
            values: Is("path"),
            default: Some(Is("absent: any")),
        },
        Key {
            name: "path_regex",
            example: r#"'/v[0-9]+/.*'"#,
            meaning: "an expression for the whole path",
            values: Is("[regular expression](https://docs.rs/regex/latest/regex/#syntax)"),
            default: Some(Is("absent: any")),
        },
        Key {
            name: "method",
            example: r#""GET""#,
            meaning: "the method",
            values: Is("method, as it is sent: capital letters"),
            default: Some(Is("absent: any")),
        },
        Key {
            name: "headers",
            example: r#"{ magic = "foo", x-version = { regex = 'v[12]' } }"#,
            meaning: "headers, and the value of each. Of several lines the values count together, with `, ` between them",
            values: Is("table of values, or of tables with `regex`"),
            default: Some(Is("absent: any")),
        },
        Key {
            name: "query",
            example: r#"{ great = "example" }"#,
            meaning: "parameters of the query, and the value of each, both after decoding. Of several values the first counts",
            values: Is("table of values, or of tables with `regex`"),
            default: Some(Is("absent: any")),
        },
    ],
};

/// A value that is not compared, but matched.
pub(in crate::config::toml) const VALUE: Table = Table {
    header: "a value",
    keys: &[Key {
        name: "regex",
        example: r#"'v[12]'"#,
        meaning: "an expression for the whole value",
        values: Is("regular expression"),
        default: None,
    }],
};

pub(in crate::config::toml) const RULE_BACKEND: Table = Table {
    header: "a backend of a rule",
    keys: &[
        Key {
            name: "pool",
            example: r#""reviews""#,
            meaning: "where requests go",
            values: Is("name of a pool"),
            default: None,
        },
        Key {
            name: "weight",
            example: "1",
            meaning: "its share of the sum of the rule's weights; 0 takes nothing, and not all may be 0",
            values: Of(|| integers(&BACKEND_WEIGHT)),
            default: Some(Is("`1`")),
        },
        Key {
            name: "request_headers",
            example: CHANGES_EXAMPLE,
            meaning: "changes of the headers that its servers get, after those of the rule",
            values: Is("table, [below](#header-changes)"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "response_headers",
            example: CHANGES_EXAMPLE,
            meaning: "changes of the headers of its servers' answers, after those of the rule",
            values: Is("table, [below](#header-changes)"),
            default: Some(Is("absent: none")),
        },
    ],
};

pub(in crate::config::toml) const HEADER_CHANGES: Table = Table {
    header: "header changes",
    keys: &[
        Key {
            name: "set",
            example: r#"{ x-env = "prod" }"#,
            meaning: "headers that take the place of what there is under their names",
            values: Is("table of values"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "add",
            example: r#"{ x-via = "edge" }"#,
            meaning: "headers that come to what there is",
            values: Is("table of values"),
            default: Some(Is("absent: none")),
        },
        Key {
            name: "remove",
            example: r#"["x-debug"]"#,
            meaning: "headers that are taken out, at last",
            values: Is("list of names"),
            default: Some(Is("`[]`")),
        },
    ],
};

const NEW_PREFIX: Key = Key {
    name: "path_prefix",
    example: r#""/v2""#,
    meaning: "instead of the `path_prefix` that has matched",
    values: Is("path; only where every `match` has a `path_prefix`, or none of a path"),
    default: Some(Is("absent: the request's")),
};

pub(in crate::config::toml) const REWRITE: Table = Table {
    header: "rewrite",
    keys: &[
        Key {
            name: "host",
            example: r#""internal.example.com""#,
            meaning: "the host that servers are asked for",
            values: Is("host, with a port if need be"),
            default: Some(Is("absent: the request's")),
        },
        Key {
            name: "path",
            example: r#""/index.html""#,
            meaning: "the path; the query stays",
            values: Is("path"),
            default: Some(Is("absent: the request's")),
        },
        NEW_PREFIX,
    ],
};

pub(in crate::config::toml) const REDIRECT: Table = Table {
    header: "redirect",
    keys: &[
        Key {
            name: "scheme",
            example: r#""https""#,
            meaning: "the scheme to go to",
            values: Of(|| one_of(&SCHEMES)),
            default: Some(Is("absent: the request's")),
        },
        Key {
            name: "host",
            example: r#""www.example.com""#,
            meaning: "the host to go to",
            values: Is("host name or IP address"),
            default: Some(Is("absent: the request's")),
        },
        Key {
            name: "port",
            example: "8443",
            meaning: "the port to go to",
            values: Of(|| integers(&PORT)),
            default: Some(Is("absent: that of `scheme` if it is there, else the listener's")),
        },
        Key {
            name: "path",
            example: r#""/new""#,
            meaning: "the path to go to; the query stays",
            values: Is("path"),
            default: Some(Is("absent: the request's")),
        },
        NEW_PREFIX,
        Key {
            name: "status",
            example: "301",
            meaning: "of the answer",
            values: Of(|| REDIRECTIONS.map(code).join(", ")),
            default: Some(Of(|| code(REDIRECTION.as_u16()))),
        },
    ],
};

pub(in crate::config::toml) const MIRROR: Table = Table {
    header: "mirror",
    keys: &[
        Key {
            name: "pool",
            example: r#""shadow""#,
            meaning: "where copies go",
            values: Is("name of a pool"),
            default: None,
        },
        Key {
            name: "percent",
            example: "10",
            meaning: "how many of the requests are copied",
            values: Of(|| integers(&PERCENT)),
            default: Some(Is("`100`")),
        },
    ],
};

pub(in crate::config::toml) const CORS: Table = Table {
    header: "cors",
    keys: &[
        Key {
            name: "origins",
            example: r#"["https://example.com", "https://*.example.com"]"#,
            meaning: "the sites: `*` at a host's beginning stands for one label or more, `\"*\"` for every site",
            values: Is("list of origins, not empty"),
            default: None,
        },
        Key {
            name: "methods",
            example: r#"["GET", "PUT"]"#,
            meaning: "methods that their scripts may use; `\"*\"`: all",
            values: Is("list of methods"),
            default: Some(Is("`[]`: GET, HEAD and POST, which browsers always allow")),
        },
        Key {
            name: "headers",
            example: r#"["x-token"]"#,
            meaning: "headers that their requests may have; `\"*\"`: all",
            values: Is("list of names"),
            default: Some(Is("`[]`: those that browsers always allow")),
        },
        Key {
            name: "exposed",
            example: r#"["x-page"]"#,
            meaning: "headers of answers that their scripts may read; `\"*\"`: all",
            values: Is("list of names"),
            default: Some(Is("`[]`: those that browsers always show")),
        },
        Key {
            name: "credentials",
            example: "true",
            meaning: "browsers may send cookies and the like",
            values: Is("boolean"),
            default: Some(Is("`false`")),
        },
        Key {
            name: "max_age",
            example: r#""1h""#,
            meaning: "how long browsers may remember all this; counted in whole seconds",
            values: Is("duration; zero: not at all"),
            default: Some(Of(|| duration(MAX_AGE))),
        },
    ],
};

pub(in crate::config::toml) const RETRY: Table = Table {
    header: "retry",
    keys: &[
        Key {
            name: "attempts",
            example: "2",
            meaning: "attempts after the first one",
            values: Of(|| integers(&ATTEMPTS)),
            default: Some(Is("`1`")),
        },
        Key {
            name: "statuses",
            example: "[502, 503]",
            meaning: "answers that are tried again, besides failures to connect",
            values: Is("list of statuses from 400 to 599"),
            default: Some(Is("`[]`")),
        },
        Key {
            name: "backoff",
            example: r#""100ms""#,
            meaning: "the wait before each of them",
            values: Is("duration"),
            default: Some(Of(|| duration(BACKOFF))),
        },
    ],
};

pub(in crate::config::toml) const SESSION: Table = Table {
    header: "session",
    keys: &[
        Key {
            name: "cookie",
            example: r#""server""#,
            meaning: "the name of a cookie that carries the mark",
            values: Is("name of a cookie"),
            default: Some(Is("this or `header` is **required**")),
        },
        Key {
            name: "header",
            example: r#""x-session""#,
            meaning: "the name of a header that does; clients must repeat it",
            values: Is("name of a header"),
            default: Some(Is("this or `cookie` is **required**")),
        },
        Key {
            name: "timeout",
            example: r#""1h""#,
            meaning: "how old a mark may be",
            values: Is("duration, at least 1 s"),
            default: Some(Is("absent: any age")),
        },
        Key {
            name: "permanent",
            example: "true",
            meaning: "the cookie outlasts the browser, for the `timeout`, which is then required",
            values: Is("boolean; only with `cookie`"),
            default: Some(Is("`false`")),
        },
    ],
};
