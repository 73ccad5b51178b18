//! Fixtures of the tests of the configuration; a file for each subject.

mod accepted;
mod certificates;
mod clients;
mod damage;
mod drawing;
mod ech;
mod file;
mod gateway_api;
mod health;
mod hints;
mod http;
mod keys;
mod mysql;
mod names;
mod objects;
mod peers;
mod routes;
mod source;
mod upstream_tls;
mod values;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::reason::Tier;

/// One of everything a route needs. Tests change it in one place.
pub(super) const GOOD: &str = r#"
[[listener]]
name = "databases"
bind = ["0.0.0.0:443"]

[[route]]
listener = "databases"
sni = ["app1.example.com"]
backends = ["redis"]

[[pool]]
name = "redis"
servers = ["10.0.0.11:6379"]
"#;

/// The example of RFC 9934; its public name is example.com, its number 231.
const ECH_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEICjd4yGRdsoP9gU7YT7My8DHx1Tjme8GYDXrOMCi8v1V
-----END PRIVATE KEY-----
-----BEGIN ECHCONFIG-----
AD7+DQA65wAgACA8wVN2BtscOl3vQheUzHeIkVmKIiydUhDCliA4iyQRCwAEAAEA
AQALZXhhbXBsZS5jb20AAA==
-----END ECHCONFIG-----
";

/// Ends TLS for app1.example.com; the same changes apply as to [`GOOD`].
pub(super) const TERMINATED: &str = r#"
[[listener]]
name = "databases"
bind = ["0.0.0.0:443"]

[[route]]
listener = "databases"
sni = ["app1.example.com"]
tls = "terminate"
certificate = { chain = "app1.crt", key = "app1.key" }
backends = ["redis"]

[[pool]]
name = "redis"
servers = ["10.0.0.11:6379"]
"#;

/// A route of requests, with one rule; the same changes apply as to [`GOOD`].
pub(super) const GOOD_HTTP: &str = r#"
[[listener]]
name = "databases"
bind = ["0.0.0.0:443"]

[[route]]
listener = "databases"
sni = ["app1.example.com", "www.example.com"]
protocol = "http"
tls = "terminate"
certificate = { chain = "wild.crt", key = "wild.key" }
[[route.rule]]
backends = ["redis"]

[[pool]]
name = "redis"
servers = ["10.0.0.11:6379"]
"#;

/// 2026-01-01, when the certificates below are to be judged.
const NOW: Duration = Duration::from_secs(1_767_225_600);

struct Map(HashMap<&'static str, String>);

impl Files for Map {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let content = path.to_str().and_then(|path| self.0.get(path));
        content.map(|text| text.clone().into_bytes()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn system_authorities(&self) -> (Vec<CertificateDer<'static>>, Option<String>) {
        match self.0.get("system-ca.crt") {
            Some(pem) => (CertificateDer::from_pem_slice(pem.as_bytes()).into_iter().collect(), None),
            None => (Vec::new(), Some("cannot read the directory".to_owned())),
        }
    }
}

static FILES: LazyLock<Map> = LazyLock::new(|| {
    let mut files = HashMap::new();
    let mut issue = |chain: &'static str, key: &'static str, names: &[&str], from: i32, to: i32| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("valid names");
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(to, 1, 1);
        let pair = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&pair).expect("a certificate").pem();
        files.insert(chain, pem);
        files.insert(key, pair.serialize_pem());
    };
    issue("app1.crt", "app1.key", &["app1.example.com"], 2025, 2027);
    issue("redis1.crt", "redis1.key", &["app1.redis.example.com"], 2025, 2027);
    issue("both.crt", "both.key", &["app1.example.com", "app2.example.com"], 2025, 2027);
    issue("wild.crt", "wild.key", &["*.example.com"], 2025, 2027);
    issue("nameless.crt", "nameless.key", &[], 2025, 2027);
    issue("old.crt", "old.key", &["app1.example.com"], 2020, 2024);
    issue("future.crt", "future.key", &["app1.example.com"], 2030, 2031);
    issue("clients-ca.crt", "clients-ca.key", &["ca"], 2025, 2027);
    issue("upstream-ca.crt", "upstream-ca.key", &["upstream"], 2025, 2027);
    issue("system-ca.crt", "system-ca.key", &["system"], 2025, 2027);
    let swapped = format!("{}{}", files["clients-ca.crt"], files["app1.crt"]);
    files.insert("swapped.crt", swapped);
    files.extend(clients::files());
    files.insert("empty.pem", "nothing here\n".to_owned());
    files.insert("ech.pem", ECH_KEY.to_owned());
    files.insert("ca.crt", files["clients-ca.crt"].clone());
    files.insert("password", "s e\"cret\r\n".to_owned());
    files.insert("lines", "one\ntwo\n".to_owned());
    files.insert("zero", "a\0b\n".to_owned());
    files.insert("cut.pem", files["app1.crt"].lines().take(3).collect::<Vec<_>>().join("\n"));
    files.insert("cut.key", files["app1.key"].lines().take(2).collect::<Vec<_>>().join("\n"));
    files.insert("garbage.crt", pem("CERTIFICATE"));
    files.insert("garbage.key", pem("PRIVATE KEY"));
    files.insert("encrypted.key", pem("ENCRYPTED PRIVATE KEY"));
    Map(files)
});

/// A PEM section of this kind with four zero bytes.
fn pem(kind: &str) -> String {
    format!("-----BEGIN {kind}-----\nAAAAAA==\n-----END {kind}-----\n")
}

pub(super) fn checked(text: &str) -> Checked {
    check_text(text, "snisplice.toml", &*FILES, UnixTime::since_unix_epoch(NOW))
}

/// The configuration, which must be without any fault.
fn accepted(text: &str) -> Config {
    match checked(text) {
        Ok((config, warnings)) if warnings.is_empty() => config,
        Ok((_, faults)) | Err(faults) => panic!("{faults}"),
    }
}

/// `from` with its first `old` made `new`.
pub(super) fn changed(from: &str, old: &str, new: &str) -> String {
    assert!(from.contains(old), "{old:?} is not in the text");
    from.replacen(old, new, 1)
}

/// Where a place of the file is.
fn span_of(place: &Place) -> Range<usize> {
    place.span().expect("in the file")
}

/// Each fault of `text`, in order, as `expected` writes it: what it is, the text underlined, the hint.
#[track_caller]
fn assert_faults(text: &str, expected: &str) {
    let result = checked(text);
    let refused = result.is_err();
    let (Ok((_, diagnostics)) | Err(diagnostics)) = result;
    let mut found = String::new();
    for diagnostic in diagnostics.iter() {
        let kind = format!("{:?}", diagnostic.severity).to_lowercase();
        let span = span_of(diagnostic.place.as_ref().expect("a place"));
        let help = diagnostic.help.as_deref().unwrap_or_default();
        found += &format!("{kind}: {}\n   at: {}\n help: {help}\n", diagnostic.message, &text[span]);
    }
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lines: Vec<_> = found.lines().map(str::trim).collect();
    assert!(lines == expected, "found:\n{found}");
    assert_eq!(refused, diagnostics.count(Severity::Error) > 0);
}

/// The example that documents the format, with a second pool for its second backend.
pub(super) const EXAMPLE: &str = r#"
[gateway]
workers    = 0                     # 0: one per core
interfaces = "auto"                # or ["eth0", "cni0"]
tiers      = ["packet", "copy"]     # "sockmap" is opt-in, see datapath.md
bpffs      = "/sys/fs/bpf/snisplice"
state_dir  = "/run/snisplice"      # admin socket and what must outlive the process
admin      = "127.0.0.1:9900"      # metrics, health, status page; absent: off
watch      = false
access_log = { path = "-", format = "json" }
max_connections = 200000

[[listener]]
name     = "databases"
bind     = ["0.0.0.0:443", "[::]:443"]
protocol = "tls"                   # "tls" | "postgres" | "mysql" | "tcp"
hello_timeout  = "5s"
proxy_protocol = false             # accept v1/v2 from the peers in trusted_proxies
allow = ["0.0.0.0/0"]              # CIDR, deny wins
deny  = []

[[route]]
name     = "redis-1"
listener = "databases"
sni      = ["app1.redis.example.com"]   # exact, "*.example.com", or "*" for the default
alpn     = []                           # empty: any
tls      = "terminate"                  # "passthrough" | "terminate"
certificate = { chain = "redis1.crt", key = "redis1.key" }
client_ca   = "clients-ca.crt"          # present: client certificates are required
backends = [ { pool = "redis-1", weight = 99 }, { pool = "redis-1-next", weight = 1 } ]
idle_timeout = "1h"
max_connections = 1000

[[pool]]
name    = "redis-1"
balance = "least-connections"      # "round-robin" | "least-connections" | "source-hash" | "random"
servers = [ { address = "10.0.0.11:6379" }, { address = "redis-0.eu.example.com:6379", weight = 2, backup = true } ]
connect_timeout = "2s"
health  = { check = "redis", interval = "5s", rise = 2, fall = 3 }   # "tcp" | "tls" | "redis" | "postgres" | "mysql"
send_proxy = "v2"                  # "v1" | "v2" | absent
tls     = { ca = "upstream-ca.crt", server_name = "redis.internal" }  # present: TLS toward the server

[[pool]]
name = "redis-1-next"
servers = [ { address = "[2001:db8::1]:6379" } ]
"#;
