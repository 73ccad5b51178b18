//! nginx's upstreams, as pools.

use super::syntax::Directive;
use crate::config::quote;
use crate::import::model::{At, Extra, Model, Note, Pool, Server, Servers};
use crate::import::values::{duration, host_and_port, timeout, toml_table};
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) struct Upstream {
    pub(super) at: At,
    servers: Vec<Server>,
    /// Of each server.
    failures: Vec<Failures>,
    extras: Vec<Extra>,
    notes: Vec<Note>,
}

/// `max_fails` and `fail_timeout`: after how many failures a server is passed over, and for how long.
type Failures = (u32, Duration);

/// nginx's defaults of them.
const FAILURES: Failures = (1, Duration::from_secs(10));

impl Upstream {
    pub(super) fn read(at: At, block: &[Directive]) -> Self {
        let mut upstream =
            Self { at, servers: Vec::new(), failures: Vec::new(), extras: Vec::new(), notes: Vec::new() };
        let mut balance = None;
        for directive in block {
            let words: Vec<&str> = directive.words.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["server", address, options @ ..] => upstream.server(address, options, directive),
                ["least_conn"] => balance = Some((directive, "\"least-connections\"")),
                ["random", ..] => balance = Some((directive, "\"random\"")),
                ["hash", "$remote_addr" | "$binary_remote_addr", ..] => {
                    balance = Some((directive, "\"source-hash\""))
                }
                ["zone" | "resolver" | "resolver_timeout", ..] => {}
                _ => upstream.notes.push(directive.unknown()),
            }
        }
        if let Some((directive, value)) = balance {
            upstream.extras.push(Extra::new("balance", value, directive.at, &directive.said()));
        }
        upstream.eject();
        upstream
    }

    /// What its servers share here. The only server is never passed over there.
    fn eject(&mut self) {
        let [first, _, ..] = self.failures.as_slice() else { return };
        if self.failures.iter().any(|failures| failures != first) {
            let text = "`max_fails`, `fail_timeout`: the first server's that has any, of all here";
            self.notes.push(Note::lost(self.at, text));
        }
        let Some((count, time)) = self.failures.iter().find(|(count, _)| *count > 0) else { return };
        let time = timeout("time", *time, self.at, "").map(|time| format!("time = {}", time.value));
        let keys: Vec<_> = std::iter::once(format!("failures = {}", count.min(&1000))).chain(time).collect();
        let said = if *first == FAILURES { "" } else { "max_fails, fail_timeout" };
        self.extras.push(Extra::new("eject", toml_table(&keys), self.at, said));
    }

    fn server(&mut self, address: &str, options: &[&str], directive: &Directive) {
        let at = directive.at;
        let Some((host, port)) = host_and_port(address) else {
            let text = format!("{}: {} is no address and port", directive.quoted(), quote(address));
            return self.notes.push(Note::lost(at, text));
        };
        let mut failures = FAILURES;
        let mut server = Server { host, port, weight: 1, backup: false, extras: Vec::new() };
        for option in options {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "weight" => server.weight = value.parse().unwrap_or(1).clamp(1, 256),
                "max_conns" => {
                    let limit = value.parse::<u32>().ok().filter(|&limit| limit > 0);
                    server.extras =
                        Vec::from_iter(limit.map(|limit| Extra::new("max_connections", limit, at, option)));
                }
                "max_fails" => failures.0 = value.parse().unwrap_or(failures.0),
                "fail_timeout" => failures.1 = duration(value, "s").unwrap_or(failures.1),
                "backup" => server.backup = true,
                "resolve" => {}
                "slow_start" => {
                    let time = duration(value, "s").and_then(|time| timeout("slow_start", time, at, option));
                    self.extras.retain(|extra| extra.key != "slow_start");
                    self.extras.extend(time);
                }
                "down" => {
                    let text = format!("{}: it takes no connections", directive.quoted());
                    return self.notes.push(Note::left_out(at, text));
                }
                _ => self.notes.push(Note::lost(at, format!("{}: {}", directive.quoted(), quote(option)))),
            }
        }
        self.servers.push(server);
        self.failures.push(failures);
    }
}

/// The pools of upstreams, and of addresses that stand for one.
pub(super) struct Pools<'s> {
    upstreams: &'s BTreeMap<String, Upstream>,
    /// By upstream or address, and what the `server` that leads there says of its connections to it.
    known: BTreeMap<(String, String), usize>,
}

impl<'s> Pools<'s> {
    pub(super) fn new(upstreams: &'s BTreeMap<String, Upstream>) -> Self {
        Self { upstreams, known: BTreeMap::new() }
    }

    /// Whether some server leads to this upstream.
    pub(super) fn has(&self, name: &str) -> bool {
        let from = (name.to_owned(), String::new());
        self.known.range(from..).next().is_some_and(|((known, _), _)| known == name)
    }

    /// The index of a pool with these keys. None: it leads nowhere that is known.
    pub(super) fn get(&mut self, target: &str, at: At, keys: &[Extra], model: &mut Model) -> Option<usize> {
        let values: Vec<_> = keys.iter().map(|extra| format!("{}={}", extra.key, extra.value)).collect();
        let key = (target.to_owned(), values.join(" "));
        if let Some(&known) = self.known.get(&key) {
            return Some(known);
        }
        let again = self.has(target);
        let mut pool = match self.upstreams.get(target) {
            Some(upstream) => {
                model.grow(upstream.servers.len());
                let mut pool = Pool::new(upstream.at, target, Servers::Addresses(upstream.servers.clone()));
                pool.extras.clone_from(&upstream.extras);
                if !again {
                    pool.notes.clone_from(&upstream.notes);
                }
                pool
            }
            None => {
                let (host, port) = host_and_port(target)?;
                let server = Server { host, port, weight: 1, backup: false, extras: Vec::new() };
                Pool::new(at, target, Servers::Addresses(vec![server]))
            }
        };
        pool.extras.extend(keys.iter().cloned());
        model.pools.push(pool);
        self.known.insert(key, model.pools.len() - 1);
        Some(model.pools.len() - 1)
    }
}
