//! The topology of tests, demo and benchmarks: client, gateway and server, joined by two legs, of veth pairs unless
//! asked otherwise.
//!
//! ```text
//!   client                     gateway                        server
//!   10.0.1.2  fd00:1::2  <-->  10.0.1.1  fd00:1::1
//!                              10.0.2.1  fd00:2::1  <-->  10.0.2.2  fd00:2::2
//! ```
//!
//! The gateway forwards, so the client also reaches the server directly: the bare route of the benchmarks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};

use crate::netns::NetNs;
use crate::process::checked_output;
use crate::wire::{self, Wire};

/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// The gateway's address toward the client.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// The gateway's address toward the server.
pub const GATEWAY_BACK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 1);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The client's IPv6 address.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
/// The gateway's IPv6 address toward the client.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
/// The gateway's IPv6 address toward the server.
pub const GATEWAY6_BACK: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 1);
/// The server's IPv6 address.
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);

/// How the gateway is joined to a neighbour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leg {
    /// A veth pair.
    #[default]
    Veth,
    /// A wire that a test can look at and disturb.
    Wire(wire::Kind),
    /// A veth pair whose gateway end is a port of a bridge, which has the gateway's address.
    Bridge,
    /// A VLAN on a veth pair.
    Vlan,
    /// A router on the way, which answers for the addresses behind it: two veth pairs, `near` (toward the gateway)
    /// and `far`.
    Router,
}

/// Where client, gateway and server are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A leg from the gateway to each of the others: `front` to the client, `back` to the server.
    Apart(Leg, Leg),
    /// One device, `front`, through which the gateway reaches both.
    OneArmed,
    /// The server in the gateway's own namespace: on the loopback address, or on the gateway's toward the client.
    Local {
        /// Which of these addresses.
        loopback: bool,
    },
}

impl Default for Shape {
    fn default() -> Self {
        Self::Apart(Leg::Veth, Leg::Veth)
    }
}

/// Client, gateway and server; devices `eth0` in the client and the server, `front` and `back` in the gateway.
#[derive(Debug)]
pub struct Triangle {
    /// How they are joined.
    pub shape: Shape,
    /// Where clients run.
    pub client: NetNs,
    /// Where the gateway (or a peer it is compared with) runs.
    pub gateway: NetNs,
    /// Where the databases run.
    pub server: NetNs,
    /// What the leg toward the client goes through.
    pub front: Joint,
    /// What the leg toward the server goes through.
    pub back: Joint,
    /// Every address of the server, in the order IPv4, IPv6.
    pub server_addresses: [IpAddr; 2],
    /// The switch of [`Shape::OneArmed`].
    _switch: Option<NetNs>,
}

/// What a [`Leg`] has beside its two devices.
#[derive(Debug, Default)]
pub struct Joint {
    wire: Option<Wire>,
    router: Option<NetNs>,
}

impl Joint {
    /// The wire of a [`Leg::Wire`].
    pub fn wire(&self) -> Option<&Wire> {
        self.wire.as_ref()
    }

    /// The router of a [`Leg::Router`].
    pub fn router(&self) -> Result<&NetNs> {
        self.router.as_ref().context("this leg has no router")
    }
}

impl Triangle {
    /// Builds three namespaces joined by veth pairs.
    pub fn new() -> Result<Self> {
        Self::shaped(Shape::default())
    }

    /// Builds the namespaces.
    pub fn shaped(shape: Shape) -> Result<Self> {
        let (client, gateway) = (NetNs::new("client")?, NetNs::new("gateway")?);
        let server = match shape {
            Shape::Local { .. } => gateway.again()?,
            _ => NetNs::new("server")?,
        };
        let (mut front, mut back, mut switch) = (Joint::default(), Joint::default(), None);
        let mut back_device = "back";
        let mut server_addresses = [SERVER.into(), SERVER6.into()];
        match shape {
            Shape::Apart(toward_client, toward_server) => {
                front = join((&gateway, "front"), &client, toward_client)?;
                back = join((&gateway, "back"), &server, toward_server)?;
            }
            Shape::OneArmed => {
                let made = switch.insert(NetNs::new("switch")?);
                made.ip("link add bridge type bridge")?;
                made.ip("link set bridge up")?;
                for (port, peer, device) in
                    [("port1", &gateway, "front"), ("port2", &client, "eth0"), ("port3", &server, "eth0")]
                {
                    made.link(port, peer, device)?;
                    made.ip(&format!("link set {port} master bridge"))?;
                }
                back_device = "front";
            }
            Shape::Local { loopback } => {
                join((&gateway, "front"), &client, Leg::Veth)?;
                server_addresses = match loopback {
                    true => [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
                    false => [GATEWAY.into(), GATEWAY6.into()],
                };
            }
        }
        let mut addresses = vec![(&client, "eth0", CLIENT, CLIENT6), (&gateway, "front", GATEWAY, GATEWAY6)];
        if !matches!(shape, Shape::Local { .. }) {
            addresses.push((&gateway, back_device, GATEWAY_BACK, GATEWAY6_BACK));
            addresses.push((&server, "eth0", SERVER, SERVER6));
        }
        for (ns, device, v4, v6) in addresses {
            ns.address(device, &format!("{v4}/24"))?;
            ns.address(device, &format!("{v6}/64"))?;
        }
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        client.ip(&format!("route add default via {GATEWAY}"))?;
        client.ip(&format!("-6 route add default via {GATEWAY6}"))?;
        if !matches!(shape, Shape::Local { .. }) {
            server.ip(&format!("route add default via {GATEWAY_BACK}"))?;
            server.ip(&format!("-6 route add default via {GATEWAY6_BACK}"))?;
        }
        Ok(Self { shape, client, gateway, server, front, back, server_addresses, _switch: switch })
    }

    /// Hands answers to clients' addresses to the gateway's sockets, by the commands of docs/operating.md. `mark`: instead
    /// of the one that is documented.
    pub fn take_answers(&self, mark: Option<&str>) -> Result<()> {
        let docs = include_str!("../../docs/operating.md");
        let mut sections = docs.split("\n## ");
        let section = sections.find(|section| section.starts_with("Servers that see the client's address"));
        let commands: Vec<_> =
            section.context("the section")?.lines().filter_map(|l| l.strip_prefix("# ")).collect();
        ensure!(commands.len() == 7, "{commands:?}");
        for command in commands {
            let command = mark.map_or(command.to_owned(), |mark| command.replace("0x736e6970", mark));
            checked_output(self.gateway.command("sh").args(["-c", &command]))?;
        }
        Ok(())
    }

    /// Both wires, as far as there are any, the client's first.
    pub fn wires(&self) -> impl Iterator<Item = &Wire> {
        [&self.front, &self.back].into_iter().filter_map(Joint::wire)
    }
}

/// Whether this kernel has VLAN devices (CONFIG_VLAN_8021Q).
pub fn has_vlans() -> bool {
    NetNs::new("vlan").is_ok_and(|ns| {
        // Not on the loopback device: that takes no VLANs on any kernel.
        ns.ip("link add below type veth peer name other").is_ok()
            && ns.ip("link add link below name vlan type vlan id 7").is_ok()
    })
}

/// Whether netfilter can tell by its socket whom a packet is for ([`Triangle::take_answers`]): nft and CONFIG_NFT_SOCKET.
pub fn has_socket_match() -> bool {
    let rules = "add table inet t; add chain inet t c { type filter hook prerouting priority mangle; }; \
                 add rule inet t c meta l4proto tcp socket transparent 1 accept";
    NetNs::new("nft").is_ok_and(|ns| checked_output(ns.command("nft").arg(rules)).is_ok())
}

/// Joins a neighbour's `eth0` to a device of the gateway.
fn join((gateway, device): (&NetNs, &str), neighbour: &NetNs, leg: Leg) -> Result<Joint> {
    // Where `device` stands on another one.
    let below = format!("{device}0");
    let mut joint = Joint::default();
    match leg {
        Leg::Veth => gateway.link(device, neighbour, "eth0")?,
        Leg::Wire(kind) => joint.wire = Some(Wire::new((gateway, device), (neighbour, "eth0"), kind)?),
        Leg::Bridge => {
            gateway.link(&below, neighbour, "eth0")?;
            gateway.ip(&format!("link add {device} type bridge"))?;
            gateway.ip(&format!("link set {below} master {device}"))?;
            gateway.ip(&format!("link set {device} up"))?;
        }
        Leg::Vlan => {
            gateway.link(&below, neighbour, "wire0")?;
            for (ns, parent, vlan) in [(gateway, below.as_str(), device), (neighbour, "wire0", "eth0")] {
                ns.ip(&format!("link add {vlan} link {parent} type vlan id 7"))?;
                ns.ip(&format!("link set {vlan} up"))?;
            }
        }
        Leg::Router => joint.router = Some(join_by_router((gateway, device), neighbour)?),
    }
    Ok(joint)
}

/// A router that answers ARP and neighbour solicitations for both sides, so that neither knows of it.
fn join_by_router((gateway, device): (&NetNs, &str), neighbour: &NetNs) -> Result<NetNs> {
    let router = NetNs::new("router")?;
    gateway.link(device, &router, "near")?;
    router.link("far", neighbour, "eth0")?;
    let (near, far, own) = match device {
        "front" => ([IpAddr::from(GATEWAY), GATEWAY6.into()], [IpAddr::from(CLIENT), CLIENT6.into()], 1),
        _ => ([IpAddr::from(GATEWAY_BACK), GATEWAY6_BACK.into()], [IpAddr::from(SERVER), SERVER6.into()], 2),
    };
    // The sender of its ICMP errors.
    router.address("near", &format!("10.0.{own}.254/32"))?;
    router.address("near", &format!("fd00:{own}::fe/128"))?;
    router.sysctl("net/ipv4/ip_forward", "1")?;
    router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
    for (inside, outside, addresses) in [("near", "far", near), ("far", "near", far)] {
        for address in addresses {
            router.ip(&format!("route add {address} dev {inside}"))?;
            router.ip(&format!("neigh add proxy {address} dev {outside}"))?;
        }
        router.sysctl(&format!("net/ipv4/conf/{inside}/proxy_arp"), "1")?;
        router.sysctl(&format!("net/ipv6/conf/{inside}/proxy_ndp"), "1")?;
        // Proxies wait up to 0.8 s before they answer.
        router.sysctl(&format!("net/ipv4/neigh/{inside}/proxy_delay"), "0")?;
        router.sysctl(&format!("net/ipv6/neigh/{inside}/proxy_delay"), "0")?;
    }
    for gateway in near {
        let family = if gateway.is_ipv4() { "-4" } else { "-6" };
        router.ip(&format!("{family} route add default via {gateway} dev near"))?;
    }
    Ok(router)
}

/// The gateway's address toward clients, with a port.
pub fn gateway(port: u16) -> SocketAddr {
    (GATEWAY, port).into()
}

/// The gateway's IPv6 address toward clients, with a port.
pub fn gateway6(port: u16) -> SocketAddr {
    (GATEWAY6, port).into()
}

/// The server's address, with a port.
pub fn server(port: u16) -> SocketAddr {
    (SERVER, port).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_client_reaches_the_server_through_the_gateway_over_both_families() {
        reaches_the_server(&Triangle::new().unwrap());
    }

    #[test]
    fn whatever_the_legs_are_the_client_reaches_the_server() {
        let mut legs = vec![
            Leg::Wire(wire::Kind::Ethernet),
            Leg::Wire(wire::Kind::EthernetGro),
            Leg::Wire(wire::Kind::Ip),
            Leg::Bridge,
            Leg::Router,
        ];
        if has_vlans() {
            legs.push(Leg::Vlan);
        }
        for leg in legs {
            reaches_the_server(&Triangle::shaped(Shape::Apart(leg, leg)).unwrap());
        }
        reaches_the_server(&Triangle::shaped(Shape::OneArmed).unwrap());
        reaches_the_server(&Triangle::shaped(Shape::Local { loopback: false }).unwrap());
    }

    fn reaches_the_server(triangle: &Triangle) {
        for address in triangle.server_addresses {
            let listener = triangle.server.run(|| TcpListener::bind((address, 7)).unwrap());
            let mut client = triangle.client.run(|| TcpStream::connect((address, 7)).unwrap());
            client.write_all(b"x").unwrap();
            let mut byte = [0];
            listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        }
    }
}
