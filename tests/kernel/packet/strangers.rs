//! Segments that somebody else sends: what a socket would not believe moves nothing here either.
//!
//! Each attack is made beside the copy tier, in which sockets decide.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::{Duplex, reset_on_close};
use snisplice_tests::skip::has_program;
use snisplice_tests::stranger::flag::{ACK, FIN, PSH, RST, SYN};
use snisplice_tests::stranger::{Forged, Numbers, Stranger, forget};
use snisplice_tests::topology::Triangle;
use snisplice_tests::wire::{Faults, Way};
use snisplice_tests::{Launch, NetNs, Status, eventually, require};

use crate::case::{Expect, WIRES, counters, grown};
use crate::ends::{Opening, SERVER_PORT, Speech};
use crate::scene::{Scene, meets_reset};

/// The tier under attack, and the one in which sockets decide.
const TIERS: [&str; 2] = ["packet", "copy"];

fn scene(tier: &str, v6: bool, route: &str) -> Result<Scene> {
    let gateway = format!("[gateway]\ntiers = ['{tier}']\n");
    Scene::with_gateway(Opening { v6, ..Opening::default() }, &gateway, route)
}

/// Waits until so many connections are in this tier, and none of their sockets is left where it is the packet tier.
pub(crate) fn settled(scene: &Scene, tier: &str, number: usize) -> Result<()> {
    eventually("connections in their tier", || {
        let live = scene.gateway.connections().ok()?;
        (live.len() == number && live.iter().all(|c| c["tier"] == tier)).then_some(())
    })
    .with_context(|| format!("{:?}", scene.gateway.connections()))?;
    if tier == "packet" {
        no_sockets(&scene.net.gateway)?;
    }
    Ok(())
}

/// Waits until the handovers are through: no established socket is left.
pub(crate) fn no_sockets(gateway: &NetNs) -> Result<()> {
    eventually("the gateway's sockets to be closed", || {
        let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
        let established = gateway.run(|| {
            let tables = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default());
            tables
                .iter()
                .flat_map(|table| table.lines())
                .any(|line| line.split_whitespace().nth(3) == Some("01"))
        });
        (!established).then_some(())
    })
}

/// A few bytes each way.
pub(crate) fn talk(client: &mut Duplex, server: &mut TcpStream) -> Result<()> {
    let mut four = [0; 4];
    client.writer.write_all(b"more")?;
    server.read_exact(&mut four).context("the server")?;
    server.write_all(b"said")?;
    client.reader.read_exact(&mut four).context("the client")?;
    ensure!(&four == b"said");
    Ok(())
}

/// Pseudo-random numbers from a seed (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next() as usize % all.len()]
    }
}

/// Who knows addresses and ports, but no number, from either network and by the wrong device.
#[test]
fn segments_with_numbers_that_are_guessed_end_nothing_and_count_for_nothing() -> Result<()> {
    const PACKETS: usize = 20_000;
    for (tier, v6) in [("packet", false), ("packet", true), ("copy", false)] {
        let scene = scene(tier, v6, "")?;
        let (mut client, mut server, said) = scene.connection()?;
        settled(&scene, tier, 1)?;
        let clients = (client.socket.local_addr()?, client.socket.peer_addr()?);
        let strangers = [
            Stranger::new(&scene.net.client, clients.0, clients.1)?,
            Stranger::as_end(&scene.net.server, &server)?,
            // Behind the other device.
            Stranger::new(&scene.net.server, clients.0, clients.1)?,
        ];
        let mut random = Random(7);
        for _ in 0..PACKETS {
            let flags = random.one_of(&[ACK, ACK | PSH, ACK | FIN, RST, RST | ACK, SYN, SYN | ACK, 0]);
            let payload: &[u8] = if flags & (SYN | RST) == 0 { b"forged" } else { b"" };
            // The first four moved what was known, until segments were judged as a socket does.
            let forged =
                Forged { flags, seq: random.next(), ack: random.next(), payload, ..Forged::default() };
            strangers[random.next() as usize % strangers.len()].send(&forged)?;
        }
        talk(&mut client, &mut server).with_context(|| tier.to_owned())?;
        drop(client);
        ensure!(server.read(&mut [0])? == 0);
        drop(server);
        let log = scene.gateway.wait_access_log(1)?;
        ensure!(log.len() == 1 && log[0]["close_reason"] == "client_closed", "{tier}: {log:?}");
        ensure!(log[0]["bytes_in"] == said + 8 && log[0]["bytes_out"] == 8, "{tier}: {log:?}");
        ensure!(log[0]["tier"] == tier, "{log:?}");
    }
    Ok(())
}

/// Data that moves what is known, a reset at what it was moved to, a SYN that takes over what was reset: 15 packets.
#[test]
fn a_few_forged_segments_that_build_on_each_other_kill_nothing() -> Result<()> {
    for tier in TIERS {
        let scene = scene(tier, false, "")?;
        let (mut client, mut server, said) = scene.connection()?;
        settled(&scene, tier, 1)?;
        for stranger in [
            Stranger::as_end(&scene.net.client, &client.socket)?,
            Stranger::as_end(&scene.net.server, &server)?,
        ] {
            for quarter in 0..4_u32 {
                let seq = 1_000 + (quarter << 30);
                for (flags, seq, payload) in [
                    (ACK | PSH, seq, &b"x"[..]),
                    (RST, seq + 1, b""),
                    (RST | ACK, seq + 1, b""),
                    (SYN, seq + 7_000, b""),
                ] {
                    for ack in (0..4).map(|quarter| 1_000 + (quarter << 30)) {
                        stranger.send(&Forged { flags, seq, ack, payload, ..Forged::default() })?;
                    }
                }
            }
        }
        talk(&mut client, &mut server).with_context(|| tier.to_owned())?;
        let live = scene.gateway.connections()?;
        ensure!(live.len() == 1 && live[0]["bytes_in"] == said + 8, "{tier}: {live:?}");
        ensure!(live[0]["bytes_out"] == 8, "{tier}: {live:?}");
        ensure!(scene.gateway.access_log()?.is_empty(), "{tier}: {:?}", scene.gateway.access_log()?);
    }
    Ok(())
}

/// Who knows the client's address and the listener, and guesses ports and numbers: a spray over all connections.
#[test]
fn a_spray_over_all_ports_kills_no_connection() -> Result<()> {
    const CONNECTIONS: usize = 20;
    const PACKETS: usize = 60_000;
    for tier in TIERS {
        let scene = scene(tier, false, "")?;
        let mut ends = (0..CONNECTIONS).map(|_| scene.connection()).collect::<Result<Vec<_>>>()?;
        settled(&scene, tier, CONNECTIONS)?;
        let ports = ends.iter().map(|(client, ..)| Ok(client.socket.local_addr()?.port()));
        let ports = ports.collect::<Result<Vec<u16>>>()?;
        let (from, to) = (ends[0].0.socket.local_addr()?, ends[0].0.socket.peer_addr()?);
        // From the servers' network: that is where it succeeded.
        let stranger = Stranger::new(&scene.net.server, from, to)?;
        let beside = Stranger::new(&scene.net.client, from, to)?;
        let mut random = Random(11);
        for packet in 0..PACKETS / 3 {
            let from = if packet % 2 == 0 { &stranger } else { &beside };
            let (port, seq, ack) = (random.one_of(&ports), random.next(), random.next());
            // What one believes of the first, the second fits.
            for (flags, seq, payload) in
                [(ACK | PSH, seq, &b"x"[..]), (RST, seq.wrapping_add(1), b""), (SYN, random.next(), b"")]
            {
                from.send_from(port, &Forged { flags, seq, ack, payload, ..Forged::default() })?;
            }
        }
        for (client, server, _) in &mut ends {
            talk(client, server).with_context(|| tier.to_owned())?;
        }
        ensure!(scene.gateway.access_log()?.is_empty(), "{tier}: {:?}", scene.gateway.access_log()?);
    }
    Ok(())
}

/// A client that makes the gateway believe that its connection is over keeps all that it has taken: nothing is given back
/// while the connection lives.
#[test]
fn a_client_that_feigns_its_end_keeps_its_place_in_every_limit() -> Result<()> {
    for tier in TIERS {
        let scene = scene(tier, false, "max_connections = 2")?;
        let mut ends = vec![scene.connection()?, scene.connection()?];
        settled(&scene, tier, 2)?;
        for (client, ..) in &ends {
            let numbers = Numbers::of(&client.socket)?;
            let stranger = Stranger::as_end(&scene.net.client, &client.socket)?;
            let ack = numbers.expected;
            // Far outside of the server's window, in which nobody but the gateway could take it.
            let far = numbers.next.wrapping_add(1 << 28);
            stranger.send(&Forged { flags: ACK | PSH, seq: far, ack, payload: b"x", ..Forged::default() })?;
            stranger.send(&Forged { flags: RST, seq: far.wrapping_add(1), ..Forged::default() })?;
            // In the window, but not exact.
            stranger.send(&Forged {
                flags: RST,
                seq: numbers.next.wrapping_add(100),
                ..Forged::default()
            })?;
            // A FIN that nobody else sees.
            let unsound =
                Forged { flags: ACK | FIN, seq: numbers.next, ack, is_sound: false, ..Forged::default() };
            stranger.send(&unsound)?;
        }
        // Longer than a reset must stand.
        thread::sleep(Duration::from_millis(1500));
        for (client, server, _) in &mut ends {
            talk(client, server).with_context(|| tier.to_owned())?;
        }
        let live = scene.gateway.connections()?;
        ensure!(live.len() == 2, "{tier}: {live:?}");
        let (mut third, _) = scene.opening.open(&scene.net.client)?;
        // An alert, and the end.
        third.reader.read_to_end(&mut Vec::new())?;
        let status = scene.gateway.status()?;
        ensure!(status.rejects("databases", "route_full") == 1, "{tier}: {status:?}");
        ensure!(status.route("app1", "active") == 2, "{tier}: {status:?}");
        let id = live[0]["id"].to_string();
        ensure!(scene.gateway.cli(["kill", &id])?.status.success());
        let killed = ends.iter().find(|(client, ..)| {
            client.socket.local_addr().is_ok_and(|address| live[0]["client"] == address.to_string())
        });
        let (client, server, _) = killed.context("one of the two")?;
        meets_reset(&client.socket)?;
        meets_reset(server)?;
    }
    Ok(())
}

/// A reset that the gateway takes for exact and the server never takes: with a wrong checksum, or without the hops to get
/// there.
#[test]
fn a_reset_that_never_arrives_frees_nothing_that_lives() -> Result<()> {
    for unsound in [Forged { is_sound: false, ..Forged::default() }, Forged { hops: 1, ..Forged::default() }]
    {
        let scene = scene("packet", false, "max_connections = 2")?;
        let (mut busy, mut busy_server, _) = scene.connection()?;
        let (quiet, quiet_server, _) = scene.connection()?;
        settled(&scene, "packet", 2)?;
        let end = unsound.hops == 1;
        if end {
            // One hop to the gateway, and none from there: a server that is another hop away never gets it. Here it is the
            // neighbour, so the filter of the server's own host stands for the router.
            require!(has_program("nft"), "no nft");
            let rule =
                "table ip filter { chain input { type filter hook input priority 0; ip ttl 1 drop; }; }";
            checked_output(scene.net.server.command("nft").arg(rule))?;
        }
        for client in [&busy, &quiet] {
            let seq = Numbers::of(&client.socket)?.next;
            let stranger = Stranger::as_end(&scene.net.client, &client.socket)?;
            stranger.send(&Forged { flags: RST, seq, ..unsound })?;
        }
        // Several times while the reset is yet to stand: what follows at once may have been overtaken by it.
        for _ in 0..8 {
            thread::sleep(Duration::from_millis(50));
            talk(&mut busy, &mut busy_server)?;
        }
        // The busy one has shown that somebody else has sent it: it stays. Of the other nobody knows, so both of its ends are
        // told before its place is given away.
        meets_reset(&quiet.socket).context("the quiet client")?;
        meets_reset(&quiet_server).context("the quiet server")?;
        let log = scene.gateway.wait_access_log(1)?;
        ensure!(log.len() == 1 && log[0]["close_reason"] == "client_reset", "{log:?}");
        talk(&mut busy, &mut busy_server)?;
        settled(&scene, "packet", 1)?;
    }
    Ok(())
}

/// What the client was told is acknowledged it forgets, and cannot send again.
#[test]
fn what_is_lost_behind_the_gateway_is_sent_again_whatever_a_stranger_sends() -> Result<()> {
    for v6 in [false, true] {
        let scene = between_wires(v6)?;
        let (mut client, mut server, said) = scene.connection()?;
        settled(&scene, "packet", 1)?;
        lose_behind_the_gateway(&scene, &mut client, said)?;
        let toward_client = &scene.net.front.wire().context("a wire")?.from_gateway;
        let before = toward_client.seen().segments;
        // It knows addresses and ports alone.
        let stranger = Stranger::as_end(&scene.net.client, &client.socket)?;
        stranger.send(&Forged { flags: SYN, seq: 77, ..Forged::default() })?;
        eventually("the challenge ACK", || (toward_client.seen().segments > before).then_some(()))?;
        // More time than the client takes to read it.
        thread::sleep(Duration::from_millis(50));
        toward_server(&scene)?.set(Faults::NONE);
        server.read_exact(&mut [0; LOST]).context("what was lost")?;
        talk(&mut client, &mut server)?;
    }
    Ok(())
}

/// The server will never acknowledge what the gateway has seen pass.
#[test]
fn who_has_forgotten_what_was_lost_behind_the_gateway_comes_again_by_its_port() -> Result<()> {
    let mut scene = between_wires(false)?;
    let (mut client, server, said) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    lose_behind_the_gateway(&scene, &mut client, said)?;
    scene.opening.socket.port = Some(client.socket.local_addr()?.port());
    let Duplex { reader, writer, socket } = client;
    drop((reader, writer));
    forget(socket)?;
    toward_server(&scene)?.set(Faults::NONE);
    let (mut client, mut next, _) = scene.connection().context("the same port once more")?;
    meets_reset(&server)?;
    talk(&mut client, &mut next)?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log.len() == 1 && log[0]["close_reason"] == "client_reset", "{log:?}");
    Ok(())
}

fn between_wires(v6: bool) -> Result<Scene> {
    let opening = Opening { v6, ..Opening::default() };
    Scene::within(Triangle::shaped(WIRES)?, opening, "", "", |_| Ok(Launch::default()))
}

fn toward_server(scene: &Scene) -> Result<&Way> {
    Ok(&scene.net.back.wire().context("a wire")?.from_gateway)
}

const LOST: usize = 5_000;

/// Of what the client sends the server gets nothing, also if it is sent again, until the wire is mended.
fn lose_behind_the_gateway(scene: &Scene, client: &mut Duplex, said: u64) -> Result<()> {
    toward_server(scene)?.set(Faults { loss: 1.0, ..Faults::NONE });
    client.writer.write_all(&[7; LOST])?;
    // With `ping`.
    let passed = said + 4 + LOST as u64;
    eventually("the gateway to have seen it", || {
        (scene.gateway.connections().ok()?.first()?["bytes_in"] == passed).then_some(())
    })
}

/// What both ends' kernels have forgotten, a client may begin anew from the same port: by way of the listener.
#[test]
fn a_connection_that_both_ends_have_forgotten_is_begun_anew_by_way_of_the_listener() -> Result<()> {
    for v6 in [false, true] {
        let mut scene = scene("packet", v6, "")?;
        let (client, server, _) = scene.connection()?;
        settled(&scene, "packet", 1)?;
        let old = scene.gateway.connections()?[0]["id"].clone();
        scene.opening.socket.port = Some(client.socket.local_addr()?.port());
        let Duplex { reader, writer, socket } = client;
        drop((reader, writer));
        forget(socket)?;
        forget(server)?;
        let (mut client, mut server, _) = scene.connection().context("the same port once more")?;
        talk(&mut client, &mut server)?;
        settled(&scene, "packet", 1)?;
        let log = scene.gateway.wait_access_log(1)?;
        ensure!(log.len() == 1 && log[0]["close_reason"] == "client_reset", "{log:?}");
        let live = scene.gateway.connections()?;
        ensure!(live[0]["id"] != old, "the new connection runs under the old one's name: {live:?}");
    }
    Ok(())
}

/// Resets of all kinds that real kernels send, each believed, and the place given back.
#[test]
fn a_reset_of_an_end_is_believed_whatever_it_has_lost() -> Result<()> {
    type Ending = fn(Duplex, TcpStream) -> Result<()>;
    let endings: [(&str, Ending); 5] = [
        ("the client aborts", |client, server| {
            reset_on_close(&client.socket)?;
            drop(client);
            meets_reset(&server)
        }),
        ("the server aborts", |client, server| {
            reset_on_close(&server)?;
            drop(server);
            meets_reset(&client.socket)
        }),
        ("the client has unread bytes", |client, mut server| {
            server.write_all(&[7; 100_000])?;
            client.socket.peek(&mut [0])?;
            drop(client);
            meets_reset(&server)
        }),
        ("the client aborts behind its FIN", |mut client, mut server| {
            client.writer.finish()?;
            ensure!(server.read(&mut [0])? == 0);
            reset_on_close(&client.socket)?;
            drop(client);
            // Its end was read before, and a reset is no news to who reads.
            eventually("the server to be told", || server.write_all(b"x").is_err().then_some(()))
        }),
        ("the client has forgotten and the server speaks", |client, mut server| {
            let Duplex { reader, writer, socket } = client;
            drop((reader, writer));
            forget(socket)?;
            server.write_all(&[7; 20_000])?;
            meets_reset(&server)
        }),
    ];
    for (what, ending) in endings {
        let scene = scene("packet", false, "max_connections = 1")?;
        for _ in 0..3 {
            let (client, server, _) = eventually("the last one's place", || scene.connection().ok())?;
            settled(&scene, "packet", 1)?;
            ending(client, server).with_context(|| what.to_owned())?;
            scene.gateway.wait_status("its place", |status| status.route("app1", "active") == 0)?;
        }
        let log = scene.gateway.wait_access_log(3)?;
        let reason = if what.contains("server aborts") { "server_reset" } else { "client_reset" };
        let reset = log.iter().filter(|line| line["close_reason"] == reason).count();
        ensure!(reset >= 3, "{what}: {log:?}");
    }
    Ok(())
}

#[test]
fn a_clean_end_gives_its_place_back_at_once() -> Result<()> {
    const ROUNDS: usize = 40;
    let scene = scene("packet", false, "max_connections = 1")?;
    for round in 0..ROUNDS {
        let (client, mut server, _) = scene.connection().with_context(|| format!("round {round}"))?;
        settled(&scene, "packet", 1)?;
        let mut client = client;
        client.writer.finish()?;
        ensure!(server.read(&mut [0])? == 0);
        drop(server);
        ensure!(client.reader.read(&mut [0])? == 0);
    }
    Ok(())
}

/// Both have sent their FIN, and one of them never acknowledges the other's, but goes on to be heard.
#[test]
fn an_end_that_never_acknowledges_the_last_fin_does_not_keep_its_place_for_ever() -> Result<()> {
    require!(has_program("nft"), "no nft");
    let scene = scene("packet", false, "max_age = '4s'")?;
    let (mut client, mut server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    // Its kernel never sees it.
    let rule = "table ip filter { chain input { type filter hook input priority 0; tcp sport 443 tcp flags & fin == fin drop; }; }";
    checked_output(scene.net.client.command("nft").arg(rule))?;
    let Numbers { next, expected, .. } = Numbers::of(&client.socket)?;
    let stranger = Stranger::as_end(&scene.net.client, &client.socket)?;
    client.writer.finish()?;
    ensure!(server.read(&mut [0])? == 0);
    drop(server);
    // Nor does the server take these.
    let unsound = Forged { seq: next.wrapping_add(1), ack: expected, is_sound: false, ..Forged::default() };
    let log = eventually("the end", || {
        stranger.send(&unsound).ok()?;
        scene.gateway.access_log().ok().filter(|log| !log.is_empty())
    })?;
    ensure!(log[0]["close_reason"] == "max_age", "{log:?}");
    Ok(())
}

#[test]
fn a_connection_that_was_reset_lasted_until_its_last_packet() -> Result<()> {
    let scene = scene("packet", false, "")?;
    let begin = Instant::now();
    let (client, server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    reset_on_close(&client.socket)?;
    drop(client);
    meets_reset(&server)?;
    let at_most = begin.elapsed().as_millis() as u64;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["duration_ms"].as_u64() <= Some(at_most), "more than {at_most} ms: {log:?}");
    Ok(())
}

/// An end that asks now and then whether the other is there has not said anything.
#[test]
fn keepalive_probes_do_not_keep_an_idle_connection() -> Result<()> {
    for tier in TIERS {
        let scene = scene(tier, false, "idle_timeout = '2s'")?;
        let (client, server, _) = scene.connection()?;
        settled(&scene, tier, 1)?;
        for socket in [&client.socket, &server] {
            setsockopt(&socket.as_fd(), sockopt::TcpKeepIdle, &1)?;
            setsockopt(&socket.as_fd(), sockopt::TcpKeepInterval, &1)?;
            setsockopt(&socket.as_fd(), sockopt::KeepAlive, &true)?;
        }
        let log = scene.gateway.wait_access_log(1).with_context(|| tier.to_owned())?;
        ensure!(log[0]["close_reason"] == "idle_timeout", "{tier}: {log:?}");
        if tier == "packet" {
            meets_reset(&client.socket)?;
            meets_reset(&server)?;
        }
    }
    Ok(())
}

/// Between the device and the gateway's socket somebody else numbers the bytes.
#[test]
fn a_syn_proxy_on_the_gateway_means_the_next_tier() -> Result<()> {
    require!(has_program("nft"), "no nft");
    let scene = scene("packet", false, "")?;
    scene.net.gateway.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    scene.net.gateway.sysctl("net/ipv4/tcp_syncookies", "1")?;
    let rules = "table ip proxy {
        chain pre { type filter hook prerouting priority raw; tcp dport 443 tcp flags syn notrack; }
        chain in { type filter hook input priority 0;
            tcp dport 443 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm;
            ct state invalid drop; }
    }";
    checked_output(scene.net.gateway.command("nft").arg(rules))?;
    for _ in 0..3 {
        let (mut client, mut server, _) = scene.connection()?;
        talk(&mut client, &mut server)?;
    }
    let log = scene.gateway.wait_access_log(3)?;
    log.iter().try_for_each(|line| Expect::Copy("no_syn_seen").check(line))
}

/// It has no room for the first bytes before its SYN-ACK is acknowledged, which those bytes else do.
#[test]
fn a_syn_proxy_before_the_server_has_its_acknowledgement_at_once() -> Result<()> {
    require!(has_program("nft"), "no nft");
    let scene = scene("packet", false, "")?;
    scene.net.server.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    scene.net.server.sysctl("net/ipv4/tcp_syncookies", "1")?;
    let rules = format!(
        "table ip proxy {{
            chain pre {{ type filter hook prerouting priority raw; tcp dport {SERVER_PORT} tcp flags syn notrack; }}
            chain in {{ type filter hook input priority 0;
                tcp dport {SERVER_PORT} ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm;
                ct state invalid drop; }}
        }}"
    );
    checked_output(scene.net.server.command("nft").arg(rules))?;
    let before = counters(&scene.net)?;
    let (mut client, mut server, _) = scene.connection()?;
    talk(&mut client, &mut server)?;
    let [_, own, _] = grown(&scene.net, &before)?;
    // Not by the kernel's timer, after 200 ms.
    ensure!(own.get("TcpExt.DelayedACKs") == 0, "{own:?}");
    let log = scene.gateway.connections()?;
    log.iter().try_for_each(|line| Expect::Packet.check(line))
}

/// Plain TCP, where nothing was read before: a listener that both tiers serve.
#[test]
fn a_forged_window_or_acknowledgement_lets_nobody_send_more() -> Result<()> {
    let opening = Opening { speech: Speech::Tcp, ..Opening::default() };
    let scene = Scene::with_gateway(opening, "", "")?;
    let (mut client, mut server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    let numbers = Numbers::of(&client.socket)?;
    let stranger = Stranger::as_end(&scene.net.client, &client.socket)?;
    // Five blind acknowledgements, after which a reset of ours was believed by nobody.
    for ahead in (1..6).map(|step| step << 28) {
        let ack = numbers.expected.wrapping_add(ahead);
        stranger.send(&Forged { seq: numbers.next, ack, ..Forged::default() })?;
    }
    talk(&mut client, &mut server)?;
    let id = scene.gateway.connections()?[0]["id"].to_string();
    ensure!(scene.gateway.cli(["kill", &id])?.status.success());
    meets_reset(&client.socket)?;
    meets_reset(&server)
}

#[test]
fn what_the_programs_drop_is_counted_by_reason_and_shown() -> Result<()> {
    let scene = Scene::with_gateway(Opening::default(), "[gateway]\nadmin = '127.0.0.1:9900'\n", "")?;
    let (mut client, mut server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    // One of them may be in the window, by chance.
    let stranger = Stranger::as_end(&scene.net.client, &client.socket)?;
    for quarter in 0..4 {
        stranger.send(&Forged { flags: RST, seq: quarter << 30, ..Forged::default() })?;
    }

    let [outside, inexact] = ["/packet/drops/reset_outside", "/packet/drops/reset_inexact"];
    let all = |status: &Status| status.number(outside) + status.number(inexact) == 4;
    let status = scene.gateway.wait_status("all to be counted", all)?;
    let number = status.number(outside);
    ensure!(number >= 3, "{status:?}");
    ensure!(status.number("/packet/notes/handshake_sighted") > 0, "{status:?}");
    let text = |args: &[&str]| -> Result<String> {
        let output = scene.gateway.cli(args)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let table = text(&["status"])?;
    let row = table.split_once("\nPACKETS DROPPED BECAUSE").with_context(|| table.clone())?.1;
    ensure!(
        row.lines().any(|line| line.split_whitespace().eq(["reset_outside", &number.to_string()])),
        "{row}"
    );
    let advice = text(&["doctor"])?;
    ensure!(advice.contains(&format!("reset_outside, {number} since 2")), "{advice}");

    let mut curl = scene.net.gateway.command("curl");
    let metrics = checked_output(curl.args(["--fail", "--silent", "http://127.0.0.1:9900/metrics"]))?;
    for (reason, number) in [("reset_outside", number), ("syn_late", 0)] {
        let sample = format!("\nsnisplice_packet_drops_total{{reason=\"{reason}\"}} {number}\n");
        ensure!(metrics.contains(&sample), "{metrics}");
    }
    ensure!(metrics.contains("\nsnisplice_packet_notes_total{note=\"handshake_sighted\"} "), "{metrics}");

    talk(&mut client, &mut server)?;
    settled(&scene, "packet", 1)
}
