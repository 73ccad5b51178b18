//! route: which route a name and a protocol find, and which server of a pool.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::thread;

use anyhow::{Context, Result};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Status};

use crate::config::{listener, one_route, passthrough, pool, route, server};
use crate::openssl::SClient;
use crate::world::{World, answer};
use snisplice_tests::backend::{Backend, naming, naming_and_holding};

#[test]
fn an_exact_name_beats_a_long_wildcard_beats_a_short_one_beats_the_default() -> Result<()> {
    let world = World::new()?;
    let names = ["exact", "long", "short", "default"];
    let snis = ["db.eu.example.com", "*.eu.example.com", "*.example.com", "*"];
    let mut config = listener("");
    let mut backends = Vec::new();
    for (i, (name, sni)) in names.into_iter().zip(snis).enumerate() {
        let port = 7001 + u16::try_from(i)?;
        config += &(passthrough(name, sni) + &pool(name, &[port], ""));
        backends.push(Backend::start(&world.net.server, port, naming(name))?);
    }
    let gateway = world.gateway(&config)?;

    for (sni, name) in [
        ("db.eu.example.com", "exact"),
        ("db2.eu.example.com", "long"),
        ("a.b.eu.example.com", "long"),
        ("db.us.example.com", "short"),
        ("eu.example.com", "short"),
        ("example.com", "default"),
        ("db.example.org", "default"),
        // An address is not sent as SNI: a client without one.
        ("10.0.1.1", "default"),
    ] {
        assert_eq!(world.ask(sni)?, name, "{sni}");
    }
    let status = gateway.wait_status("eight connections", |s| s.listener("databases", "active") == 0)?;
    assert_eq!(names.map(|name| status.route(name, "total")), [1, 2, 2, 3]);
    Ok(())
}

#[test]
fn the_protocol_a_client_offers_chooses_among_routes_of_one_name() -> Result<()> {
    let world = World::new()?;
    let _postgres = Backend::start(&world.net.server, 7001, naming("postgres"))?;
    let _other = Backend::start(&world.net.server, 7002, naming("other"))?;
    let config = listener("")
        + &route("postgres", "app1.example.com", "tls = 'passthrough'\nalpn = ['postgresql']")
        + &route("other", "app1.example.com", "tls = 'passthrough'")
        + &pool("postgres", &[7001], "")
        + &pool("other", &[7002], "");
    let _gateway = world.gateway(&config)?;

    let ask = |alpn: &[&[u8]]| -> Result<String> {
        let mut stream = world.connect(443)?;
        stream.write_all(&client_hello("app1.example.com", alpn))?;
        Ok(answer(stream))
    };
    assert_eq!(ask(&[b"postgresql"])?, "postgres");
    assert_eq!(ask(&[b"h2", b"postgresql"])?, "postgres");
    assert_eq!(ask(&[b"h2"])?, "other");
    assert_eq!(ask(&[])?, "other");
    Ok(())
}

#[test]
fn weights_share_connections_out_between_pools() -> Result<()> {
    let world = World::new()?;
    let _old = Backend::start(&world.net.server, 7001, naming("old"))?;
    let _new = Backend::start(&world.net.server, 7002, naming("new"))?;
    let backends =
        "tls = 'passthrough'\nbackends = [{ pool = 'old', weight = 99 }, { pool = 'new', weight = 1 }]";
    let config = listener("")
        + &route("app1", "app1.example.com", backends)
        + &pool("old", &[7001], "")
        + &pool("new", &[7002], "");
    let gateway = world.gateway(&config)?;

    thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| (0..250).try_for_each(|_| world.ask("app1.example.com").map(drop))))
            .collect();
        clients.into_iter().try_for_each(|client| client.join().expect("the client does not panic"))
    })?;
    let status = gateway.wait_status("1000 connections", |s| s.route("app1", "total") == 1000)?;
    let new = total(&status, "new", 7002);
    // Drawn at random, 10 are expected with a deviation of 3; none, or 30, happen once in 20 000 runs.
    assert!((1..30).contains(&new), "{new} of 1000 went to the pool of weight 1");
    assert_eq!(total(&status, "old", 7001), 1000 - new);
    Ok(())
}

#[test]
fn round_robin_takes_turns_across_workers() -> Result<()> {
    let world = World::new()?;
    let _backends = [7001, 7002, 7003].map(|port| Backend::start(&world.net.server, port, naming("x")));
    let config = format!("[gateway]\nworkers = 2\n{}", listener(""))
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001, 7002, 7003], "balance = 'round-robin'");
    let gateway = world.gateway(&config)?;
    for _ in 0..30 {
        world.ask("app1.example.com")?;
    }
    let status = gateway.wait_status("30 connections", |s| s.route("app1", "total") == 30)?;
    assert_eq!([7001, 7002, 7003].map(|port| total(&status, "app1", port)), [10, 10, 10]);
    Ok(())
}

#[test]
fn a_servers_weight_is_its_share_of_the_turns() -> Result<()> {
    let world = World::new()?;
    let _backends = [7001, 7002].map(|port| Backend::start(&world.net.server, port, naming("x")));
    let servers =
        format!("[{{ address = '{}', weight = 3 }}, {{ address = '{}' }}]", server(7001), server(7002));
    let config = listener("")
        + &passthrough("app1", "app1.example.com")
        + &format!("[[pool]]\nname = 'app1'\nbalance = 'round-robin'\nservers = {servers}\n");
    let gateway = world.gateway(&config)?;
    for _ in 0..40 {
        world.ask("app1.example.com")?;
    }
    let status = gateway.wait_status("40 connections", |s| s.route("app1", "total") == 40)?;
    assert_eq!([7001, 7002].map(|port| total(&status, "app1", port)), [30, 10]);
    Ok(())
}

#[test]
fn least_connections_fills_up_the_server_that_has_fewer() -> Result<()> {
    let world = World::new()?;
    let _a = Backend::start(&world.net.server, 7001, naming_and_holding("a"))?;
    let _b = Backend::start(&world.net.server, 7002, naming_and_holding("b"))?;
    let config = listener("")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001, 7002], "balance = 'least-connections'");
    let gateway = world.gateway(&config)?;
    let open = || -> Result<(u8, TcpStream)> {
        let mut stream = world.open("app1.example.com")?;
        let mut name = [0];
        stream.read_exact(&mut name)?;
        Ok((name[0], stream))
    };

    let held = (0..6).map(|_| open()).collect::<Result<Vec<_>>>()?;
    assert_eq!(held.iter().filter(|(name, _)| *name == b'a').count(), 3);

    let held: Vec<_> = held.into_iter().filter(|(name, _)| *name == b'b').collect();
    wait_active(&gateway, 7001, 0)?;
    let again = (0..3).map(|_| open()).collect::<Result<Vec<_>>>()?;
    assert!(again.iter().all(|(name, _)| *name == b'a'), "the emptied server was passed over");
    drop(held);
    Ok(())
}

fn wait_active(gateway: &Gateway, port: u16, active: u64) -> Result<()> {
    gateway
        .wait_status("the server's active connections", |s| {
            s.server("app1", &server(port))["active"].as_u64() == Some(active)
        })
        .map(drop)
}

#[test]
fn source_hash_sends_a_client_to_the_same_server_every_time() -> Result<()> {
    let world = World::new()?;
    let _backends = [7001, 7002, 7003].map(|port| Backend::start(&world.net.server, port, naming("x")));
    let config = listener("")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001, 7002, 7003], "balance = 'source-hash'");
    let gateway = world.gateway(&config)?;
    for _ in 0..20 {
        world.ask("app1.example.com")?;
    }
    let status = gateway.wait_status("20 connections", |s| s.route("app1", "total") == 20)?;
    let mut totals = [7001, 7002, 7003].map(|port| total(&status, "app1", port));
    totals.sort_unstable();
    assert_eq!(totals, [0, 0, 20]);
    Ok(())
}

#[test]
fn random_uses_every_server() -> Result<()> {
    let world = World::new()?;
    let _backends = [7001, 7002].map(|port| Backend::start(&world.net.server, port, naming("x")));
    let config = listener("")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001, 7002], "balance = 'random'");
    let gateway = world.gateway(&config)?;
    for _ in 0..60 {
        world.ask("app1.example.com")?;
    }
    let status = gateway.wait_status("60 connections", |s| s.route("app1", "total") == 60)?;
    let first = total(&status, "app1", 7001);
    // 30 expected, deviation 4.
    assert!((8..=52).contains(&first), "{first} of 60");
    assert_eq!(total(&status, "app1", 7002), 60 - first);
    Ok(())
}

#[test]
fn openssl_is_told_that_the_name_is_not_recognised() -> Result<()> {
    let world = World::new()?;
    let gateway = world.gateway(&one_route())?;
    for version in ["-tls1_2", "-tls1_3"] {
        let output = SClient::start(&world, "nobody.example.com", [version])?.wait_end()?;
        assert!(output.contains("unrecognized name"), "{version}: {output}");
    }
    gateway.wait_status("both to be counted", |s| s.rejects("databases", "unknown_sni") == 2)?;
    Ok(())
}

#[test]
fn gnutls_is_told_that_the_name_is_not_recognised() -> Result<()> {
    let world = World::new()?;
    let gateway = world.gateway(&one_route())?;
    let mut gnutls = world.net.client.command("gnutls-cli");
    gnutls.args(["--insecure", "--sni-hostname", "nobody.example.com", "-p", "443", "10.0.1.1"]);
    let output = gnutls.stdin(Stdio::null()).output().context("gnutls-cli")?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(text.contains("[112]"), "{text}");
    gateway.wait_status("one to be counted", |s| s.rejects("databases", "unknown_sni") == 1)?;
    Ok(())
}

fn total(status: &Status, pool: &str, port: u16) -> u64 {
    status.server(pool, &server(port))["total"].as_u64().unwrap_or(0)
}
