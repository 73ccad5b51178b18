//! One process takes over from another while both live: the connections and ports of this tier are those of one gateway.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::process::{Process, checked_output};
use snisplice_tests::pump::Duplex;
use snisplice_tests::topology::{GATEWAY, GATEWAY6, Triangle};
use snisplice_tests::{Authority, Gateway, Redis, eventually, require};

use crate::PACKET;
use crate::case::{Expect, counters, grown, no_faults};
use crate::ends::{Opening, PATIENCE, SERVER_PORT, SNI, Speech};
use crate::scene::{Scene, meets_reset};

/// A byte each way.
fn lives((client, server, _): &mut (Duplex, TcpStream, u64)) -> Result<()> {
    client.writer.write_all(b"x")?;
    server.read_exact(&mut [0])?;
    server.write_all(b"y")?;
    Ok(client.reader.read_exact(&mut [0])?)
}

/// Real clients that connect anew for each question, over both families, while the process is replaced three times in a row.
#[test]
fn under_load_nobody_is_refused_and_connections_come_to_this_tier() -> Result<()> {
    let net = Triangle::new()?;
    let authority = Authority::new("test")?;
    let _redis = Redis::tls(&net.server, SERVER_PORT, &authority.leaf(&[SNI])?)?;
    let mut config = String::from(
        "[gateway]\nworkers = 2\n[[listener]]\nname = 'l'\nbind = ['0.0.0.0:443', '[::]:443']\n",
    );
    config += &format!(
        "[[route]]\nname = 'app1'\nlistener = 'l'\nsni = ['{SNI}']\nbackends = ['app1']\n\
         [[pool]]\nname = 'app1'\nservers = ['{}']\n",
        std::net::SocketAddr::new(net.server_addresses[0], SERVER_PORT)
    );
    let mut gateway = Gateway::start(&net.gateway, &config)?;
    let mut loads = Vec::new();
    for host in [GATEWAY.to_string(), GATEWAY6.to_string()] {
        let mut benchmark = net.client.command("redis-benchmark");
        benchmark.args(["-h", &host, "-p", "443", "--tls", "--sni", SNI, "--cacert"]).arg(&authority.path);
        benchmark.args(["-k", "0", "-c", "4", "-n", "3000", "-t", "ping_mbulk"]);
        loads.push(Process::spawn("redis-benchmark", benchmark)?);
    }
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(500));
        gateway.replace()?;
    }
    ensure!(loads.iter_mut().all(Process::is_running), "the load was over before the last take-over");
    for load in &mut loads {
        let status = load.wait(Duration::from_secs(300))?;
        ensure!(status.success() && !load.output().contains("rror"), "{status}: {}", load.output());
    }
    let log = gateway.wait_access_log(6000)?;
    let v4 =
        log.iter().filter(|line| line["client"].as_str().is_some_and(|client| client.starts_with("10.")));
    let mut late = 0;
    for line in v4 {
        match line["tier_reason"].as_str() {
            // The benchmark hangs up on those that are still open when it has all its answers.
            Some("taken_over" | "closing") => late += 1,
            _ => Expect::Packet.check(line)?,
        }
    }
    // Those that were accepted last by each process.
    ensure!(late <= 4 * 4, "{late} were late");
    let status = gateway.status()?;
    ensure!(status.listener("l", "active") == 0 && status.0["draining"].is_null(), "{status:?}");
    Ok(())
}

#[test]
fn a_successor_that_vanishes_leaves_the_tier_as_it_was() -> Result<()> {
    require!(PACKET, "there is no tier to leave");
    for v6 in [false, true] {
        let scene = Scene::new(Opening { v6, ..Opening::default() }, "")?;
        let before = counters(&scene.net)?;
        let mut first = scene.connection()?;
        let mut ended = scene.connection()?;
        scene.spliced(2)?;
        for round in 0..3 {
            let mut half = scene.gateway.half_successor()?;
            lives(&mut first)?;
            half.freeze()?;
            lives(&mut first).context("nobody looks after it")?;
            if round == 0 {
                // It ends while nobody sees it.
                ended.0.writer.finish()?;
                ensure!(ended.1.read(&mut [0])? == 0);
                ended.1.shutdown(std::net::Shutdown::Both)?;
                ensure!(ended.0.reader.read(&mut [0])? == 0);
                ensure!(scene.gateway.access_log()?.is_empty());
            }
            drop(half);
            let mut next = scene.connection().context("after the other process has vanished")?;
            let live = scene.spliced(2)?;
            lives(&mut next)?;
            drop(next.1);
            ensure!(next.0.reader.read(&mut [0])? == 0);
            drop(next.0);
            let log = scene.gateway.wait_access_log(round + 2)?;
            ensure!(log.iter().all(|line| Expect::Packet.check(line).is_ok()), "{log:?}");
            ensure!(live.len() == 2);
        }
        lives(&mut first)?;
        // Ends by its will come through as well.
        let id = scene.spliced(1)?[0]["id"].to_string();
        ensure!(scene.gateway.cli(["kill", &id])?.status.success());
        meets_reset(&first.0.socket)?;
        meets_reset(&first.1)?;
        no_faults(&scene.net, &grown(&scene.net, &before)?, &["Tcp.EstabResets"])?;
    }
    Ok(())
}

/// One that was killed at any moment: either the old process goes on, or the new one had become the gateway.
#[test]
fn a_successor_that_is_killed_at_any_moment_costs_no_connection() -> Result<()> {
    require!(PACKET, "only the packet tier outlives the process");
    let mut scene = Scene::new(Opening { speech: Speech::Tcp, ..Opening::default() }, "")?;
    let mut live = scene.connection()?;
    scene.spliced(1)?;
    for pause in (0..12).map(|nth| Duration::from_millis(nth * 8)) {
        let mut successor = scene.gateway.successor()?;
        thread::sleep(pause);
        successor.signal(Signal::SIGKILL)?;
        successor.wait(PATIENCE)?;
        lives(&mut live)?;
        // Reloads wait for a successor: when this one is answered, it is decided which of them is the gateway.
        if !scene.gateway.cli(["reload"])?.status.success() {
            // It has nothing to drain, and ends.
            scene.gateway.process.wait(PATIENCE)?;
            let said = scene.gateway.process.stderr();
            ensure!(said.contains("taken over: this process drains"), "{said}");
            scene.gateway.start_again()?;
        }
        scene.spliced(1).with_context(|| format!("killed after {pause:?}"))?;
        let mut next = scene.connection()?;
        scene.spliced(2)?;
        lives(&mut next)?;
        drop(next.1);
        ensure!(next.0.reader.read(&mut [0])? == 0);
    }
    Ok(())
}

#[test]
fn limits_hold_over_connections_of_both_processes() -> Result<()> {
    require!(PACKET, "the copy tier's have a test of their own");
    let mut scene = Scene::with_gateway(Opening::default(), "[gateway]\nmax_connections = 2\n", "")?;
    let mut first = scene.connection()?;
    scene.spliced(1)?;
    scene.gateway.replace()?;
    let _second = scene.connection()?;
    scene.spliced(2)?;
    scene.gateway.replace()?;
    ensure!(scene.connection().is_err(), "a third");
    lives(&mut first)?;
    scene.spliced(2)?;
    drop(first);
    scene.gateway.wait_access_log(1)?;
    scene.connection().map(drop)
}

/// The server's kernel does not get the client's first words for a while, which the gateway's socket has to deliver.
#[test]
fn a_handover_under_way_is_finished_by_the_process_that_began_it() -> Result<()> {
    require!(PACKET, "there are no handovers");
    let mut scene = Scene::new(Opening::default(), "")?;
    let rules = "add table netdev hole; \
                 add chain netdev hole in { type filter hook ingress device eth0 priority 0; }; \
                 add rule netdev hole in ip length > 100 drop";
    checked_output(scene.net.server.command("nft").arg(rules))?;
    let (client, said) = scene.opening.open(&scene.net.client)?;
    let begun =
        || scene.gateway.connections().ok()?.first().is_some_and(|c| c["tier"] == "packet").then_some(());
    eventually("the handover to begin", begun)?;
    let mut before = scene.gateway.take_over()?;
    ensure!(before.is_running(), "it has a socket that is not empty");
    let status = scene.gateway.status()?;
    ensure!(status.0["draining"][0]["connections"] == 1, "{status:?}");
    checked_output(scene.net.server.command("nft").args(["flush", "ruleset"]))?;
    let mut ends = scene.connected(client, said)?;
    before.wait(PATIENCE)?;
    lives(&mut ends)?;
    scene.spliced(1)?;
    let status = scene.gateway.wait_status("nobody to drain", |status| status.0["draining"].is_null())?;
    ensure!(status.listener("databases", "active") == 1, "{status:?}");
    drop(ends);
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["bytes_in"] == said + 5 && log[0]["bytes_out"] == 5, "{log:?}");
    Expect::Packet.check(&log[0])
}
