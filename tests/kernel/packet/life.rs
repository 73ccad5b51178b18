//! The end of a connection by the gateway's will, and a gateway whose process ends before its connections.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, hint};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Map, MapData};
use lb_common::packet::{CONNECTIONS, Record, Tuple};
use nix::sys::signal::Signal;
use serde_json::Value;
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::{Plan, exchange, reset_on_close};
use snisplice_tests::skip::has_program;
use snisplice_tests::stranger::forget;
use snisplice_tests::topology::Triangle;
use snisplice_tests::{Backend, Gateway, Launch, eventually, require};

use crate::PACKET;
use crate::case::{Expect, MIB, config, counters, grown, no_faults};
use crate::dialogues::SMTP;
use crate::ends::{Opening, PATIENCE, SERVER_PORT, SNI, SocketOptions, Speech};
use crate::scene::{CONNTRACK, Scene, meets_reset};
use crate::strangers::{no_sockets, settled};

/// For the client its SYN-ACK, and the acknowledgement of its ClientHello; for the server a SYN, and the ClientHello, which
/// acknowledges its SYN-ACK.
#[test]
fn a_new_connection_takes_four_segments_of_the_gateways_own() -> Result<()> {
    for (v6, segment) in [(false, 1448), (true, 1428)] {
        let scene = Scene::new(Opening { v6, ..Opening::default() }, "")?;
        let mut live = 0;
        // Kept until the end, as their sockets would say something when they are closed.
        let mut kept = Vec::new();
        let sent_at_once = || -> Result<_> {
            let before = counters(&scene.net)?;
            let (client, server, said) = scene.connection()?;
            // Before the gateway is asked anything, by TCP.
            let [_, own, _] = grown(&scene.net, &before)?;
            kept.push((client, server));
            live += 1;
            scene.spliced(live)?;
            // On a busy machine a segment may be sent again as a probe, which is not counted as sent in all places.
            Ok((own.get("TcpExt.TCPLossProbes") == 0).then_some((own, said)))
        };
        let attempts = std::iter::repeat_with(sent_at_once).take(10);
        let counted = attempts.filter_map(Result::transpose).next().context("a probe each time")?;
        let (own, said) = counted?;
        let sent = own.get("Tcp.OutSegs") - own.get("Tcp.RetransSegs");
        // The ClientHello may be longer than one.
        ensure!(!PACKET || sent == 3 + said.div_ceil(segment), "{sent} with {said} bytes: {own:?}");
    }
    Ok(())
}

#[test]
fn an_idle_connection_is_reset_at_both_ends_and_a_busy_one_is_not() -> Result<()> {
    for v6 in [false, true] {
        idle_ends_and_busy_does_not(Opening { v6, ..Opening::default() }, Launch::default())?;
    }
    Ok(())
}

/// The programs read the machine's clock, the gateway that of its time namespace.
#[test]
fn in_a_time_namespace_idle_and_busy_are_what_they_are_elsewhere() -> Result<()> {
    require!(fs::exists("/proc/self/ns/time")?, "there are no time namespaces in this kernel");
    // Behind by less than the machine's age: no clock may be below zero.
    for monotonic_ahead in [100_000, -10] {
        let launch = Launch { monotonic_ahead: Some(monotonic_ahead), ..Launch::default() };
        let of_offset = || format!("CLOCK_MONOTONIC is ahead by {monotonic_ahead} s");
        idle_ends_and_busy_does_not(Opening::default(), launch).with_context(of_offset)?;
    }
    Ok(())
}

fn idle_ends_and_busy_does_not(opening: Opening, launch: Launch) -> Result<()> {
    let began = Instant::now();
    let scene = Scene::launched(opening, "", "idle_timeout = '3s'", |_| Ok(launch))?;
    let (idle_client, idle_server, said) = scene.connection()?;
    let (mut client, mut server, _) = scene.connection()?;
    let busy = client.socket.local_addr()?.to_string();
    // For longer than that, with pauses that are much shorter, whatever else this machine has to do.
    for round in 0..25 {
        let mut byte = [round];
        server.write_all(&byte)?;
        client.reader.read_exact(&mut byte)?;
        ensure!(byte == [round]);
        thread::sleep(Duration::from_millis(200));
    }
    let live = scene.gateway.connections()?;
    let shown = live.iter().find(|line| line["client"] == busy).with_context(|| format!("{live:?}"))?;
    for key in ["age_seconds", "idle_seconds"] {
        let seconds = shown[key].as_f64().unwrap_or(-1.0);
        ensure!((0.0..=began.elapsed().as_secs_f64()).contains(&seconds), "{key}: {shown}");
    }
    meets_reset(&idle_client.socket).context("the idle client")?;
    meets_reset(&idle_server).context("the idle server")?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log.len() == 1 && log[0]["close_reason"] == "idle_timeout", "{log:?}");
    ensure!(log[0]["bytes_in"] == said + 4 && log[0]["bytes_out"] == 4, "{log:?}");
    Expect::Packet.check(&log[0])?;
    meets_reset(&client.socket).context("the client that was busy")
}

#[test]
fn a_killed_connection_is_reset_at_both_ends_and_no_other() -> Result<()> {
    let scene = Scene::new(Opening::default(), "")?;
    let (client, server, said) = scene.connection()?;
    let (mut other, mut other_server, _) = scene.connection()?;
    let port = client.socket.local_addr()?.port();
    let live = scene.spliced(2)?;
    let ours = live.iter().find(|c| c["client"].as_str().is_some_and(|c| c.ends_with(&format!(":{port}"))));
    let id = ours.with_context(|| format!("{live:?}"))?["id"].to_string();
    let killed = scene.gateway.cli(["kill", &id])?;
    ensure!(killed.status.success(), "{killed:?}");
    meets_reset(&client.socket).context("the client")?;
    meets_reset(&server).context("the server")?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["close_reason"] == "killed", "{log:?}");
    ensure!(log[0]["bytes_in"] == said + 4 && log[0]["bytes_out"] == 4, "{log:?}");
    Expect::Packet.check(&log[0])?;

    other_server.write_all(b"x")?;
    other.reader.read_exact(&mut [0])?;
    scene.spliced(1).map(drop)
}

/// The socket's error says "reset" once; whoever takes it without saying so leaves the next tier a clean end.
#[test]
fn a_server_that_resets_in_the_midst_of_the_handover_has_not_ended() -> Result<()> {
    // By a `tcp` listener there is nothing to be written, and so nothing but the error that tells.
    [Speech::Tls, Speech::Tcp].into_iter().try_for_each(|speech| {
        resets_in_the_midst(Opening { speech, ..Opening::default() }).with_context(|| format!("{speech:?}"))
    })
}

fn resets_in_the_midst(mut opening: Opening) -> Result<()> {
    const ROUNDS: u16 = 400;
    let net = Triangle::new()?;
    let accepted = AtomicU64::new(0);
    let listener = SocketOptions::default().listen(&net.server)?;
    let _backend = Backend::serve(&net.server, listener, move |stream| {
        let begin = Instant::now();
        let pause = Duration::from_micros(accepted.fetch_add(1, Relaxed) % 200);
        while begin.elapsed() < pause {
            hint::spin_loop();
        }
        reset_on_close(&stream).map_err(io::Error::other)
    })?;
    let gateway = Gateway::start(&net.gateway, &config(&opening, net.server_addresses[0], None, ""))?;
    let mut unreset = 0;
    for round in 0..ROUNDS {
        // None again: the sockets of a handover would answer.
        opening.socket.port = Some(10_000 + round);
        // The client may be told before it knows that it is connected.
        let met = opening.open(&net.client).and_then(|(client, _)| Ok((&client.socket).read(&mut [0])?));
        match met.map_err(|error| error.downcast_ref().map(io::Error::kind)) {
            Err(Some(ErrorKind::ConnectionReset)) => {}
            Ok(0) => unreset += 1,
            other => bail!("{other:?} instead of a reset"),
        }
    }
    let log = gateway.wait_access_log(ROUNDS.into())?;
    let with = |reason: &str| log.iter().filter(|line| line["close_reason"] == reason).count();
    // Reset before the gateway had noticed that it was connected: no server, and a client that is let go.
    let unconnected = with("connect_failed");
    ensure!(unconnected < log.len(), "no connection got as far as its handover");
    ensure!(with("server_reset") == log.len() - unconnected, "{log:?}");
    ensure!(unreset == unconnected, "{unreset} clients met an end, {unconnected} of them without a server");
    Ok(())
}

/// The next connection takes the flows away in which the end of the last is written.
#[test]
fn a_client_that_takes_its_port_again_at_once_hides_nothing_of_the_last_connection() -> Result<()> {
    const ROUNDS: usize = 5;
    let mut opening = Opening::default();
    opening.socket.port = Some(50_000);
    let scene = Scene::new(opening, "")?;
    for _ in 0..ROUNDS {
        let (client, server, _) = scene.connection()?;
        // A socket of the gateway would have something to say to the next SYN.
        no_sockets(&scene.net.gateway)?;
        reset_on_close(&server)?;
        drop(server);
        meets_reset(&client.socket)?;
    }
    let log = scene.gateway.wait_access_log(ROUNDS)?;
    ensure!(log.iter().all(|line| line["close_reason"] == "server_reset"), "{log:?}");
    Ok(())
}

#[test]
fn who_connects_while_no_gateway_runs_comes_to_this_tier_too() -> Result<()> {
    // As a service manager would: it holds the listening socket.
    let launch = |net: &Triangle| -> Result<Launch> {
        let socket = net.gateway.run(|| TcpListener::bind("0.0.0.0:443"))?;
        Ok(Launch { inherited: Arc::new(vec![socket.into()]), ..Launch::default() })
    };
    let mut scene = Scene::launched(Opening::default(), "", "", launch)?;
    let (mut client, mut server, _) = scene.connection()?;
    scene.spliced(1)?;
    scene.gateway.process.signal(Signal::SIGTERM)?;
    scene.gateway.process.wait(PATIENCE)?;
    let (waiting, said) = scene.opening.open(&scene.net.client)?;
    client.writer.write_all(b"x")?;
    server.read_exact(&mut [0])?;
    scene.gateway.start_again()?;
    let _waiting = scene.connected(waiting, said)?;
    scene.spliced(2).map(drop)
}

#[test]
fn a_full_flow_table_means_the_next_tier_and_evicts_nobody() -> Result<()> {
    let scene = Scene::with_gateway(Opening::default(), "[gateway]\nflow_table = 4\n", "")?;
    let mut ends = vec![scene.connection()?, scene.connection()?];
    scene.spliced(2)?;
    ends.push(scene.connection()?);
    let live =
        eventually("three connections", || scene.gateway.connections().ok().filter(|live| live.len() == 3))?;
    let third = ends[2].0.socket.local_addr()?.to_string();
    for line in &live {
        let expect = if line["client"] == third { Expect::Copy("flow_table_full") } else { Expect::Packet };
        expect.check(line)?;
    }
    for (client, server, _) in &mut ends {
        client.writer.write_all(b"still")?;
        server.read_exact(&mut [0; 5])?;
    }
    let status = scene.gateway.status()?;
    ensure!(!PACKET || status.number("/tier_fallbacks/flow_table_full") == 1, "{status:?}");
    Ok(())
}

#[test]
fn closed_connections_make_room_in_a_full_table() -> Result<()> {
    require!(PACKET, "only the packet tier has a flow table");
    let scene = Scene::with_gateway(Opening::default(), "[gateway]\nflow_table = 8\n", "")?;
    let ends = (0..4).map(|_| scene.connection()).collect::<Result<Vec<_>>>()?;
    scene.spliced(4)?;
    drop(ends);
    scene.gateway.wait_access_log(4)?;
    // Their flows stay for their last packets, and go: five seconds later, for the table is more than half full.
    eventually("room for a connection", || {
        let _ends = scene.connection().ok()?;
        let live = scene.gateway.connections().ok()?;
        live.iter().any(|line| line["tier"] == "packet").then_some(())
    })
}

/// For so long processes come and go; a longer time in seconds comes from the environment.
fn restarting_time() -> Duration {
    let seconds = std::env::var("SNISPLICE_RESTART_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(6))
}

#[test]
fn connections_outlive_processes_that_are_killed_every_second() -> Result<()> {
    outlive(Opening::default(), Gateway::kill_and_restart)
}

#[test]
fn connections_outlive_processes_that_are_killed_every_second_smtp() -> Result<()> {
    outlive(Opening { speech: Speech::Starttls(&SMTP), ..Opening::default() }, Gateway::kill_and_restart)
}

#[test]
fn connections_outlive_processes_that_are_killed_every_second_ipv6() -> Result<()> {
    outlive(Opening { v6: true, speech: Speech::Tcp, ..Opening::default() }, Gateway::kill_and_restart)
}

#[test]
fn connections_outlive_graceful_restarts() -> Result<()> {
    outlive(Opening::default(), Gateway::restart)
}

#[test]
fn connections_outlive_take_overs() -> Result<()> {
    outlive(Opening::default(), Gateway::replace)
}

#[test]
fn connections_outlive_take_overs_ipv6() -> Result<()> {
    outlive(Opening { v6: true, ..Opening::default() }, Gateway::replace)
}

/// Connections that carry bytes all the time and one that carries none, while processes come and go.
fn outlive(opening: Opening, restart: fn(&mut Gateway) -> Result<()>) -> Result<()> {
    require!(PACKET, "only the packet tier outlives the process");
    const TRANSFERS: usize = 4;
    const PACE: Duration = Duration::from_millis(10);
    /// Bytes go for so much longer than processes come and go: the last restart takes a while on a busy machine.
    const LONGER: Duration = Duration::from_secs(6);
    const CHUNK: u64 = 32 * 1024;
    let time = restarting_time();
    let writes = ((time + LONGER).as_millis() / PACE.as_millis()) as u64;
    let plan = Plan { pace: PACE, chunk: CHUNK as usize, ..Plan::both_ways(writes * CHUNK) };

    let mut scene = Scene::new(opening, "")?;
    let before = counters(&scene.net)?;
    let (mut quiet, mut quiet_server, said) = scene.connection()?;
    let mut ends = Vec::new();
    for _ in 0..TRANSFERS {
        let (client, server, _) = scene.connection()?;
        let (here, there) = (plan.clone(), plan.mirrored());
        ends.push(thread::spawn(move || exchange(client, &here).context("a client")));
        ends.push(thread::spawn(move || exchange(server.try_into()?, &there).context("a server")));
    }
    let mut known = scene.spliced(TRANSFERS + 1)?;
    let begin = Instant::now();
    let mut restarts = 0;
    while begin.elapsed() < time {
        thread::sleep(Duration::from_secs(1));
        restart(&mut scene.gateway)?;
        restarts += 1;
        known = scene.spliced(TRANSFERS + 1).and_then(|live| same_connections(&known, live))?;
        // The new process also takes new connections into the tier.
        let (mut fresh, fresh_server, _) = scene.connection()?;
        scene.spliced(TRANSFERS + 2)?;
        drop(fresh_server);
        ensure!(fresh.reader.read(&mut [0])? == 0);
        drop(fresh);
        scene.gateway.wait_access_log(restarts)?;
    }
    let lasted = begin.elapsed();
    for end in ends {
        end.join().expect("no assertion in there")?;
    }
    quiet.writer.write_all(b"still")?;
    quiet_server.read_exact(&mut [0; 5])?;
    drop(quiet);
    ensure!(quiet_server.read(&mut [0])? == 0);
    drop(quiet_server);

    let log = scene.gateway.wait_access_log(restarts + TRANSFERS + 1)?;
    let moved: Vec<_> = log[restarts..].iter().map(|line| [&line["bytes_in"], &line["bytes_out"]]).collect();
    for line in &log[restarts..] {
        Expect::Packet.check(line)?;
        let named = line["route"] == "app1" && (opening.speech == Speech::Tcp || line["sni"] == SNI);
        ensure!(named, "{line}");
        ensure!(line["duration_ms"].as_u64() >= Some(lasted.as_millis() as u64 / 2), "{line}");
        let reason = line["close_reason"].as_str().unwrap_or_default();
        ensure!(["client_closed", "server_closed"].contains(&reason), "{line}");
    }
    for (bytes_in, bytes_out, number) in
        [(said + 4 + 5, 4, 1), (said + 4 + plan.send, 4 + plan.receive, TRANSFERS)]
    {
        let seen = moved.iter().filter(|bytes| *bytes[0] == bytes_in && *bytes[1] == bytes_out).count();
        ensure!(seen == number, "{seen} and not {number} with {bytes_in} and {bytes_out} bytes: {moved:?}");
    }
    no_faults(&scene.net, &grown(&scene.net, &before)?, &[])
}

#[test]
fn the_next_process_knows_of_bytes_that_came_while_the_flows_went_in() -> Result<()> {
    require!(PACKET, "only the packet tier outlives the process");
    // Now and then the client's bytes have passed the programs just before the flows were there.
    const CONNECTIONS: usize = 100;
    let mut scene = Scene::new(Opening { speech: Speech::Tcp, ..Opening::default() }, "")?;
    let _ends = (0..CONNECTIONS).map(|_| scene.connection()).collect::<Result<Vec<_>>>()?;
    let known = scene.spliced(CONNECTIONS)?;
    // A handover that is under way need not survive: the last ones are given their time.
    thread::sleep(Duration::from_millis(500));
    scene.gateway.kill_and_restart()?;
    let live = same_connections(&known, scene.gateway.connections()?)?;
    for line in live {
        ensure!(line["bytes_in"] == 4 && line["bytes_out"] == 4, "{line}");
    }
    Ok(())
}

#[test]
fn netfilter_forgets_a_connection_that_it_sees_no_more_of() -> Result<()> {
    require!(PACKET, "only the packet tier bypasses netfilter");
    require!(fs::exists(CONNTRACK)?, "the kernel does not show its conntrack table");
    require!(has_program("nft"), "no nft");
    for v6 in [false, true] {
        let scene = Scene::new(Opening { v6, ..Opening::default() }, "")?;
        let rule = "table inet filter { chain input { type filter hook input priority 0; ct state established accept; }; }";
        checked_output(scene.net.gateway.command("nft").arg(rule))?;
        // One whose handshake only was tracked, for the table to hold something that nobody removes.
        let stray = scene.opening.socket.dial(&scene.net.client, scene.opening.target())?;
        let (mut client, mut server, _) = scene.connection()?;
        scene.spliced(1)?;
        let tracked = || scene.net.gateway.run(|| fs::read_to_string(CONNTRACK));
        let stray_port = format!("={} ", stray.local_addr()?.port());
        ensure!(tracked()?.contains(&stray_port), "netfilter tracks nothing here");
        scene.forgotten_by_netfilter(&client, &server)?;
        ensure!(tracked()?.contains(&stray_port), "the entry of another connection is gone");
        // And it goes on without.
        server.write_all(b"more")?;
        client.reader.read_exact(&mut [0; 4])?;
    }
    Ok(())
}

/// Checks that a new process knows the same connections as the last one, older and with no fewer bytes; these.
fn same_connections(known: &[Value], live: Vec<Value>) -> Result<Vec<Value>> {
    for before in known {
        let now = live.iter().find(|c| c["client"] == before["client"]);
        let now = now.with_context(|| format!("{} is not among {live:?}", before["client"]))?;
        for key in ["listener", "route", "sni", "pool", "server", "tier"] {
            ensure!(now[key] == before[key], "{key} has changed: {before} and {now}");
        }
        for key in ["bytes_in", "bytes_out", "age_seconds"] {
            ensure!(now[key].as_f64() >= before[key].as_f64(), "{key} has shrunk: {before} and {now}");
        }
    }
    Ok(live)
}

#[test]
fn a_live_connection_is_shown_with_all_that_is_known_of_it() -> Result<()> {
    let scene = Scene::new(Opening::default(), "")?;
    let (client, server, said) = scene.connection()?;
    let (here, there) = (Plan::both_ways(MIB), Plan::both_ways(MIB).mirrored());
    let address = client.socket.local_addr()?.to_string();
    let [mut quiet_client, quiet_server] = [client.socket.try_clone()?, server.try_clone()?];
    let live = scene.spliced(1)?;
    let expected = serde_json::json!({
        "client": address, "listener": "databases", "sni": SNI, "route": "app1", "pool": "app1",
        "server": "10.0.2.2:7001", "bytes_in": said + 4, "bytes_out": 4,
    });
    for (key, value) in expected.as_object().expect("an object") {
        ensure!(live[0][key] == *value, "{key} is not {value}: {}", live[0]);
    }
    quiet_client.write_all(b"more")?;
    (&quiet_server).read_exact(&mut [0; 4])?;
    eventually("more bytes to be shown", || {
        let live = scene.gateway.connections().ok()?;
        (live.first()?["bytes_in"] == said + 8).then_some(())
    })?;
    thread::scope(|scope| {
        let server = scope.spawn(|| exchange(server.try_into()?, &there));
        exchange(client, &here)?;
        server.join().expect("no assertion in there")
    })?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["bytes_in"] == said + 8 + MIB && log[0]["bytes_out"] == 4 + MIB, "{log:?}");
    let status = scene.gateway.status()?;
    let tier = if PACKET { "packet" } else { "copy" };
    ensure!((status.tier(tier, "active"), status.tier(tier, "total")) == (0, 1), "{status:?}");
    Ok(())
}

/// A process that dies between the moment at which its sockets fall silent and the one at which the flows are there leaves
/// nothing but a note. This test is that process.
#[test]
fn a_connection_of_which_a_dead_process_has_left_only_a_note_is_reset() -> Result<()> {
    for v6 in [false, true] {
        let opening = Opening { v6, speech: Speech::Tcp, ..Opening::default() };
        let mut scene = Scene::new(opening, "")?;
        // So that the record of a real one can be looked at.
        let _first = scene.connection()?;
        settled(&scene, "packet", 1)?;
        let mut records: aya::maps::HashMap<MapData, u64, Record> =
            Map::HashMap(MapData::from_pin(scene.gateway.pins()?.join(CONNECTIONS))?).try_into()?;
        let (id, record) = records.iter().next().context("a record")??;
        scene.gateway.kill()?;

        let listener = scene.net.gateway.run(|| TcpListener::bind(opening.target()))?;
        let (client, _) = opening.open(&scene.net.client)?;
        let (of_client, _) = listener.accept()?;
        drop(listener);
        let address = SocketAddr::new(scene.net.server_addresses[usize::from(v6)], SERVER_PORT);
        let of_server = scene.net.gateway.run(|| TcpStream::connect(address))?;
        let server = scene.accepted(PATIENCE)?;
        let arrives = |stream: &TcpStream| anyhow::Ok(tuple(stream.peer_addr()?, stream.local_addr()?));
        let (from_client, from_server) = (arrives(&of_client)?, arrives(&of_server)?);
        forget(of_client)?;
        forget(of_server)?;
        records.insert(id + 1, Record { from_client, from_server, ..record }, 0)?;
        scene.gateway.start_again()?;
        meets_reset(&client.socket).context("the client")?;
        meets_reset(&server).context("the server")?;
        scene.spliced(1)?;
    }
    Ok(())
}

/// What packets between two ends are addressed by.
pub(crate) fn tuple(from: SocketAddr, to: SocketAddr) -> Tuple {
    let address = |ip: IpAddr| {
        let octets = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let (words, _) = octets.as_chunks::<4>();
        std::array::from_fn(|i| u32::from_ne_bytes(words[i]))
    };
    Tuple {
        source: address(from.ip()),
        destination: address(to.ip()),
        source_port: from.port().to_be(),
        destination_port: to.port().to_be(),
    }
}

/// Whatever a process that is killed was in the midst of: each connection goes on or ends, and both ends know.
#[test]
fn a_kill_in_the_midst_of_handovers_leaves_no_connection_that_stands_still() -> Result<()> {
    const CLIENTS: usize = 8;
    const KILLS: usize = 6;
    let opening = Opening::default();
    let net = Triangle::new()?;
    let listener = SocketOptions::default().listen(&net.server)?;
    let _backend = Backend::serve(&net.server, listener, move |mut stream| {
        opening.greet(&mut stream, None)?;
        let mut four = [0; 4];
        stream.read_exact(&mut four)?;
        stream.write_all(&four)?;
        // Until the client ends.
        stream.read(&mut four).map(drop)
    })?;
    let mut gateway = Gateway::start(&net.gateway, &config(&opening, net.server_addresses[0], None, ""))?;
    let over = AtomicBool::new(false);
    let served = AtomicU64::new(0);
    thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while !over.load(Relaxed) {
                        match exchange_once(&opening, &net) {
                            Ok(()) => _ = served.fetch_add(1, Relaxed),
                            Err(ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                                bail!("a client waits in vain")
                            }
                            // No process, or one that has died: a client that knows may try again.
                            Err(_) => thread::sleep(Duration::from_millis(5)),
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for _ in 0..KILLS {
            let before = served.load(Relaxed);
            eventually("some exchanges", || (served.load(Relaxed) > before + 20).then_some(()))?;
            gateway.kill_and_restart()?;
        }
        over.store(true, Relaxed);
        clients.into_iter().try_for_each(|client| client.join().expect("no assertion in there"))
    })
}

/// Connects, says four bytes and hears them.
fn exchange_once(opening: &Opening, net: &Triangle) -> std::result::Result<(), ErrorKind> {
    let kind =
        |error: anyhow::Error| error.downcast_ref::<io::Error>().map_or(ErrorKind::Other, io::Error::kind);
    let (mut client, _) = opening.open(&net.client).map_err(kind)?;
    let mut exchange = || {
        client.writer.write_all(b"ping")?;
        client.reader.read_exact(&mut [0; 4])
    };
    exchange().map_err(|error: io::Error| error.kind())
}
