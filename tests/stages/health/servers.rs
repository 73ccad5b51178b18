//! What is the same for all servers: TCP, TLS and HTTP, states and reasons, and reloads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::Result;
use rcgen::date_time_ymd;
use snisplice_tests::backend::{Backend, naming};
use snisplice_tests::process::checked_output;
use snisplice_tests::{Redis, eventually};

use super::{get, metric, tcp, wait_states};
use crate::config::{listener, passthrough, pool, server};
use crate::world::{World, silence};

const ADMIN: &str = "[gateway]\nadmin = '127.0.0.1:9900'\n";

#[test]
fn a_server_that_fails_its_checks_gets_no_connections_until_it_passes_them() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.server;
    let _one = Backend::start(ns, 7001, naming("one"))?;
    let two = Backend::start(ns, 7002, naming("two"))?;
    let check = "health = { check = 'tcp', interval = '100ms', rise = 2, fall = 3 }";
    let config =
        listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001, 7002], check);
    let gateway = world.gateway(&(ADMIN.to_owned() + &config))?;
    let up = wait_states(&gateway, "app1", &[(7001, "up"), (7002, "up")])?;
    assert!(up.server("app1", &server(7001))["state_seconds"].as_f64().is_some());
    drop(two);
    let down = wait_states(&gateway, "app1", &[(7001, "up"), (7002, "down: refused")])?;
    let before = down.server("app1", &server(7002))["total"].clone();
    for _ in 0..6 {
        assert_eq!(world.ask("app1.example.com")?, "one");
    }
    let text = String::from_utf8(gateway.cli(["status"])?.stdout)?;
    assert!(text.contains("refused"), "{text}");
    let labels = |port, result| format!("{{pool=\"app1\",server=\"{}\"{result}}}", server(port));
    assert_eq!(metric(&world, &format!("snisplice_server_up{}", labels(7001, "")))?, 1);
    assert_eq!(metric(&world, &format!("snisplice_server_up{}", labels(7002, "")))?, 0);
    let refused = format!("snisplice_server_checks_total{}", labels(7002, ",result=\"refused\""));
    assert!(metric(&world, &refused)? >= 3);
    assert!(get(&world, "/readyz")?.ends_with("ready\n200"));
    assert_eq!(gateway.status()?.server("app1", &server(7002))["total"], before);

    let _two = Backend::start(ns, 7002, naming("two"))?;
    wait_states(&gateway, "app1", &[(7001, "up"), (7002, "up")])?;
    let said = gateway.process.stderr();
    for told in ["down: refused", " up "] {
        let line = said.lines().find(|line| line.contains(&server(7002)) && line.contains(told.trim()));
        assert!(line.is_some_and(|line| line.contains("app1")), "{told}: {said}");
    }
    Ok(())
}

#[test]
fn a_server_is_asked_once_an_interval_however_many_workers_there_are() -> Result<()> {
    const INTERVALS: usize = 10;
    let world = World::new()?;
    let (asked, times) = mpsc::channel();
    let _one = Backend::start(&world.net.server, 7001, move |_| {
        let _ = asked.send(Instant::now());
        Ok(())
    })?;
    let check = "health = { check = 'tcp', interval = '200ms', timeout = '200ms' }";
    let config = listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001], check);
    let _gateway = world.gateway(&("[gateway]\nworkers = 4\n".to_owned() + &config))?;
    let times: Vec<Instant> = times.iter().take(1 + INTERVALS).collect();
    // Two probers would need half of it. An interval is shorter by up to a tenth; a busy machine only makes it longer, but
    // for the first, which may be seen late.
    let took = times[INTERVALS] - times[0];
    assert!(took >= Duration::from_millis(200) * 7, "{took:?}");
    Ok(())
}

/// Ten thousand servers that are checked every five seconds would have 120 000 sockets in TIME_WAIT.
#[test]
fn a_check_of_tcp_leaves_no_socket_behind() -> Result<()> {
    let world = World::new()?;
    let _one = Backend::start(&world.net.server, 7001, naming("one"))?;
    let check = "health = { check = 'tcp', interval = '100ms', timeout = '100ms' }";
    let config = listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001], check);
    let _gateway = world.gateway(&(ADMIN.to_owned() + &config))?;
    let checks =
        format!("snisplice_server_checks_total{{pool=\"app1\",server=\"{}\",result=\"ok\"}}", server(7001));
    eventually("some checks", || metric(&world, &checks).is_ok_and(|checks| checks >= 5).then_some(()))?;
    let left = checked_output(world.net.gateway.command("ss").args(["-Htan", "state", "time-wait"]))?;
    assert!(!left.contains(&server(7001)), "{left}");
    Ok(())
}

#[test]
fn all_down_is_refused_at_once_for_a_reason_of_its_own() -> Result<()> {
    let world = World::new()?;
    silence(&world.net.server, "tcp dport { 7001, 7002 }")?;
    // A connection that was tried would wait for longer than the client.
    let check = "connect_timeout = '600s'\nhealth = { check = 'tcp', interval = '200ms', timeout = '200ms', fall = 1 }";
    let config =
        listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001, 7002], check);
    let gateway = world.gateway(&(ADMIN.to_owned() + &config))?;
    wait_states(&gateway, "app1", &[(7001, "down: timeout"), (7002, "down: timeout")])?;
    assert_eq!(world.ask("app1.example.com")?, "");
    assert_eq!(gateway.wait_access_log(1)?[0]["close_reason"], "pool_down");
    assert_eq!(metric(&world, "snisplice_closes_total{route=\"app1\",reason=\"pool_down\"}")?, 1);
    assert_eq!(get(&world, "/readyz")?, "pool app1 has no usable server: 2 down, timeout\n503");
    let said = gateway.process.stderr();
    assert!(said.contains("no server is up: connections are refused"), "{said}");

    let drained = format!("app1/{}", server(7001));
    gateway.cli(["drain", &drained])?;
    wait_states(&gateway, "app1", &[(7001, "draining"), (7002, "down: timeout")])?;
    Ok(())
}

#[test]
fn a_certificate_is_for_the_name_of_today_and_of_the_authority() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.server;
    let good = world.authority.leaf(&["redis.internal"])?;
    let old = world.authority.leaf_as(&["old.internal"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    })?;
    let _servers = [Redis::tls(ns, 7001, &good)?, Redis::tls(ns, 7002, &old)?];
    let _clear = Backend::start(ns, 7003, naming("no TLS"))?;
    let stranger = snisplice_tests::Authority::new("another")?;
    let check = |kind: &str, tls: &str| {
        format!("health = {{ check = '{kind}', interval = '20s', timeout = '20s', tls = {{ {tls} }} }}")
    };
    let ca = format!("ca = {:?}", world.authority.path);
    let named = format!("{ca}, server_name = 'redis.internal'");
    let strangers = format!("ca = {:?}, server_name = 'redis.internal'", stranger.path);
    let checks = [
        ("any", "tls", String::new(), 7001, "up"),
        ("good", "tls", named.clone(), 7001, "up"),
        ("redis", "redis", named.clone(), 7001, "up"),
        ("misnamed", "tls", format!("{ca}, server_name = 'other.internal'"), 7001, "down: certificate_name"),
        ("named", "tls", "server_name = 'redis.internal'".into(), 7001, "up"),
        ("any-misnamed", "tls", "server_name = 'other.internal'".into(), 7001, "down: certificate_name"),
        ("stranger", "tls", strangers, 7001, "down: unknown_ca"),
        // Its address is its name, and not in the certificate.
        ("address", "tls", ca.clone(), 7001, "down: certificate_name"),
        ("old", "tls", format!("{ca}, server_name = 'old.internal'"), 7002, "down: certificate_expired"),
        ("any-old", "tls", String::new(), 7002, "down: certificate_expired"),
        ("clear", "tls", String::new(), 7003, "down: tls_failed"),
    ];
    let config: String = (6000..)
        .zip(&checks)
        .map(|(at, (name, kind, tls, port, _))| tcp(name, at) + &pool(name, &[*port], &check(kind, tls)))
        .collect();
    let gateway = world.gateway(&config)?;
    for (name, _, _, port, expected) in &checks {
        wait_states(&gateway, name, &[(*port, expected)])?;
    }
    Ok(())
}

#[test]
fn the_status_of_http_counts_at_a_port_of_its_own() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.server;
    let _server = Backend::start(ns, 7001, naming("one"))?;
    let status = Arc::new(AtomicU16::new(200));
    let (current, (asked, requests)) = (status.clone(), std::sync::mpsc::channel());
    let _sidecar = Backend::start(ns, 8008, move |mut stream: TcpStream| {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        asked.send(String::from_utf8_lossy(&request).into_owned()).map_err(std::io::Error::other)?;
        write!(stream, "HTTP/1.1 {} Whatever\r\n\r\n", current.load(Ordering::Relaxed))
    })?;
    let check = |keys: &str| {
        let check = format!(
            "health = {{ check = 'http', interval = '100ms', fall = 1, rise = 1, port = 8008{keys} }}"
        );
        listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001], &check)
    };
    let gateway = world.gateway(&check(", path = '/primary', host = 'patroni.internal'"))?;
    wait_states(&gateway, "app1", &[(7001, "up")])?;
    assert_eq!(world.ask("app1.example.com")?, "one");
    let request = requests.recv()?;
    assert!(request.starts_with("GET /primary HTTP/1.1\r\nHost: patroni.internal\r\n"), "{request}");
    status.store(503, Ordering::Relaxed);
    wait_states(&gateway, "app1", &[(7001, "down: http_status")])?;
    assert!(gateway.process.stderr().contains("http_status: 503"));
    gateway.write_config(&check(", status = [503]"))?;
    gateway.reload()?;
    wait_states(&gateway, "app1", &[(7001, "up")])?;
    Ok(())
}

#[test]
fn a_check_announces_itself_where_connections_do() -> Result<()> {
    let world = World::new()?;
    let expecting = |header: &'static [u8]| {
        move |mut stream: TcpStream| {
            let expected = [header, b"*1\r\n$4\r\nPING\r\n"].concat();
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got)?;
            stream.write_all(if got == expected { b"+PONG\r\n" } else { b"-ERR not that\r\n" })
        }
    };
    let headers: [&[u8]; 3] = [b"PROXY UNKNOWN\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", b""];
    let [_v1, _v2, _none] =
        [0, 1, 2].map(|n| Backend::start(&world.net.server, 7001 + n, expecting(headers[usize::from(n)])));
    let check = "health = { check = 'redis', interval = '20s' }";
    let elsewhere = "send_proxy = 'v2'\nhealth = { check = 'redis', interval = '20s', port = 7003 }";
    let config = tcp("v1", 6001)
        + &pool("v1", &[7001], &format!("send_proxy = 'v1'\n{check}"))
        + &tcp("v2", 6002)
        + &pool("v2", &[7002], &format!("send_proxy = 'v2'\n{check}"))
        + &tcp("elsewhere", 6003)
        + &pool("elsewhere", &[7001], elsewhere);
    let gateway = world.gateway(&config)?;
    for (name, port) in [("v1", 7001), ("v2", 7002), ("elsewhere", 7001)] {
        wait_states(&gateway, name, &[(port, "up")])?;
    }
    Ok(())
}

#[test]
fn a_reload_keeps_what_is_known_of_a_server_and_its_rhythm() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.server;
    let _one = Backend::start(ns, 7001, naming("one"))?;
    // The first check is the only one.
    let check = "health = { check = 'tcp', interval = '24h' }";
    let config = |more: &[u16], check: &str| {
        let ports = [&[7001, 7002], more].concat();
        ADMIN.to_owned()
            + &listener("")
            + &passthrough("app1", "app1.example.com")
            + &pool("app1", &ports, check)
    };
    let gateway = world.gateway(&config(&[], check))?;
    wait_states(&gateway, "app1", &[(7001, "up"), (7002, "down: refused")])?;
    let checks = |port, result| {
        let server = server(port);
        metric(
            &world,
            &format!(
                "snisplice_server_checks_total{{pool=\"app1\",server=\"{server}\",result=\"{result}\"}}"
            ),
        )
    };
    assert_eq!((checks(7001, "ok")?, checks(7002, "refused")?), (1, 1));

    let _two = Backend::start(ns, 7002, naming("two"))?;
    gateway.write_config(&config(&[7003], check))?;
    gateway.reload()?;
    // One that is new is up until its first check, which counts at once.
    wait_states(&gateway, "app1", &[(7001, "up"), (7002, "down: refused"), (7003, "down: refused")])?;
    assert_eq!((checks(7001, "ok")?, checks(7002, "refused")?), (1, 1), "nobody is asked anew");
    for _ in 0..4 {
        assert_eq!(world.ask("app1.example.com")?, "one");
    }

    // Another check asks anew, and its first answer counts.
    gateway.write_config(&config(&[7003], "health = { check = 'tcp', interval = '23h', rise = 9 }"))?;
    gateway.reload()?;
    wait_states(&gateway, "app1", &[(7001, "up"), (7002, "up"), (7003, "down: refused")])?;

    // Who is not checked any more is not down for it.
    gateway.write_config(&config(&[7003], ""))?;
    gateway.reload()?;
    wait_states(&gateway, "app1", &[(7001, "up"), (7002, "up"), (7003, "up")])?;
    assert!(!get(&world, "/metrics")?.contains("snisplice_server_checks_total{"));
    Ok(())
}
