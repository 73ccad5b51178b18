//! HAProxy's backends, as pools.

use super::bases::Bases;
use super::options::{ServerOptions, check_of};
use super::section::{Section, Settings};
use crate::config::quote;
use crate::import::model::{At, Extra, Model, Note, Pool, Server, Servers};
use crate::import::values::{host_and_port, timeout, toml_string, toml_table};
use crate::import::words::Line;
use std::cell::Cell;
use std::time::Duration;

/// A backend as a pool, before a route uses it.
pub(super) struct Backend {
    pub(super) at: At,
    pub(super) settings: Settings,
    servers: Vec<Server>,
    extras: Vec<Extra>,
    notes: Vec<Note>,
    /// Of its pool, once a route uses it.
    index: Cell<Option<usize>>,
}

/// Whether a line of `listen` is of its backend alone.
pub(super) fn is_for_backend(words: &[&str]) -> bool {
    match words {
        ["option", name, ..] => check_of(name).is_some(),
        [name, ..] => [
            "server",
            "server-template",
            "balance",
            "default-server",
            "stick",
            "stick-table",
            "tcp-check",
            "http-check",
            "source",
            "fullconn",
            "use-server",
            "cookie",
        ]
        .contains(name),
        [] => false,
    }
}

/// Reads a backend, or the part of a `listen` that is one.
pub(super) fn backend(
    section: &Section<'_>,
    mut settings: Settings,
    bases: &Bases,
    model_notes: &mut Vec<Note>,
) -> Backend {
    let mut notes = Vec::new();
    let mut servers = Vec::new();
    for line in &section.lines {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["server", _, address, ..] => {
                let mut options = settings.server.clone();
                options.read(&line.words[3..], line, &mut notes);
                servers.push((line, *address, options));
            }
            ["server-template", _, _, address, ..] => {
                let mut options = settings.server.clone();
                options.read(&line.words[4..], line, &mut notes);
                // A name with several addresses is one server here, all of which are tried.
                let text = format!("{}: the addresses of a name are one server", line.quoted());
                notes.push(Note::lost(line.at, text));
                servers.push((line, *address, options));
            }
            _ if section.kind == "listen" && !is_for_backend(&words) => {
                // Its frontend names what it does not know.
                settings.read(line, &mut Vec::new());
            }
            _ => {
                if !settings.read(line, &mut notes) {
                    notes.push(line.unknown());
                }
            }
        }
    }
    let mut backend = Backend {
        at: section.at,
        settings,
        servers: Vec::new(),
        extras: Vec::new(),
        notes,
        index: Cell::new(None),
    };
    if backend.settings.http && section.kind == "backend" {
        let text = format!("backend {}: HTTP is passed on as TCP", quote(section.name));
        backend.notes.push(Note::left_out(section.at, text));
    }
    backend.add_servers(&servers);
    let options: Vec<&(&Line, &str, ServerOptions)> = servers.iter().collect();
    backend.add_keys(bases, &options);
    if section.kind == "listen" && backend.servers.is_empty() {
        model_notes.append(&mut backend.notes);
    }
    backend
}

impl Backend {
    pub(super) fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    fn add_servers(&mut self, servers: &[(&Line, &str, ServerOptions)]) {
        let mut has_backup = false;
        for (line, address, options) in servers {
            let drained = options.disabled || options.weight == Some(0);
            let Some((host, port)) = address_of(address) else {
                let text = format!("{}: {} is no address and port", line.quoted(), quote(address));
                self.notes.push(Note::lost(line.at, text));
                continue;
            };
            if drained {
                let text = format!("{}: it takes no connections (disabled, or weight 0)", line.quoted());
                self.notes.push(Note::left_out(line.at, text));
                continue;
            }
            if options.backup && !self.settings.all_backups && std::mem::replace(&mut has_backup, true) {
                let text =
                    format!("{}: without `option allbackups` the first backup is used alone", line.quoted());
                self.notes.push(Note::lost(line.at, text));
                continue;
            }
            let limit = options.max_connections;
            let extras =
                limit.map(|limit| Extra::new("max_connections", limit, line.at, &format!("maxconn {limit}")));
            self.servers.push(Server {
                host,
                port,
                weight: options.weight.unwrap_or(1).min(256),
                backup: options.backup,
                extras: extras.into_iter().collect(),
            });
        }
    }

    /// What all servers share here. What only some of them say is said for all.
    fn add_keys(&mut self, bases: &Bases, servers: &[&(&Line, &str, ServerOptions)]) {
        self.extras.extend(self.settings.balance.clone());
        if let Some((at, time, said)) = self.settings.timeouts.get("connect") {
            self.extras.extend(timeout("connect_timeout", *time, *at, said));
        }
        let first = |has: fn(&ServerOptions) -> bool| servers.iter().find(|(_, _, options)| has(options));
        let mut some = Vec::new();
        let mut only_some = |has: fn(&ServerOptions) -> bool, what: &'static str| {
            let having = servers.iter().filter(|(_, _, options)| has(options)).count();
            if having > 0 && having < servers.len() {
                some.push(what);
            }
        };
        only_some(|options| options.check, "check");
        only_some(ServerOptions::is_checked_in_tls, "check-ssl");
        only_some(|options| options.send_proxy.is_some(), "send-proxy");
        only_some(|options| options.ssl, "ssl");
        for what in some {
            let text = format!("{}: of some servers there, of all here", quote(what));
            self.notes.push(Note::lost(self.at, text));
        }
        if let Some((line, _, options)) = first(|options| options.check) {
            self.notes.extend(self.settings.check.lost.clone());
            self.extras.push(health(&self.settings, options, bases, line, &mut self.notes));
            if options.kill {
                self.extras.push(Extra::new(
                    "on_down",
                    "\"kill\"",
                    line.at,
                    "on-marked-down shutdown-sessions",
                ));
            }
        }
        if let Some((line, _, options)) = first(|options| options.send_proxy.is_some()) {
            let version = options.send_proxy.unwrap_or_default();
            self.extras.push(Extra::new("send_proxy", version, line.at, "send-proxy"));
        }
        if let Some((line, _, options)) = first(|options| options.slow_start.is_some()) {
            let time = options.slow_start.unwrap_or_default();
            self.extras.extend(timeout("slow_start", time, line.at, "slowstart"));
        }
        if let Some((line, _, options)) = first(|options| options.ssl) {
            let mut keys = Vec::new();
            keys.extend(options.authorities(bases).map(|file| format!("ca = {}", toml_string(&file))));
            let name = options.server_name.as_deref();
            keys.extend(name.map(|name| format!("server_name = {}", toml_string(name))));
            self.extras.push(Extra::new("tls", toml_table(&keys), line.at, "ssl"));
            if !options.is_verified(bases) {
                let text = format!("{}: certificates of servers are verified here", line.quoted());
                self.notes.push(Note::lost(line.at, text));
            } else if name.is_none() {
                let text = format!("{}: certificates must be for the server's name here", line.quoted());
                self.notes.push(Note::lost(line.at, text));
            }
        }
    }

    /// The index of the pool, which is made when the first route uses it.
    pub(super) fn pool(&self, name: &str, model: &mut Model) -> usize {
        if let Some(index) = self.index.get() {
            return index;
        }
        let mut pool = Pool::new(self.at, name, Servers::Addresses(self.servers.clone()));
        (pool.extras, pool.notes) = (self.extras.clone(), self.notes.clone());
        model.pools.push(pool);
        self.index.set(Some(model.pools.len() - 1));
        model.pools.len() - 1
    }
}

fn health(
    settings: &Settings,
    options: &ServerOptions,
    bases: &Bases,
    line: &Line,
    notes: &mut Vec<Note>,
) -> Extra {
    let (check, in_tls) = (&settings.check, options.is_checked_in_tls());
    let kind = match check.kind {
        "tcp" if in_tls => "tls",
        // Here they ask for TLS first, as clients of PostgreSQL and MySQL do.
        kind @ ("postgres" | "mysql") if in_tls => {
            let text = format!("{}: {kind} inside TLS, only TLS is asked for", line.quoted());
            notes.push(Note::lost(line.at, text));
            "tls"
        }
        kind => kind,
    };
    let mut keys = vec![format!("check = \"{kind}\"")];
    if kind == check.kind {
        keys.extend(check.keys.iter().cloned());
    }
    let (shortest, longest) = (Duration::from_millis(100), Duration::from_hours(24));
    // HAProxy's default is 2 s.
    let interval = options.inter.unwrap_or(Duration::from_secs(2)).clamp(shortest, longest);
    let mut limit = interval;
    if let Some((at, time, said)) = settings.timeouts.get("check").filter(|(_, time, _)| !time.is_zero()) {
        if *time > interval {
            let text = format!("{}: longer than `inter`, a check ends before the next here", quote(said));
            notes.push(Note::lost(*at, text));
        }
        limit = interval.min(*time);
    }
    let times = [timeout("interval", interval, line.at, ""), timeout("timeout", limit, line.at, "")];
    keys.extend(times.into_iter().flatten().map(|time| format!("{} = {}", time.key, time.value)));
    let counts = [("rise", options.rise.unwrap_or(2)), ("fall", options.fall.unwrap_or(3))];
    keys.extend(counts.map(|(key, count)| format!("{key} = {}", count.clamp(1, 1000))));
    keys.extend(options.port.map(|port| format!("port = {port}")));
    if in_tls {
        let verified = options.is_verified(bases);
        let ca = options.authorities(bases).filter(|_| verified);
        let name = options.check_sni.as_ref().or(options.server_name.as_ref());
        if let (Some(name), false) = (&options.check_sni, verified) {
            let text = format!("{}: certificates must be for {} here", line.quoted(), quote(name));
            notes.push(Note::lost(line.at, text));
        }
        let ca = ca.map(|file| format!("ca = {}", toml_string(&file)));
        let name = name.map(|name| format!("server_name = {}", toml_string(name)));
        let tls: Vec<_> = ca.into_iter().chain(name).collect();
        keys.push(format!("tls = {}", toml_table(&tls)));
    }
    Extra::new("health", toml_table(&keys), line.at, "check")
}

/// `10.0.0.1:6379`, `[::1]:6379`, `::1:6379`, `name:6379`, also behind `ipv4@` or `ipv6@`.
fn address_of(text: &str) -> Option<(String, u16)> {
    host_and_port(text.strip_prefix("ipv4@").or_else(|| text.strip_prefix("ipv6@")).unwrap_or(text))
}
