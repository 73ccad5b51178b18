//! Health of a pool's servers: how they are checked, and what becomes of one that fails.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use toml::Spanned;
use zeroize::Zeroizing;

use super::certificate::Certificates;
use super::diagnostic::{Diagnostic, Report};
use super::reader::{Field, Keys, Reader, Section, Value};
use super::value::{self, Problem};

/// `health` of a pool: how its servers are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What a server is asked.
    pub check: Check,
    /// From the begin of one check of a server to that of the next, at most.
    pub interval: Duration,
    /// For one check; not zero, at most `interval`.
    pub timeout: Duration,
    /// Checks in a row that a server must pass to be up again; at least 1.
    pub rise: u32,
    /// Checks in a row that a server must fail to be down; at least 1.
    pub fall: u32,
    /// Where the check connects to; absent: where connections go.
    pub port: Option<u16>,
    /// Present: the check is done inside TLS. Always with [`Check::Tls`], never with [`Check::Tcp`].
    pub tls: Option<HealthTls>,
}

impl Health {
    /// The role that the pool's servers must have, if any.
    pub fn role(&self) -> Option<Role> {
        match &self.check {
            Check::Redis { role, .. } | Check::Postgres { role, .. } => *role,
            Check::Tcp | Check::Tls | Check::Http { .. } => None,
        }
    }
}

/// What a health check asks a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It accepts a connection.
    Tcp,
    /// Its TLS handshake succeeds, with a certificate that is valid today.
    Tls,
    /// It answers Redis' PING.
    Redis {
        /// What its ROLE must be.
        role: Option<Role>,
        /// Who asks; absent: the default user, without a password.
        login: Option<Login>,
    },
    /// It takes PostgreSQL's startup message.
    Postgres {
        /// What it must be; only with a login.
        role: Option<Role>,
        /// Who logs in; absent: nobody, any answer to the startup message will do.
        login: Option<Login>,
        /// The database of the login.
        database: Box<str>,
    },
    /// It answers an HTTP request.
    Http {
        /// The request's path; begins with a slash.
        path: Box<str>,
        /// The request's Host; absent: the server's address.
        host: Option<Box<str>>,
        /// What its status must be one of; empty: 200 to 399.
        status: Vec<u16>,
    },
}

/// What a server is among those that hold the same data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It takes writes: Redis' master, PostgreSQL's primary.
    Master,
    /// It follows another one: Redis' replica, PostgreSQL's standby.
    Replica,
}

/// Who a health check logs in as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The user; `None`: Redis' default user.
    pub user: Option<Box<str>>,
    /// Without the line end of its file.
    pub password: Option<Secret>,
}

/// A password: wiped from memory, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// A copy of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        Secret(Arc::new(Zeroizing::new(bytes.to_vec())))
    }

    /// Its bytes: at least one, none of them zero.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// TLS of a health check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthTls {
    /// What the server's certificate must lead to; not empty. Absent: its issuer is not looked at, but its dates and, where
    /// `server_name` is given, its names.
    pub ca: Option<Arc<[CertificateDer<'static>]>>,
    /// Sent as SNI, and what the certificate must be for; absent: the server's name or address.
    pub server_name: Option<ServerName<'static>>,
}

/// `eject` of a pool: when a server that fails connections has a rest from them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eject {
    /// Failed connections in a row, none of them longer ago than `time`; at least 1.
    pub failures: u32,
    /// The first rest; each one that follows without a success between is twice as long as the one before, up to 32 times.
    pub time: Duration,
}

/// `on_down` of a pool: what becomes of open connections to a server that goes down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDown {
    /// They go on.
    #[default]
    Keep,
    /// They are reset.
    Kill,
}

const HEALTH: Keys = Keys {
    header: "health",
    examples: &[
        ("check", r#""redis""#),
        ("interval", r#""5s""#),
        ("timeout", r#""2s""#),
        ("rise", "2"),
        ("fall", "3"),
        ("port", "6379"),
        ("role", r#""master""#),
        ("user", r#""health""#),
        ("password_file", r#""health.password""#),
        ("database", r#""postgres""#),
        ("path", r#""/health""#),
        ("host", r#""db.example.com""#),
        ("status", "[200]"),
        ("tls", r#"{ ca = "servers-ca.crt", server_name = "redis.internal" }"#),
    ],
};

const HEALTH_TLS: Keys = Keys {
    header: "tls of health",
    examples: &[("ca", r#""servers-ca.crt""#), ("server_name", r#""redis.internal""#)],
};

const EJECT: Keys = Keys { header: "eject", examples: &[("failures", "3"), ("time", r#""10s""#)] };

#[derive(Debug)]
pub(super) struct RawHealth {
    check: Field<RawCheck>,
    interval: Field<Duration>,
    timeout: Field<Duration>,
    rise: Field<u32>,
    fall: Field<u32>,
    port: Field<u16>,
    role: Field<Role>,
    user: Field<Box<str>>,
    password_file: Field<PathBuf>,
    database: Field<Box<str>>,
    path: Field<Box<str>>,
    host: Field<Box<str>>,
    status: Field<Vec<Spanned<u16>>>,
    tls: Field<RawHealthTls>,
}

#[derive(Debug)]
struct RawHealthTls {
    ca: Field<PathBuf>,
    server_name: Field<ServerName<'static>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RawCheck {
    Tcp,
    Tls,
    Redis,
    Postgres,
    Http,
}

const CHECKS: [(&str, RawCheck); 5] = [
    ("tcp", RawCheck::Tcp),
    ("tls", RawCheck::Tls),
    ("redis", RawCheck::Redis),
    ("postgres", RawCheck::Postgres),
    ("http", RawCheck::Http),
];

/// Both databases' words for both.
const ROLES: [(&str, Role); 4] = [
    ("master", Role::Master),
    ("replica", Role::Replica),
    ("primary", Role::Master),
    ("standby", Role::Replica),
];

const ON_DOWN: [(&str, OnDown); 2] = [("keep", OnDown::Keep), ("kill", OnDown::Kill)];

/// A server that is asked more often than this has nothing else to do.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) fn health(r: &mut Reader<'_>, v: &Value<'_>) -> Option<RawHealth> {
    let mut s = r.section(v, &HEALTH)?;
    Some(RawHealth {
        check: s.require("check", |r, v| r.choice(v, &CHECKS)),
        interval: s.read("interval", |r, v| {
            let interval = r.timeout(v)?;
            match interval < MIN_INTERVAL {
                true => r.error(v, "`interval` must be at least 100 ms", "for example `interval = \"5s\"`"),
                false => Some(interval),
            }
        }),
        timeout: s.read("timeout", |r, v| r.timeout(v)),
        rise: s.read("rise", |r, v| r.integer(v, 1..=1000)),
        fall: s.read("fall", |r, v| r.integer(v, 1..=1000)),
        port: s.read("port", |r, v| r.integer(v, 1..=65535)),
        role: s.read("role", |r, v| r.choice(v, &ROLES)),
        user: s.read("user", |r, v| r.parse(v, |text| word("user", text))),
        password_file: s.read("password_file", |r, v| r.parse(v, value::path)),
        database: s.read("database", |r, v| r.parse(v, |text| word("database", text))),
        path: s.read("path", |r, v| r.parse(v, path)),
        host: s.read("host", |r, v| r.parse(v, host)),
        status: s.read("status", |r, v| r.list(v, |r, v| r.integer(v, 100..=599))),
        tls: s.read("tls", |r, v| r.section(v, &HEALTH_TLS).map(health_tls)),
    })
}

fn health_tls(mut s: Section<'_, '_>) -> RawHealthTls {
    RawHealthTls {
        ca: s.read("ca", |r, v| r.parse(v, value::path)),
        server_name: s.read("server_name", |r, v| r.parse(v, value::server_name)),
    }
}

pub(super) fn eject(r: &mut Reader<'_>, v: &Value<'_>) -> Option<Eject> {
    let mut s = r.section(v, &EJECT)?;
    Some(Eject {
        failures: s.read("failures", |r, v| r.integer(v, 1..=1000)).or(3),
        time: s.read("time", |r, v| r.timeout(v)).or(Duration::from_secs(10)),
    })
}

pub(super) fn on_down(r: &mut Reader<'_>, v: &Value<'_>) -> Option<OnDown> {
    r.choice(v, &ON_DOWN)
}

/// Of PostgreSQL's startup message, which ends each of its words with a zero byte (NAMEDATALEN is 64), and of Redis' AUTH.
fn word(key: &str, text: &str) -> Result<Box<str>, Problem> {
    match text.len() {
        1..=128 if !text.contains(char::is_control) => Ok(text.into()),
        _ => Err(Problem::new(format!("this is no `{key}`"))
            .help("1 to 128 bytes, none of them a control character")),
    }
}

/// RFC 9112, section 3.2.1: the request's target.
fn path(text: &str) -> Result<Box<str>, Problem> {
    match text.starts_with('/') && text.len() <= 2048 && text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(text.into()),
        false => Err(Problem::new("this is no path of an HTTP request")
            .help("it begins with `/` and has no spaces: for example `path = \"/health\"`")),
    }
}

/// RFC 9110, section 7.2.
fn host(text: &str) -> Result<Box<str>, Problem> {
    match (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        true => Ok(text.into()),
        false => Err(Problem::new("this is no host of an HTTP request")
            .help("a name, with a port if it is not 80: for example `host = \"db.example.com:8008\"`")),
    }
}

/// What of `health` fits together.
pub(super) fn check(
    raw: &RawHealth,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<Arc<Health>> {
    let check = raw.check.given()?;
    reject_others_keys(raw, *check.get_ref(), report);
    let interval = raw.interval.or(DEFAULT_INTERVAL);
    if let Some(timeout) = raw.timeout.given()
        && *timeout.get_ref() > interval
        && !raw.interval.is_invalid()
    {
        let interval = humantime::format_duration(interval);
        let error =
            Diagnostic::error(timeout.span(), format!("`timeout` is longer than `interval`, {interval}"));
        report
            .push(error.help("one check ends before the next begins: raise `interval`, or lower `timeout`"));
    }
    let tls = raw.tls.given().map(|tls| tls_of(tls.get_ref(), certificates, report));
    let login = login(raw, certificates, report);
    let role = raw.role.get();
    let what = match check.get_ref() {
        RawCheck::Tcp => Check::Tcp,
        RawCheck::Tls => Check::Tls,
        RawCheck::Redis => {
            if let (Some(user), None) =
                (raw.user.given(), login.as_ref().and_then(|login| login.password.as_ref()))
                && raw.password_file.is_absent()
            {
                let error = Diagnostic::error(user.span(), "`user` without `password_file`");
                report.push_absence(error.help("add `password_file = \"FILE\"`, or take `user` out"));
            }
            Check::Redis { role, login }
        }
        RawCheck::Postgres => {
            for (key, span) in [
                ("role", raw.role.span()),
                ("password_file", raw.password_file.span()),
                ("database", raw.database.span()),
            ] {
                if let (Some(span), true) = (span, raw.user.is_absent()) {
                    let error =
                        Diagnostic::error(span, format!("`{key}` of a PostgreSQL check without `user`"));
                    report.push_absence(error.help(
                        "a server tells more only after a login: add `user = \"NAME\"`, a role that may log in and needs \
                         no other right",
                    ));
                }
            }
            Check::Postgres { role, login, database: raw.database.or("postgres".into()) }
        }
        RawCheck::Http => {
            let status = raw.status.given().map(|list| list.get_ref().iter());
            Check::Http {
                path: raw.path.or("/".into()),
                host: raw.host.get(),
                status: status.into_iter().flatten().map(|status| *status.get_ref()).collect(),
            }
        }
    };
    Some(Arc::new(Health {
        check: what,
        interval,
        timeout: raw.timeout.or(DEFAULT_TIMEOUT.min(interval)),
        rise: raw.rise.or(2),
        fall: raw.fall.or(3),
        port: raw.port.get(),
        tls: tls.or((*check.get_ref() == RawCheck::Tls).then(HealthTls::default)),
    }))
}

/// A key, where it is given, and the checks that it belongs to.
type KeyOf<'a> = (&'static str, Option<Range<usize>>, &'a [RawCheck]);

/// Keys that belong to another kind of check.
fn reject_others_keys(raw: &RawHealth, check: RawCheck, report: &mut Report) {
    use RawCheck::{Http, Postgres, Redis, Tls};
    let keys: [KeyOf<'_>; 8] = [
        ("role", raw.role.span(), &[Redis, Postgres]),
        ("user", raw.user.span(), &[Redis, Postgres]),
        ("password_file", raw.password_file.span(), &[Redis, Postgres]),
        ("database", raw.database.span(), &[Postgres]),
        ("path", raw.path.span(), &[Http]),
        ("host", raw.host.span(), &[Http]),
        ("status", raw.status.span(), &[Http]),
        ("tls", raw.tls.span(), &[Tls, Redis, Postgres, Http]),
    ];
    let name =
        |check: &RawCheck| CHECKS.iter().find(|(_, known)| known == check).map_or("", |(name, _)| name);
    for (key, span, checks) in keys {
        if let Some(span) = span
            && !checks.contains(&check)
        {
            let error = Diagnostic::error(span, format!("a check by `{}` has no `{key}`", name(&check)));
            let with: Vec<_> = checks.iter().map(|check| format!("`check = \"{}\"`", name(check))).collect();
            report.push(error.help(format!("take it out; it goes with {}", with.join(" or "))));
        }
    }
}

fn tls_of(raw: &RawHealthTls, certificates: &mut Certificates<'_>, report: &mut Report) -> HealthTls {
    const HELP: &str = "a PEM file with the certificates that sign those of the servers";
    let ca = raw.ca.given().and_then(|path| match certificates.authorities(path.get_ref(), HELP) {
        Ok(authorities) => Some(authorities),
        Err(problem) => {
            report.push(problem.at(path.span()));
            None
        }
    });
    HealthTls { ca, server_name: raw.server_name.get() }
}

fn login(raw: &RawHealth, certificates: &mut Certificates<'_>, report: &mut Report) -> Option<Login> {
    let file = raw.password_file.given();
    if let (Some(file), Some(tls)) = (file, raw.tls.given())
        && tls.get_ref().ca.is_absent()
    {
        let error = Diagnostic::error(tls.span(), "`tls` without `ca`, and a password to send")
            .related(file.span(), "the password");
        report.push_absence(error.help("whoever stands between could take it: add `ca = \"FILE\"` to `tls`"));
    }
    let password = file.and_then(|path| match certificates.line(path.get_ref(), "password") {
        Ok(line) if line.contains(&0) || line.len() > MAX_PASSWORD => {
            report.push(
                Diagnostic::error(path.span(), "this password has a zero byte, or more than 1024 bytes")
                    .help("one line, with the password"),
            );
            None
        }
        Ok(line) => Some(Secret::new(&line)),
        Err(problem) => {
            report.push(problem.at(path.span()));
            None
        }
    });
    let user = raw.user.get();
    (user.is_some() || password.is_some()).then_some(Login { user, password })
}

/// Bytes of a password: PostgreSQL's own clients take no longer ones.
const MAX_PASSWORD: usize = 1024;
