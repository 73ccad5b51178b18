//! Networks that are not two pairs of devices: ways there and back that differ, ways that change under a connection,
//! and packets that come another way than the connection's. Each also in the copy tier, of which the sockets hold.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::Duplex;
use snisplice_tests::skip::has_program;
use snisplice_tests::stranger::flag::{ACK, FIN, RST, SYN};
use snisplice_tests::stranger::{Forged, Numbers, Stranger};
use snisplice_tests::topology::Triangle;
use snisplice_tests::{Backend, Counters, Gateway, NetNs, eventually, require};

use crate::case::config;
use crate::ends::{Opening, PATIENCE, SocketOptions};

/// Which end of a connection, seen from the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

impl Side {
    /// Its network in a [`Triangle`], as [`join`] counts.
    fn network(self) -> u8 {
        match self {
            Self::Client => 1,
            Self::Server => 2,
        }
    }

    fn of(self, net: &Triangle) -> &NetNs {
        match self {
            Self::Client => &net.client,
            Self::Server => &net.server,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Copy,
    Packet,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Packet => "packet",
        }
    }
}

/// Runs a test by both families, first in the copy tier: what that cannot do, nobody asks of the packet tier.
fn beside_the_copy_tier(test: impl Fn(Opening, Tier) -> Result<()>) -> Result<()> {
    for tier in [Tier::Copy, Tier::Packet] {
        for v6 in [false, true] {
            let opening = Opening { v6, ..Opening::default() };
            test(opening, tier).with_context(|| format!("{tier:?}, IPv{}", if v6 { 6 } else { 4 }))?;
        }
    }
    Ok(())
}

/// A gateway in a network, and servers whose ends of connections the test holds.
struct Scene {
    net: Triangle,
    gateway: Gateway,
    opening: Opening,
    tier: Tier,
    accept: Sender<TcpStream>,
    accepted: Receiver<TcpStream>,
    servers: Vec<Backend>,
}

impl Scene {
    /// With a server in `net.server`, at its address in a network.
    fn new(net: Triangle, opening: Opening, tier: Tier, network: u8) -> Result<Self> {
        let server = net.server.again()?;
        let mut scene = Self::without_server(net, opening, tier, network)?;
        scene.serve(&server)?;
        Ok(scene)
    }

    /// The server, host 2 of the network, is yet to come.
    fn without_server(net: Triangle, opening: Opening, tier: Tier, network: u8) -> Result<Self> {
        let (accept, accepted) = mpsc::channel();
        let server = address(network, 2, opening.v6);
        let tiers = match tier {
            Tier::Copy => "[gateway]\ntiers = ['copy']\n",
            Tier::Packet => "",
        };
        let gateway =
            Gateway::start(&net.gateway, &(tiers.to_owned() + &config(&opening, server, None, "")))?;
        Ok(Self { net, gateway, opening, tier, accept, accepted, servers: Vec::new() })
    }

    fn serve(&mut self, server: &NetNs) -> Result<()> {
        let (opening, accept) = (self.opening, self.accept.clone());
        let listener = SocketOptions::default().listen(server)?;
        self.servers.push(Backend::serve(server, listener, move |mut stream| {
            opening.greet(&mut stream, None)?;
            accept.send(stream).map_err(std::io::Error::other)
        })?);
        Ok(())
    }

    /// Both ends of a connection, across which a few bytes went each way.
    fn connection(&self) -> Result<Connection> {
        let (client, _) = self.opening.open(&self.net.client).context("the client's opening")?;
        let server = self.accepted.recv_timeout(PATIENCE).context("the server meets nobody")?;
        let mut connection = Connection { client, server };
        connection.talk()?;
        Ok(connection)
    }

    /// The same, in the tier of the scene.
    fn connection_in_its_tier(&self) -> Result<Connection> {
        let connection = self.connection()?;
        self.in_its_tier(&connection)?;
        Ok(connection)
    }

    /// Waits until the gateway has the connection in the scene's tier.
    fn in_its_tier(&self, connection: &Connection) -> Result<()> {
        let client = connection.client.socket.local_addr()?.to_string();
        eventually(&format!("the connection in the tier {}", self.tier.name()), || {
            let live = self.gateway.connections().ok()?;
            live.iter().any(|line| line["client"] == client && line["tier"] == self.tier.name()).then_some(())
        })
        .with_context(|| format!("{:?}", self.gateway.connections()))
    }

    /// Makes the gateway ask for the link-layer addresses behind a device anew, as when what it knows has expired.
    fn forget_neighbours(&self, device: &str) -> Result<()> {
        self.net.gateway.ip(&format!("neigh flush dev {device}"))?;
        Ok(())
    }
}

struct Connection {
    client: Duplex,
    server: TcpStream,
}

impl Connection {
    /// A few bytes each way.
    fn talk(&mut self) -> Result<()> {
        for _ in 0..3 {
            let mut got = [0; 4];
            self.client.writer.write_all(b"ping").context("the client says nothing any more")?;
            self.server.read_exact(&mut got).context("the server hears nothing")?;
            ensure!(&got == b"ping", "the server hears {got:?}");
            self.server.write_all(b"pong").context("the server says nothing any more")?;
            self.client.reader.read_exact(&mut got).context("the client hears nothing")?;
            ensure!(&got == b"pong", "the client hears {got:?}");
        }
        Ok(())
    }

    /// Whether the client, which goes on talking, is told that nobody is there any more. A gateway that copies may say
    /// so by an end.
    fn ends(&mut self, tier: Tier) -> Result<()> {
        let socket = &self.client.socket;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        eventually("the client's reset", || {
            let _ = (&mut &*socket).write_all(b"still there?");
            match (&mut &*socket).read(&mut [0; 16]) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(()),
                Ok(0) => (tier == Tier::Copy).then_some(()),
                _ => None,
            }
        })
    }
}

/// A host of the network 10.0.N.0/24, fd00:N::/64.
fn address(network: u8, host: u8, v6: bool) -> IpAddr {
    match v6 {
        false => [10, 0, network, host].into(),
        true => [0xfd00, network.into(), 0, 0, 0, 0, 0, host.into()].into(),
    }
}

/// Gives a device an address of each family in a network.
fn give((ns, device): (&NetNs, &str), network: u8, host: u8) -> Result<()> {
    ns.address(device, &format!("{}/24", address(network, host, false)))?;
    ns.address(device, &format!("{}/64", address(network, host, true)))
}

/// Joins two namespaces by a veth pair, which is a network of its own: host 1 here, host 2 there.
fn join(here: (&NetNs, &str), there: (&NetNs, &str), network: u8) -> Result<()> {
    here.0.link(here.1, there.0, there.1)?;
    give(here, network, 1)?;
    give(there, network, 2)
}

/// Sends what is for one host by another, and by a device, under an address of one's own: each a network and a host.
fn send_by(ns: &NetNs, to: (u8, u8), by: (u8, u8), device: &str, source: Option<(u8, u8)>) -> Result<()> {
    for (family, length, v6) in [("-4", 32, false), ("-6", 128, true)] {
        let at = |(network, host)| address(network, host, v6);
        let source = source.map(|source| format!("src {}", at(source))).unwrap_or_default();
        ns.ip(&format!("{family} route replace {}/{length} via {} dev {device} {source}", at(to), at(by)))?;
    }
    Ok(())
}

/// Takes packets by whatever device they come.
fn no_reverse_path_filter(ns: &NetNs) -> Result<()> {
    let devices = ns.run(|| -> Result<Vec<_>> {
        let entries = fs::read_dir("/proc/sys/net/ipv4/conf")?;
        Ok(entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<_>>()?)
    })?;
    let mut names = devices.iter().filter_map(|name| name.to_str());
    names.try_for_each(|name| ns.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "0"))
}

fn forwards(ns: &NetNs) -> Result<()> {
    no_reverse_path_filter(ns)?;
    ns.sysctl("net/ipv4/ip_forward", "1")?;
    ns.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// From now on TCP that arrives by the device is lost.
fn loses_tcp_by(ns: &NetNs, device: &str) -> Result<()> {
    let table = format!(
        "table inet lossy {{ chain arriving {{ type filter hook prerouting priority -300; \
         iifname {device} meta l4proto tcp drop; }}; }}"
    );
    checked_output(ns.command("nft").arg(table))?;
    Ok(())
}

/// The second link between the gateway and an end: `side` here, `eth1` there.
const SECOND: u8 = 3;

#[test]
fn packets_that_come_by_one_device_are_answered_by_another() -> Result<()> {
    require!(has_program("nft"), "no nft");
    for side in [Side::Client, Side::Server] {
        beside_the_copy_tier(|opening, tier| {
            let net = Triangle::new()?;
            join((&net.gateway, "side"), (side.of(&net), "eth1"), SECOND)?;
            answers_by_another_device(net, side, opening, tier)
        })
        .with_context(|| format!("{side:?}"))?;
    }
    Ok(())
}

#[test]
fn packets_that_come_by_a_tunnel_are_answered_beside_it() -> Result<()> {
    require!(has_program("nft"), "no nft");
    let has_vxlan = NetNs::new("tunnel")?.ip("link add vx type vxlan id 7 dstport 4789").is_ok();
    require!(has_vxlan, "the kernel has no VXLAN");
    const UNDERLAY: u8 = 4;
    for side in [Side::Client, Side::Server] {
        beside_the_copy_tier(|opening, tier| {
            let net = Triangle::new()?;
            join((&net.gateway, "below"), (side.of(&net), "below"), UNDERLAY)?;
            for (ns, device, local, remote) in [(&net.gateway, "side", 1, 2), (side.of(&net), "eth1", 2, 1)] {
                let [local_ip, remote_ip] = [local, remote].map(|host| address(UNDERLAY, host, false));
                ns.ip(&format!(
                    "link add {device} type vxlan id 7 local {local_ip} remote {remote_ip} dstport 4789"
                ))?;
                ns.ip(&format!("link set {device} up"))?;
                give((ns, device), SECOND, local)?;
            }
            answers_by_another_device(net, side, opening, tier)
        })
        .with_context(|| format!("{side:?}"))?;
    }
    Ok(())
}

/// An end sends by its second link, and hears nothing by it.
fn answers_by_another_device(net: Triangle, side: Side, opening: Opening, tier: Tier) -> Result<()> {
    let (end, network) = (side.of(&net), side.network());
    no_reverse_path_filter(&net.gateway)?;
    no_reverse_path_filter(end)?;
    send_by(end, (network, 1), (SECOND, 1), "eth1", Some((network, 2)))?;
    loses_tcp_by(end, "eth1")?;
    let scene = Scene::new(net, opening, tier, Side::Server.network())?;
    let mut connection = scene.connection()?;
    let client = connection.client.socket.local_addr()?.to_string();
    // Whatever the tier is by now or becomes.
    thread::sleep(Duration::from_millis(300));
    connection.talk()?;
    let live = scene.gateway.connections()?;
    let line = live.iter().find(|line| line["client"] == client).context("the connection is not listed")?;
    let is_explained = line["tier"] == tier.name() || line["tier_reason"].is_string();
    ensure!(is_explained, "{line}");
    Ok(())
}

#[test]
fn a_connection_goes_on_when_the_way_to_an_end_moves_to_another_device() -> Result<()> {
    require!(has_program("nft"), "no nft");
    for side in [Side::Client, Side::Server] {
        beside_the_copy_tier(|opening, tier| {
            let net = Triangle::new()?;
            join((&net.gateway, "side"), (side.of(&net), "eth1"), SECOND)?;
            no_reverse_path_filter(&net.gateway)?;
            no_reverse_path_filter(side.of(&net))?;
            let scene = Scene::new(net, opening, tier, Side::Server.network())?;
            let mut connection = scene.connection_in_its_tier()?;
            let (end, network) = (side.of(&scene.net), side.network());
            send_by(&scene.net.gateway, (network, 2), (SECOND, 2), "side", None)?;
            send_by(end, (network, 1), (SECOND, 1), "eth1", Some((network, 2)))?;
            loses_tcp_by(end, "eth0")?;
            connection.talk().context("after the move")?;
            scene.in_its_tier(&connection).context("after the move")
        })
        .with_context(|| format!("{side:?}"))?;
    }
    Ok(())
}

/// Where a server is behind a next hop: the gateway's network with that, by a device `lan`, and the server's.
const LAN: u8 = 5;
const BEHIND: u8 = 6;

/// A bridge's address is its lowest port's; containers' gateways hang at bridges.
#[test]
fn a_connection_goes_on_when_a_bridge_on_the_way_takes_another_address() -> Result<()> {
    beside_the_copy_tier(|opening, tier| {
        let (net, node) = (Triangle::new()?, NetNs::new("node")?);
        forwards(&node)?;
        net.gateway.link("lan", &node, "near")?;
        node.ip("link add first type veth peer name unused")?;
        node.ip("link set first address 02:00:00:00:00:01")?;
        node.ip("link set near address 0a:00:00:00:00:02")?;
        node.ip("link add br0 type bridge")?;
        for device in ["first", "near"] {
            node.ip(&format!("link set {device} master br0"))?;
            node.ip(&format!("link set {device} up"))?;
        }
        node.ip("link set br0 up")?;
        give((&net.gateway, "lan"), LAN, 1)?;
        give((&node, "br0"), LAN, 2)?;
        join((&node, "far"), (&net.server, "eth1"), BEHIND)?;
        send_by(&net.gateway, (BEHIND, 2), (LAN, 2), "lan", None)?;
        send_by(&net.server, (LAN, 1), (BEHIND, 1), "eth1", None)?;

        let scene = Scene::new(net, opening, tier, BEHIND)?;
        let mut connection = scene.connection_in_its_tier()?;
        let before = node.ip("link show br0")?;
        node.ip("link del first")?;
        let after = node.ip("link show br0")?;
        ensure!(before.contains("02:00:00:00:00:01") && after.contains("0a:00:00:00:00:02"), "{after}");
        scene.forget_neighbours("lan")?;
        connection.talk().context("after the bridge has changed its address")
    })
}

/// As with VRRP: the address of the next hop moves from one router to another.
#[test]
fn a_connection_goes_on_when_the_next_hop_moves_to_another_router() -> Result<()> {
    const BEHIND_TOO: u8 = 7;
    beside_the_copy_tier(|opening, tier| {
        let (net, switch) = (Triangle::new()?, NetNs::new("switch")?);
        let routers = [NetNs::new("router1")?, NetNs::new("router2")?];
        switch.ip("link add lan type bridge")?;
        switch.ip("link set lan up")?;
        for (port, ns, device) in
            [("port0", &net.gateway, "lan"), ("port1", &routers[0], "near"), ("port2", &routers[1], "near")]
        {
            switch.link(port, ns, device)?;
            switch.ip(&format!("link set {port} master lan"))?;
        }
        give((&net.gateway, "lan"), LAN, 1)?;
        give((&routers[0], "near"), LAN, 2)?;
        give((&routers[1], "near"), LAN, 3)?;
        join((&routers[0], "far"), (&net.server, "eth1"), BEHIND)?;
        join((&routers[1], "far"), (&net.server, "eth2"), BEHIND_TOO)?;
        routers.iter().chain([&net.server]).try_for_each(forwards)?;
        send_by(&routers[1], (BEHIND, 2), (BEHIND_TOO, 2), "far", None)?;
        send_by(&net.gateway, (BEHIND, 2), (LAN, 2), "lan", None)?;
        send_by(&net.server, (LAN, 1), (BEHIND, 1), "eth1", None)?;

        let scene = Scene::new(net, opening, tier, BEHIND)?;
        let mut connection = scene.connection_in_its_tier()?;
        routers[0].ip("link set near down")?;
        give((&routers[1], "near"), LAN, 2)?;
        send_by(&scene.net.server, (LAN, 1), (BEHIND_TOO, 1), "eth2", Some((BEHIND, 2)))?;
        scene.forget_neighbours("lan")?;
        connection.talk().context("after the address has moved")
    })
}

/// The pods' network: the gateway is host 1, on no device of its own, and each pod has a device and a route.
const PODS: u8 = 8;

/// A pod that is host 2, behind a device of the gateway.
fn pod(gateway: &NetNs, device: &str) -> Result<NetNs> {
    let pod = NetNs::new("pod")?;
    gateway.link(device, &pod, "eth0")?;
    gateway.address(device, "fe80::1/64")?;
    pod.address("eth0", &format!("{}/32", address(PODS, 2, false)))?;
    pod.address("eth0", &format!("{}/128", address(PODS, 2, true)))?;
    pod.ip(&format!("route add default via {} dev eth0 onlink", address(PODS, 1, false)))?;
    pod.ip("-6 route add default via fe80::1 dev eth0")?;
    for (family, v6) in [("-4", false), ("-6", true)] {
        let [own, pod] = [1, 2].map(|host| address(PODS, host, v6));
        gateway.ip(&format!("{family} route replace {pod} dev {device} src {own}"))?;
    }
    Ok(pod)
}

#[test]
fn when_a_server_comes_back_behind_another_device_old_connections_end_and_new_ones_work() -> Result<()> {
    // Another name, and the same again.
    for next in ["pod1", "pod0"] {
        beside_the_copy_tier(|opening, tier| {
            let net = Triangle::new()?;
            net.gateway.address("lo", &format!("{}/32", address(PODS, 1, false)))?;
            net.gateway.address("lo", &format!("{}/128", address(PODS, 1, true)))?;
            let first = pod(&net.gateway, "pod0")?;
            let mut scene = Scene::without_server(net, opening, tier, PODS)?;
            scene.serve(&first)?;
            let mut old = scene.connection_in_its_tier()?;

            scene.net.gateway.ip("link del pod0")?;
            let second = pod(&scene.net.gateway, next)?;
            scene.serve(&second)?;
            old.ends(tier).context("the old connection")?;
            // A device gets its program a moment after it has come.
            let mut new = eventually("a new connection in its tier", || {
                let connection = scene.connection().ok()?;
                scene.in_its_tier(&connection).ok().map(|()| connection)
            })?;
            new.talk().context("a new connection")
        })
        .with_context(|| format!("behind {next}"))?;
    }
    Ok(())
}

#[test]
fn a_packet_by_the_wrong_device_changes_nothing_and_reaches_no_socket() -> Result<()> {
    const STRANGERS: u8 = 9;
    for v6 in [false, true] {
        let net = Triangle::new()?;
        let stranger = NetNs::new("stranger")?;
        join((&net.gateway, "side"), (&stranger, "eth0"), STRANGERS)?;
        for network in [1, 2] {
            send_by(&stranger, (network, 1), (STRANGERS, 1), "eth0", None)?;
        }
        no_reverse_path_filter(&net.gateway)?;
        let opening = Opening { v6, ..Opening::default() };
        let scene = Scene::new(net, opening, Tier::Packet, Side::Server.network())?;
        let mut connection = scene.connection_in_its_tier()?;
        eventually("no socket of the gateway", || {
            let sockets = Counters::of(&scene.net.gateway).ok()?.get("Tcp.CurrEstab");
            (sockets == 0).then_some(())
        })?;
        let before = Counters::of(&scene.net.gateway)?;
        for end in [&connection.client.socket, &connection.server] {
            forge(&stranger, end)?;
        }
        // Longer than a reset stands before it counts: nothing comes of it.
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            scene.in_its_tier(&connection).context("after forged packets")?;
            thread::sleep(Duration::from_millis(50));
        }
        let grown = Counters::of(&scene.net.gateway)?.since(&before);
        ensure!(grown.get("Tcp.InSegs") == 0, "IPv6 {v6}: sockets have got {grown:?}");
        connection.talk().with_context(|| format!("IPv6 {v6}: after forged packets"))?;
        scene.in_its_tier(&connection)?;
    }
    Ok(())
}

/// The policy lets clear text pass, since there is no key for it: what enters the packet tier would never be encrypted.
#[test]
fn a_connection_that_an_ipsec_policy_concerns_stays_with_its_sockets() -> Result<()> {
    let has_ipsec = NetNs::new("ipsec")?.ip("xfrm policy").is_ok();
    require!(has_ipsec, "the kernel has no IPsec");
    for side in [Side::Client, Side::Server] {
        for v6 in [false, true] {
            let net = Triangle::new()?;
            let [local, peer] = [1, 2].map(|host| address(side.network(), host, v6));
            net.gateway.ip(&format!(
                "xfrm policy add src {local} dst {peer} proto tcp dir out \
                 tmpl src {local} dst {peer} proto esp mode transport level use"
            ))?;
            let opening = Opening { v6, ..Opening::default() };
            let scene = Scene::new(net, opening, Tier::Packet, Side::Server.network())?;
            let mut connection = scene.connection()?;
            // Time enough to be taken over.
            thread::sleep(Duration::from_millis(300));
            connection.talk()?;
            let line = &scene.gateway.connections()?[0];
            ensure!(line["tier"] == "copy" && line["tier_reason"].is_string(), "{side:?}: {line}");
        }
    }
    Ok(())
}

/// Sends what an end might send, with the right numbers: data, a FIN, a SYN and a reset.
fn forge(stranger: &NetNs, end: &TcpStream) -> Result<()> {
    let Numbers { next, expected: ack, .. } = Numbers::of(end)?;
    let stranger = Stranger::as_end(stranger, end)?;
    let evil = b"evil".as_slice();
    let behind = next.wrapping_add(evil.len() as u32);
    for (flags, seq, payload) in
        [(ACK, next, evil), (ACK | FIN, behind, &[]), (SYN, next, &[]), (RST, next, &[])]
    {
        stranger.send(&Forged { flags, seq, ack, payload, ..Forged::default() })?;
    }
    Ok(())
}
