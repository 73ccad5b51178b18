//! Real programs at both ends: Redis over TLS with redis-cli, redis-benchmark and openssl.

use std::io::Write;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use snisplice_tests::process::{self, checked_output};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::topology::{GATEWAY, GATEWAY6, Triangle};
use snisplice_tests::{Authority, Gateway, Redis};

use crate::case::{Expect, config, counters, grown, no_part_in_it};
use crate::ends::{Opening, SERVER_PORT, SNI};

struct Scene {
    net: Triangle,
    gateway: Gateway,
    authority: Authority,
    _redis: Redis,
}

impl Scene {
    fn new(v6: bool) -> Result<Self> {
        process::PRINT_OUTPUT.store(true, Ordering::Relaxed);
        let net = Triangle::new()?;
        let authority = Authority::new("snisplice test authority")?;
        let redis =
            Redis::tls(&net.server, SERVER_PORT, &authority.leaf(&[SNI])?)?.named(&net.server, "app1")?;
        let opening = Opening { v6, ..Opening::default() };
        let config = config(&opening, net.server_addresses[usize::from(v6)], None, "");
        let gateway = Gateway::start(&net.gateway, &config)?;
        Ok(Self { net, gateway, authority, _redis: redis })
    }

    fn all_in_the_tier(&self, connections: usize) -> Result<()> {
        let log = self.gateway.wait_access_log(connections)?;
        log.iter().try_for_each(|line| Expect::Packet.check(line))
    }
}

#[test]
fn redis_cli_asks_and_gets_a_long_answer() -> Result<()> {
    for v6 in [false, true] {
        let scene = Scene::new(v6)?;
        let before = counters(&scene.net)?;
        let host = if v6 { GATEWAY6.to_string() } else { GATEWAY.to_string() };
        let cli = |args: &[&str]| {
            let mut command = tls_cli(&scene.net.client, &host, 443, SNI, &scene.authority.path);
            checked_output(command.args(args))
        };
        ensure!(cli(&["get", "name"])? == "app1\n");
        let long = "x".repeat(100_000);
        ensure!(cli(&["set", "long", &long])? == "OK\n");
        ensure!(cli(&["append", "long", &long])? == "200000\n");
        ensure!(cli(&["get", "long"])?.trim_end() == long.repeat(2));
        scene.all_in_the_tier(4)?;
        // redis-cli resets its connection, with what openssl has not read in it.
        let [_, gateway, _] = grown(&scene.net, &before)?;
        no_part_in_it(&gateway)?;
    }
    Ok(())
}

#[test]
fn redis_benchmark_with_fifty_connections() -> Result<()> {
    let scene = Scene::new(false)?;
    let mut benchmark = scene.net.client.command("redis-benchmark");
    benchmark.args(["-h", &GATEWAY.to_string(), "-p", "443", "--tls", "--sni", SNI, "--cacert"]);
    benchmark.arg(&scene.authority.path).args([
        "-c",
        "50",
        "-n",
        "10000",
        "-t",
        "set,get,lrange_300",
        "--csv",
    ]);
    let report = checked_output(&mut benchmark)?;
    // A headline, one line to fill the list, and three tests.
    ensure!(report.lines().filter(|line| line.starts_with('"')).count() == 5, "{report}");
    // Fifty each, and what it asks before.
    scene.all_in_the_tier(200)
}

#[test]
fn openssl_types_a_command_and_reads_the_answer() -> Result<()> {
    let scene = Scene::new(false)?;
    let mut openssl = scene.net.client.command("openssl");
    openssl.args(["s_client", "-quiet", "-verify_return_error", "-servername", SNI, "-CAfile"]);
    openssl.arg(&scene.authority.path).args(["-connect", &format!("{GATEWAY}:443")]);
    let mut child = openssl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    child.stdin.as_mut().context("piped")?.write_all(b"GET name\r\nQUIT\r\n")?;
    let output = child.wait_with_output()?;
    ensure!(output.stdout == b"$4\r\napp1\r\n+OK\r\n", "{:?}", String::from_utf8_lossy(&output.stdout));
    scene.all_in_the_tier(1)
}
