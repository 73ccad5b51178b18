//! Servers that see the client's address (`source = "client"`), in the packet tier.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::{Duplex, Plan, exchange};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::topology::{CLIENT, CLIENT6, Leg, Shape, Triangle, has_socket_match};
use snisplice_tests::wire::Faults;
use snisplice_tests::{Authority, Gateway, Launch, Redis, require, topology};

use crate::case::{Case, Expect, MIB, counters, grown, no_faults};
use crate::ends::{Opening, PATIENCE, SNI, SocketOptions, Speech};
use crate::scene::{CONNTRACK, Scene};

const NO_MATCH: &str = "no nft, or a kernel without CONFIG_NFT_SOCKET";

/// A scene whose server sees the client's address, as far as the routing that is set up before lets it.
fn scene(opening: Opening, gateway: &str, routing: impl FnOnce(&Triangle) -> Result<()>) -> Result<Scene> {
    let net = Triangle::new()?;
    routing(&net)?;
    let scene = Scene::within(net, opening, gateway, "", |_| Ok(Launch::default()))?;
    scene.reconfigure(|config| config.replace("[[pool]]", "[[pool]]\nsource = 'client'"))?;
    scene.gateway.reload()?;
    Ok(scene)
}

fn as_documented(net: &Triangle) -> Result<()> {
    net.take_answers(None)
}

/// Whom the server sees.
fn peer(server: &TcpStream) -> Result<SocketAddr> {
    let peer = server.peer_addr()?;
    Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
}

fn client_of(opening: Opening) -> IpAddr {
    if opening.v6 { CLIENT6.into() } else { CLIENT.into() }
}

/// Every byte of a transfer in both directions is checked, and what the kernels count as faults.
#[test]
fn the_server_sees_the_client_and_every_byte_arrives() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    for v6 in [false, true] {
        for speech in [Speech::Tls, Speech::Tcp, Speech::Postgres] {
            let opening = Opening { v6, speech, ..Opening::default() };
            transfers(opening).with_context(|| format!("{speech:?}, IPv6: {v6}"))?;
        }
    }
    Ok(())
}

fn transfers(opening: Opening) -> Result<()> {
    let scene = scene(opening, "", as_documented)?;
    let before = counters(&scene.net)?;
    let (client, server, _) = scene.connection()?;
    ensure!(peer(&server)?.ip() == client_of(opening), "{:?}", peer(&server));
    scene.spliced(1)?;
    let plan = Plan::both_ways(16 * MIB);
    let mirrored = plan.mirrored();
    let there = thread::spawn(move || exchange(server.try_into()?, &mirrored));
    exchange(client, &plan).context("the client's end")?;
    there.join().expect("no assertion in there").context("the server's end")?;
    let log = scene.gateway.wait_access_log(1)?;
    Expect::Packet.check(&log[0])?;
    no_faults(&scene.net, &grown(&scene.net, &before)?, &[])
}

/// Over networks of every kind, and over lines that lose: then acknowledgements are replayed to the gateway's sockets.
#[test]
fn the_server_sees_the_client_whatever_the_way() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    const ALL: Faults = Faults { loss: 0.01, repeat: 0.01, reorder: 0.01, ..Faults::NONE };
    let cases = || {
        [
            ("wires that lose", Case::both_ways(MIB).faulty(ALL)),
            ("one device", Case { shape: Shape::OneArmed, ..Case::both_ways(4 * MIB) }),
            ("routers", Case { shape: Shape::Apart(Leg::Router, Leg::Router), ..Case::both_ways(4 * MIB) }),
            ("bridges", Case { shape: Shape::Apart(Leg::Bridge, Leg::Bridge), ..Case::both_ways(4 * MIB) }),
        ]
    };
    for (way, case) in cases().into_iter().chain(cases().map(|(way, case)| (way, case.v6()))) {
        let family = case.opening.v6;
        let case = Case { source_client: true, ..case };
        case.run().with_context(|| format!("{way}, IPv6: {family}"))?;
    }
    let opening = Opening { proxied: Some(15), ..Opening::default() };
    Case { source_client: true, opening, ..Case::both_ways(MIB) }.run().context("a client behind a proxy")
}

#[test]
fn redis_lists_the_clients_address() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let net = Triangle::new()?;
    net.take_answers(None)?;
    let authority = Authority::new("snisplice test authority")?;
    let _redis = Redis::tls(&net.server, 6381, &authority.leaf(&[SNI])?)?;
    let listener = "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:443', '[::]:443']\n[[route]]\nname = 'app1'\n\
                    listener = 'databases'\nsni = ['app1.example.com']\nbackends = ['app1']\n";
    for (server, target, client) in [
        (topology::server(6381), topology::gateway(443), IpAddr::from(CLIENT)),
        (SocketAddr::new(topology::SERVER6.into(), 6381), topology::gateway6(443), CLIENT6.into()),
    ] {
        let pool = format!("[[pool]]\nname = 'app1'\nservers = ['{server}']\nsource = 'client'\n");
        let gateway = Gateway::start(&net.gateway, &format!("{listener}{pool}"))?;
        let mut cli = tls_cli(&net.client, &target.ip().to_string(), 443, SNI, &authority.path);
        let listed = checked_output(cli.args(["client", "list"]))?;
        ensure!(listed.contains(&format!(" addr={}:", bracketed(client))), "{listed}");
        Expect::Packet.check(&gateway.wait_access_log(1)?[0])?;
    }
    Ok(())
}

fn bracketed(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}

#[test]
fn connections_outlive_a_process_that_is_killed_and_the_next_one_knows_their_ports() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    for v6 in [false, true] {
        let opening = Opening { v6, ..Opening::default() };
        // So few ports that the next process would choose one that is in use, if it did not know.
        let mut scene = scene(opening, "[gateway]\nsource_ports = '20000-20255'\n", as_documented)?;
        let mut ends = (0..200).map(|_| scene.connection()).collect::<Result<Vec<_>>>()?;
        scene.spliced(200)?;
        // A handover that is under way need not survive: the last ones are given their time.
        thread::sleep(Duration::from_millis(500));
        scene.gateway.kill_and_restart()?;
        scene.spliced(200)?;
        for _ in 0..40 {
            ends.push(scene.connection()?);
        }
        let mut seen = Vec::new();
        for (client, server, _) in &mut ends {
            client.writer.write_all(b"still")?;
            server.read_exact(&mut [0; 5])?;
            server.write_all(b"here")?;
            client.reader.read_exact(&mut [0; 4])?;
            seen.push(peer(server)?);
        }
        ensure!(seen.iter().all(|peer| peer.ip() == client_of(opening)), "{seen:?}");
        seen.sort_unstable();
        seen.dedup();
        ensure!(seen.len() == ends.len(), "two connections with the same ends");
    }
    Ok(())
}

#[test]
fn a_client_comes_again_by_its_port_and_another_has_the_same() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    // Its port is kept where it can be.
    for (ports, is_kept) in [("10240-29999", false), ("30000-40000", true)] {
        let mut opening = Opening { speech: Speech::Tcp, ..Opening::default() };
        opening.socket.port = Some(33_333);
        let scene = scene(opening, &format!("[gateway]\nsource_ports = '{ports}'\n"), as_documented)?;
        scene.net.client.address("eth0", "10.0.1.3/24")?;
        let (mut first, mut first_server, _) = scene.connection()?;
        ensure!((peer(&first_server)?.port() == 33_333) == is_kept, "{:?}", peer(&first_server));
        // Another client, that is, another address.
        let other = scene.net.client.run(|| -> Result<TcpStream> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::from(([10, 0, 1, 3], 33_333)).into())?;
            socket.connect_timeout(&opening.target().into(), PATIENCE)?;
            Ok(socket.into())
        })?;
        let (mut second, mut second_server, _) = scene.connected(Duplex::try_from(other)?, 0)?;
        ensure!(peer(&second_server)?.ip() == IpAddr::from([10, 0, 1, 3]), "{:?}", peer(&second_server));
        ensure!(peer(&second_server)?.port() != peer(&first_server)?.port());
        scene.spliced(2)?;
        for (client, server) in [(&mut first, &mut first_server), (&mut second, &mut second_server)] {
            client.writer.write_all(b"mine")?;
            server.read_exact(&mut [0; 4])?;
        }
        // The first one ends, its own server first, and comes again and again by its port.
        let mut ends = (first, first_server);
        for _ in 0..5 {
            drop(ends.1);
            ensure!(ends.0.reader.read(&mut [0])? == 0);
            drop(ends.0);
            let (client, server, _) = scene.connection()?;
            ensure!(peer(&server)?.ip() == IpAddr::from(CLIENT));
            ends = (client, server);
        }
        second_server.write_all(b"still")?;
        second.reader.read_exact(&mut [0; 5])?;
    }
    Ok(())
}

/// The programs take packets of the gateway's own connections only.
#[test]
fn what_client_and_server_say_to_each_other_directly_is_routed() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    for v6 in [false, true] {
        let opening = Opening { v6, speech: Speech::Tcp, ..Opening::default() };
        let scene = scene(opening, "", as_documented)?;
        let target = SocketAddr::new(scene.net.server_addresses[usize::from(v6)], crate::ends::SERVER_PORT);
        let direct = SocketOptions::default().dial(&scene.net.client, target)?;
        let (mut direct, mut direct_server, _) = scene.connected(Duplex::try_from(direct)?, 0)?;
        let (mut client, mut server, _) = scene.connection()?;
        scene.spliced(1)?;
        for (client, server) in [(&mut direct, &mut direct_server), (&mut client, &mut server)] {
            client.writer.write_all(b"mine")?;
            server.read_exact(&mut [0; 4])?;
            server.write_all(b"yours")?;
            client.reader.read_exact(&mut [0; 5])?;
        }
    }
    Ok(())
}

#[test]
fn with_another_mark_connections_stay_in_the_copy_tier() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let scene = scene(Opening::default(), "", |net| net.take_answers(Some("0x1")))?;
    let (_client, server, _) = scene.connection()?;
    ensure!(peer(&server)?.ip() == IpAddr::from(CLIENT));
    Expect::Copy("no_mark_rule").check(&scene.gateway.connections()?[0])
}

#[test]
fn answers_that_do_not_come_back_are_the_reason_of_the_close() -> Result<()> {
    let scene = scene(Opening::default(), "", |_| Ok(()))?;
    scene.reconfigure(|config| config.replace("20s", "500ms"))?;
    scene.gateway.reload()?;
    let (mut client, _) = scene.opening.open(&scene.net.client)?;
    let _ = client.reader.read_to_end(&mut Vec::new());
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["close_reason"] == "client_address_unanswered", "{log:?}");
    Ok(())
}

#[test]
fn stateful_filters_know_the_handshake_and_then_forget_it() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    require!(fs::exists(CONNTRACK)?, "the kernel does not show its conntrack table");
    for v6 in [false, true] {
        let scene = scene(Opening { v6, ..Opening::default() }, "", |net| {
            net.take_answers(None)?;
            let rules = "table inet filter { \
                chain input { type filter hook input priority 0; policy drop; iif lo accept; \
                    ct state established,related accept; meta l4proto ipv6-icmp accept; tcp dport 443 accept; }; \
                chain forward { type filter hook forward priority 0; policy drop; }; \
                chain output { type filter hook output priority 0; ct state invalid drop; }; }";
            checked_output(net.gateway.command("nft").arg(rules)).map(drop)
        })?;
        let (mut client, mut server, _) = scene.connection()?;
        scene.spliced(1)?;
        scene.forgotten_by_netfilter(&client, &server)?;
        server.write_all(b"more")?;
        client.reader.read_exact(&mut [0; 4])?;
    }
    Ok(())
}
