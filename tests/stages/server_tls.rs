//! TLS toward servers, as Redis, PostgreSQL, OpenSSL and HAProxy see it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;

use anyhow::{Context, Result};
use serde_json::Value;
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::gateway::Launch;
use snisplice_tests::process::{Process, checked_output};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::skip::has_program;
use snisplice_tests::tls::Client;
use snisplice_tests::{Authority, Gateway, Leaf, Postgres, Redis, TempDir, eventually, require};

use crate::config::{listener, pool, route};
use crate::tolerance::metrics;
use crate::world::World;

const NAME: &str = "app2.redis.example.com";
const INTERNAL: &str = "redis.internal";
const ADMIN: &str = "[gateway]\nadmin = '127.0.0.1:9900'\n";

/// A `tcp` listener on this port, and its route to servers on these ports, with this `tls`.
fn tcp(name: &str, port: u16, servers: &[u16], tls: &str) -> String {
    format!(
        "[[listener]]\nname = '{name}'\nbind = ['0.0.0.0:{port}']\nprotocol = 'tcp'\n\
         [[route]]\nname = '{name}'\nlistener = '{name}'\nbackends = ['{name}']\n{}",
        pool(name, servers, &format!("tls = {{ {tls} }}"))
    )
}

/// The first key of a pool's `tls`: this authority.
fn ca(authority: &Authority) -> String {
    format!("ca = {:?}", authority.path)
}

fn trusting(world: &World) -> String {
    format!("{}, server_name = '{INTERNAL}'", ca(&world.authority))
}

/// A `redis-cli` without TLS.
fn redis_cli(world: &World, port: u16) -> Command {
    let mut command = world.net.client.command("redis-cli");
    command.args(["-h", "10.0.1.1", "-p", &port.to_string()]);
    command
}

/// The name of the Redis behind this port.
fn name(world: &World, port: u16) -> Result<String> {
    Ok(checked_output(redis_cli(world, port).args(["get", "name"]))?.trim().to_owned())
}

/// Sends 4 MB to Redis by `redis-cli`, no two parts of which are the same, and gets them again.
fn exchange_big_value(cli: impl Fn() -> Command) -> Result<()> {
    let value: Vec<u8> = (0..500_000u32).flat_map(|n| format!("{n:08x}").into_bytes()).collect();
    let mut set = cli().args(["-x", "set", "big"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    set.stdin.take().context("a pipe")?.write_all(&value)?;
    assert_eq!(set.wait_with_output()?.stdout, b"OK\n");
    let got = checked_output(cli().args(["get", "big"]))?;
    assert!(got.trim_end().as_bytes() == value, "{} bytes came back", got.len());
    Ok(())
}

#[test]
fn a_plain_client_reaches_a_redis_that_speaks_tls_and_asks_for_a_certificate() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&[INTERNAL])?;
    let gateways = world.authority.leaf(&["gateway"])?;
    let _redis = Redis::mutual_tls(&world.net.server, 6379, &leaf)?;
    let tls = format!("{}, certificate = {}", trusting(&world), gateways.toml());
    let gateway = world.gateway(&tcp("redis", 7000, &[6379], &tls))?;

    exchange_big_value(|| redis_cli(&world, 7000))?;
    let log = gateway.wait_access_log(2)?;
    for line in &log {
        assert_eq!((&line["tier"], &line["tier_reason"]), (&"copy".into(), &"server_tls".into()), "{line}");
        assert_eq!(line["close_reason"], "client_closed", "{line}");
    }
    // The application's bytes are counted, not those of TLS.
    assert!(
        log[0]["bytes_in"].as_u64().is_some_and(|bytes| (4_000_000..4_000_100).contains(&bytes)),
        "{log:?}"
    );
    assert!(
        log[1]["bytes_out"].as_u64().is_some_and(|bytes| (4_000_000..4_000_100).contains(&bytes)),
        "{log:?}"
    );
    Ok(())
}

#[test]
fn what_was_encrypted_for_the_gateway_is_encrypted_again_for_the_server() -> Result<()> {
    let world = World::new()?;
    let (inner, outer) = (world.authority.leaf(&[INTERNAL])?, world.authority.leaf(&[NAME])?);
    let _redis = Redis::tls(&world.net.server, 6379, &inner)?;
    let config = listener("")
        + &route("app2", NAME, &format!("tls = 'terminate'\ncertificate = {}", outer.toml()))
        + &pool("app2", &[6379], &format!("tls = {{ {} }}", trusting(&world)));
    let gateway = world.gateway(&config)?;

    exchange_big_value(|| tls_cli(&world.net.client, "10.0.1.1", 443, NAME, &world.authority.path))?;
    let log = gateway.wait_access_log(2)?;
    assert!(log.iter().all(|line| line["tier_reason"] == "tls_terminated"), "{log:?}");
    Ok(())
}

/// How a connection ended, after so many others.
fn end(world: &World, gateway: &Gateway, port: u16, seen: usize) -> Result<[Value; 2]> {
    gateway.wait_access_log(seen)?;
    let mut stream = world.connect(port)?;
    let _ = stream.write_all(b"PING\r\n");
    let _ = stream.read_to_end(&mut Vec::new());
    let line = gateway.wait_access_log(seen + 1)?.swap_remove(seen);
    Ok([line["close_reason"].clone(), line["tls_error"].clone()])
}

#[test]
fn a_server_with_a_wrong_certificate_is_passed_over_and_the_log_says_why() -> Result<()> {
    let world = World::new()?;
    let server = &world.net.server;
    let strangers = Authority::new("strangers")?;
    let expire = |params: &mut rcgen::CertificateParams| params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let client_only = |params: &mut rcgen::CertificateParams| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    };
    // Each file by its first name.
    let leaves: [(Leaf, &str); 4] = [
        (strangers.leaf(&[INTERNAL])?, "unknown_ca"),
        (world.authority.leaf(&["other.internal"])?, "certificate_name"),
        (world.authority.leaf_as(&["old.internal", INTERNAL], expire)?, "certificate_expired"),
        (world.authority.leaf_as(&["client.internal", INTERNAL], client_only)?, "certificate_purpose"),
    ];
    let good = world.authority.leaf(&[INTERNAL])?;
    let _good = Redis::tls(server, 6400, &good)?.named(server, "good")?;
    let _silent =
        Backend::start(server, 6410, |mut stream| io::copy(&mut stream, &mut io::sink()).map(drop))?;
    let _plain = Backend::start(server, 6411, |mut stream| {
        stream.read_exact(&mut [0; 5])?;
        stream.write_all(b"-ERR Protocol error\r\n")?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    })?;
    let _closing = Backend::start(server, 6412, |mut stream| stream.read_exact(&mut [0; 5]))?;
    let mut cases = vec![(6410, "timeout"), (6411, "protocol_violation"), (6412, "closed or reset")];
    let mut servers = Vec::new();
    for (index, (leaf, error)) in (0..).zip(&leaves) {
        servers.push(Redis::tls(server, 6401 + index, leaf)?);
        cases.push((6401 + index, error));
    }
    let mut config = ADMIN.to_owned();
    for (index, (port, _)) in (0..).zip(&cases) {
        config += &tcp(&format!("alone-{port}"), 7100 + index, &[*port], &trusting(&world));
        config += &tcp(&format!("next-{port}"), 7200 + index, &[*port, 6400], &trusting(&world));
    }
    let gateway = world.gateway(&config.replace("tls = {", "connect_timeout = '500ms'\ntls = {"))?;
    for (index, (port, error)) in (0..).zip(&cases) {
        let [reason, cause] = end(&world, &gateway, 7100 + index, 3 * usize::from(index))?;
        assert_eq!(reason, "server_tls_failed", "{port}: {error}");
        match *error {
            "closed or reset" => assert!(cause == "closed" || cause == "reset", "{cause}"),
            error => assert_eq!(cause, error, "{port}"),
        }
        // One of two goes to the bad one first.
        for _ in 0..2 {
            assert_eq!(name(&world, 7200 + index)?, "good", "{error}");
        }
        let status = gateway.status()?;
        let bad = status.server(&format!("next-{port}"), &crate::config::server(*port));
        assert!(bad["total"].as_u64() >= Some(1), "{error}: {bad}");
    }
    // Also where another server has taken the connection.
    let metrics = metrics(&world.net.gateway)?;
    for (port, error) in &cases {
        let error = if error.contains(' ') { String::new() } else { format!("\"{error}\"}} ") };
        let server = crate::config::server(*port);
        for pool in ["alone", "next"] {
            let counted = format!("total{{pool=\"{pool}-{port}\",server=\"{server}\",error={error}");
            assert!(
                metrics.contains(&format!("snisplice_server_tls_errors_{counted}")),
                "{counted} in\n{metrics}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_server_that_misses_the_gateways_certificate_is_told_apart_from_a_client() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&[INTERNAL])?;
    let _redis = Redis::mutual_tls(&world.net.server, 6379, &leaf)?;
    let _old = Redis::mutual_tls_1_2(&world.net.server, 6380, &leaf)?;
    let tls = trusting(&world);
    let gateway = world.gateway(
        &(ADMIN.to_owned()
            + &tcp("new", 7000, &[6379], &tls)
            + &tcp("old", 7001, &[6380], &tls)
            + &tcp("newest", 7002, &[6380], &format!("{tls}, min_version = '1.3'"))),
    )?;
    // In TLS 1.3 a server judges the certificate when the handshake is done for the gateway.
    let end_of = |port, seen| end(&world, &gateway, port, seen);
    assert_eq!(end_of(7000, 0)?, ["server_tls_error", "alert_certificate_required"]);
    assert_eq!(end_of(7001, 1)?, ["server_tls_failed", "alert_handshake_failure"]);
    assert_eq!(end_of(7002, 2)?, ["server_tls_failed", "alert_protocol_version"]);
    let labels = format!("pool=\"new\",server=\"{}\"", crate::config::server(6379));
    let counted =
        format!("snisplice_server_tls_errors_total{{{labels},error=\"alert_certificate_required\"}} 1\n");
    let metrics = metrics(&world.net.gateway)?;
    assert!(metrics.contains(&counted), "{counted} in\n{metrics}");
    Ok(())
}

#[test]
fn an_alternative_name_may_be_asked_for_and_a_listed_certificate_needs_no_issuer() -> Result<()> {
    let world = World::new()?;
    let server = &world.net.server;
    let uri = "spiffe://example.org/redis";
    let with_uri = |params: &mut rcgen::CertificateParams| {
        let uri = uri.try_into().expect("ASCII");
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
    };
    let leaf = world.authority.leaf_as(&["anything", "10.0.2.2"], with_uri)?;
    let _redis = Redis::tls(server, 6379, &leaf)?.named(server, "named")?;
    // As `openssl req -x509` makes it: an authority of its own.
    let files = TempDir::new()?;
    let (chain, key) = (files.join("self.crt"), files.join("self.key"));
    let mut openssl = world.net.client.command("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=self", "-days", "10"]);
    openssl.args(["-addext", &format!("subjectAltName=DNS:{INTERNAL}"), "-out"]).arg(&chain).arg("-keyout");
    checked_output(openssl.arg(&key).stderr(Stdio::null()))?;
    let own = Leaf { chain: chain.clone(), key, authority: chain.clone() };
    let _own = Redis::tls(server, 6380, &own)?.named(server, "self-signed")?;

    let ca = ca(&world.authority);
    let gateway = world.gateway(
        &(tcp("uri", 7000, &[6379], &format!("{ca}, san = ['DNS:x', 'URI:{uri}']"))
            + &tcp(
                "ip",
                7001,
                &[6379],
                &format!("{ca}, server_name = 'sni.example.com', san = ['IP:10.0.2.2']"),
            )
            + &tcp("other", 7002, &[6379], &format!("{ca}, san = ['URI:{uri}/other', 'DNS:{INTERNAL}']"))
            + &tcp(
                "below",
                7004,
                &[6379],
                &format!("{ca}, san = ['DNS:*.internal', 'URI:spiffe://example.org/*']"),
            )
            + &tcp("own", 7003, &[6380], &format!("ca = {chain:?}, server_name = '{INTERNAL}'"))),
    )?;
    for (port, expected) in [(7000, "named"), (7001, "named"), (7003, "self-signed"), (7004, "named")] {
        assert_eq!(name(&world, port)?, expected, "{port}");
    }
    assert_eq!(end(&world, &gateway, 7002, 4)?, ["server_tls_failed", "certificate_name"]);
    Ok(())
}

/// `openssl s_server`, which says of each connection whether it resumes a session.
struct SServer {
    process: std::process::Child,
    files: TempDir,
}

impl SServer {
    fn start(world: &World, port: u16, leaf: &Leaf, version: &str) -> Result<Self> {
        let files = TempDir::new()?;
        let output = File::create(files.join("output"))?;
        let mut command = world.net.server.command("openssl");
        command.args(["s_server", "-accept", &port.to_string(), version, "-cert"]).arg(&leaf.chain);
        command.arg("-key").arg(&leaf.key).stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let server = Self { process: command.spawn()?, files };
        server.wait_for("ACCEPT", 1)?;
        Ok(server)
    }

    fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.files.join("output")).unwrap_or_default()).into_owned()
    }

    fn wait_for(&self, text: &str, times: usize) -> Result<()> {
        let seen = || (self.output().matches(text).count() >= times).then_some(());
        eventually(&format!("{text:?} from openssl"), seen).with_context(|| self.output())
    }
}

impl Drop for SServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn sessions_are_resumed_until_something_about_them_changes() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&[INTERNAL])?;
    for version in ["-tls1_3", "-tls1_2"] {
        let server = SServer::start(&world, 6379, &leaf, version)?;
        let config = |tls: &str| tcp("app", 7000, &[6379], &format!("{}{tls}", trusting(&world)));
        let gateway = world.gateway(&config(""))?;
        let mut connections = 0;
        let mut connect = || -> Result<()> {
            let mut stream = world.connect(7000)?;
            connections += 1;
            stream.write_all(format!("client {connections}\n").as_bytes())?;
            server.wait_for(&format!("client {connections}\n"), 1)?;
            drop(stream);
            gateway.wait_access_log(connections)?;
            // It serves one at a time.
            server.wait_for("DONE", connections)
        };
        let resumed = || server.output().matches("Reused session-id").count();
        connect()?;
        assert_eq!(resumed(), 0, "{}", server.output());
        connect()?;
        assert_eq!(resumed(), 1, "{}", server.output());
        gateway.write_config(&config("").replace("backends", "max_age = '1h'\nbackends"))?;
        gateway.reload()?;
        connect()?;
        assert_eq!(resumed(), 2, "{}", server.output());
        gateway.write_config(&config(", alpn = ['redis']"))?;
        gateway.reload()?;
        connect()?;
        assert_eq!(resumed(), 2, "{}", server.output());
    }
    Ok(())
}

#[test]
fn without_a_ca_the_systems_authorities_count() -> Result<()> {
    let world = World::new()?;
    let server = &world.net.server;
    let strangers = Authority::new("strangers")?;
    let _known = Redis::tls(server, 6379, &world.authority.leaf(&[INTERNAL])?)?.named(server, "known")?;
    let _stranger = Redis::tls(server, 6380, &strangers.leaf(&[INTERNAL])?)?;
    let tls = format!("server_name = '{INTERNAL}'");
    let config = tcp("known", 7000, &[6379], &tls) + &tcp("stranger", 7001, &[6380], &tls);
    let launch = Launch { authorities: Some(world.authority.path.clone()), ..Launch::default() };
    let gateway = Gateway::start_with(&world.net.gateway, &config, launch)?;
    assert_eq!(name(&world, 7000)?, "known");
    assert_eq!(end(&world, &gateway, 7001, 1)?, ["server_tls_failed", "unknown_ca"]);
    Ok(())
}

#[test]
fn a_new_authority_is_in_force_after_a_reload() -> Result<()> {
    let world = World::new()?;
    let server = &world.net.server;
    let files = TempDir::new()?;
    let authority = files.join("ca.crt");
    fs::copy(&Authority::new("before")?.path, &authority)?;
    let _redis = Redis::tls(server, 6379, &world.authority.leaf(&[INTERNAL])?)?.named(server, "here")?;
    let tls = format!("ca = {authority:?}, server_name = '{INTERNAL}'");
    let gateway =
        world.gateway(&("[gateway]\nwatch = true\n".to_owned() + &tcp("app", 7000, &[6379], &tls)))?;
    assert_eq!(end(&world, &gateway, 7000, 0)?, ["server_tls_failed", "unknown_ca"]);
    fs::copy(&world.authority.path, &authority)?;
    eventually("the new authority", || name(&world, 7000).ok().filter(|name| name == "here"))?;
    Ok(())
}

#[test]
fn psql_reaches_a_postgresql_that_takes_tls_only() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let world = World::new()?;
    let server = &world.net.server;
    let leaves = [world.authority.leaf(&["db.internal"])?, world.authority.leaf(&["db1.example.com"])?];
    let _db = Postgres::start(server, 5431, "inside", Some(&leaves[0]))?;
    let _clear = Postgres::start(server, 5433, "clear", None)?;
    let local = |query: &str| {
        let mut psql = server.command("psql");
        checked_output(psql.args(["-X", "host=127.0.0.1 port=5431 user=postgres", "-Atc", query]))
    };
    let file = local("show hba_file")?;
    local(&format!("copy (select 'hostssl all all all trust') to '{}'", file.trim()))?;
    local("select pg_reload_conf()")?;
    let refused = || {
        let mut psql = server.command("psql");
        psql.args(["-X", "host=127.0.0.1 port=5431 user=postgres sslmode=disable", "-Atc", "select 1"]);
        psql.output().ok().filter(|output| !output.status.success())
    };
    eventually("clear text to be refused", refused)?;

    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaves[1].toml());
    let tls = format!("tls = {{ {}, server_name = 'db.internal' }}", ca(&world.authority));
    let config = "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:5432']\nprotocol = 'postgres'\n"
        .to_owned()
        + &route("db1", "db1.example.com", &format!("{terminate}\nbackends = ['db1']"))
        + &route("db2", "db2.example.com", &format!("{terminate}\nbackends = ['clear']"))
        + &pool("db1", &[5433, 5431], &tls)
        + &pool("clear", &[5433], &tls);
    let gateway = world.gateway(&config)?;
    let psql = |host: &str, query: &str| -> Result<std::process::Output> {
        let connection =
            format!("host={host} hostaddr=10.0.1.1 user=postgres sslmode=require connect_timeout=20");
        let mut psql = world.net.client.command("psql");
        Ok(psql.args(["-X", &connection, "-Atc", query]).output()?)
    };
    // One that refuses TLS is passed over.
    for _ in 0..2 {
        let output = psql(
            "db1.example.com",
            "select current_setting('cluster_name'), ssl, version from pg_stat_ssl where pid = pg_backend_pid()",
        )?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(said.trim(), "inside|t|TLSv1.3", "{}", String::from_utf8_lossy(&output.stderr));
    }
    let rows = psql("db1.example.com", "select repeat('x', 4000000)")?;
    assert_eq!(String::from_utf8_lossy(&rows.stdout).trim().len(), 4_000_000);
    let refused = psql("db2.example.com", "select 1")?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("the database server refuses TLS"), "{said}");
    let log = gateway.wait_access_log(4)?;
    assert_eq!(log[3]["close_reason"], "server_preamble", "{log:?}");
    Ok(())
}

/// The TLVs of a PROXY header of version 2 for IPv4, by type; those within `PP2_TYPE_SSL` too.
fn tlvs(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (value, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        found.push((*kind, value.to_vec()));
        if *kind == 0x20 {
            found.extend(tlvs(&value[5..]));
        }
        bytes = rest;
    }
    found
}

#[test]
fn a_proxy_header_tells_the_server_of_the_clients_tls() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&[NAME])?;
    let client = world.authority.leaf(&["client-7"])?;
    let (headers, received) = sync_channel(1);
    let _backend = Backend::start(&world.net.server, 7001, move |mut stream| {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let mut block = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        stream.read_exact(&mut block)?;
        let _ = headers.send(block.split_off(12));
        echo(stream)
    })?;
    let terminate = format!("tls = 'terminate'\nalpn = ['redis']\ncertificate = {}", leaf.toml());
    let asking = format!("{terminate}\nclient_ca = {:?}", world.authority.path);
    let config = listener("")
        + &route("app1", "app1.example.com", &asking)
        + &route("app2", NAME, &terminate.replace("alpn = ['redis']\n", ""))
        + &pool("app1", &[7001], "send_proxy = 'v2'")
        + &pool("app2", &[7001], "send_proxy = 'v2'");
    let _gateway = world.gateway(&config)?;
    let ask = |sni: &str, args: &[&str]| -> Result<Vec<(u8, Vec<u8>)>> {
        let mut openssl = crate::openssl::SClient::start(&world, sni, args)?;
        openssl.type_in("through\n")?;
        openssl.wait_for("\nthrough")?;
        openssl.finish()?;
        Ok(tlvs(&received.recv()?))
    };
    let tlv = |kind: u8, value: &[u8]| (kind, value.to_vec());
    let (cert, key) = (client.chain.display().to_string(), client.key.display().to_string());
    let with = [
        "-tls1_2",
        "-cipher",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "-alpn",
        "redis",
        "-cert",
        &cert,
        "-key",
        &key,
    ];
    let ssl = |bits: &[u8; 5], parts: &[(u8, Vec<u8>)]| {
        let parts = parts
            .iter()
            .flat_map(|(kind, value)| [&[*kind][..], &(value.len() as u16).to_be_bytes(), value].concat());
        tlv(0x20, &bits.iter().copied().chain(parts).collect::<Vec<_>>())
    };
    let of_client =
        [tlv(0x21, b"TLSv1.2"), tlv(0x22, b"client-7"), tlv(0x23, b"ECDHE-ECDSA-AES128-GCM-SHA256")];
    let around = [tlv(0x01, b"redis"), tlv(0x02, b"app1.example.com")];
    let expect = |bits| [&around[..], &[ssl(bits, &of_client)], &of_client].concat();
    assert_eq!(ask("app1.example.com", &with)?, expect(b"\x07\0\0\0\0"));
    let anonymous = [tlv(0x21, b"TLSv1.3"), tlv(0x23, b"TLS_AES_256_GCM_SHA384")];
    let expected =
        [&[tlv(0x02, NAME.as_bytes()), ssl(b"\x01\0\0\0\x01", &anonymous)][..], &anonymous].concat();
    assert_eq!(ask(NAME, &["-ciphersuites", "TLS_AES_256_GCM_SHA384"])?, expected);
    Ok(())
}

/// HAProxy reads the PROXY header, which comes in clear text, and ends the gateway's TLS behind it.
#[test]
fn haproxy_reads_the_header_before_the_gateways_tls() -> Result<()> {
    require!(has_program("haproxy"), "haproxy is not installed");
    let world = World::new()?;
    let (outer, inner) = (world.authority.leaf(&[NAME])?, world.authority.leaf(&[INTERNAL])?);
    let files = TempDir::new()?;
    let pair = files.join("pair.pem");
    fs::write(&pair, fs::read_to_string(&inner.chain)? + &fs::read_to_string(&inner.key)?)?;
    let config = format!(
        "defaults\n  mode http\n  timeout connect 20s\n  timeout client 60s\n  timeout server 60s\n\
         frontend gateway\n  bind 0.0.0.0:8443 accept-proxy ssl crt {} ca-file {} verify required\n  \
         http-request return status 200 content-type text/plain lf-string \
         \"%[fc_pp_authority] %[src] %[ssl_fc_sni] %[ssl_c_s_dn(CN)]\"\n",
        pair.display(),
        world.authority.path.display(),
    );
    let file = files.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut haproxy = world.net.server.command("haproxy");
    haproxy.arg("-db").arg("-f").arg(&file);
    let mut haproxy = Process::spawn("haproxy", haproxy)?;
    haproxy.wait_listening(&[8443])?;

    let own = world.authority.leaf(&["gateway"])?;
    let tls = format!("send_proxy = 'v2'\ntls = {{ {}, certificate = {} }}", trusting(&world), own.toml());
    let config = listener("")
        + &route("app2", NAME, &format!("tls = 'terminate'\ncertificate = {}", outer.toml()))
        + &pool("app2", &[8443], &tls);
    let _gateway = world.gateway(&config)?;
    let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
    let mut duplex = client.connect(world.connect(443)?, NAME)?;
    duplex.writer.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    let _ = duplex.reader.read_to_string(&mut answer);
    assert!(answer.ends_with(&format!("{NAME} 10.0.1.2 {INTERNAL} gateway")), "{answer}");
    Ok(())
}

/// The client is done sending, and the server answers still: its end goes the other way by itself.
#[test]
fn an_end_of_the_client_is_passed_on_while_the_server_goes_on() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&[INTERNAL])?;
    let server = SServer::start(&world, 6379, &leaf, "-tls1_3")?;
    let gateway = world.gateway(&tcp("app", 7000, &[6379], &trusting(&world)))?;
    let stream: TcpStream = world.connect(7000)?;
    (&stream).write_all(b"before\n")?;
    server.wait_for("before\n", 1)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest)?;
    assert!(rest.is_empty());
    let log = gateway.wait_access_log(1)?;
    assert_eq!(log[0]["close_reason"], "client_closed", "{log:?}");
    assert!(!server.output().contains("error"), "close_notify came first: {}", server.output());
    Ok(())
}
