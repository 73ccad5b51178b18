//! PostgreSQL: psql asks for TLS in its own way first (SSLRequest), and is routed by SNI all the same.

use std::io::{Read, Write};
use std::process::Output;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use snisplice_tests::process::checked_output;
use snisplice_tests::skip::has_program;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Postgres, eventually, require};

use crate::config::{pool, route};
use crate::world::World;

const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// Two databases behind one port: `db1` passed through, `db2`, without TLS, terminated; and what cannot work: `silent`, a
/// server that does not answer, and `clear`, which passes TLS through to `db2` for one client at a time.
struct Scene {
    gateway: Gateway,
    servers: [Postgres; 2],
    world: World,
}

impl Scene {
    fn new() -> Result<Self> {
        Self::on("postgres")
    }

    /// On a listener of this protocol.
    fn on(protocol: &str) -> Result<Self> {
        let world = World::new()?;
        let leaf1 = world.authority.leaf(&["db1.example.com"])?;
        let leaf2 = world.authority.leaf(&["db2.example.com"])?;
        let servers = [
            Postgres::start(&world.net.server, 5431, "db1", Some(&leaf1))?,
            Postgres::start(&world.net.server, 5433, "db2", None)?,
        ];
        // Nobody has this address.
        let silent = "[[pool]]\nname = 'silent'\nservers = ['10.0.2.99:5432']\nconnect_timeout = '200ms'\n";
        let config =
            format!("[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:5432']\nprotocol = '{protocol}'\n")
                + &route("db1", "db1.example.com", "tls = 'passthrough'")
                + &route(
                    "db2",
                    "db2.example.com",
                    &format!("tls = 'terminate'\ncertificate = {}", leaf2.toml()),
                )
                + &route("silent", "silent.example.com", "tls = 'passthrough'")
                + &route("clear", "clear.example.com", "backends = ['db2']\nmax_connections = 1")
                + silent
                + &pool("db1", &[5431], "")
                + &pool("db2", &[5433], "connect_timeout = '60s'");
        let gateway = world.gateway(&config)?;
        Ok(Self { gateway, servers, world })
    }

    /// What psql says last when it fails: of its last attempt, without details and hints.
    fn last_words(&self, host: &str, mode: &str) -> Result<String> {
        let output = self.psql(&format!("{host}.example.com"), &format!("sslmode={mode}"), "select 1")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{host} {mode}: {said}");
        let failed = said.lines().rev().find_map(|line| line.split_once(" failed: "));
        Ok(failed.with_context(|| said.clone())?.1.to_owned())
    }

    fn psql(&self, host: &str, options: &str, query: &str) -> Result<Output> {
        let authority = self.world.authority.path.display();
        let connection = format!(
            "host={host} hostaddr=10.0.1.1 user=postgres sslrootcert={authority} connect_timeout=20 {options}"
        );
        let mut psql = self.world.net.client.command("psql");
        Ok(psql.args(["-X", &connection, "-Atc", query]).output()?)
    }
}

#[test]
fn two_databases_behind_one_port_are_told_apart_by_sni() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new()?;
    for name in ["db1", "db2"] {
        let output =
            scene.psql(&format!("{name}.example.com"), "sslmode=verify-full", "show cluster_name")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.trim(), name, "{}", String::from_utf8_lossy(&output.stderr));
        let rows = scene.psql(
            &format!("{name}.example.com"),
            "sslmode=require",
            "select count(*), sum(length(x)) from (select repeat('x', 1000) x from generate_series(1, 20000)) s",
        )?;
        assert_eq!(String::from_utf8_lossy(&rows.stdout).trim(), "20000|20000000");
        let big =
            scene.psql(&format!("{name}.example.com"), "sslmode=require", "select repeat('x', 4000000)")?;
        assert_eq!(String::from_utf8_lossy(&big.stdout).trim().len(), 4_000_000);
    }
    let log = scene.gateway.wait_access_log(6)?;
    assert_eq!(log.iter().filter(|line| line["sni"] == "db2.example.com").count(), 3, "{log:?}");
    let status = scene.gateway.status()?;
    assert_eq!((status.route("db1", "total"), status.route("db2", "total")), (3, 3));
    assert!(status.route("db1", "bytes_out") > 4_000_000);
    Ok(())
}

#[test]
fn clear_text_and_unknown_names_are_refused_in_words_that_psql_shows() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new()?;
    let refused = scene.psql("db1.example.com", "sslmode=disable", "select 1")?;
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(stderr.contains("FATAL") && (stderr.contains("TLS") || stderr.contains("SSL")), "{stderr}");
    scene.gateway.wait_status("it to be counted", |s| s.rejects("databases", "postgres_cleartext") == 1)?;

    let unknown = scene.psql("nobody.example.com", "sslmode=require", "select 1")?;
    let stderr = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(stderr.contains("unrecognized name"), "{stderr}");
    scene.gateway.wait_status("it to be counted", |s| s.rejects("databases", "unknown_sni") == 1)?;
    Ok(())
}

#[test]
fn what_no_postgres_client_sends_is_refused_for_its_own_reason() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new()?;
    const CANCEL: &[u8] = &[0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1, 0, 0, 0, 2];
    for (reason, bytes) in [
        ("postgres_malformed", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("postgres_stuffed", [SSL_REQUEST, b"x"].concat()),
        ("postgres_cancel_cleartext", CANCEL.to_vec()),
    ] {
        let mut stream = scene.world.connect(5432)?;
        stream.write_all(&bytes)?;
        let _ = stream.read_to_end(&mut Vec::new());
        scene.gateway.wait_status(reason, |s| s.rejects("databases", reason) == 1)?;
    }
    Ok(())
}

/// What the gateway said, if it was said without TLS, by an attempt that followed one with TLS.
fn second(words: &str) -> String {
    format!("FATAL:  {words}, and without TLS this gateway takes no connection")
}

#[test]
fn psqls_last_words_are_about_a_server_that_is_down() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let mut scene = Scene::new()?;
    for server in &mut scene.servers {
        server.process.stop()?;
    }
    // Without an attempt with TLS before it nothing is known but that TLS is needed.
    let needs_tls = "FATAL:  this gateway needs TLS with SNI: use sslmode=require";
    assert_eq!(scene.last_words("db1", "disable")?, needs_tls);

    assert_eq!(scene.last_words("db1", "prefer")?, second("the database server cannot be reached"));
    assert_eq!(scene.last_words("silent", "prefer")?, second("the database server does not answer"));
    // Inside TLS that the gateway ends it speaks for itself.
    let down = "FATAL:  the database server cannot be reached";
    for mode in ["require", "verify-full", "allow"] {
        assert_eq!(scene.last_words("db2", mode)?, down, "{mode}");
    }
    // Some versions of libpq try once more, without TLS.
    let prefer = scene.last_words("db2", "prefer")?;
    assert!(prefer.starts_with(down), "{prefer}");
    assert_eq!(scene.last_words("db2", "disable")?, second("the database server cannot be reached"));
    Ok(())
}

#[test]
fn psqls_last_words_are_about_what_kept_the_attempt_with_tls_from_going_on() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new()?;
    let unknown = "no database server goes by the name that was asked for";
    assert_eq!(scene.last_words("nobody", "prefer")?, second(unknown));
    assert_eq!(scene.last_words("clear", "prefer")?, second("the database server refuses TLS"));
    let named = scene.psql("db2.example.com", "sslmode=prefer sslsni=0", "select 1")?;
    let named = String::from_utf8_lossy(&named.stderr).into_owned();
    assert!(named.contains("the TLS handshake named no server"), "{named}");

    // With a place taken by somebody whose server is slow to refuse it.
    scene.servers[1].process.signal(Signal::SIGSTOP)?;
    let mut first = scene.world.connect(5432)?;
    first.write_all(SSL_REQUEST)?;
    first.read_exact(&mut [0])?;
    first.write_all(&client_hello("clear.example.com", &[]))?;
    scene.gateway.wait_status("the place to be taken", |s| s.route("clear", "active") == 1)?;
    let full = scene.last_words("clear", "prefer")?;
    assert_eq!(full, second("there are too many connections to this database server"));
    Ok(())
}

#[test]
fn on_a_tls_listener_postgres_is_known_by_what_its_clients_ask() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::on("tls")?;
    for name in ["db1", "db2"] {
        let output =
            scene.psql(&format!("{name}.example.com"), "sslmode=verify-full", "show cluster_name")?;
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), name, "{why}");
    }
    // What it hears is PostgreSQL's, too.
    let needs_tls = "FATAL:  this gateway needs TLS with SNI: use sslmode=require";
    assert_eq!(scene.last_words("db1", "disable")?, needs_tls);
    let unknown = "no database server goes by the name that was asked for";
    assert_eq!(scene.last_words("nobody", "prefer")?, second(unknown));
    assert_eq!(scene.last_words("clear", "prefer")?, second("the database server refuses TLS"));
    // A client that begins with TLS is told its protocol only if it offers that.
    for (offered, selected) in [("postgresql", "ALPN protocol: postgresql"), ("h2", "No ALPN negotiated")] {
        let mut client = scene.world.net.client.command("openssl");
        client.args([
            "s_client",
            "-connect",
            "10.0.1.1:5432",
            "-servername",
            "db2.example.com",
            "-alpn",
            offered,
        ]);
        let said = client.stdin(std::process::Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(selected), "{said}");
    }
    Ok(())
}

#[test]
fn a_standby_follows_and_dumps_are_taken_through_the_gateway() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let scene = Scene::new()?;
    for (number, name) in [(0, "db1"), (1, "db2")] {
        // From the server's own side of the gateway.
        let primary =
            format!("host={name}.example.com hostaddr=10.0.2.1 port=5432 user=postgres sslmode=require");
        let ns = &scene.world.net.server;
        let standby = Postgres::standby_of(ns, 5441 + number, "standby", &primary)?;
        let server = &scene.servers[usize::from(number)];
        server.sql(ns, "create table seen as select generate_series(1, 1000) n")?;
        eventually("the standby to follow", || {
            (standby.sql(ns, "select count(*) from seen").ok()?.trim() == "1000").then_some(())
        })?;
        let mut dump = scene.world.net.client.command("pg_dump");
        dump.args(["-d", &primary.replace("10.0.2.1", "10.0.1.1"), "-t", "seen"]);
        assert!(checked_output(&mut dump)?.contains("COPY public.seen"));
    }
    Ok(())
}
