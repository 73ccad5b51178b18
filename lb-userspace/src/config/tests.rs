use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::UnixTime;

use super::*;

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

/// 2026-01-01, when the certificates below are to be judged.
const NOW: Duration = Duration::from_secs(1_767_225_600);

struct Map(HashMap<&'static str, String>);

impl Files for Map {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let content = path.to_str().and_then(|path| self.0.get(path));
        content.map(|text| text.clone().into_bytes()).ok_or(io::ErrorKind::NotFound.into())
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
    let swapped = format!("{}{}", files["clients-ca.crt"], files["app1.crt"]);
    files.insert("swapped.crt", swapped);
    files.extend(super::tests_clients::files());
    files.insert("empty.pem", "nothing here\n".to_owned());
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
    check(text, "snisplice.toml", &*FILES, UnixTime::since_unix_epoch(NOW))
}

/// The configuration, which must be without any fault.
pub(super) fn accepted(text: &str) -> Config {
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

/// Each fault of `text`, in order, as `expected` writes it: what it is, the text underlined, the hint.
#[track_caller]
pub(super) fn assert_faults(text: &str, expected: &str) {
    let result = checked(text);
    let refused = result.is_err();
    let (Ok((_, diagnostics)) | Err(diagnostics)) = result;
    let mut found = String::new();
    for diagnostic in diagnostics.iter() {
        let kind = format!("{:?}", diagnostic.severity).to_lowercase();
        let span = diagnostic.span.clone().expect("a position");
        let help = diagnostic.help.as_deref().unwrap_or_default();
        found += &format!("{kind}: {}\n   at: {}\n help: {help}\n", diagnostic.message, &text[span]);
    }
    let expected: Vec<_> = expected.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let lines: Vec<_> = found.lines().map(str::trim).collect();
    assert!(lines == expected, "found:\n{found}");
    assert_eq!(refused, diagnostics.count(Severity::Error) > 0);
}

// What is accepted

#[test]
fn what_is_left_out_has_its_default() {
    let config =
        accepted(&changed(GOOD, "name = \"databases\"\n", "").replace("\"databases\"", "\"listener-1\""));
    let gateway = Gateway {
        workers: 0,
        interfaces: Interfaces::Auto,
        tiers: vec![Tier::Packet, Tier::Copy],
        bpffs: "/sys/fs/bpf/snisplice".into(),
        state_dir: "/run/snisplice".into(),
        admin: None,
        watch: false,
        access_log: None,
        max_connections: 200_000,
        drain_timeout: Duration::from_secs(30),
        source_ports: 10_240..=29_999,
        flow_table: 1_048_576,
        keepalive: Keepalive::default(),
    };
    assert_eq!(config.gateway, gateway);
    let listener = Listener {
        name: "listener-1".into(),
        bind: vec!["0.0.0.0:443".parse().unwrap()],
        protocol: Protocol::Tls,
        hello_timeout: Duration::from_secs(5),
        hello_bytes: 163_840,
        proxy_protocol: false,
        trusted_proxies: vec![],
        allow: vec![],
        deny: vec![],
        max_connections: None,
        client_rate: None,
        backlog: 4096,
        keepalive: Keepalive::default(),
        freebind: false,
    };
    assert_eq!(config.listeners, [listener]);
    let [route] = &config.routes[..] else { panic!("{:?}", config.routes) };
    assert_eq!(&*route.name, "app1.example.com");
    assert_eq!((route.listener, &route.sni[..]), (0, &[SniPattern::Exact("app1.example.com".into())][..]));
    assert!(route.alpn.is_empty() && matches!(route.tls, TlsMode::Passthrough));
    assert_eq!(route.backends, [Backend { pool: 0, weight: 1 }]);
    assert_eq!((route.idle_timeout, route.max_age, route.max_connections), (None, None, None));
    assert_eq!(route.client_rate, None);
    let address = Address { host: Host::Ip("10.0.0.11".parse().unwrap()), port: 6379 };
    let pool = Pool {
        name: "redis".into(),
        balance: Balance::RoundRobin,
        servers: vec![Server { origin: Origin::Address(address), weight: 1, backup: false }],
        connect_timeout: Duration::from_secs(2),
        send_proxy: None,
        keepalive: Keepalive::default(),
    };
    assert_eq!(config.pools, [pool]);
}

/// The example that documents the format, with a second pool for its second backend.
const EXAMPLE: &str = r#"
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
protocol = "tls"                   # "tls" | "postgres" | "tcp"
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
health  = { check = "redis", interval = "5s", rise = 2, fall = 3 }   # "tcp" | "tls" | "redis" | "postgres"
send_proxy = "v2"                  # "v1" | "v2" | absent
tls     = { ca = "upstream-ca.crt", server_name = "redis.internal" }  # present: TLS toward the server

[[pool]]
name = "redis-1-next"
servers = [ { address = "[2001:db8::1]:6379" } ]
"#;

#[test]
fn the_documented_example_is_valid_but_for_what_this_version_lacks() {
    let faults = checked(EXAMPLE).unwrap_err();
    let messages: Vec<_> = faults.iter().map(|fault| &*fault.message).collect();
    assert_eq!(
        messages,
        ["`health` of a pool is not in this version", "`tls` of a pool is not in this version"]
    );

    let kept = EXAMPLE.lines().filter(|line| !line.starts_with("health ") && !line.starts_with("tls     ="));
    let config = accepted(&kept.collect::<Vec<_>>().join("\n"));
    assert_eq!(config.gateway.admin, Some("127.0.0.1:9900".parse().unwrap()));
    assert_eq!(
        config.gateway.access_log,
        Some(AccessLog { target: LogTarget::Stdout, format: LogFormat::Json })
    );
    assert_eq!(config.listeners[0].bind.len(), 2);
    assert_eq!(config.listeners[0].allow, ["0.0.0.0/0".parse().unwrap()]);
    let route = &config.routes[0];
    assert_eq!(route.backends, [Backend { pool: 0, weight: 99 }, Backend { pool: 1, weight: 1 }]);
    assert_eq!((route.idle_timeout, route.max_connections), (Some(Duration::from_secs(3600)), Some(1000)));
    let TlsMode::Terminate(termination) = &route.tls else { panic!("{:?}", route.tls) };
    assert_eq!(
        (termination.chain.len(), termination.client_auth.as_ref().map(|auth| auth.authorities.len())),
        (1, Some(1))
    );
    assert_eq!(termination.not_after, 1_798_761_600, "2027-01-01");
    let pool = &config.pools[0];
    assert_eq!((pool.balance, pool.send_proxy), (Balance::LeastConnections, Some(ProxyVersion::V2)));
    let addresses: Vec<_> =
        config.pools.iter().flat_map(|p| &p.servers).map(|s| s.origin.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.11:6379", "redis-0.eu.example.com:6379", "[2001:db8::1]:6379"]);
    assert_eq!((pool.servers[1].weight, pool.servers[1].backup), (2, true));
}

#[test]
fn every_other_key_reaches_the_configuration() {
    let config = accepted(
        r#"
        [gateway]
        workers = 0x4
        interfaces = ["eth0", "cni0"]
        tiers = ["sockmap"]
        watch = true
        access_log = { path = "/var/log/snisplice.log", format = "text" }
        drain_timeout = "0s"
        source_ports = "20000 - 20255"
        flow_table = 2

        [[listener]]
        bind = ["[::1]:5432"]
        protocol = "postgres"
        proxy_protocol = true
        trusted_proxies = ["10.0.0.7", "2001:db8::/32"]
        deny = ["192.0.2.0/24"]
        max_connections = 7
        backlog = 16
        freebind = true

        [[listener]]
        bind = ["127.0.0.1:1"]
        protocol = "tcp"

        [[route]]
        listener = "listener-1"
        sni = ["*.Example.COM.", "*"]
        alpn = ["postgresql"]
        backends = ["a", { pool = "b", weight = 0 }]
        max_age = "24h"

        [[route]]
        listener = "listener-2"
        backends = ["c"]

        [[pool]]
        name = "a"
        balance = "source-hash"
        servers = ["Redis.Internal:1"]
        connect_timeout = "250ms"
        send_proxy = "v1"

        [[pool]]
        name = "b"
        balance = "random"
        servers = ["10.0.0.1:1"]

        [[pool]]
        name = "c"
        balance = "round-robin"
        servers = ["10.0.0.1:1"]
        "#,
    );
    let gateway = &config.gateway;
    assert_eq!((gateway.workers, gateway.watch, gateway.drain_timeout), (4, true, Duration::ZERO));
    assert_eq!((&gateway.source_ports, gateway.flow_table), (&(20_000..=20_255), 2));
    assert_eq!(gateway.interfaces, Interfaces::Named(vec!["eth0".to_owned(), "cni0".to_owned()]));
    assert_eq!(gateway.tiers, [Tier::Sockmap, Tier::Copy], "copy takes the rest");
    let target = LogTarget::File("/var/log/snisplice.log".into());
    assert_eq!(gateway.access_log, Some(AccessLog { target, format: LogFormat::Text }));
    let [postgres, tcp] = &config.listeners[..] else { panic!("{:?}", config.listeners) };
    assert_eq!((postgres.protocol, tcp.protocol), (Protocol::Postgres, Protocol::Tcp));
    assert!(postgres.proxy_protocol);
    assert_eq!(postgres.trusted_proxies, ["10.0.0.7/32".parse().unwrap(), "2001:db8::/32".parse().unwrap()]);
    assert_eq!(postgres.deny, ["192.0.2.0/24".parse().unwrap()]);
    assert_eq!((postgres.max_connections, postgres.backlog, postgres.freebind), (Some(7), 16, true));
    let route = &config.routes[0];
    assert_eq!((route.max_age, config.routes[1].max_age), (Some(Duration::from_secs(86_400)), None));
    assert_eq!((&*route.name, &*config.routes[1].name), ("*.example.com", "route-2"));
    assert_eq!(route.sni, [SniPattern::Wildcard("example.com".into()), SniPattern::Any]);
    assert_eq!(route.alpn, ["postgresql".into()]);
    assert_eq!(config.routes[1].listener, 1);
    let pool = &config.pools[0];
    assert_eq!((pool.balance, config.pools[1].balance), (Balance::SourceHash, Balance::Random));
    assert_eq!((pool.connect_timeout, pool.send_proxy), (Duration::from_millis(250), Some(ProxyVersion::V1)));
    let address = Address { host: Host::Name("redis.internal".into()), port: 1 };
    assert_eq!(pool.servers[0].origin, Origin::Address(address));
}

#[test]
fn a_default_name_gives_way_to_a_given_one() {
    let second = "[[route]]\nname = \"app1.example.com\"\nlistener = \"databases\"\nsni = [\"*\"]\nbackends = [\"redis\"]";
    let config = accepted(&format!("{GOOD}{second}"));
    let names: Vec<_> = config.routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["route-1", "app1.example.com"]);
}

#[test]
fn routes_of_the_same_files_share_one_termination() {
    let second = "[[route]]\nlistener = \"databases\"\nsni = [\"*\"]\ntls = \"terminate\"\n\
        certificate = { chain = \"app1.crt\", key = \"app1.key\" }\nbackends = [\"redis\"]";
    let config = accepted(&format!("{TERMINATED}{second}"));
    let [TlsMode::Terminate(one), TlsMode::Terminate(other)] = [&config.routes[0].tls, &config.routes[1].tls]
    else {
        panic!("{:?}", config.routes)
    };
    assert!(Arc::ptr_eq(one, other));
}

#[test]
fn the_debug_form_of_a_termination_holds_no_key() {
    let config = accepted(TERMINATED);
    let debug = format!("{:?}", config.routes[0].tls);
    assert_eq!(debug, "Terminate(Termination { chain: 1, client_auth: None, not_after: 1798761600, .. })");
}

#[test]
fn the_same_pattern_may_be_shared_out_by_alpn_or_listener() {
    let second = "[[route]]\nname = \"h2\"\nlistener = \"databases\"\nsni = [\"app1.example.com\"]\nalpn = [\"h2\"]\n\
        backends = [\"redis\"]";
    accepted(&format!("{GOOD}{second}"));
    let third = "[[listener]]\nbind = [\"0.0.0.0:444\"]\n[[route]]\nlistener = \"listener-2\"\nsni = [\"app1.example.com\"]\n\
        backends = [\"redis\"]";
    accepted(&format!("{GOOD}{third}"));
}

// The file as a whole

#[test]
fn a_syntax_error_is_shown_where_it_is() {
    assert_faults(
        &changed(GOOD, "\"databases\"\nbind", "databases\nbind"),
        r#"
        error: string values must be quoted, expected literal string
           at: databases
         help: text, also an address or a duration, stands in quotes
        "#,
    );
}

#[test]
fn an_array_that_is_not_closed_is_one_error() {
    assert_faults(
        &changed(GOOD, "[\"0.0.0.0:443\"]", "[\"0.0.0.0:443\""),
        r#"
        error: missing comma between array elements, expected `,`
           at:
         help: if the list ends before this, close it with `]`
        "#,
    );
}

#[test]
fn a_header_that_is_not_closed_is_one_error() {
    assert_faults(
        &changed(GOOD, "[[listener]]", "[[listener]"),
        r#"
        error: unclosed array table, expected `]`
           at:
         help:
        "#,
    );
}

#[test]
fn a_key_given_twice_is_an_error() {
    assert_faults(
        &changed(GOOD, "bind =", "name = \"again\"\nbind ="),
        r#"
        error: duplicate key
           at: name
         help: take one of them out
        "#,
    );
}

#[test]
fn errors_are_found_on_both_sides_of_a_syntax_error() {
    assert_faults(
        "[gateway]\nworkers = 5000\nadmin = 127.0.0.1:9900\nwatch = 1\n",
        r#"
        error: `workers` must be from 0 to 1024
           at: 5000
         help: for example `workers = 0`
        error: invalid float, expected nothing
           at: .0.1:9900
         help: text, also an address or a duration, stands in quotes
        error: `watch` must be `true` or `false`, not an integer
           at: 1
         help: for example `watch = true`
        "#,
    );
}

#[test]
fn an_empty_file_is_an_error() {
    assert_faults(
        "",
        r#"
        error: no listener: there is nothing to do
           at:
         help: add a `[[listener]]`, a `[[route]]` and a `[[pool]]`
        "#,
    );
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let error = load(Path::new("/nonexistent/snisplice.toml")).0.unwrap_err();
    let message = "error: cannot read `/nonexistent/snisplice.toml`: No such file or directory (os error 2)";
    assert_eq!(error.to_string().trim_end(), message);
}

/// A directory of this test's own, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("snisplice-{}-{name}", std::process::id()));
        std::fs::create_dir(&directory).expect("a directory of this name is not there");
        Self(directory)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).expect("written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing to be done if it cannot be removed, least of all in a panic.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn relative_paths_start_at_the_directory_of_the_file() {
    let scratch = Scratch::new("relative");
    scratch.write("app1.crt", &FILES.0["app1.crt"]);
    scratch.write("app1.key", &FILES.0["app1.key"]);
    let path = scratch.write("snisplice.toml", TERMINATED);
    let (checked, sources) = load(&path);
    assert!(matches!(checked.unwrap().0.routes[0].tls, TlsMode::Terminate(_)));
    let beside = |name: &str| path.with_file_name(name);
    for read in [path.clone(), beside("app1.crt"), beside("app1.key")] {
        assert_eq!(sources[&read], digest(&read));
    }
    assert_eq!(sources.len(), 3);
}

#[test]
fn the_files_of_a_configuration_with_errors_are_known_too() {
    let scratch = Scratch::new("sources");
    scratch.write("app1.crt", &FILES.0["app1.crt"]);
    let path = scratch.write("snisplice.toml", TERMINATED);
    let (checked, sources) = load(&path);
    assert!(checked.is_err());
    assert_eq!(sources[&path.with_file_name("app1.key")], None);
    assert!(sources[&path.with_file_name("app1.crt")].is_some());
}

#[test]
fn a_file_may_be_as_large_as_its_bound_and_no_larger() {
    let scratch = Scratch::new("bound");
    let path = scratch.write("file", "12345");
    assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
    assert_eq!(read_bounded(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn looking_for_similar_names_has_an_end() {
    let mut report = diagnostic::Report::default();
    let names: Vec<String> = (0..1000).map(|n| format!("pool-{n}")).collect();
    let mut similar = || report.similar("pool-1000x", names.iter().map(String::as_str));
    let found = (0..1000).filter(|_| similar().is_some()).count();
    assert_eq!(found, 100, "100 000 comparisons in all");
}

#[test]
fn text_that_is_not_utf8_is_shown_where_it_is() {
    let error = String::from_utf8(b"[gateway]\nadmin = \"\xff\"".to_vec()).unwrap_err();
    let diagnostics = Diagnostics::not_utf8("snisplice.toml", &error);
    let only = diagnostics.iter().next().unwrap();
    assert_eq!(only.message, "not UTF-8 text");
    assert_eq!(diagnostics.position(only), Some((2, 10)));
}

// Keys and types

#[test]
fn an_unknown_key_comes_with_the_known_one_it_resembles_or_all() {
    let text = changed(GOOD, "bind =", "hello_timout = \"1s\"\nbind =");
    let text = changed(&text, "\"10.0.0.11:6379\"", "{ address = \"10.0.0.11:6379\", zzz = 1 }");
    assert_faults(
        &format!("[gatewai]\n{text}"),
        r#"
        error: unknown key `gatewai` in the top level
           at: gatewai
         help: did you mean `gateway`?
        error: unknown key `hello_timout` in [[listener]]
           at: hello_timout
         help: did you mean `hello_timeout`?
        error: unknown key `zzz` in a server
           at: zzz
         help: known are `address`, `weight`, `backup`
        "#,
    );
}

#[test]
fn a_key_in_the_wrong_table_is_sent_to_the_right_one() {
    assert_faults(
        &changed(GOOD, "bind =", "idle_timeout = \"1s\"\nbind ="),
        r#"
        error: unknown key `idle_timeout` in [[listener]]
           at: idle_timeout
         help: it belongs in `[[route]]`
        "#,
    );
}

#[test]
fn a_value_of_the_wrong_type_is_an_error() {
    let text = r#"
        gateway = 2020-01-01

        [[listener]]
        name = 5
        bind = "0.0.0.0:443"
        proxy_protocol = "yes"
        hello_timeout = 5
        backlog = 1.5

        [[route]]
        listener = ["databases"]
        sni = ["app1.example.com"]
        backends = [true]

        [pool]
        name = "redis"
        servers = ["10.0.0.11:6379"]
    "#;
    assert_faults(
        text,
        r#"
        error: `gateway` must be a table, not a date
           at: 2020-01-01
         help: write `[gateway]`
        error: `name` must be a string, not an integer
           at: 5
         help: for example `name = "databases"`
        error: `bind` must be a list, not a string
           at: "0.0.0.0:443"
         help: `bind = ["0.0.0.0:443"]`
        error: `proxy_protocol` must be `true` or `false`, not a string
           at: "yes"
         help: for example `proxy_protocol = true`
        error: `hello_timeout` must be a string, not an integer
           at: 5
         help: for example `hello_timeout = "5s"`
        error: `backlog` must be an integer, not a float
           at: 1.5
         help: for example `backlog = 4096`
        error: `listener` must be a string, not a list
           at: ["databases"]
         help: for example `listener = "databases"`
        error: an item of `backends` must be a table, not a boolean
           at: true
         help: for example `backends = ["redis-1"]`
        error: `pool` is a list of tables
           at: [pool]
         help: write `[[pool]]`
        "#,
    );
}

#[test]
fn a_required_key_is_missed_at_its_table() {
    assert_faults(
        "[[listener]]\n[[route]]\n[[pool]]\n",
        r#"
        error: [[listener]] without `bind`
           at: [[listener]]
         help: for example `bind = ["0.0.0.0:443", "[::]:443"]`
        error: [[route]] without `listener`
           at: [[route]]
         help: for example `listener = "databases"`
        error: [[route]] without `backends`
           at: [[route]]
         help: for example `backends = ["redis-1"]`
        error: [[pool]] without `name`
           at: [[pool]]
         help: for example `name = "redis-1"`
        error: [[pool]] without `servers`
           at: [[pool]]
         help: for example `servers = ["10.0.0.11:6379"]`
        "#,
    );
    let text = changed(GOOD, "\"10.0.0.11:6379\"", "{ weight = 1 }");
    assert_faults(
        &changed(&text, "\"redis\"]", "{ weight = 2 }]"),
        r#"
        error: a backend without `pool`
           at: { weight = 2 }
         help: for example `pool = "redis-1"`
        error: a server without `address`
           at: { weight = 1 }
         help: for example `address = "10.0.0.11:6379"`
        "#,
    );
}

#[test]
fn a_list_that_needs_an_item_must_not_be_empty() {
    let text = r#"
        [gateway]
        interfaces = []
        tiers = []

        [[listener]]
        bind = []
        allow = []

        [[route]]
        listener = "listener-1"
        sni = []
        backends = []

        [[pool]]
        name = "redis"
        servers = []
    "#;
    assert_faults(
        text,
        r#"
        error: `interfaces` must not be empty
           at: []
         help: for example `interfaces = ["eth0"]`
        error: `tiers` must not be empty
           at: []
         help: for example `tiers = ["packet", "copy"]`
        error: `bind` must not be empty
           at: []
         help: for example `bind = ["0.0.0.0:443", "[::]:443"]`
        error: an empty `allow` would turn every client away
           at: []
         help: leave `allow` out to let everyone in
        error: `sni` must not be empty
           at: []
         help: for example `sni = ["redis-1.example.com"]`
        error: `backends` must not be empty
           at: []
         help: for example `backends = ["redis-1"]`
        error: `servers` must not be empty
           at: []
         help: for example `servers = ["10.0.0.11:6379"]`
        "#,
    );
}

#[test]
fn a_word_outside_a_closed_set_is_an_error() {
    let text = changed(GOOD, "servers", "balance = \"leastconn\"\nsend_proxy = \"yes\"\nservers");
    assert_faults(
        &changed(&text, "bind =", "protocol = \"quic\"\nbind ="),
        r#"
        error: `protocol` cannot be `quic`
           at: "quic"
         help: one of `"tls"`, `"postgres"`, `"tcp"`
        error: `balance` cannot be `leastconn`
           at: "leastconn"
         help: did you mean `least-connections`?
        error: `send_proxy` cannot be `yes`
           at: "yes"
         help: one of `"v1"`, `"v2"`
        "#,
    );
}

#[test]
fn an_integer_out_of_range_is_an_error() {
    let text = changed(GOOD, "bind =", "max_connections = 0\nbacklog = 99999999999999999999\nbind =");
    let text = changed(&text, "\"redis\"]", "{ pool = \"redis\", weight = 257 }]");
    let text = changed(&text, "\"10.0.0.11:6379\"", "{ address = \"10.0.0.11:6379\", weight = 0 }");
    assert_faults(
        &format!("[gateway]\nworkers = -1\n{text}"),
        r#"
        error: `workers` must be from 0 to 1024
           at: -1
         help: for example `workers = 0`
        error: `max_connections` must be from 1 to 1000000000
           at: 0
         help: for example `max_connections = 100000`
        error: `backlog` must be from 1 to 2147483647
           at: 99999999999999999999
         help: for example `backlog = 4096`
        error: `weight` must be from 0 to 256
           at: 257
         help: for example `weight = 1`
        error: `weight` must be from 1 to 256
           at: 0
         help: for example `weight = 1`
        "#,
    );
}

// Single values

#[test]
fn the_nearer_keepalive_wins_key_by_key() {
    let text = changed(GOOD, "bind =", "keepalive = { idle = \"32767s\", count = 127 }\nbind =");
    let text = changed(&text, "servers =", "keepalive = { interval = \"1s\" }\nservers =");
    let config = accepted(&format!("[gateway]\nkeepalive = {{ idle = \"1m\", interval = \"15s\" }}\n{text}"));
    let keepalive = |idle, interval, count| Keepalive { idle: Some(idle), interval: Some(interval), count };
    assert_eq!(config.gateway.keepalive, keepalive(60, 15, None));
    assert_eq!(config.listeners[0].keepalive, keepalive(32_767, 15, Some(127)));
    assert_eq!(config.pools[0].keepalive, keepalive(60, 1, None));
}

#[test]
fn a_keepalive_that_the_kernel_does_not_take_is_an_error() {
    let text = changed(GOOD, "bind =", "keepalive = { idle = \"0s\", interval = \"1500ms\" }\nbind =");
    let text = changed(&text, "servers =", "keepalive = { idle = \"32768s\", count = 128 }\nservers =");
    assert_faults(
        &format!("[gateway]\nkeepalive = {{ idel = \"60s\", count = 0, interval = 15 }}\n{text}"),
        r#"
        error: unknown key `idel` in keepalive
           at: idel
         help: did you mean `idle`?
        error: `count` must be from 1 to 127
           at: 0
         help: for example `count = 4`
        error: `interval` must be a string, not an integer
           at: 15
         help: for example `interval = "15s"`
        error: `idle` must be from 1 to 32767 seconds, without a fraction
           at: "0s"
         help: for example `idle = "60s"`
        error: `interval` must be from 1 to 32767 seconds, without a fraction
           at: "1500ms"
         help: for example `interval = "15s"`
        error: `idle` must be from 1 to 32767 seconds, without a fraction
           at: "32768s"
         help: for example `idle = "60s"`
        error: `count` must be from 1 to 127
           at: 128
         help: for example `count = 4`
        "#,
    );
    assert_faults(
        &format!("[gateway]\nkeepalive = \"60s\"\n{GOOD}"),
        r#"
        error: `keepalive` must be a table, not a string
           at: "60s"
         help: for example `keepalive = { idle = "60s", interval = "15s", count = 4 }`
        "#,
    );
}

#[test]
fn source_ports_are_a_range_of_some_size_above_the_services() {
    for (ports, why) in [
        ("10240", "two ports with a `-` between them"),
        ("10240-", "a port is a number up to 65535"),
        ("10240-+20000", "a port is a number up to 65535"),
        ("10240-65536", "a port is a number up to 65535"),
        ("1023-5000", "ports below 1024 belong to services"),
        ("10240-10494", "it must have at least 256 ports, the lower one first"),
        ("29999-10240", "it must have at least 256 ports, the lower one first"),
    ] {
        assert_faults(
            &format!("[gateway]\nsource_ports = \"{ports}\"\n{GOOD}"),
            &format!(
                "error: `{ports}` is not a range of source ports: {why}
                    at: \"{ports}\"
                  help: for example `\"10240-29999\"`"
            ),
        );
    }
    let widest = accepted(&format!("[gateway]\nsource_ports = \"1024-65535\"\n{GOOD}"));
    assert_eq!(widest.gateway.source_ports, 1024..=65_535);
}

#[test]
fn a_duration_needs_a_unit_and_must_be_of_use() {
    let text = changed(GOOD, "bind =", "hello_timeout = \"5\"\nbind =");
    let text = changed(&text, "sni =", "idle_timeout = \"0s\"\nmax_age = \"0ms\"\nsni =");
    assert_faults(
        &changed(&text, "servers =", "connect_timeout = \"9years\"\nservers ="),
        r#"
        error: `5` is not a duration: time unit needed, for example 5sec or 5ms
           at: "5"
         help: a number and a unit: `"500ms"`, `"5s"`, `"1h 30m"`
        error: `idle_timeout` must not be zero
           at: "0s"
         help: leave it out for no timeout
        error: `max_age` must not be zero
           at: "0ms"
         help: leave it out for no timeout
        error: `9years` is too long
           at: "9years"
         help: at most `"365days"`
        "#,
    );
}

#[test]
fn a_network_must_be_in_cidr_notation() {
    let text = changed(GOOD, "bind =", "deny = [\"10.0.0.0/33\", \"example.com\"]\nbind =");
    assert_faults(
        &text,
        r#"
        error: `10.0.0.0/33` is not a network in CIDR notation
           at: "10.0.0.0/33"
         help: for example `"10.0.0.0/8"` or `"2001:db8::/32"`
        error: `example.com` is not a network in CIDR notation
           at: "example.com"
         help: for example `"10.0.0.0/8"` or `"2001:db8::/32"`
        "#,
    );
}

#[test]
fn bits_behind_a_networks_prefix_are_warned_of_and_dropped() {
    let text = changed(GOOD, "bind =", "deny = [\"10.0.0.1/8\"]\nbind =");
    assert_faults(
        &text,
        r#"
        warning: `10.0.0.1/8` has bits set behind its prefix
           at: "10.0.0.1/8"
         help: it is taken as `10.0.0.0/8`; for one address leave the prefix out: `10.0.0.1`
        "#,
    );
    assert_eq!(checked(&text).unwrap().0.listeners[0].deny, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn an_address_to_listen_on_is_an_ip_address_with_a_port() {
    let bad = "[\":443\", \"localhost:443\", \"0.0.0.0:0\"]";
    assert_faults(
        &changed(GOOD, "[\"0.0.0.0:443\"]", bad),
        r#"
        error: `:443` is not an IP address with a port
           at: ":443"
         help: on all addresses: `"0.0.0.0:443"` and `"[::]:443"`
        error: `localhost:443` is not an IP address with a port
           at: "localhost:443"
         help: `"127.0.0.1:443"` or `"[::1]:443"`
        error: `0.0.0.0:0` has port 0
           at: "0.0.0.0:0"
         help: a port from 1 to 65535
        "#,
    );
}

#[test]
fn a_server_is_an_ip_address_or_a_host_name_with_a_port() {
    let bad = r#"
        "redis.internal",
        "2001:db8::1:6379",
        "[2001:db8::g]:6379",
        "10.0.0.300:6379",
        "re dis:6379",
        "redis..internal:6379",
        "redis:0",
        "redis:+1",
    "#;
    assert_faults(
        &changed(GOOD, "\"10.0.0.11:6379\"", bad),
        r#"
        error: `redis.internal` is not the address of a server: it has no port
           at: "redis.internal"
         help: add the port that the server listens on: `"redis.internal:PORT"`
        error: `2001:db8::1:6379` is not the address of a server: an IPv6 address stands in brackets
           at: "2001:db8::1:6379"
         help: `"[2001:db8::1]:6379"`
        error: `[2001:db8::g]:6379` is not the address of a server: not an IPv6 address
           at: "[2001:db8::g]:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `10.0.0.300:6379` is not the address of a server: not an IPv4 address
           at: "10.0.0.300:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `re dis:6379` is not the address of a server: labels are made of letters, digits and `-`
           at: "re dis:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `redis..internal:6379` is not the address of a server: a label is empty
           at: "redis..internal:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `redis:0` is not the address of a server: the port is a number from 1 to 65535
           at: "redis:0"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `redis:+1` is not the address of a server: the port is a number from 1 to 65535
           at: "redis:+1"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        "#,
    );
}

#[test]
fn servers_may_be_those_of_a_service() {
    let servers =
        r#""10.0.0.11:6379", "srv:_Redis._tcp.example.com", { address = "srv:redis.", backup = true }"#;
    let config = accepted(&GOOD.replace("\"10.0.0.11:6379\"", servers));
    let origins: Vec<_> = config.pools[0].servers.iter().map(|server| server.origin.to_string()).collect();
    assert_eq!(origins, ["10.0.0.11:6379", "srv:_redis._tcp.example.com", "srv:redis."]);
    assert!(config.pools[0].servers[2].backup);
}

#[test]
fn a_service_has_neither_port_nor_weight() {
    let bad = r#"
        "srv:_redis._tcp.example.com:6379",
        "srv:",
        "_redis._tcp.example.com",
        { address = "srv:redis", weight = 2 },
        "srv:REDIS",
    "#;
    assert_faults(
        &changed(GOOD, "\"10.0.0.11:6379\"", bad),
        r#"
        error: `srv:_redis._tcp.example.com:6379` is not the name of a service: labels are made of letters, digits and `-`
           at: "srv:_redis._tcp.example.com:6379"
         help: ports come from its SRV records: `"srv:_redis._tcp.example.com"`
        error: `srv:` is not the name of a service: a label is empty
           at: "srv:"
         help: for example `"srv:_redis._tcp.example.com"`
        error: `_redis._tcp.example.com` is not the address of a server: it has no port
           at: "_redis._tcp.example.com"
         help: for the servers of its SRV records: `"srv:_redis._tcp.example.com"`
        error: a service has no `weight`: its SRV records have them
           at: 2
         help: take it out
        error: pool `redis` has the server `srv:redis` twice
           at: "srv:REDIS"
         help: take one of them out
        "#,
    );
}

#[test]
fn a_server_name_is_a_host_name_or_a_wildcard() {
    let bad = r#"
        "a.*.example.com",
        "app*.example.com",
        "*.",
        "",
        "app..example.com",
        "-app.example.com",
        "app 1.example.com",
        "bücher.example.com",
        "10.0.0.1",
    "#;
    assert_faults(
        &changed(GOOD, "\"app1.example.com\"", bad),
        r#"
        error: `a.*.example.com` is not a server name: `*` stands only for the whole first label
           at: "a.*.example.com"
         help: `"*.example.com"` for one or more labels, `"*"` for every name
        error: `app*.example.com` is not a server name: `*` stands only for the whole first label
           at: "app*.example.com"
         help: `"*.example.com"` for one or more labels, `"*"` for every name
        error: `*.` is not a server name: a label is empty
           at: "*."
         help:
        error: `` is not a server name: a label is empty
           at: ""
         help: `"*"` takes every name, and clients that send none
        error: `app..example.com` is not a server name: a label is empty
           at: "app..example.com"
         help:
        error: `-app.example.com` is not a server name: a label starts or ends with `-`
           at: "-app.example.com"
         help:
        error: `app 1.example.com` is not a server name: labels are made of letters, digits and `-`
           at: "app 1.example.com"
         help:
        error: `bücher.example.com` is not a server name: it is not ASCII
           at: "bücher.example.com"
         help: clients send the A-label form, `xn--…`: write that
        error: `10.0.0.1` is not a server name: clients send no IP addresses there
           at: "10.0.0.1"
         help: `"*"` takes clients without a name
        "#,
    );
    accepted(&changed(GOOD, "app1.example.com", "outbound_.6379_._.Redis.svc."));
}

#[test]
fn a_server_name_fits_into_dns() {
    let with = |sni: &str| checked(&changed(GOOD, "app1.example.com", sni)).map(drop);
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(name.len(), 253);
    assert!(with(&name).is_ok() && with(&format!("{name}.")).is_ok());
    let message = |faults: Diagnostics| faults.iter().next().unwrap().message.clone();
    assert!(message(with(&format!("{name}a")).unwrap_err()).ends_with("it is longer than 253 bytes"));
    assert!(
        message(with(&format!("a{label}.com")).unwrap_err()).ends_with("a label is longer than 63 bytes")
    );
}

#[test]
fn a_name_must_fit_commands_and_metrics() {
    for (name, shown) in [("", ""), ("a/b", "a/b"), ("a b", "a b"), ("a\\nb", "a\\nb")] {
        let faults = checked(&changed(GOOD, "sni =", &format!("name = \"{name}\"\nsni ="))).unwrap_err();
        let [fault] = &faults.iter().collect::<Vec<_>>()[..] else { panic!("{faults}") };
        assert_eq!(fault.message, format!("`{shown}` cannot be a name"));
        assert_eq!(fault.help.as_deref(), Some("1 to 253 bytes without spaces, control characters and `/`"));
    }
}

#[test]
fn an_alpn_protocol_has_1_to_255_bytes() {
    assert_faults(
        &changed(GOOD, "sni =", "alpn = [\"\"]\nsni ="),
        r#"
        error: `` is not an ALPN protocol name
           at: ""
         help: 1 to 255 bytes, for example `"h2"` or `"postgresql"`
        "#,
    );
}

#[test]
fn an_item_listed_twice_is_an_error() {
    let text = r#"
        [gateway]
        tiers = ["copy", "copy"]
        interfaces = ["eth0", "eth0"]

        [[listener]]
        bind = ["[::]:443", "[0::0]:443"]

        [[route]]
        listener = "listener-1"
        sni = ["a.example.com", "A.example.com."]
        alpn = ["h2", "h2"]
        backends = ["redis"]

        [[pool]]
        name = "redis"
        servers = ["Redis:1", "redis:1"]
    "#;
    assert_faults(
        text,
        r#"
        error: `copy` is twice in `tiers`
           at: "copy"
         help: take one of them out
        error: `eth0` is twice in `interfaces`
           at: "eth0"
         help: take one of them out
        error: `[::]:443` is listened on twice
           at: "[0::0]:443"
         help: take one of them out
        error: `a.example.com` is twice in `sni`
           at: "A.example.com."
         help: take one of them out
        error: `h2` is twice in `alpn`
           at: "h2"
         help: take one of them out
        error: pool `redis` has the server `redis:1` twice
           at: "redis:1"
         help: take one of them out
        "#,
    );
}

#[test]
fn the_gateway_is_found_in_a_file_whose_routes_are_wrong() {
    let wrong = "[gateway]\nstate_dir = '/run/other'\n[[route]]\nsnj = 1\n[[rout]]\n";
    assert!(check(wrong, "x.toml", &*FILES, UnixTime::since_unix_epoch(NOW)).is_err());
    let (gateway, _) = check_gateway(wrong, "x.toml").expect("nothing is wrong with [gateway]");
    assert_eq!(gateway.state_dir, Path::new("/run/other"));
    let (gateway, _) = check_gateway(GOOD, "x.toml").expect("good");
    assert_eq!(gateway.state_dir, Path::new("/run/snisplice"));
    // What is wrong with itself, and what may hide it, counts.
    for text in ["[gateway]\nstate_dir = 'here'", "[gateway]\nstatedir = '/here'", "x = [\n[gateway]\n"] {
        assert!(check_gateway(text, "x.toml").is_err(), "{text}");
    }
}

#[test]
fn gateway_values_must_be_usable() {
    let text = format!(
        r#"
        [gateway]
        interfaces = "eth0"
        bpffs = "bpf"
        state_dir = "/{}"
        access_log = {{ path = "x.log", format = "xml" }}
        {GOOD}"#,
        "d".repeat(80),
    );
    assert_faults(
        &text,
        r#"
        error: `interfaces` must be `"auto"` or a list, not `eth0`
           at: "eth0"
         help: `interfaces = ["eth0"]`
        error: `bpf` is not an absolute path
           at: "bpf"
         help: start it with `/`
        error: this path is too long for a socket in it
           at: "/dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
         help: at most 80 bytes: the kernel bounds a socket's path at 107
        error: `x.log` is not an absolute path
           at: "x.log"
         help: start it with `/`, or write `"-"` for standard output
        error: `format` cannot be `xml`
           at: "xml"
         help: one of `"json"`, `"text"`
        "#,
    );
    let text = format!("[gateway]\ninterfaces = [\"a/b\"]\ntiers = [\"fast\"]\n{GOOD}");
    assert_faults(
        &text,
        r#"
        error: `a/b` cannot be a network interface
           at: "a/b"
         help: 1 to 15 bytes, as `ip link` shows them
        error: `tiers` cannot be `fast`
           at: "fast"
         help: one of `"packet"`, `"sockmap"`, `"copy"`
        "#,
    );
}

#[test]
fn a_tier_behind_copy_is_warned_of_and_dropped() {
    let text = format!("[gateway]\ntiers = [\"copy\", \"packet\"]\n{GOOD}");
    assert_faults(
        &text,
        r#"
        warning: the tier `packet` is never reached
           at: "packet"
         help: put `"copy"` last: it takes every connection
        "#,
    );
    assert_eq!(checked(&text).unwrap().0.gateway.tiers, [Tier::Copy]);
}

// Names and references

#[test]
fn two_things_of_a_kind_cannot_have_one_name() {
    let twice = "[[pool]]\nname = \"redis\"\nservers = [\"10.0.0.12:6379\"]\n\
        [[listener]]\nname = \"databases\"\nbind = [\"0.0.0.0:444\"]\n\
        [[route]]\nname = \"r\"\nlistener = \"databases\"\nsni = [\"a\"]\nbackends = [\"redis\"]\n\
        [[route]]\nname = \"r\"\nlistener = \"databases\"\nsni = [\"b\"]\nbackends = [\"redis\"]";
    assert_faults(
        &format!("{GOOD}{twice}"),
        r#"
        error: two pools are named `redis`
           at: "redis"
         help: rename one of them
        error: two listeners are named `databases`
           at: "databases"
         help: rename one of them
        error: two routes are named `r`
           at: "r"
         help: rename one of them
        "#,
    );
}

#[test]
fn a_reference_to_nothing_is_an_error() {
    let text = changed(GOOD, "listener = \"databases\"", "listener = \"database\"");
    assert_faults(
        &changed(&text, "[\"redis\"]", "[\"postgres\"]"),
        r#"
        error: no listener is named `database`
           at: "database"
         help: did you mean `databases`?
        error: no pool is named `postgres`
           at: "postgres"
         help: known are `redis`
        "#,
    );
    let poolless = &GOOD[..GOOD.find("[[pool]]").unwrap()];
    assert_faults(
        poolless,
        r#"
        error: no pool is named `redis`
           at: "redis"
         help: add a `[[pool]]` with this name
        "#,
    );
}

#[test]
fn a_reference_to_a_name_that_could_not_be_read_is_no_second_error() {
    assert_faults(
        &changed(GOOD, "name = \"redis\"", "name = 5"),
        r#"
        error: `name` must be a string, not an integer
           at: 5
         help: for example `name = "redis-1"`
        "#,
    );
}

#[test]
fn the_admin_address_is_no_listeners() {
    assert_faults(
        &format!("[gateway]\nadmin = \"0.0.0.0:443\"\n{GOOD}"),
        r#"
        error: `0.0.0.0:443` is listened on twice
           at: "0.0.0.0:443"
         help: take one of them out
        "#,
    );
}

#[test]
fn what_is_of_no_use_is_warned_of() {
    let pool = "[[pool]]\nname = \"spare\"\nservers = [\"10.0.0.12:6379\"]";
    let listener = "[[listener]]\nbind = [\"0.0.0.0:444\"]\ntrusted_proxies = [\"10.0.0.0/8\"]";
    assert_faults(
        &format!("{GOOD}{pool}\n{listener}"),
        r#"
        warning: no route uses the pool `spare`
           at: "spare"
         help: name it in the `backends` of a route
        warning: no route is on the listener `listener-2`: it turns every client away
           at: [[listener]]
         help: add a `[[route]]` with `listener = "listener-2"`
        warning: `trusted_proxies` has no effect without `proxy_protocol`
           at: ["10.0.0.0/8"]
         help: add `proxy_protocol = true`
        "#,
    );
}

// Listeners and routes

#[test]
fn proxy_headers_are_taken_only_from_named_proxies() {
    assert_faults(
        &changed(GOOD, "bind =", "proxy_protocol = true\nbind ="),
        r#"
        error: `proxy_protocol` without `trusted_proxies`
           at: true
         help: name the proxies that may speak for clients, for example `trusted_proxies = ["10.0.0.0/8"]`
        "#,
    );
}

#[test]
fn a_tls_route_needs_a_server_name() {
    assert_faults(
        &changed(GOOD, "sni = [\"app1.example.com\"]\n", ""),
        r#"
        error: [[route]] without `sni`
           at: [[route]]
         help: for example `sni = ["redis-1.example.com"]`; `sni = ["*"]` takes every name, and clients without one
        "#,
    );
}

#[test]
fn a_tcp_route_has_nothing_of_tls() {
    let text = changed(TERMINATED, "bind =", "protocol = \"tcp\"\nbind =");
    assert_faults(
        &changed(&text, "sni =", "alpn = [\"h2\"]\nclient_ca = \"ca.crt\"\nsni ="),
        r#"
        error: a route of a `tcp` listener has no `alpn`
           at: ["h2"]
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `client_ca`
           at: "ca.crt"
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `sni`
           at: ["app1.example.com"]
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `tls`
           at: "terminate"
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `certificate`
           at: { chain = "app1.crt", key = "app1.key" }
         help: take it out, or make the listener's `protocol` `"tls"`
        "#,
    );
}

#[test]
fn a_tcp_listener_has_exactly_one_route() {
    let tcp =
        changed(GOOD, "bind =", "protocol = \"tcp\"\nbind =").replace("sni = [\"app1.example.com\"]\n", "");
    accepted(&tcp);
    let second = "[[route]]\nlistener = \"databases\"\nbackends = [\"redis\"]";
    let none = "[[listener]]\nbind = [\"0.0.0.0:444\"]\nprotocol = \"tcp\"";
    assert_faults(
        &format!("{tcp}{second}\n{none}"),
        r#"
        error: the `tcp` listener `databases` has more than one route
           at: "databases"
         help: one route with several `backends` shares connections out by weight
        error: the `tcp` listener `listener-2` has no route
           at: [[listener]]
         help: add a `[[route]]` with `listener = "listener-2"`
        "#,
    );
}

#[test]
fn some_backend_must_have_a_weight() {
    assert_faults(
        &changed(GOOD, "[\"redis\"]", "[{ pool = \"redis\", weight = 0 }]"),
        r#"
        error: every backend has weight 0: no connection can go anywhere
           at: [{ pool = "redis", weight = 0 }]
         help: give one of them a weight from 1 to 256
        "#,
    );
}

#[test]
fn routes_that_tie_are_an_error_that_names_both() {
    let second = |lines: &str| {
        format!("[[route]]\nname = \"second\"\nlistener = \"databases\"\nbackends = [\"redis\"]\n{lines}")
    };
    let text = format!("{GOOD}{}", second("sni = [\"x.example.com\", \"APP1.example.com.\"]"));
    assert_faults(
        &text,
        r#"
        error: routes `app1.example.com` and `second` tie: both take `app1.example.com`
           at: "APP1.example.com."
         help: take it out of one of them, or tell them apart by `alpn`
        "#,
    );
    let diagnostics = checked(&text).unwrap_err();
    let (related, what) = diagnostics.iter().next().unwrap().related.clone().unwrap();
    assert_eq!((&text[related], what), ("\"app1.example.com\"", "also here"));

    let first = changed(GOOD, "sni =", "alpn = [\"h2\", \"postgresql\"]\nsni =");
    let second = second("sni = [\"app1.example.com\"]\nalpn = [\"http/1.1\", \"h2\"]");
    assert_faults(
        &format!("{first}{second}"),
        r#"
        error: routes `app1.example.com` and `second` tie: both take `app1.example.com` with ALPN `h2`
           at: "app1.example.com"
         help: take it out of one of them, or tell them apart by `alpn`
        "#,
    );
}

// Certificates

#[test]
fn terminate_needs_a_certificate() {
    let line = "certificate = { chain = \"app1.crt\", key = \"app1.key\" }\n";
    assert_faults(
        &changed(TERMINATED, line, ""),
        r#"
        error: `terminate` needs a `certificate`
           at: "terminate"
         help: `certificate = { chain = "FILE.crt", key = "FILE.key" }`
        "#,
    );
    assert_faults(
        &changed(TERMINATED, ", key = \"app1.key\"", ""),
        r#"
        error: certificate without `key`
           at: { chain = "app1.crt" }
         help: for example `key = "redis-1.key"`
        "#,
    );
}

#[test]
fn a_passthrough_route_has_no_certificate() {
    let text = changed(TERMINATED, "tls = \"terminate\"\n", "client_ca = \"clients-ca.crt\"\n");
    assert_faults(
        &text,
        r#"
        error: a route that passes TLS through has no `client_ca`
           at: "clients-ca.crt"
         help: add `tls = "terminate"`, or take it out
        error: a route that passes TLS through has no `certificate`
           at: { chain = "app1.crt", key = "app1.key" }
         help: add `tls = "terminate"`, or take it out
        "#,
    );
    assert!(checked(&changed(&text, "sni =", "tls = \"passthrough\"\nsni =")).is_err());
}

/// One route for each pair of a chain and a key.
fn terminated(pairs: &[(&str, &str)]) -> String {
    let mut text = GOOD.to_owned();
    for (index, (chain, key)) in pairs.iter().enumerate() {
        text += &format!(
            "[[route]]\nlistener = \"databases\"\nsni = [\"{index}.*\"]\ntls = \"terminate\"\nbackends = [\"redis\"]\n\
             certificate = {{ chain = \"{chain}\", key = \"{key}\" }}\n",
        );
    }
    text.replace(".*", ".example.com")
}

#[test]
fn a_certificate_file_must_be_readable_and_hold_a_certificate() {
    let text = terminated(&[
        ("none.crt", "app1.key"),
        ("empty.pem", "app1.key"),
        ("app1.key", "app1.key"),
        ("cut.pem", "app1.key"),
        ("garbage.crt", "app1.key"),
    ]);
    assert_faults(
        &text,
        r#"
        error: cannot read `none.crt`: entity not found
           at: "none.crt"
         help: a relative path starts at the directory of this file
        error: cannot use `empty.pem`: it holds no certificate
           at: "empty.pem"
         help: a PEM file with `BEGIN CERTIFICATE`, the server's own first
        error: cannot use `app1.key`: it holds no certificate
           at: "app1.key"
         help: it holds a private key: are `chain` and `key` swapped?
        error: cannot use `cut.pem`: a PEM section in it does not end
           at: "cut.pem"
         help: a PEM file with `BEGIN CERTIFICATE`, the server's own first
        error: cannot use `garbage.crt`: its first certificate is not X.509
           at: "garbage.crt"
         help: a PEM file with `BEGIN CERTIFICATE`, the server's own first
        "#,
    );
}

#[test]
fn a_key_file_must_be_readable_and_hold_a_key() {
    let text = terminated(&[
        ("app1.crt", "none.key"),
        ("app1.crt", "empty.pem"),
        ("app1.crt", "app1.crt"),
        ("app1.crt", "cut.key"),
        ("app1.crt", "garbage.key"),
        ("app1.crt", "encrypted.key"),
    ]);
    assert_faults(
        &text,
        r#"
        error: cannot read `none.key`: entity not found
           at: "none.key"
         help: a relative path starts at the directory of this file
        error: cannot use `empty.pem`: it holds no private key
           at: "empty.pem"
         help: a PEM file with `BEGIN PRIVATE KEY`
        error: cannot use `app1.crt`: it holds no private key
           at: "app1.crt"
         help: it holds a certificate: are `chain` and `key` swapped?
        error: cannot use `cut.key`: a PEM section in it does not end
           at: "cut.key"
         help: a PEM file with `BEGIN PRIVATE KEY`
        error: cannot use `garbage.key`: its private key is not one that can be used
           at: "garbage.key"
         help: RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, or Ed25519
        error: cannot use `encrypted.key`: its private key is encrypted
           at: "encrypted.key"
         help: name the file that holds the passphrase: `certificate = { …, passphrase_file = "FILE" }`; or decrypt it: `openssl pkey -in ENCRYPTED -out KEY`, and let only the gateway read that
        "#,
    );
}

#[test]
fn a_key_must_belong_to_its_certificate() {
    assert_faults(
        &terminated(&[("app1.crt", "old.key"), ("swapped.crt", "app1.key")]),
        r#"
        error: this key does not belong to the certificate in `app1.crt`
           at: "old.key"
         help: compare `openssl pkey -pubout -in KEY` and `openssl x509 -pubkey -noout -in CHAIN`
        error: this key does not belong to the certificate in `swapped.crt`
           at: "app1.key"
         help: it belongs to certificate 2 of that file: put that one first
        "#,
    );
}

#[test]
fn a_client_ca_must_hold_certificates() {
    let with = |file: &str| changed(TERMINATED, "tls =", &format!("client_ca = {file:?}\ntls ="));
    assert_faults(
        &with("empty.pem"),
        r#"
        error: cannot use `empty.pem`: it holds no certificate
           at: "empty.pem"
         help: a PEM file with the certificates that sign those of clients
        "#,
    );
    assert_faults(
        &with("garbage.crt"),
        r#"
        error: cannot use `garbage.crt`: its certificate 1 is not X.509
           at: "garbage.crt"
         help: a PEM file with the certificates that sign those of clients
        "#,
    );
}

#[test]
fn every_file_of_a_route_is_judged() {
    let text = changed(TERMINATED, "app1.crt", "none.crt").replace("app1.key", "none.key");
    assert_faults(
        &changed(&text, "tls =", "client_ca = \"none.ca\"\ntls ="),
        r#"
        error: cannot read `none.ca`: entity not found
           at: "none.ca"
         help: a relative path starts at the directory of this file
        error: cannot read `none.crt`: entity not found
           at: "none.crt"
         help: a relative path starts at the directory of this file
        error: cannot read `none.key`: entity not found
           at: "none.key"
         help: a relative path starts at the directory of this file
        "#,
    );
}

/// [`TERMINATED`] with another certificate and its key.
fn with_certificate(stem: &str) -> String {
    let text = TERMINATED.replace("app1.crt", &format!("{stem}.crt"));
    text.replace("app1.key", &format!("{stem}.key"))
}

#[test]
fn a_certificate_out_of_date_is_warned_of() {
    assert_faults(
        &with_certificate("old"),
        r#"
        warning: this certificate expired on 2024-01-01T00:00:00Z
           at: "old.crt"
         help: clients will refuse it: renew it
        "#,
    );
    assert_faults(
        &with_certificate("future"),
        r#"
        warning: this certificate is not valid before 2030-01-01T00:00:00Z
           at: "future.crt"
         help: clients will refuse it until then; is the clock right?
        "#,
    );
}

#[test]
fn a_name_its_certificate_does_not_bear_is_warned_of() {
    let names = "\"app1.example.com\", \"app2.example.com\"";
    assert_faults(
        &changed(TERMINATED, "\"app1.example.com\"", names),
        r#"
        warning: the certificate of this route is not for `app2.example.com`
           at: "app2.example.com"
         help: it is for `app1.example.com`
        "#,
    );
    assert_faults(
        &with_certificate("nameless"),
        r#"
        warning: the certificate of this route is not for `app1.example.com`
           at: "app1.example.com"
         help: it has no DNS name (subjectAltName) at all
        "#,
    );
    let wild = |names: &str| changed(&with_certificate("wild"), "\"app1.example.com\"", names);
    assert_faults(
        &wild("\"a.b.example.com\", \"*.example.org\""),
        r#"
        warning: the certificate of this route is not for `a.b.example.com`
           at: "a.b.example.com"
         help: it is for `*.example.com`
        warning: the certificate of this route is not for `*.example.org`
           at: "*.example.org"
         help: it is for `*.example.com`
        "#,
    );
    accepted(&wild("\"app1.example.com\", \"*.example.com\", \"*\""));
}

#[test]
fn http2_connections_that_would_be_reused_across_routes_are_warned_of() {
    let with = |stem: &str, alpn: &str, sni: &str| {
        let first = changed(&with_certificate(stem), "tls =", &format!("alpn = [{alpn:?}]\ntls ="));
        let second = format!("listener = \"databases\"\nsni = [{sni:?}]\nbackends = [\"redis\"]");
        format!("{first}[[route]]\nname = \"second\"\n{second}")
    };
    assert_faults(
        &with("both", "h2", "app2.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `app2.example.com` to it, which route `second` serves
           at: { chain = "both.crt", key = "both.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    assert_faults(
        &with("both", "h2", "*.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `*.example.com` to it, which route `second` serves
           at: { chain = "both.crt", key = "both.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    assert_faults(
        &with("wild", "h2", "app2.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `app2.example.com` to it, which route `second` serves
           at: { chain = "wild.crt", key = "wild.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    assert_faults(
        &with("wild", "h2", "*.example.com"),
        r#"
        warning: HTTP/2 clients of route `app1.example.com` may send requests for `*.example.com` to it, which route `second` serves
           at: { chain = "wild.crt", key = "wild.key" }
         help: they reuse a connection for every name of its certificate: give each route a certificate of its own, or take `h2` out of `alpn`
        "#,
    );
    accepted(&with("both", "http/1.1", "app2.example.com"));
    accepted(&with("both", "h2", "app3.example.com"));
    accepted(&with("wild", "h2", "a.b.example.com"));
}

// This version

#[test]
fn what_this_version_lacks_is_validated_and_refused() {
    assert_faults(
        &changed(GOOD, "servers =", "health = {}\ntls = {}\nservers ="),
        r#"
        error: `health` of a pool is not in this version
           at: {}
         help: leave it out: a server that refuses a connection is passed over even so
        error: `tls` of a pool is not in this version
           at: {}
         help: leave it out; a server that wants TLS can have it from the client, passed through
        "#,
    );
    let bad = "health = { check = \"ping\", rise = 0 }\ntls = { server_name = \"a b\" }\nservers =";
    assert_faults(
        &changed(GOOD, "servers =", bad),
        r#"
        error: `health` of a pool is not in this version
           at: { check = "ping", rise = 0 }
         help: leave it out: a server that refuses a connection is passed over even so
        error: `check` cannot be `ping`
           at: "ping"
         help: one of `"tcp"`, `"tls"`, `"redis"`, `"postgres"`
        error: `rise` must be from 1 to 1000
           at: 0
         help: for example `rise = 2`
        error: `tls` of a pool is not in this version
           at: { server_name = "a b" }
         help: leave it out; a server that wants TLS can have it from the client, passed through
        error: `a b` is not a server name
           at: "a b"
         help: a host name or an IP address
        "#,
    );
}

// All together

const SIX_ERRORS: &str = r#"[gateway]
workers = "two"

[[listener]]
bind = ["443"]
hello_timout = "5s"

[[route]]
listener = "listener-1"
sni = ["*.*.example.com"]
backends = ["redis", { pool = "reddis" }]

[[pool]]
name = "redis"
servers = ["10.0.0.11:6379"]
connect_timeout = "0s"
"#;

#[test]
fn every_error_is_reported_at_once_in_the_order_of_the_file() {
    let diagnostics = checked(SIX_ERRORS).unwrap_err();
    let lines: Vec<_> = diagnostics.iter().map(|d| diagnostics.position(d).unwrap()).collect();
    assert_eq!(lines, [(2, 11), (5, 9), (6, 1), (10, 8), (11, 31), (16, 19)]);
    assert_eq!((diagnostics.count(Severity::Error), diagnostics.count(Severity::Warning)), (6, 0));
    assert_faults(
        SIX_ERRORS,
        r#"
        error: `workers` must be an integer, not a string
           at: "two"
         help: for example `workers = 0`
        error: `443` is not an IP address with a port
           at: "443"
         help: on all addresses: `"0.0.0.0:443"` and `"[::]:443"`
        error: unknown key `hello_timout` in [[listener]]
           at: hello_timout
         help: did you mean `hello_timeout`?
        error: `*.*.example.com` is not a server name: `*` stands only for the whole first label
           at: "*.*.example.com"
         help: `"*.example.com"` covers one or more labels in front of `example.com`
        error: no pool is named `reddis`
           at: "reddis"
         help: did you mean `redis`?
        error: `connect_timeout` must not be zero
           at: "0s"
         help: for example `connect_timeout = "2s"`
        "#,
    );
}

#[test]
fn diagnostics_are_drawn_with_position_excerpt_and_hint() {
    let second = "[[route]]\nname = \"second\"\nlistener = \"databases\"\n\
        sni = [\"app1.example.com\"]\nbackends = [\"redis\"]\n";
    let text = format!("[gateway]\ntiers = [\"copy\", \"copy\"]\n{GOOD}{second}");
    let drawn = checked(&text).unwrap_err().to_string();
    assert_eq!(
        drawn,
        r#"error: `copy` is twice in `tiers`
 --> snisplice.toml:2:18
  |
2 | tiers = ["copy", "copy"]
  |          ------  ^^^^^^
  |          |
  |          first here
  |
  = help: take one of them out

error: routes `app1.example.com` and `second` tie: both take `app1.example.com`
  --> snisplice.toml:19:8
   |
19 | sni = ["app1.example.com"]
   |        ^^^^^^^^^^^^^^^^^^
   |
  ::: snisplice.toml:10:8
   |
10 | sni = ["app1.example.com"]
   |        ------------------ also here
   |
   = help: take it out of one of them, or tell them apart by `alpn`

"#
    );
}

#[test]
fn an_endless_line_is_named_but_not_drawn() {
    let drawn = checked(&format!("x = \"{}\"", "a".repeat(5000))).unwrap_err().to_string();
    assert!(drawn.contains("--> snisplice.toml:1:1\n"), "{drawn}");
    assert!(!drawn.contains("aaaa"), "{drawn}");
}

#[test]
fn of_very_many_errors_the_first_are_drawn() {
    let text: String = (0..1003).map(|n| format!("zz{n} = 1\n")).collect();
    let diagnostics = checked(&text).unwrap_err();
    // One more says that there is no listener.
    assert_eq!(diagnostics.count(Severity::Error), 1004);
    let drawn = diagnostics.to_string();
    assert_eq!(drawn.matches("error: ").count(), 1000);
    assert!(drawn.ends_with("… and 4 more\n"), "{}", &drawn[drawn.len() - 100..]);
}

#[test]
fn colour_is_given_only_on_request() {
    let diagnostics = checked(SIX_ERRORS).unwrap_err();
    assert!(diagnostics.render(true).contains('\x1b'));
    assert!(!diagnostics.render(false).contains('\x1b'));
}

#[test]
fn control_characters_of_the_file_do_not_reach_the_terminal() {
    let text = format!("\"\\u001b[31m\" = 1\n{GOOD}");
    let drawn = checked(&text).unwrap_err().to_string();
    assert!(drawn.contains("unknown key `\\u{1b}[31m` in the top level"), "{drawn}");
    assert!(!drawn.contains('\u{1b}'), "{drawn:?}");
}

/// Pieces of configurations, for what a grammar would never put together.
const PIECES: [&str; 32] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "#",
    "\"",
    "'",
    "\"\"\"",
    " ",
    "\\",
    "\r",
    "\0",
    "é",
    "1",
    "-1",
    "true",
    "gateway",
    "listener",
    "route",
    "pool",
    "name",
    "sni",
    "backends",
    "\"*.x\"",
    "\"5s\"",
    "\"0.0.0.0:1\"",
];

proptest! {
    #[test]
    fn no_sequence_of_pieces_makes_it_panic(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60)) {
        let text = pieces.concat();
        let (Ok((_, diagnostics)) | Err(diagnostics)) = checked(&text);
        diagnostics.render(false);
        prop_assert!(diagnostics.iter().all(|diagnostic| diagnostics.position(diagnostic).is_some()));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*|[\\[\\]{}=\"',.#a-z0-9 \r\n\t]{0,200}") {
        let (Ok((_, diagnostics)) | Err(diagnostics)) = checked(&text);
        diagnostics.render(true);
        prop_assert!(diagnostics.iter().all(|diagnostic| diagnostics.position(diagnostic).is_some()));
    }

    /// A good file with a few bytes cut out and others put in: deeper than random text gets.
    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(
        damage in prop::collection::vec((0usize..1500, 0usize..40, "[\\[\\]{}=\"',.#*a-z0-9é \r\n]{0,3}"), 1..4),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, length, insert) in damage {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, &insert);
            }
        }
        let (Ok((_, diagnostics)) | Err(diagnostics)) = checked(&text);
        prop_assert!(checked(&text).is_ok() || diagnostics.count(Severity::Error) > 0);
        diagnostics.render(false);
    }
}
