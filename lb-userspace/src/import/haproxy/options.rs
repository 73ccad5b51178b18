//! Options of HAProxy's servers, and how they are checked.

use super::bases::Bases;
use crate::config::{is_http_host, is_http_path, quote};
use crate::import::model::Note;
use crate::import::values::{duration, port, server_host, toml_string};
use crate::import::words::Line;
use std::time::Duration;

/// How servers are checked, as `option` says it.
#[derive(Clone)]
pub(super) struct Check {
    pub(super) kind: &'static str,
    pub(super) keys: Vec<String>,
    /// What a line says that TOML cannot.
    pub(super) lost: Vec<Note>,
}

impl Default for Check {
    fn default() -> Self {
        Self { kind: "tcp", keys: Vec::new(), lost: Vec::new() }
    }
}

impl Check {
    /// Takes over an `option`, if it is one of checks.
    pub(super) fn option(&mut self, name: &str, rest: &[&str], line: &Line) -> bool {
        let Some(kind) = check_of(name) else { return false };
        *self = Self { kind, ..Self::default() };
        match (kind, rest) {
            ("tcp", _) if name != "tcp-check" => {
                let text = format!("{}: only a connection is asked for", line.quoted());
                self.lost.push(Note::lost(line.at, text));
            }
            ("mysql", ["user", user, ..]) if (1..=128).contains(&user.len()) => {
                self.keys.push(format!("user = {}", toml_string(user)))
            }
            ("http", rest) => self.http(rest, line),
            _ => {}
        }
        true
    }

    /// `[METHOD] PATH [VERSION]`; behind the version, lines of headers.
    fn http(&mut self, rest: &[&str], line: &Line) {
        let (method, path, version) = match rest {
            [] => ("OPTIONS", "/", ""),
            [path] => ("OPTIONS", *path, ""),
            [method, path] => (*method, *path, ""),
            [method, path, version, ..] => (*method, *path, *version),
        };
        let mut lost =
            |text: String| self.lost.push(Note::lost(line.at, format!("{}: {text}", line.quoted())));
        if method != "GET" {
            lost(format!("GET is asked, not {}", quote(method)));
        }
        // `OPTIONS *` asks the server as a whole.
        if is_http_path(path) {
            self.keys.push(format!("path = {}", toml_string(path)));
        } else if path != "*" {
            lost(format!("{} is no path", quote(path)));
        }
        for header in version.split(['\r', '\n']).skip(1).filter(|header| !header.is_empty()) {
            match header.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some((name, host)) if name.eq_ignore_ascii_case("host") && is_http_host(host) => {
                    self.keys.push(format!("host = {}", toml_string(host)));
                }
                _ => lost(format!("the header {}", quote(header))),
            }
        }
    }
}

/// The check that an `option` of this name asks for.
pub(super) fn check_of(option: &str) -> Option<&'static str> {
    Some(match option {
        "tcp-check" | "ldap-check" | "smtpchk" | "spop-check" => "tcp",
        "ssl-hello-chk" => "tls",
        "redis-check" => "redis",
        "pgsql-check" => "postgres",
        "mysql-check" => "mysql",
        "httpchk" => "http",
        _ => return None,
    })
}

/// Options of a server, its own or those of `default-server`.
#[derive(Clone, Default)]
pub(super) struct ServerOptions {
    pub(super) check: bool,
    pub(super) weight: Option<u32>,
    pub(super) backup: bool,
    pub(super) disabled: bool,
    pub(super) max_connections: Option<u32>,
    pub(super) inter: Option<Duration>,
    pub(super) rise: Option<u32>,
    pub(super) fall: Option<u32>,
    pub(super) port: Option<u16>,
    /// The check goes to an address of its own.
    check_address: bool,
    /// Whether the check is inside TLS; absent: as connections are.
    pub(super) check_ssl: Option<bool>,
    pub(super) check_sni: Option<String>,
    pub(super) send_proxy: Option<&'static str>,
    pub(super) slow_start: Option<Duration>,
    pub(super) kill: bool,
    pub(super) ssl: bool,
    authorities: Option<String>,
    pub(super) server_name: Option<String>,
    /// What `verify` says.
    pub(super) verify: Option<bool>,
}

impl ServerOptions {
    /// Whether checks are inside TLS: as connections are, unless they go elsewhere.
    pub(super) fn is_checked_in_tls(&self) -> bool {
        let as_connections = self.ssl && self.port.is_none() && !self.check_address;
        self.check_ssl.unwrap_or(as_connections)
    }

    pub(super) fn is_verified(&self, bases: &Bases) -> bool {
        self.verify.unwrap_or(!bases.no_verify)
    }

    /// Those who may issue a server's certificate; none: the system's.
    pub(super) fn authorities(&self, bases: &Bases) -> Option<String> {
        self.authorities.as_deref().and_then(|file| bases.authorities(file))
    }

    pub(super) fn read(&mut self, words: &[String], line: &Line, notes: &mut Vec<Note>) {
        let mut rest = words.iter().map(String::as_str);
        while let Some(word) = rest.next() {
            match word {
                "check" => self.check = true,
                "no-check" => self.check = false,
                "backup" => self.backup = true,
                "disabled" => self.disabled = true,
                "enabled" => self.disabled = false,
                "ssl" => self.ssl = true,
                "no-ssl" => self.ssl = false,
                "send-proxy" => self.send_proxy = Some("\"v1\""),
                "send-proxy-v2" | "send-proxy-v2-ssl" | "send-proxy-v2-ssl-cn" => {
                    self.send_proxy = Some("\"v2\"")
                }
                "weight" => self.weight = number(rest.next()),
                "maxconn" => self.max_connections = number(rest.next()).filter(|&number| number > 0),
                "inter" => self.inter = rest.next().and_then(|text| duration(text, "ms")),
                "rise" => self.rise = number(rest.next()),
                "fall" => self.fall = number(rest.next()),
                "port" => self.port = rest.next().and_then(port),
                "slowstart" => self.slow_start = rest.next().and_then(|text| duration(text, "ms")),
                "on-marked-down" => self.kill = rest.next() == Some("shutdown-sessions"),
                "ca-file" => self.authorities = rest.next().map(str::to_owned),
                "verify" => self.verify = Some(rest.next() != Some("none")),
                "check-ssl" => self.check_ssl = Some(true),
                "no-check-ssl" => self.check_ssl = Some(false),
                "check-sni" => self.check_sni = rest.next().and_then(server_host),
                "sni" => {
                    let text = rest.next().unwrap_or_default();
                    let fixed = text.strip_prefix("str(").and_then(|text| text.strip_suffix(')'));
                    self.server_name = fixed.and_then(|name| server_host(name.trim_matches(['"', '\''])));
                    if self.server_name.is_none() {
                        let text = format!("{}: only a fixed name is sent as SNI", line.quoted());
                        notes.push(Note::lost(line.at, text));
                    }
                }
                // Names are looked up all the time here.
                "resolvers" | "init-addr" | "resolve-prefer" | "id" | "fastinter" | "downinter" => {
                    rest.next();
                }
                "tfo" | "stick" | "non-stick" => {}
                other => {
                    self.check_address |= other == "addr";
                    let text = format!("{}: {}", line.quoted(), quote(other));
                    notes.push(Note::lost(line.at, text));
                    let with_value = [
                        "crt",
                        "cookie",
                        "track",
                        "observe",
                        "on-error",
                        "error-limit",
                        "source",
                        "alpn",
                        "ciphers",
                        "ciphersuites",
                        "ssl-min-ver",
                        "ssl-max-ver",
                        "maxqueue",
                        "minconn",
                        "addr",
                        "agent-port",
                        "agent-addr",
                        "agent-inter",
                        "agent-send",
                        "redir",
                        "proto",
                        "resolve-net",
                        "resolve-opts",
                        "namespace",
                        "verifyhost",
                        "crl-file",
                        "pool-max-conn",
                        "pool-purge-delay",
                        "set-proxy-v2-tlv-fmt",
                    ];
                    if with_value.contains(&other) {
                        rest.next();
                    }
                }
            }
        }
    }
}

fn number(text: Option<&str>) -> Option<u32> {
    text?.parse().ok()
}
