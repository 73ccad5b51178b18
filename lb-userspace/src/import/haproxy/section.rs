//! HAProxy's sections, and what any of them may say.

use super::options::{Check, ServerOptions};
use crate::import::model::{At, Extra, Note};
use crate::import::values::{duration, timeout};
use crate::import::words::Line;
use std::collections::BTreeMap;
use std::time::Duration;

/// Keywords that begin a section.
const SECTIONS: [&str; 14] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "resolvers",
    "peers",
    "userlist",
    "mailers",
    "program",
    "cache",
    "http-errors",
    "ring",
    "fcgi-app",
];
/// What says nothing about who reaches what.
const ASIDE: [&str; 12] = [
    "log",
    "log-format",
    "log-tag",
    "description",
    "id",
    "retries",
    "unique-id-format",
    "hash-type",
    "dynamic-cookie-key",
    "error-log-format",
    "email-alert",
    "guid",
];

pub(super) struct Section<'a> {
    pub(super) at: At,
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    /// The name of the `defaults` that it begins from, if it says one.
    pub(super) from: Option<&'a str>,
    pub(super) lines: Vec<Line>,
}

/// What a proxy has of its own or from `defaults`.
#[derive(Clone, Default)]
pub(super) struct Settings {
    pub(super) http: bool,
    pub(super) timeouts: BTreeMap<&'static str, (At, Duration, String)>,
    pub(super) max_connections: Option<Extra>,
    pub(super) balance: Option<Extra>,
    pub(super) check: Check,
    pub(super) server: ServerOptions,
    /// All backups take connections, not only the first one that is up.
    pub(super) all_backups: bool,
    pub(super) default_backend: Option<(At, String)>,
}

pub(super) fn sections<'a>(lines: &'a [Line], notes: &mut Vec<Note>) -> Vec<Section<'a>> {
    let mut sections: Vec<Section<'a>> = Vec::new();
    for line in lines {
        let word = |index| line.words.get(index).map_or("", String::as_str);
        if SECTIONS.contains(&word(0)) {
            let from = line.words.iter().position(|word| word == "from");
            sections.push(Section {
                at: line.at,
                kind: word(0),
                name: word(1),
                from: from.and_then(|index| line.words.get(index + 1)).map(String::as_str),
                lines: Vec::new(),
            });
        } else if let Some(section) = sections.last_mut() {
            section.lines.push(line.clone());
        } else {
            notes.push(line.unknown());
        }
    }
    sections
}

impl Settings {
    /// Takes over a line that may stand in `defaults`, too; whether it is one that is known.
    pub(super) fn read(&mut self, line: &Line, notes: &mut Vec<Note>) -> bool {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["mode", mode] => self.http = *mode == "http",
            ["timeout", kind, time] => {
                let known = ["client", "server", "tunnel", "connect", "check"]
                    .into_iter()
                    .find(|known| known == kind);
                match (known, duration(time, "ms")) {
                    (Some(kind), Some(time)) => _ = self.timeouts.insert(kind, (line.at, time, line.said())),
                    (None, Some(_))
                        if kind.starts_with("http") || *kind == "queue" || kind.ends_with("-fin") =>
                    {
                        notes.push(line.aside());
                    }
                    _ => return false,
                }
            }
            ["maxconn", number] => {
                let Some(number) = number.parse::<u32>().ok().filter(|&number| number > 0) else {
                    return false;
                };
                self.max_connections = Some(Extra::new("max_connections", number, line.at, &line.said()));
            }
            ["balance", algorithm, ..] => {
                let value = match *algorithm {
                    "roundrobin" | "static-rr" => "\"round-robin\"",
                    "leastconn" => "\"least-connections\"",
                    "source" => "\"source-hash\"",
                    algorithm if algorithm.starts_with("random") => "\"random\"",
                    _ => return false,
                };
                self.balance = Some(Extra::new("balance", value, line.at, &line.said()));
            }
            ["default_backend", name] => self.default_backend = Some((line.at, (*name).to_owned())),
            ["default-server", ..] => self.server.read(&line.words[1..], line, notes),
            ["option", check, rest @ ..] if self.check.option(check, rest, line) => {}
            ["option", "allbackups"] => self.all_backups = true,
            ["no", "option", "allbackups"] => self.all_backups = false,
            // Keepalive is always on here, and a refused connection is tried elsewhere.
            [
                "option",
                "clitcpka" | "srvtcpka" | "tcpka" | "redispatch" | "splice-auto" | "splice-request"
                | "splice-response" | "contstats",
            ]
            | ["no", ..] => {}
            [
                "option",
                "tcplog"
                | "httplog"
                | "dontlognull"
                | "dontlog-normal"
                | "logasap"
                | "log-health-checks"
                | "log-separate-errors"
                | "forwardfor"
                | "httpclose"
                | "http-server-close"
                | "http-keep-alive"
                | "tcp-smart-accept"
                | "tcp-smart-connect"
                | "nolinger",
                ..,
            ]
            | ["errorfile", ..] => notes.push(line.aside()),
            [keyword, ..] if ASIDE.contains(keyword) => notes.push(line.aside()),
            _ => return false,
        }
        true
    }

    fn time(&self, kind: &str) -> Option<&(At, Duration, String)> {
        self.timeouts.get(kind).filter(|(_, time, _)| !time.is_zero())
    }
}

/// The time after which a silent connection ends: the tunnel's, which is the backend's, or the shorter of the two sides'.
pub(super) fn idle_timeout(frontend: &Settings, backend: &Settings) -> Option<Extra> {
    let sides = frontend.time("client").into_iter().chain(backend.time("server"));
    let (at, time, said) = backend.time("tunnel").or(sides.min_by_key(|(_, time, _)| *time))?;
    timeout("idle_timeout", *time, *at, said)
}
