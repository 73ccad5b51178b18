//! Keepalive of connections that have no socket: the gateway probes ends that say nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use snisplice_tests::probes::Probes;
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::Duplex;
use snisplice_tests::skip::has_program;
use snisplice_tests::topology::{Leg, Shape, Triangle};
use snisplice_tests::{Launch, NetNs, eventually, require};

use crate::PACKET;
use crate::ends::{Opening, PATIENCE, SERVER_PORT};
use crate::scene::{CONNTRACK, Scene, meets_reset};
use crate::strangers::settled;

/// A scene in which listener and pool have this keepalive; the gateway's is the system's.
fn scene_of(opening: Opening, [of_listener, of_pool]: [&str; 2]) -> Result<Scene> {
    let scene = Scene::new(opening, "")?;
    scene.reconfigure(|text| {
        let text = text.replace("[[listener]]", &format!("[[listener]]\nkeepalive = {{ {of_listener} }}"));
        text.replace("[[pool]]", &format!("[[pool]]\nkeepalive = {{ {of_pool} }}"))
    })?;
    scene.gateway.reload()?;
    Ok(scene)
}

/// The one connection, which is in the packet tier and whose ends know everything that was said.
fn connection(scene: &Scene) -> Result<(Duplex, TcpStream)> {
    let (client, server, _) = scene.connection()?;
    settled(scene, "packet", 1)?;
    Ok((client, server))
}

pub(crate) fn talk(client: &mut Duplex, server: &mut TcpStream) -> Result<()> {
    client.writer.write_all(b"x")?;
    server.read_exact(&mut [0])?;
    server.write_all(b"y")?;
    client.reader.read_exact(&mut [0])?;
    Ok(())
}

/// A stateful firewall that forgets a connection on which nothing has come for so many seconds, and lets nothing pass
/// that it does not know.
fn forgetful(router: &NetNs, port: u16, seconds: u32) -> Result<()> {
    let rules = format!(
        "table ip filter {{ chain forward {{ type filter hook forward priority 0; policy drop; \
         ct state established accept; ct state new tcp dport {port} tcp flags syn / syn,ack,rst,fin accept; }}; }}"
    );
    checked_output(router.command("nft").arg(rules))?;
    router.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
    router.sysctl("net/netfilter/nf_conntrack_tcp_timeout_established", &seconds.to_string())
}

/// A scene with such a firewall before and behind the gateway.
fn between_firewalls(gateway: &str) -> Result<Scene> {
    let net = Triangle::shaped(Shape::Apart(Leg::Router, Leg::Router))?;
    // Longer than a look takes where the machine has much to do.
    forgetful(net.front.router()?, 443, 8)?;
    forgetful(net.back.router()?, SERVER_PORT, 8)?;
    Scene::within(net, Opening::default(), gateway, "", |_| Ok(Launch::default()))
}

#[test]
fn an_idle_connection_lives_on_behind_firewalls_that_forget_idle_ones() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    let scene = between_firewalls("[gateway]\nkeepalive = { idle = '2s', interval = '1s', count = 9 }\n")?;
    let (mut client, mut server) = connection(&scene)?;
    let probes = [Probes::of(&scene.net.client, &client.socket)?, Probes::of(&scene.net.server, &server)?];
    // Longer than they remember: two seconds, at the least, are between two probes that are answered.
    probes.iter().try_for_each(|probes| probes.wait(6))?;
    talk(&mut client, &mut server)?;

    // That they do forget.
    let scene = between_firewalls("")?;
    let (client, mut server) = connection(&scene)?;
    let port = format!("port={} ", client.socket.local_addr()?.port());
    for firewall in [&scene.net.front, &scene.net.back] {
        let firewall = firewall.router()?;
        eventually("the firewall to forget", || {
            let known = firewall.run(|| fs::read_to_string(CONNTRACK)).ok()?;
            (!known.contains(&port)).then_some(())
        })?;
    }
    server.write_all(b"lost")?;
    let mut ss = scene.net.server.command("ss");
    ss.args(["-Htni", "sport", "=", &SERVER_PORT.to_string()]);
    eventually("the server to say again what nobody hears", || {
        checked_output(&mut ss).ok()?.contains("backoff:").then_some(())
    })
}

#[test]
fn either_leg_is_probed_at_its_own_times() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    const SOON: &str = "idle = '1s', interval = '1s', count = 127";
    const NEVER: &str = "idle = '32767s'";
    for v6 in [false, true] {
        for probed in [0, 1] {
            let opening = Opening { v6, ..Opening::default() };
            let scene = scene_of(opening, if probed == 0 { [SOON, NEVER] } else { [NEVER, SOON] })?;
            let (client, server) = connection(&scene)?;
            let probes =
                [Probes::of(&scene.net.client, &client.socket)?, Probes::of(&scene.net.server, &server)?];
            probes[probed].wait(4).with_context(|| format!("IPv6: {v6}, end {probed}"))?;
            ensure!(probes[1 - probed].seen()? == 0, "IPv6: {v6}, the other end of {probed}");
        }
    }
    Ok(())
}

#[test]
fn an_end_that_is_dead_is_noticed_after_so_many_probes_and_both_are_reset() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    let gateway = "[gateway]\nkeepalive = { idle = '1s', interval = '1s', count = 3 }\n";
    for (dead, reason) in [(0, "client_reset"), (1, "server_reset")] {
        let scene = Scene::with_gateway(Opening::default(), gateway, "")?;
        let (client, server) = connection(&scene)?;
        let (probes, alive) = match dead {
            0 => (Probes::of_dead(&scene.net.client, &client.socket)?, &server),
            _ => (Probes::of_dead(&scene.net.server, &server)?, &client.socket),
        };
        meets_reset(alive).with_context(|| reason.to_owned())?;
        let log = scene.gateway.wait_access_log(1)?;
        ensure!(log[0]["close_reason"] == reason, "{log:?}");
        ensure!(probes.seen()? == 3, "{} probes instead of 3: {reason}", probes.seen()?);
    }
    Ok(())
}

/// The gateway's socket repeats the client's first words, with a timestamp of that moment, and neither end says anything more. A
/// probe with an older one would be none to Linux (PAWS, since 6.14); that of the client would bring a newer one.
#[test]
fn a_server_that_got_the_first_words_late_answers_probes() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    let scene = scene_of(Opening::default(), ["idle = '1h'", "idle = '1s', interval = '1s', count = 3"])?;
    let nft = |rules: &str| checked_output(scene.net.server.command("nft").arg(rules));
    nft("add table netdev hole; \
         add chain netdev hole in { type filter hook ingress device eth0 priority 0; }; \
         add rule netdev hole in ip length > 100 drop")?;
    let (mut client, _) = scene.opening.open(&scene.net.client)?;
    thread::sleep(Duration::from_secs(1));
    nft("delete table netdev hole")?;
    let mut server = scene.accepted(PATIENCE)?;
    settled(&scene, "packet", 1)?;
    Probes::of(&scene.net.server, &server)?.wait(6)?;
    talk(&mut client, &mut server)
}

#[test]
fn an_end_with_a_keepalive_of_its_own_is_not_probed_nor_is_the_other() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    for probing in [0, 1] {
        let keepalive = "idle = '8s', interval = '1s', count = 9";
        let scene = scene_of(Opening::default(), [keepalive, keepalive])?;
        let (client, server) = connection(&scene)?;
        let ends = [(&client.socket, &scene.net.client), (&server, &scene.net.server)];
        let ((socket, ns), (other, other_ns)) = (ends[probing], ends[1 - probing]);
        let [own, others] = [Probes::of(ns, socket)?, Probes::of(other_ns, other)?];
        setsockopt(&socket.as_fd(), sockopt::TcpKeepIdle, &1)?;
        setsockopt(&socket.as_fd(), sockopt::TcpKeepInterval, &1)?;
        setsockopt(&socket.as_fd(), sockopt::KeepAlive, &true)?;
        // Its probes reach the other end, for longer than the gateway waits.
        others.wait(12)?;
        ensure!(own.seen()? == 0, "the gateway has probed end {probing}, which it has heard");
    }
    Ok(())
}

#[test]
fn what_is_not_configured_is_the_systems_also_when_that_changes() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    let scene = Scene::new(Opening::default(), "")?;
    let (client, server) = connection(&scene)?;
    let probes = Probes::of_dead(&scene.net.client, &client.socket)?;
    for (name, value) in [("time", "1"), ("intvl", "1"), ("probes", "2")] {
        scene.net.gateway.sysctl(&format!("net/ipv4/tcp_keepalive_{name}"), value)?;
    }
    meets_reset(&server)?;
    ensure!(probes.seen()? == 2, "{} probes instead of 2", probes.seen()?);
    Ok(())
}

/// Its listener and its pool have other names by then.
#[test]
fn the_next_process_probes_what_it_adopts() -> Result<()> {
    require!(PACKET, "the copy tier's connections end with the process");
    require!(has_program("nft"), "no nft");
    for renamed in [false, true] {
        let mut scene = Scene::new(Opening::default(), "")?;
        let (mut client, mut server) = connection(&scene)?;
        scene.reconfigure(|text| {
            if renamed {
                let text = text.replace("\"databases\"", "\"others\"").replace("\"app1\"", "\"app2\"");
                return text.replace("[gateway]", "[gateway]\nkeepalive = { idle = '1s' }");
            }
            let text = text.replace("[[listener]]", "[[listener]]\nkeepalive = { idle = '1s' }");
            text.replace("[[pool]]", "[[pool]]\nkeepalive = { idle = '1s' }")
        })?;
        scene.gateway.kill_and_restart()?;
        let probes =
            [Probes::of(&scene.net.client, &client.socket)?, Probes::of(&scene.net.server, &server)?];
        for probes in &probes {
            probes.wait(3).with_context(|| format!("renamed: {renamed}"))?;
        }
        talk(&mut client, &mut server)?;
    }
    Ok(())
}

#[test]
fn probes_of_the_gateway_do_not_keep_an_idle_connection() -> Result<()> {
    require!(PACKET, "the copy tier has its sockets for that");
    require!(has_program("nft"), "no nft");
    let gateway = "[gateway]\nkeepalive = { idle = '1s', interval = '1s', count = 9 }\n";
    let scene = Scene::with_gateway(Opening::default(), gateway, "idle_timeout = '6s'")?;
    let (client, server) = connection(&scene)?;
    let probes = Probes::of(&scene.net.client, &client.socket)?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["close_reason"] == "idle_timeout", "{log:?}");
    ensure!(probes.seen()? > 0, "no probe has come");
    meets_reset(&client.socket)?;
    meets_reset(&server)
}
