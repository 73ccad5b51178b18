//! What the gateway itself says to the ends, on hosts that filter what leaves them.
//!
//! netfilter does not know these connections any more: to it a packet of theirs that a socket sends is a stray one.

use std::net::TcpStream;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::Duplex;
use snisplice_tests::skip::has_program;
use snisplice_tests::topology::Triangle;
use snisplice_tests::{Launch, require};

use crate::PACKET;
use crate::case::Expect;
use crate::ends::{Opening, SERVER_PORT};
use crate::scene::{Scene, meets_reset};

/// Lets only that out which a handshake needs and what belongs to a connection that is known. Nothing may be taken up
/// in its midst, as it would by default (`nf_conntrack_tcp_loose`).
fn filter(net: &Triangle) -> Result<()> {
    let rules = format!(
        "table inet filter {{ chain output {{ type filter hook output priority 0; policy drop; \
         ct state established,related accept; icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept; \
         ct state new tcp dport {SERVER_PORT} tcp flags syn / syn,ack,rst,fin accept; }}; }}"
    );
    checked_output(net.gateway.command("nft").arg(rules))?;
    net.gateway.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")
}

fn filtered(opening: Opening, route: &str) -> Result<Scene> {
    Scene::launched(opening, "", route, |net| filter(net).map(|()| Launch::default()))
}

/// Both ends of a connection that netfilter has forgotten, and its line in `connections`.
fn connection(scene: &Scene) -> Result<(Duplex, TcpStream, Value)> {
    let (client, server, _) = scene.connection()?;
    let live = scene.spliced(1)?.remove(0);
    scene.forgotten_by_netfilter(&client, &server)?;
    Ok((client, server, live))
}

fn both_meet_reset(client: &Duplex, server: &TcpStream) -> Result<()> {
    thread::scope(|scope| {
        let server = scope.spawn(|| meets_reset(server).context("the server"));
        meets_reset(&client.socket).context("the client")?;
        server.join().expect("no assertion in there")
    })
}

#[test]
fn a_kill_reaches_both_ends_past_a_stateful_filter() -> Result<()> {
    require!(PACKET, "only the packet tier bypasses netfilter");
    require!(has_program("nft"), "no nft");
    for v6 in [false, true] {
        let scene = filtered(Opening { v6, ..Opening::default() }, "")?;
        let (client, server, live) = connection(&scene)?;
        let killed = scene.gateway.cli(["kill", &live["id"].to_string()])?;
        ensure!(killed.status.success(), "{killed:?}");
        both_meet_reset(&client, &server).with_context(|| format!("IPv6: {v6}"))?;
    }
    Ok(())
}

#[test]
fn the_end_of_an_idle_connection_reaches_both_ends_past_a_stateful_filter() -> Result<()> {
    require!(PACKET, "only the packet tier bypasses netfilter");
    require!(has_program("nft"), "no nft");
    let scene = filtered(Opening::default(), "idle_timeout = '2s'")?;
    let (client, server, _) = connection(&scene)?;
    both_meet_reset(&client, &server)?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["close_reason"] == "idle_timeout", "{log:?}");
    Expect::Packet.check(&log[0])
}
