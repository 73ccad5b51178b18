//! account: what the access log, `status`, `connections` and the metrics say about a connection.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use snisplice_tests::gateway::Launch;
use snisplice_tests::process::checked_output;
use snisplice_tests::tls::{Client, client_hello};
use snisplice_tests::{Gateway, Redis};

use crate::config::{listener, one_route, passthrough, pool, route, server};
use crate::world::World;
use snisplice_tests::backend::{Backend, echo};

/// Each line of a connection names its client, so that one connection's can be picked out.
#[test]
fn the_log_tells_the_story_of_a_connection_if_it_is_asked_to() -> Result<()> {
    let stages = ["sniffed", "routed", "connected", "spliced", "closed"];
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    for (log, told) in [(Some("snisplice=debug"), &stages[..]), (None, &[])] {
        let launch = Launch { log, ..Launch::default() };
        let gateway = Gateway::start_with(&world.net.gateway, &one_route(), launch)?;
        let mut other = world.open("app1.example.com")?;
        other.read_exact(&mut [0; 1])?;
        let mut stream = world.open("app1.example.com")?;
        let client = stream.local_addr()?.to_string();
        stream.read_exact(&mut [0; 1])?;
        drop((stream, other));
        gateway.wait_access_log(2)?;

        let stderr = gateway.process.stderr();
        let story = stderr.lines().filter(|line| line.contains("connection{") && line.contains(&client));
        let seen: Vec<_> = story
            .filter_map(|line| stages.into_iter().find(|stage| line.contains(&format!(" {stage}"))))
            .collect();
        assert_eq!(seen, told, "{log:?}: {stderr}");
    }
    Ok(())
}

#[test]
fn the_access_log_tells_a_passed_through_connection_once_and_exactly() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&one_route())?;

    let hello = client_hello("app1.example.com", &[b"redis"]);
    let mut stream = world.connect(443)?;
    stream.write_all(&hello)?;
    stream.write_all(&[7; 1000])?;
    stream.read_exact(&mut vec![0; hello.len() + 1000])?;
    assert_eq!(gateway.access_log()?, [] as [Value; 0], "a line before the close");
    let client = stream.local_addr()?.to_string();
    drop(stream);

    let log = gateway.wait_access_log(1)?;
    assert_eq!(log.len(), 1);
    let line = &log[0];
    for (key, value) in [
        ("listener", json!("databases")),
        ("client", json!(client)),
        ("sni", json!("app1.example.com")),
        ("route", json!("app1")),
        ("pool", json!("app1")),
        ("server", json!(server(7001))),
        ("tier", json!("copy")),
        ("tier_reason", json!("packet_unavailable")),
        ("bytes_in", json!(hello.len() + 1000)),
        ("bytes_out", json!(hello.len() + 1000)),
        ("close_reason", json!("client_closed")),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert!(line["duration_ms"].is_number(), "{line}");
    assert!(line["time"].as_str().is_some_and(|time| time.starts_with("20") && time.contains('T')), "{line}");
    assert!(line["alpn"].to_string().contains("redis"), "{line}");
    // JA4: TCP, TLS 1.3, a domain name, then counts and hashes.
    assert!(line["ja4"].as_str().is_some_and(|ja4| ja4.starts_with("t13d") && ja4.len() == 36), "{line}");

    let status = gateway.status()?;
    assert_eq!(status.route("app1", "bytes_in"), hello.len() as u64 + 1000);
    assert_eq!(status.route("app1", "bytes_out"), hello.len() as u64 + 1000);
    Ok(())
}

#[test]
fn the_access_log_counts_the_plaintext_of_a_terminated_connection() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let config = listener("") + &route("app1", "app1.example.com", &terminate) + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
    let mut duplex = client.connect(world.connect(443)?, "app1.example.com")?;
    duplex.writer.write_all(&[7; 100_000])?;
    duplex.writer.finish()?;
    let mut back = Vec::new();
    duplex.reader.read_to_end(&mut back)?;
    assert_eq!(back.len(), 100_000);

    let line = gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&json!(100_000), &json!(100_000)));
    assert_eq!((&line["tier"], &line["tier_reason"]), (&json!("copy"), &json!("tls_terminated")));
    assert!(line["tls_version"].as_str().is_some_and(|version| version.contains("1.3")), "{line}");
    Ok(())
}

#[test]
fn the_text_format_is_one_readable_line() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world
        .gateway(&format!("[gateway]\naccess_log = {{ path = '-', format = 'text' }}\n{}", one_route()))?;
    drop(world.open("app1.example.com")?);
    let text = snisplice_tests::eventually("a line on standard output", || {
        Some(gateway.process.stdout()).filter(|text| text.contains("app1.example.com"))
    })?;
    let line = text.lines().find(|line| line.contains("app1.example.com")).context("a line")?;
    for part in ["10.0.1.2:", "databases", "app1", &server(7001), "copy"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.starts_with('{'), "{line}");
    Ok(())
}

#[test]
fn text_from_the_network_is_escaped_in_both_formats() -> Result<()> {
    for format in ["json", "text"] {
        let world = World::new()?;
        let _backend = Backend::start(&world.net.server, 7001, echo)?;
        let log = format!("[gateway]\naccess_log = {{ path = '-', format = '{format}' }}\n");
        let gateway = world.gateway(&(log + &one_route()))?;
        let mut stream = world.connect(443)?;
        let evil: [&[u8]; 2] = [b"\x1b[31m\"evil\"\nforged line", &[0xff; 200]];
        stream.write_all(&client_hello("app1.example.com", &evil))?;
        stream.read_exact(&mut [0; 100])?;
        drop(stream);
        let text = snisplice_tests::eventually("a line on standard output", || {
            Some(gateway.process.stdout()).filter(|text| text.contains("app1.example.com"))
        })?;
        let line = text.lines().find(|line| line.contains("app1.example.com")).context("a line")?;
        assert!(line.contains("evil"), "the protocol is logged: {line:?}");
        assert!(!text.contains('\x1b') && !text.contains("\nforged"), "{text:?}");
        assert!(line.len() < 2000, "{} bytes", line.len());
        if format == "json" {
            serde_json::from_str::<Value>(line).context(line.to_owned())?;
        }
    }
    Ok(())
}

/// Redis behind a passthrough and a terminated route, and a connection held open on each.
fn two_held_connections(world: &World) -> Result<(Gateway, Redis, [snisplice_tests::pump::Duplex; 2])> {
    let redis = Redis::plain(&world.net.server, 6379)?;
    let leaf = world.authority.leaf(&["terminated.example.com"])?;
    let config = "[gateway]\nadmin = '127.0.0.1:9900'\n".to_owned()
        + &listener("")
        + &passthrough("passthrough", "passthrough.example.com")
        + &route(
            "terminated",
            "terminated.example.com",
            &format!("tls = 'terminate'\ncertificate = {}", leaf.toml()),
        )
        + &pool("passthrough", &[6379], "")
        + &pool("terminated", &[6379], "");
    let gateway = world.gateway(&config)?;
    let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
    let mut terminated = client.connect(world.connect(443)?, "terminated.example.com")?;
    terminated.writer.write_all(b"PING\r\n")?;
    terminated.reader.read_exact(&mut [0; 7])?;
    let passed = world.open("passthrough.example.com")?;
    gateway.wait_status("two connections", |s| s.listener("databases", "active") == 2)?;
    Ok((gateway, redis, [passed.try_into()?, terminated]))
}

#[test]
fn status_has_the_shape_that_scripts_rely_on() -> Result<()> {
    let world = World::new()?;
    let (gateway, _redis, held) = two_held_connections(&world)?;
    let _ = world.ask("nobody.example.com")?;
    let status = gateway
        .wait_status("the reject to be over", |s| {
            s.rejects("databases", "unknown_sni") == 1 && s.listener("databases", "active") == 2
        })?
        .0;

    assert!(status["version"].is_string() && status["uptime_seconds"].is_number(), "{status}");
    for tier in ["packet", "sockmap", "copy"] {
        assert!(
            status["tiers"][tier]["active"].is_u64() && status["tiers"][tier]["total"].is_u64(),
            "{status}"
        );
    }
    assert_eq!(status["tiers"]["copy"]["active"], 2);
    assert_eq!(status["tier_fallbacks"]["tls_terminated"], 1);
    let listener = &status["listeners"][0];
    assert_eq!((&listener["name"], &listener["bind"]), (&json!("databases"), &json!(["0.0.0.0:443"])));
    assert_eq!(listener["active"], 2);
    let route = &status["routes"][1];
    assert_eq!(
        (&route["name"], &route["active"], &route["total"]),
        (&json!("terminated"), &json!(1), &json!(1))
    );
    assert_eq!((&route["bytes_in"], &route["bytes_out"]), (&json!(6), &json!(7)));
    let pool = &status["pools"][1];
    let server = &pool["servers"][0];
    assert_eq!((&pool["name"], &server["address"]), (&json!("terminated"), &json!("10.0.2.2:6379")));
    assert_eq!((&server["state"], &server["active"], &server["total"]), (&json!("up"), &json!(1), &json!(1)));

    // People get the same facts in words.
    let output = gateway.cli(["status"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    for part in ["databases", "terminated", "10.0.2.2:6379", "unknown_sni"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    drop(held);
    Ok(())
}

#[test]
fn connections_lists_live_ones_and_filters_them() -> Result<()> {
    let world = World::new()?;
    let (gateway, _redis, held) = two_held_connections(&world)?;
    let connections = gateway.connections()?;
    assert_eq!(connections.len(), 2);
    let line = connections.iter().find(|line| line["route"] == "terminated").context("the terminated one")?;
    for (key, value) in [
        ("client", json!(held[1].socket.local_addr()?.to_string())),
        ("listener", json!("databases")),
        ("sni", json!("terminated.example.com")),
        ("pool", json!("terminated")),
        ("server", json!("10.0.2.2:6379")),
        ("tier", json!("copy")),
        ("tier_reason", json!("tls_terminated")),
        ("bytes_in", json!(6)),
        ("bytes_out", json!(7)),
    ] {
        assert_eq!(line[key], value, "{key} in {line}");
    }
    assert!(
        line["age_seconds"].is_number() && line["idle_seconds"].is_number() && !line["id"].is_null(),
        "{line}"
    );
    assert_ne!(connections[0]["id"], connections[1]["id"]);

    for (filter, value) in [("--route", "terminated"), ("--sni", "terminated.example.com")] {
        let output = gateway.cli(["connections", "--json", filter, value])?;
        let listed: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        assert_eq!(listed.iter().map(|line| &line["route"]).collect::<Vec<_>>(), ["terminated"], "{filter}");
    }

    drop(held);
    gateway.wait_status("both to end", |s| s.listener("databases", "active") == 0)?;
    assert_eq!(gateway.connections()?, [] as [Value; 0]);
    Ok(())
}

#[test]
fn metrics_and_health_are_served_on_the_admin_address() -> Result<()> {
    let world = World::new()?;
    let (gateway, _redis, held) = two_held_connections(&world)?;
    let _ = world.ask("nobody.example.com")?;
    gateway.wait_status("the reject", |s| s.rejects("databases", "unknown_sni") == 1)?;
    drop(held);
    gateway.wait_status("all to end", |s| s.listener("databases", "active") == 0)?;

    let get = |path: &str| {
        let url = format!("http://127.0.0.1:9900{path}");
        checked_output(world.net.gateway.command("curl").args(["--fail", "--silent", "--show-error", &url]))
    };
    let metrics = get("/metrics")?;
    let sample = |name: &str, labels: &[&str]| -> Result<f64> {
        let line = metrics
            .lines()
            .find(|line| {
                line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|label| line.contains(label))
            })
            .with_context(|| format!("{name} {labels:?} in\n{metrics}"))?;
        line.rsplit(' ').next().context("a value")?.parse().with_context(|| line.to_owned())
    };
    let here = ["listener=\"databases\"", "route=\"terminated\"", "tier=\"copy\""];
    assert_eq!(sample("snisplice_connections_total", &here)?, 1.0);
    assert_eq!(sample("snisplice_connections_active", &here)?, 0.0);
    assert_eq!(sample("snisplice_bytes_total", &["route=\"terminated\"", "direction=\"in\""])?, 6.0);
    assert_eq!(sample("snisplice_bytes_total", &["route=\"terminated\"", "direction=\"out\""])?, 7.0);
    assert_eq!(
        sample("snisplice_rejects_total", &["listener=\"databases\"", "reason=\"unknown_sni\""])?,
        1.0
    );
    assert_eq!(sample("snisplice_closes_total", &["route=\"terminated\"", "reason=\"client_"])?, 1.0);
    // There before it has occurred, so that the first one is a growth.
    for reason in ["connect_failed", "connect_timeout", "no_server", "server_reset"] {
        let reason = format!("reason=\"{reason}\"");
        assert_eq!(sample("snisplice_closes_total", &["route=\"terminated\"", &reason])?, 0.0, "{reason}");
    }
    assert_eq!(sample("snisplice_tier_fallbacks_total", &["reason=\"tls_terminated\""])?, 1.0);
    assert_eq!(sample("snisplice_server_up", &["pool=\"terminated\"", "server=\"10.0.2.2:6379\""])?, 1.0);
    assert!(sample("snisplice_sniff_seconds_count", &[])? >= 2.0);
    assert!(sample("snisplice_connect_seconds_count", &[])? >= 2.0);
    // No label ever carries text a client chose.
    assert!(!metrics.contains("nobody") && !metrics.contains("terminated.example.com"), "{metrics}");

    get("/healthz")?;
    get("/readyz")?;
    let status: Value = serde_json::from_str(&get("/status")?)?;
    assert_eq!(status["routes"], gateway.status()?.0["routes"]);
    Ok(())
}
