//! The access log's line for a request of HTTP, written at the end of its answer.

use super::access_log::{printable, time_now};
use super::{Books, Connection};
use crate::config::LogFormat;
use crate::serving::{Pool, Server};
use serde::Serialize;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

/// Bytes of a path, escaped, that are logged.
const MAX_PATH: usize = 256;

/// What a request was, and what became of it.
pub struct RequestFacts<'a> {
    /// On which it came.
    pub connection: &'a Connection,
    /// A token (RFC 9110, section 9.1).
    pub method: &'a str,
    /// Of its `Host` or `:authority`, as it was sent; empty: it named none.
    pub host: &'a [u8],
    /// Without the query, which may hold secrets.
    pub path: &'a str,
    /// Of the answer; absent: it has got none.
    pub status: Option<u16>,
    /// The name of its route.
    pub route: &'a str,
    /// That of its rule, if it has one.
    pub rule: Option<&'a str>,
    /// The server that was asked, or would have been.
    pub upstream: Option<(&'a Pool, &'a Server)>,
    /// Of its body.
    pub bytes_in: u64,
    /// Of the answer's.
    pub bytes_out: u64,
    /// From its head to the end of the answer.
    pub duration: Duration,
    /// `complete`, `incomplete`, or why the gateway has answered itself or the answer was broken off.
    pub end: &'static str,
}

/// A line of the access log. Absent fields are left out.
#[derive(Debug, Serialize)]
struct RequestRecord<'a> {
    time: String,
    listener: &'a str,
    client: SocketAddr,
    connection: u64,
    method: String,
    host: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    route: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    bytes_in: u64,
    bytes_out: u64,
    duration_us: u64,
    end: &'static str,
}

impl Books {
    /// Writes the request's line, if there is an access log.
    pub fn log_request(&self, facts: &RequestFacts<'_>) {
        let Some(log) = &self.access_log else { return };
        let record = RequestRecord {
            time: time_now(),
            listener: &facts.connection.listener.name,
            client: facts.connection.client,
            connection: facts.connection.id,
            method: printable(facts.method.as_bytes()),
            host: bounded(facts.host),
            path: bounded(facts.path.as_bytes()),
            status: facts.status,
            route: facts.route,
            rule: facts.rule,
            pool: facts.upstream.map(|(pool, _)| &*pool.name),
            server: facts.upstream.map(|(_, server)| server.address.to_string()),
            bytes_in: facts.bytes_in,
            bytes_out: facts.bytes_out,
            duration_us: u64::try_from(facts.duration.as_micros()).unwrap_or(u64::MAX),
            end: facts.end,
        };
        log.write(record.line(log.format));
    }
}

fn bounded(bytes: &[u8]) -> String {
    bytes.escape_ascii().take(MAX_PATH).map(char::from).collect()
}

impl RequestRecord<'_> {
    fn line(&self, format: LogFormat) -> String {
        match format {
            // Cannot fail: every field is a string or a number.
            LogFormat::Json => serde_json::to_string(self).unwrap_or_default(),
            LogFormat::Text => self.text(),
        }
    }

    fn text(&self) -> String {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_string();
        let mut line =
            format!("{} {} {} \"{} {}\"", self.time, self.listener, self.client, self.method, self.path);
        // Cannot fail.
        let _ = write!(
            line,
            " host=\"{}\" status={} route={} rule={} server={}/{} in={} out={} {}us {}",
            self.host,
            self.status.map_or_else(|| "-".to_string(), |status| status.to_string()),
            self.route,
            or_dash(self.rule),
            or_dash(self.pool),
            or_dash(self.server.as_deref()),
            self.bytes_in,
            self.bytes_out,
            self.duration_us,
            self.end,
        );
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RequestRecord<'static> {
        RequestRecord {
            time: "2026-01-02T03:04:05.678Z".into(),
            listener: "web",
            client: "192.0.2.1:5000".parse().unwrap(),
            connection: 7,
            method: "GET".into(),
            host: "app1.example.com".into(),
            path: "/a".into(),
            status: Some(200),
            route: "site",
            rule: Some("details"),
            pool: Some("echo"),
            server: Some("10.0.0.11:80".into()),
            bytes_in: 10,
            bytes_out: 20,
            duration_us: 30,
            end: "complete",
        }
    }

    #[test]
    fn a_request_is_one_line() {
        assert_eq!(
            record().line(LogFormat::Text),
            "2026-01-02T03:04:05.678Z web 192.0.2.1:5000 \"GET /a\" host=\"app1.example.com\" status=200 route=site \
             rule=details server=echo/10.0.0.11:80 in=10 out=20 30us complete"
        );
        let failed = RequestRecord { status: None, rule: None, pool: None, server: None, ..record() };
        let value: serde_json::Value = serde_json::from_str(&failed.line(LogFormat::Json)).unwrap();
        assert_eq!((&value["connection"], &value["method"]), (&7.into(), &"GET".into()));
        assert!(value.get("status").is_none() && value.get("server").is_none());
    }

    #[test]
    fn what_the_client_says_is_escaped_and_bounded() {
        assert_eq!(bounded(b"/a\"\x1b[1m\xff"), "/a\\\"\\x1b[1m\\xff");
        assert_eq!(bounded(&[b'\\'; 300]).len(), MAX_PATH);
    }
}
