//! Terminated routes, as OpenSSL, GnuTLS, redis-cli and rustls see them.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Stdio;

use anyhow::{Context, Result};
use rustls::ContentType;
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::tls::Client;
use snisplice_tests::{Authority, Gateway, Redis, certs::KeyKind, eventually};

use crate::config::{listener, passthrough, pool, route};
use crate::openssl::SClient;
use crate::world::World;
use snisplice_tests::backend::{Backend, echo};

const NAME: &str = "app2.redis.example.com";
const NO_ARGS: [&str; 0] = [];

/// Plain Redis behind a terminated route; the value of its key `name` is `terminated`.
struct Scene {
    gateway: Gateway,
    _redis: Redis,
    world: World,
}

impl Scene {
    fn new(route_extra: &str) -> Result<Self> {
        Self::with_key(KeyKind::EcdsaP256, route_extra)
    }

    fn with_key(kind: KeyKind, route_extra: &str) -> Result<Self> {
        let world = World::new()?;
        let redis = Redis::plain(&world.net.server, 6379)?.named(&world.net.server, "terminated")?;
        let leaf = world.authority.leaf_with(kind, &[NAME])?;
        let terminate = format!("tls = 'terminate'\ncertificate = {}\n{route_extra}", leaf.toml());
        let config = format!("[gateway]\nworkers = 2\n{}", listener(""))
            + &route("app2", NAME, &terminate)
            + &pool("app2", &[6379], "");
        let gateway = world.gateway(&config)?;
        Ok(Self { gateway, _redis: redis, world })
    }

    /// One session (`QUIT` in lower case: a line that begins with Q is a command to OpenSSL): asks Redis for the name, lets Redis end the connection, and gives what OpenSSL printed.
    fn session(&self, args: &[&str]) -> Result<String> {
        let mut openssl = SClient::start(&self.world, NAME, args)?;
        openssl.type_in("GET name\r\n")?;
        openssl.wait_for("terminated")?;
        openssl.type_in("quit\r\n")?;
        openssl.wait_end()
    }
}

#[test]
fn both_versions_of_tls_are_served_and_end_cleanly() -> Result<()> {
    let scene = Scene::new("")?;
    for (i, (option, version)) in [("-tls1_2", "1.2"), ("-tls1_3", "1.3")].into_iter().enumerate() {
        let output = scene.session(&[option, "-verify_return_error", "-verify_hostname", NAME])?;
        assert!(output.contains(&format!("New, TLSv{version}")), "{output}");
        assert!(output.contains("Verification: OK"), "{output}");
        assert!(output.contains("\nclosed"), "{output}");
        assert!(!output.contains("unexpected eof"), "{output}");
        let line = scene.gateway.wait_access_log(i + 1)?.remove(i);
        assert!(line["tls_version"].as_str().is_some_and(|seen| seen.contains(version)), "{line}");
        assert_eq!(line["tier_reason"], "tls_terminated");
        assert_eq!(line["close_reason"], "server_closed");
    }
    Ok(())
}

#[test]
fn older_versions_of_tls_are_refused() -> Result<()> {
    let scene = Scene::new("")?;
    let output =
        SClient::start(&scene.world, NAME, ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"])?.wait_end()?;
    // Which alert depends on what else the client lacks.
    assert!(output.contains("SSL alert number"), "{output}");
    assert_eq!(scene.gateway.wait_access_log(1)?[0]["close_reason"], "tls_handshake_failed");
    Ok(())
}

#[test]
fn an_rsa_certificate_works_with_both_versions() -> Result<()> {
    let scene = Scene::with_key(KeyKind::Rsa2048, "")?;
    for option in ["-tls1_2", "-tls1_3"] {
        let output = scene.session(&[option, "-verify_return_error"])?;
        assert!(output.contains("Server public key is 2048 bit"), "{output}");
    }
    Ok(())
}

#[test]
fn a_tls_1_3_session_is_resumed_whatever_worker_it_meets() -> Result<()> {
    resumes("-tls1_3")
}

#[test]
fn a_tls_1_2_session_is_resumed_whatever_worker_it_meets() -> Result<()> {
    resumes("-tls1_2")
}

fn resumes(version: &str) -> Result<()> {
    let scene = Scene::new("")?;
    let file = scene.gateway.file("session").display().to_string();
    let first = scene.session(&[version, "-sess_out", &file])?;
    assert!(first.contains("New, "), "{first}");
    for _ in 0..8 {
        let next = scene.session(&[version, "-sess_in", &file, "-sess_out", &file])?;
        assert!(next.contains("Reused, "), "{next}");
    }
    Ok(())
}

#[test]
fn openssl_reconnects_with_its_session_five_times() -> Result<()> {
    let scene = Scene::new("")?;
    let mut openssl = SClient::start(&scene.world, NAME, ["-tls1_2", "-reconnect"])?;
    openssl.type_in("GET name\r\n")?;
    openssl.wait_for("terminated")?;
    let output = openssl.finish()?;
    assert_eq!(output.matches("Reused, TLSv1.2").count(), 5, "{output}");
    Ok(())
}

#[test]
fn the_protocol_of_the_route_is_negotiated() -> Result<()> {
    let scene = Scene::new("alpn = ['redis']")?;
    let output = scene.session(&["-alpn", "h2,redis"])?;
    assert!(output.contains("ALPN protocol: redis"), "{output}");
    assert!(scene.gateway.wait_access_log(1)?[0]["alpn"].to_string().contains("redis"));
    Ok(())
}

#[test]
fn a_route_with_a_client_authority_serves_its_certificates_only() -> Result<()> {
    let clients = Authority::new("clients")?;
    let strangers = Authority::new("strangers")?;
    let scene = Scene::new(&format!("client_ca = {:?}", clients.path))?;
    let known = clients.leaf(&["client"])?;
    let stranger = strangers.leaf(&["client"])?;
    let args = |leaf: &snisplice_tests::Leaf| {
        ["-cert", leaf.chain.to_str().expect("UTF-8"), "-key", leaf.key.to_str().expect("UTF-8")]
            .map(str::to_owned)
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let cert = args(&known);
        let mut with_certificate = vec![version];
        with_certificate.extend(cert.iter().map(String::as_str));
        scene.session(&with_certificate)?;

        let without = SClient::start(&scene.world, NAME, [version])?.wait_end()?;
        // TLS 1.2 has no alert of its own for it.
        assert!(
            without.contains("alert certificate required") || without.contains("alert handshake failure"),
            "{without}"
        );

        let mut options = vec![version.to_owned()];
        options.extend(args(&stranger));
        let unknown = SClient::start(&scene.world, NAME, options)?.wait_end()?;
        assert!(unknown.contains("alert unknown ca") || unknown.contains("alert decrypt error"), "{unknown}");
    }
    let log = scene.gateway.wait_access_log(6)?;
    let refused = log.iter().filter(|line| line["close_reason"] == "tls_handshake_failed");
    assert_eq!(refused.count(), 4, "{log:?}");
    Ok(())
}

#[test]
fn keys_are_updated_in_the_middle_of_a_session() -> Result<()> {
    let scene = Scene::new("")?;
    let mut openssl = SClient::start(&scene.world, NAME, ["-tls1_3"])?;
    openssl.type_in("ECHO before-update\r\n")?;
    openssl.wait_for("before-update")?;
    // k: new keys for what the client sends; K: the server is asked for new keys as well.
    for (i, key) in ["k\n", "K\n"].into_iter().enumerate() {
        openssl.type_in(key)?;
        // OpenSSL forgets what it reads together with a command.
        eventually("the key update", || (openssl.output().matches("KEYUPDATE").count() > i).then_some(()))?;
        openssl.type_in(&format!("ECHO after-update-{i}\r\n"))?;
        openssl.wait_for(&format!("after-update-{i}"))?;
    }
    openssl.type_in("quit\r\n")?;
    let output = openssl.wait_end()?;
    assert_eq!(output.matches("KEYUPDATE").count(), 2, "{output}");
    assert!(!output.contains("unexpected eof") && !output.contains("error"), "{output}");
    Ok(())
}

#[test]
fn half_a_key_update_waits_for_the_other_while_the_server_speaks() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let leaf = world.authority.leaf(&[NAME])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let gateway =
        world.gateway(&(listener("") + &route("app2", NAME, &terminate) + &pool("app2", &[7001], "")))?;
    let client = Client::new(&world.authority.path, &[&rustls::version::TLS13], None)?;
    let mut socket = world.connect(443)?;
    let mut sealer = client.sealer(&mut socket, NAME)?;
    let speech = sealer.seal(ContentType::ApplicationData, b"ping")?;
    // RFC 8446, section 4.6.3: type, length in three bytes, update_not_requested.
    let (first, second) = (&[24, 0, 0][..], &[1, 0][..]);
    socket.write_all(&[speech, sealer.seal(ContentType::Handshake, first)?].concat())?;
    gateway.wait_status("the answer", |status| status.route("app2", "bytes_out") == 4)?;
    socket.write_all(&sealer.seal(ContentType::Handshake, second)?)?;
    socket.shutdown(Shutdown::Write)?;
    let log = gateway.wait_access_log(1)?;
    assert_eq!(log[0]["close_reason"], "client_closed", "{log:?}");
    Ok(())
}

/// A handshake message that would be of 60 KB and comes byte by byte: more than the gateway keeps of what it cannot read
/// yet. RFC 8446, section 4: type, length in three bytes, and a body.
fn long_message(kind: u8) -> impl Iterator<Item = u8> {
    [kind, 0, 0xea, 0x60].into_iter().chain(std::iter::repeat_n(0, 20_000))
}

#[test]
fn a_message_in_thousands_of_records_is_not_waited_for() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let leaf = world.authority.leaf(&[NAME])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let gateway =
        world.gateway(&(listener("") + &route("app2", NAME, &terminate) + &pool("app2", &[7001], "")))?;

    // In the handshake: a ClientKeyExchange (TLS 1.2: RFC 5246, section 7.4.7).
    let client = Client::new(&world.authority.path, &[&rustls::version::TLS12], None)?;
    let records = long_message(16).flat_map(|byte| [22, 3, 3, 0, 1, byte]).collect::<Vec<_>>();
    let socket = world.connect(443)?;
    // Not dropped with what the gateway has answered: that would be a reset.
    let _open = socket.try_clone()?;
    let cut_short = client.connect_sending(socket, NAME, |socket, hello| {
        socket.write_all(hello)?;
        // The gateway may have enough before it has all.
        let _ = socket.write_all(&records).and_then(|()| socket.shutdown(Shutdown::Write));
        Err(std::io::Error::other("no more"))
    });
    assert!(cut_short.is_err());
    gateway.wait_access_log(1)?;

    // Behind it: a KeyUpdate.
    let client = Client::new(&world.authority.path, &[&rustls::version::TLS13], None)?;
    let mut socket = world.connect(443)?;
    let mut sealer = client.sealer(&mut socket, NAME)?;
    let records = long_message(24).map(|byte| sealer.seal(ContentType::Handshake, &[byte]));
    let _ = socket.write_all(&records.collect::<Result<Vec<_>>>()?.concat());

    let log = gateway.wait_access_log(2)?;
    for (line, reason) in log.iter().zip(["tls_handshake_failed", "tls_error"]) {
        assert_eq!(
            (&line["close_reason"], &line["tls_error"]),
            (&reason.into(), &"protocol_violation".into())
        );
    }
    Ok(())
}

#[test]
fn a_client_that_ends_without_close_notify_ends_the_connection() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let leaf = world.authority.leaf(&[NAME])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let gateway =
        world.gateway(&(listener("") + &route("app2", NAME, &terminate) + &pool("app2", &[7001], "")))?;
    let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
    let mut duplex = client.connect(world.connect(443)?, NAME)?;
    duplex.writer.write_all(b"x")?;
    duplex.reader.read_exact(&mut [0])?;
    duplex.socket.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    // Clean or not, the end comes.
    let _ = duplex.reader.read_to_end(&mut rest);
    assert!(rest.is_empty());
    let log = gateway.wait_access_log(1)?;
    assert_eq!(log[0]["bytes_in"], 1, "{log:?}");
    assert_eq!(gateway.status()?.route("app2", "active"), 0);
    Ok(())
}

#[test]
fn a_post_quantum_key_exchange_is_preferred() -> Result<()> {
    let scene = Scene::new("")?;
    let client = Client::new(&scene.world.authority.path, rustls::ALL_VERSIONS, None)?;
    let group = client.key_exchange_group(scene.world.connect(443)?, NAME)?;
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    Ok(())
}

#[test]
fn gnutls_is_served() -> Result<()> {
    let scene = Scene::new("")?;
    let mut gnutls = scene.world.net.client.command("gnutls-cli");
    gnutls.args(["--sni-hostname", NAME, "--verify-hostname", NAME, "-p", "443", "10.0.1.1", "--x509cafile"]);
    gnutls.arg(&scene.world.authority.path).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = gnutls.spawn()?;
    child.stdin.take().context("a pipe")?.write_all(b"GET name\r\nquit\r\n")?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Handshake was completed"), "{text}");
    Ok(())
}

#[test]
fn terminated_and_passed_through_routes_share_a_port() -> Result<()> {
    let world = World::new()?;
    let server = &world.net.server;
    let app1 = world.authority.leaf(&["app1.redis.example.com"])?;
    let app2 = world.authority.leaf(&[NAME])?;
    let _tls = Redis::tls(server, 6379, &app1)?.named(server, "passed through")?;
    let _plain = Redis::plain(server, 6380)?.named(server, "terminated")?;
    let config = listener("")
        + &passthrough("app1", "app1.redis.example.com")
        + &route("app2", NAME, &format!("tls = 'terminate'\ncertificate = {}", app2.toml()))
        + &pool("app1", &[6379], "")
        + &pool("app2", &[6380], "");
    let gateway = world.gateway(&config)?;

    let big = fs::read(gateway.config_file())?.repeat(2000);
    for (sni, name) in [("app1.redis.example.com", "passed through"), (NAME, "terminated")] {
        let redis = |args: &[&str]| {
            checked_output(tls_cli(&world.net.client, "10.0.1.1", 443, sni, &world.authority.path).args(args))
        };
        assert_eq!(redis(&["get", "name"])?.trim(), name);
        // Several MiB each way through the real client.
        let mut set = tls_cli(&world.net.client, "10.0.1.1", 443, sni, &world.authority.path);
        let mut set = set.args(["-x", "set", "big"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        set.stdin.take().context("a pipe")?.write_all(&big)?;
        assert!(set.wait()?.success());
        assert!(redis(&["get", "big"])?.trim_end().as_bytes() == big.trim_ascii_end());
    }
    let log = gateway.wait_access_log(6)?;
    for line in &log {
        let terminated = line["route"] == "app2";
        assert_eq!(line["tier"], "copy");
        assert_eq!(line["tier_reason"] == "tls_terminated", terminated, "{line}");
    }
    Ok(())
}

#[test]
fn a_client_that_goes_away_in_the_handshake_is_counted_as_such() -> Result<()> {
    let scene = Scene::new("")?;
    let output = SClient::start(&scene.world, NAME, ["-tls1_2", "-cipher", "AES128-SHA"])?.wait_end()?;
    assert!(output.contains("alert handshake failure"), "{output}");
    assert_eq!(scene.gateway.wait_access_log(1)?[0]["close_reason"], "tls_handshake_failed");
    let quiet = SClient::start(&scene.world, NAME, NO_ARGS)?;
    quiet.wait_for("Verification: OK")?;
    Ok(())
}
