//! Options of HAProxy's servers, and how they are checked.

use crate::config::quote;
use crate::import::model::Note;
use crate::import::values::{duration, toml_string};
use crate::import::words::Line;
use std::time::Duration;

/// How servers are checked, as `option` says it.
#[derive(Clone)]
pub(super) struct Check {
    pub(super) kind: &'static str,
    pub(super) keys: String,
    /// What a line says that TOML cannot.
    pub(super) lost: Option<Note>,
}

impl Default for Check {
    fn default() -> Self {
        Self { kind: "tcp", keys: String::new(), lost: None }
    }
}

impl Check {
    /// Takes over an `option`, if it is one of checks.
    pub(super) fn option(&mut self, name: &str, rest: &[&str], line: &Line) -> bool {
        let Some(kind) = check_of(name) else { return false };
        let (mut keys, mut lost) = (String::new(), None);
        if kind == "tcp" && name != "tcp-check" {
            lost = Some(Note::lost(line.at, format!("{}: checked by TCP", line.quoted())));
        }
        if kind == "http" {
            let (method, path) = match rest {
                [] => ("OPTIONS", "/"),
                [path] => ("OPTIONS", *path),
                [method, path, ..] => (*method, *path),
            };
            keys = format!(", path = {}", toml_string(path));
            if method != "GET" {
                lost = Some(Note::lost(
                    line.at,
                    format!("{}: GET is asked, not {}", line.quoted(), quote(method)),
                ));
            }
        }
        *self = Self { kind, keys, lost };
        true
    }
}

/// The check that an `option` of this name asks for.
pub(super) fn check_of(option: &str) -> Option<&'static str> {
    Some(match option {
        "tcp-check" | "mysql-check" | "ldap-check" | "smtpchk" | "spop-check" => "tcp",
        "ssl-hello-chk" => "tls",
        "redis-check" => "redis",
        "pgsql-check" => "postgres",
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
    pub(super) send_proxy: Option<&'static str>,
    pub(super) slow_start: Option<Duration>,
    pub(super) kill: bool,
    pub(super) ssl: bool,
    pub(super) authorities: Option<String>,
    pub(super) server_name: Option<String>,
    pub(super) no_verify: bool,
}

impl ServerOptions {
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
                "port" => self.port = rest.next().and_then(|text| text.parse().ok()),
                "slowstart" => self.slow_start = rest.next().and_then(|text| duration(text, "ms")),
                "on-marked-down" => self.kill = rest.next() == Some("shutdown-sessions"),
                "ca-file" => self.authorities = rest.next().map(str::to_owned),
                "verify" => self.no_verify = rest.next() == Some("none"),
                "sni" => {
                    let text = rest.next().unwrap_or_default();
                    let fixed = text.strip_prefix("str(").and_then(|text| text.strip_suffix(')'));
                    self.server_name = fixed.map(|name| name.trim_matches(['"', '\'']).to_owned());
                    if fixed.is_none() {
                        let text = format!("{}: only a fixed name is sent as SNI", line.quoted());
                        notes.push(Note::lost(line.at, text));
                    }
                }
                // Names are looked up all the time here, and a check is as the connections are.
                "resolvers" | "init-addr" | "resolve-prefer" | "id" | "check-sni" | "fastinter"
                | "downinter" => {
                    rest.next();
                }
                "check-ssl" | "tfo" | "stick" | "non-stick" => {}
                other => {
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
