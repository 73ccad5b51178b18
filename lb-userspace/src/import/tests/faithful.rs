//! What is made does what the original does, and `check` takes it.

use super::{GOOD, file, files, made};
use crate::config::{Files, check_text};
use crate::import::{Form, import};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use std::io;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

/// Every file that a result names: a certificate, its key and its authority in one.
struct AnyFile(String);

impl Files for AnyFile {
    fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }

    fn system_authorities(&self) -> (Vec<CertificateDer<'static>>, Option<String>) {
        (CertificateDer::from_pem_slice(self.0.as_bytes()).into_iter().collect(), None)
    }
}

static ANY_FILE: LazyLock<AnyFile> = LazyLock::new(|| {
    let names = ["orders.example.com", "orders.db.example.com", "a.example"].map(str::to_owned);
    let pair = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(names).expect("valid names");
    AnyFile(params.self_signed(&pair).expect("a certificate").pem() + &pair.serialize_pem())
});

/// Fails unless `check` takes this TOML.
#[track_caller]
fn assert_good(text: &str) {
    // 2026-01-01
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));
    if let Err(faults) = check_text(text, "snisplice.toml", &*ANY_FILE, now) {
        panic!("{faults}\n{text}");
    }
}

/// As [`made`]; `check` takes it, unless something is to be done.
#[track_caller]
fn good(text: &str) -> (String, String) {
    let (text, said) = made(text);
    if !said.contains(": to do: ") {
        assert_good(&text);
    }
    (text, said)
}

#[test]
fn check_takes_what_is_made_of_good_files() {
    for texts in GOOD {
        let imported = import(&files(texts), Form::Toml).unwrap_or_else(|errors| panic!("{errors:?}"));
        assert_good(&imported.text);
    }
}

/// One frontend and its only backend.
fn haproxy(frontend: &str, backend: &str) -> String {
    format!(
        "frontend f\n mode tcp\n bind 10.0.0.9:1\n {frontend}\n default_backend b\nbackend b\n mode tcp\n {backend}\n"
    )
}

fn nginx(stream: &str, server: &str) -> String {
    format!("stream {{\n{stream}\nserver {{ listen 443; proxy_pass u; {server} }}\n}}\n")
}

/// One listener, which leads to one cluster of these keys.
fn envoy(listener: &str, cluster: &str) -> String {
    let endpoint = |address: &str| {
        format!(
            "lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {address}, port_value: 1 }} }} }} }}]"
        )
    };
    format!(
        "static_resources:\n  listeners:\n    - address: {{ socket_address: {{ port_value: 443, {listener} }} }}\n      \
         filter_chains: [{{ filters: [{{ name: envoy.filters.network.tcp_proxy, typed_config: {{ cluster: c }} }}] }}]\n  \
         clusters:\n    - name: c\n      load_assignment:\n        endpoints:\n          - {{ {} }}\n          - {{ priority: 1, {} }}\n          \
         - {{ priority: 2, {} }}\n      {cluster}\n",
        endpoint("db.internal"),
        endpoint("10.0.0.2"),
        endpoint("10.0.0.3")
    )
}

/// The line of TOML with this key.
#[track_caller]
fn line<'t>(text: &'t str, key: &str) -> &'t str {
    let begin = format!("{key} = ");
    text.lines().find_map(|line| line.strip_prefix(&begin)).unwrap_or_else(|| panic!("no {key}:\n{text}"))
}

/// Where connections to servers are TLS, so are checks.
#[test]
fn servers_are_checked_as_they_were() {
    let times = "interval = \"2s\", timeout = \"2s\", rise = 2, fall = 3";
    for (option, server, check, rest) in [
        ("", "check", "tcp", ""),
        ("option redis-check", "check", "redis", ""),
        ("option redis-check", "check ssl verify none", "redis", ", tls = {}"),
        ("option redis-check", "check ssl verify none check-ssl port 1", "redis", ", port = 1, tls = {}"),
        ("", "check ssl verify none", "tls", ", tls = {}"),
        ("", "check ssl verify none no-check-ssl", "tcp", ""),
        ("", "check ssl verify none port 8080", "tcp", ", port = 8080"),
        ("", "check ssl ca-file ca.crt", "tls", ", tls = { ca = \"ca.crt\" }"),
        ("", "check ssl ca-file @system-ca", "tls", ", tls = {}"),
        (
            "",
            "check ssl ca-file /ca.crt sni str(db.internal)",
            "tls",
            ", tls = { ca = \"/ca.crt\", server_name = \"db.internal\" }",
        ),
        (
            "",
            "check check-ssl verify none check-sni db.internal",
            "tls",
            ", tls = { server_name = \"db.internal\" }",
        ),
        ("option pgsql-check", "check ssl verify none", "tls", ", tls = {}"),
        ("option pgsql-check user x", "check", "postgres", ""),
        ("option mysql-check", "check", "mysql", ""),
        ("option mysql-check user health post-41", "check", "mysql\", user = \"health", ""),
        ("option httpchk GET /health", "check", "http\", path = \"/health", ""),
        ("option httpchk OPTIONS *", "check", "http", ""),
        (
            "option httpchk GET /x HTTP/1.1\\r\\nHost:\\ db.example\\r\\nAccept:\\ x",
            "check",
            "http\", path = \"/x\", host = \"db.example",
            "",
        ),
    ] {
        let (text, _) = good(&haproxy("", &format!("{option}\n server s db.internal:5000 {server}")));
        assert_eq!(
            line(&text, "health"),
            format!("{{ check = \"{check}\", {times}{rest} }}"),
            "{option} {server}"
        );
    }
    let (text, _) = good(&format!(
        "global\n ca-base /etc/ca\n{}",
        haproxy("", "server s db.internal:1 ssl ca-file a.crt")
    ));
    assert_eq!(line(&text, "tls"), "{ ca = \"/etc/ca/a.crt\" }");
    let (_, said) = made(&haproxy("", "option httpchk OPTIONS *\n server s 10.0.0.1:1 check"));
    assert!(said.contains("GET is asked, not `OPTIONS`"), "{said}");
    let (_, said) =
        made(&haproxy("", "option httpchk GET / HTTP/1.1\\r\\nAccept:\\ x\n server s 10.0.0.1:1 check"));
    assert!(said.contains("the header `Accept: x`"), "{said}");
    // Not one of these has its own `timeout` above the interval.
    let (text, said) = good(&haproxy("", "timeout check 5s\n server s 10.0.0.1:1 check inter 1s"));
    assert!(line(&text, "health").contains("interval = \"1s\", timeout = \"1s\""), "{text}");
    assert!(said.contains("`timeout check 5s`: longer than `inter`"), "{said}");

    let tls = "transport_socket: { name: envoy.transport_sockets.tls, typed_config: { sni: db.internal, \
               common_tls_context: { validation_context: { trusted_ca: { filename: ca.crt } } } } }";
    for (check, transport, expected) in [
        ("tcp_health_check: {}", "", "{ check = \"tcp\", interval = \"2s\", timeout = \"1s\" }"),
        (
            "tcp_health_check: {}",
            tls,
            "{ check = \"tls\", interval = \"2s\", timeout = \"1s\", tls = { ca = \"ca.crt\", server_name = \"db.internal\" } }",
        ),
        (
            "http_health_check: { path: /x }",
            tls,
            "{ check = \"http\", path = \"/x\", status = [200], interval = \"2s\", timeout = \"1s\", \
             tls = { ca = \"ca.crt\", server_name = \"db.internal\" } }",
        ),
    ] {
        let cluster = format!("health_checks: [{{ interval: 2s, timeout: 1s, {check} }}]\n      {transport}");
        let (text, _) = good(&envoy("address: 0.0.0.0", &cluster));
        assert_eq!(line(&text, "health"), expected);
    }
    let check = "health_checks: [{ timeout: 8s, tcp_health_check: {} }]";
    let (text, said) = good(&envoy("address: 0.0.0.0", check));
    assert_eq!(line(&text, "health"), "{ check = \"tcp\", interval = \"5s\", timeout = \"5s\" }");
    assert!(said.contains("a `timeout` longer than `interval`"), "{said}");
}

#[test]
fn each_route_has_the_times_of_its_frontend_and_backend() {
    let times = |defaults: &str, frontend: &str, backend: &str| {
        let text = haproxy(frontend, &format!("{backend}\n server s 10.0.0.1:1"));
        let (text, _) = good(&format!("defaults\n mode tcp\n {defaults}\n{text}"));
        text.lines().find_map(|line| line.strip_prefix("idle_timeout = ")).map(str::to_owned)
    };
    let both = "timeout client 1m\n timeout server 1m";
    for (defaults, frontend, backend, expected) in [
        (both, "", "", Some("\"1m\"")),
        (both, "timeout client 8h", "timeout server 8h", Some("\"8h\"")),
        (both, "timeout client 8h", "", Some("\"1m\"")),
        (both, "", "timeout tunnel 8h", Some("\"8h\"")),
        ("timeout tunnel 1h", "timeout client 1m", "", Some("\"1h\"")),
        // Those of the other side say nothing.
        ("", "timeout server 1m", "timeout client 1m", None),
        ("timeout tunnel 0", "timeout client 2m", "", Some("\"2m\"")),
    ] {
        assert_eq!(
            times(defaults, frontend, backend).as_deref(),
            expected,
            "{defaults} {frontend} {backend}"
        );
    }
}

#[test]
fn what_listens_on_both_families_does_so_here() {
    let binds = |binds: &str| {
        let text = haproxy(binds, "server s 10.0.0.1:1").replace(" bind 10.0.0.9:1\n", "");
        line(&good(&text).0, "bind").to_owned()
    };
    for said in ["bind :::443", "bind [::]:443 v4v6", "bind *:443\n bind :::443", "bind *:443,:::443"] {
        assert_eq!(binds(said), "[\"0.0.0.0:443\", \"[::]:443\"]", "{said}");
    }
    assert_eq!(binds("bind :::443 v6only"), "[\"[::]:443\"]");
    // Another frontend has the address itself.
    let (text, said) = good(
        "frontend f\n mode tcp\n bind :::443\n default_backend b\nfrontend g\n mode tcp\n bind *:443\n default_backend b\n\
         backend b\n mode tcp\n server s 10.0.0.1:1\n",
    );
    assert!(text.contains("bind = [\"[::]:443\"]") && text.contains("bind = [\"0.0.0.0:443\"]"), "{text}");
    assert_eq!(said, "");
    let stream = "upstream u { server 10.0.0.1:1; }";
    for (listen, expected) in [
        ("listen [::]:443 ipv6only=off;", "[\"0.0.0.0:443\", \"[::]:443\"]"),
        ("listen [::]:443;", "[\"[::]:443\"]"),
    ] {
        let text = nginx(stream, "").replace("listen 443;", listen);
        assert_eq!(line(&good(&text).0, "bind"), expected, "{listen}");
    }
    let compatible = "address: \"::\", ipv4_compat: true";
    assert_eq!(line(&good(&envoy(compatible, "")).0, "bind"), "[\"0.0.0.0:443\", \"[::]:443\"]");
    assert_eq!(line(&good(&envoy("address: \"::\"", "")).0, "bind"), "[\"[::]:443\"]");
}

/// A tls listener takes nobody who does not begin with TLS.
#[test]
fn clients_that_do_not_begin_with_tls_are_not_forgotten() {
    let backends = "server s 10.0.0.1:22\nbackend web\n mode tcp\n server w 10.0.0.2:443";
    let refused = "`default_backend b`: clients that do not begin with TLS are refused";
    for (rules, is_tls, is_said) in [
        ("use_backend web if { req.ssl_hello_type 1 }", true, true),
        ("use_backend web if { req.ssl_sni a.example }", true, true),
        (
            "tcp-request content accept if { req.ssl_hello_type 1 }\n use_backend web if { req.ssl_sni a.example }",
            true,
            true,
        ),
        (
            "tcp-request content reject if !{ req.ssl_hello_type 1 }\n use_backend web if { req.ssl_sni a.example }",
            true,
            false,
        ),
        (
            "tcp-request content accept if { req.ssl_hello_type 1 }\n tcp-request content reject\n use_backend web if { req.ssl_sni a.example }",
            true,
            false,
        ),
        ("use_backend web if TRUE", false, false),
        ("", false, false),
    ] {
        let (text, said) = good(&haproxy(rules, backends));
        assert_eq!(!text.contains("protocol = \"tcp\""), is_tls, "{rules}\n{text}");
        assert_eq!(said.contains(refused), is_said, "{rules}\n{said}");
    }
}

#[test]
fn backups_take_connections_as_they_did() {
    let servers = "server s 10.0.0.1:1\n server x 10.0.0.2:1 backup disabled\n server t 10.0.0.3:1 backup\n server u 10.0.0.4:1 backup";
    let (text, said) = good(&haproxy("", servers));
    assert_eq!(line(&text, "servers"), "[\"10.0.0.1:1\", { address = \"10.0.0.3:1\", backup = true }]");
    assert!(said.contains("lost: `server u 10.0.0.4:1 backup`: without `option allbackups`"), "{said}");
    let (text, said) = good(&haproxy("", &format!("{servers}\n option allbackups")));
    assert_eq!(text.matches("backup = true").count(), 2, "{text}");
    assert!(!said.contains("lost"), "{said}");
    let defaults = "defaults\n option allbackups\n".to_owned();
    let (text, _) = good(&(defaults + &haproxy("", &format!("no option allbackups\n {servers}"))));
    assert_eq!(text.matches("backup = true").count(), 1, "{text}");
    let (text, said) = good(&envoy("address: 0.0.0.0", ""));
    assert_eq!(text.matches("backup = true").count(), 2, "{text}");
    assert_eq!(said.matches("lost: ").count(), 1, "{said}");
    assert!(said.contains("priority 2: backups like those of priority 1"), "{said}");
}

#[test]
fn who_did_not_verify_servers_is_told_that_they_are_verified() {
    let verified = "certificates of servers are verified here";
    let stream = "upstream u { server db.internal:1; }";
    for (said, is_said) in [
        (made(&nginx(stream, "proxy_ssl on;")).1, true),
        (made(&nginx(stream, "proxy_ssl on; proxy_ssl_verify off;")).1, true),
        (made(&nginx(stream, "proxy_ssl on; proxy_ssl_verify on;")).1, false),
        (made(&nginx(stream, "")).1, false),
        (made(&haproxy("", "server s db.internal:1 ssl verify none")).1, true),
        (
            made(&format!("global\n ssl-server-verify none\n{}", haproxy("", "server s db.internal:1 ssl")))
                .1,
            true,
        ),
        (made(&haproxy("", "server s db.internal:1 ssl ca-file a.crt")).1, false),
        (made(&envoy("address: 0.0.0.0", "transport_socket: { name: tls, typed_config: {} }")).1, true),
        (made(&envoy("address: 0.0.0.0", "")).1, false),
    ] {
        assert_eq!(said.contains(verified), is_said, "{said}");
    }
}

#[test]
fn defaults_of_nginx_and_envoy_are_written() {
    let (several, one) =
        ("upstream u { server 10.0.0.1:1; server 10.0.0.2:1 %; }", "upstream u { server 10.0.0.1:1; }");
    let (text, said) = good(&nginx(&several.replace('%', ""), "ssl_preread on;"));
    for (key, value) in [
        ("hello_timeout", "\"30s\""),
        ("idle_timeout", "\"10m\""),
        ("connect_timeout", "\"1m\""),
        ("eject", "{ failures = 1, time = \"10s\" }"),
    ] {
        assert_eq!(line(&text, key), value);
    }
    assert_eq!(said, "");
    let ends = "ssl_certificate a.crt; ssl_certificate_key a.key; preread_timeout 3s;";
    let ends = nginx(one, ends).replace("listen 443;", "listen 443 ssl;");
    assert_eq!(line(&good(&ends).0, "hello_timeout"), "\"1m\"");
    assert!(!good(&nginx(one, "")).0.contains("eject"));
    assert!(!good(&nginx(one, "")).0.contains("hello_timeout"));
    let (text, said) = good(&nginx(&several.replace('%', "max_fails=3 fail_timeout=1m"), ""));
    assert_eq!(line(&text, "eject"), "{ failures = 1, time = \"10s\" }");
    assert!(said.contains("the first server's that has any, of all here"), "{said}");
    let none = "upstream u { server 10.0.0.1:1 max_fails=0; server 10.0.0.2:1 max_fails=0; }";
    assert!(!good(&nginx(none, "")).0.contains("eject"));
    let (text, _) = good(&envoy("address: 0.0.0.0", "outlier_detection: {}"));
    assert_eq!(line(&text, "eject"), "{ failures = 5, time = \"30s\" }");
    let inspected = envoy("address: 0.0.0.0", "").replacen(
        "      filter_chains:",
        "      listener_filters: [{ name: envoy.filters.listener.tls_inspector }]\n      filter_chains:",
        1,
    );
    assert_eq!(line(&good(&inspected).0, "hello_timeout"), "\"15s\"");
}

/// Clients without a name of any server are those of the `default_server`, else of the first.
#[test]
fn the_default_server_of_nginx_need_not_be_the_first() {
    let server = |listen: &str, name: &str, port: u16| {
        format!(
            "server {{ listen {listen}; ssl_preread on; server_name {name}; proxy_pass 10.0.0.1:{port}; }}\n"
        )
    };
    for (first, second, expected) in
        [("443", "443", 1), ("443", "443 default_server", 2), ("443 default_server", "443", 1)]
    {
        let text =
            format!("stream {{\n{}{}}}\n", server(first, "a.example", 1), server(second, "b.example", 2));
        let (text, said) = good(&text);
        let default =
            text.split("[[route]]").find(|route| route.contains("sni = [\"*\"]")).expect("a default");
        assert!(default.contains(&format!("10.0.0.1:{expected}")), "{text}");
        assert_eq!(said, "");
    }
}

#[test]
fn a_route_whose_servers_are_all_out_of_service_is_left_out() {
    let rule = "use_backend web if { req.ssl_sni a.example }";
    let (text, said) =
        good(&haproxy(rule, "server s 10.0.0.1:1\nbackend web\n mode tcp\n server w 10.0.0.2:1 disabled"));
    assert!(!text.contains("a.example\""), "{text}");
    assert!(said.contains("lost: `web`: no server is left"), "{said}");
    let map = "map $ssl_preread_server_name $to { a.example gone; default u; }\nupstream u { server 10.0.0.1:1; }\nupstream gone { server 10.0.0.2:1 down; }";
    let (text, said) = good(&nginx(map, "ssl_preread on;").replace("proxy_pass u;", "proxy_pass $to;"));
    assert!(!text.contains("a.example\""), "{text}");
    assert!(said.contains("lost: `gone`: no server is left"), "{said}");
    // A port that depends on the client's.
    let (text, said) = good(&haproxy("", "server s 10.0.0.1:1\n server t 10.0.0.2:+1000"));
    assert_eq!(line(&text, "servers"), "[\"10.0.0.1:1\"]");
    assert!(said.contains("`10.0.0.2:+1000` is no address and port"), "{said}");
}

/// The first rule that fits counts.
#[test]
fn the_lists_of_nginx_end_with_all() {
    let stream = "upstream u { server 10.0.0.1:1; }";
    for (rules, allow, deny) in [
        ("allow all; deny all;", None, None),
        ("allow 10.0.0.0/8; allow all; deny all;", None, None),
        ("deny 10.0.0.1; allow all; deny 10.0.0.2;", None, Some("[\"10.0.0.1\"]")),
        ("allow 10.0.0.0/8; deny all; allow all;", Some("[\"10.0.0.0/8\"]"), None),
    ] {
        let (text, said) = good(&nginx(stream, rules));
        let list = |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{key} = ")));
        assert_eq!((list("allow"), list("deny")), (allow, deny), "{rules}");
        assert_eq!(said, "", "{rules}");
    }
    assert!(import(&file(nginx(stream, "deny all;")), Form::Toml).is_err());
}

#[test]
fn of_several_certificates_the_others_are_named() {
    let several = "several certificates: only the first is here";
    let two =
        "ssl_certificate a.crt; ssl_certificate_key a.key; ssl_certificate b.crt; ssl_certificate_key b.key;";
    let text = nginx("upstream u { server 10.0.0.1:1; }", two).replace("listen 443;", "listen 443 ssl;");
    assert!(made(&text).1.contains(several));
    let text = haproxy("", "server s 10.0.0.1:1").replace(":1\n", ":1 ssl crt a.pem crt b.pem\n");
    assert_eq!(made(&text).1.matches(several).count(), 1, "{}", made(&text).1);
}

#[test]
fn of_files_with_one_name_none_is_taken_for_the_other() {
    let text = "frontend f\n mode tcp\n bind :1\n use_backend %[req.ssl_sni,map(/etc/b/names.map)]\nbackend b\n server s 10.0.0.1:1\n";
    let of = |first, second| {
        let maps = [("haproxy.cfg", text), (first, "a.example b\n"), (second, "b.example b\n")];
        import(&files(&maps), Form::Toml)
    };
    let errors = of("a/names.map", "b/names.map").unwrap_err();
    assert!(errors[0].to_string().starts_with("`a/names.map`: another file has its name"), "{errors:?}");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(of("c/names.map", "d/names.map").unwrap_err().len(), 2);
}
