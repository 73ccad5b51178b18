//! The one topology of tests, demo and benchmarks: client, gateway and server, joined by two veth pairs.
//!
//! ```text
//!   client                     gateway                        server
//!   10.0.1.2  fd00:1::2  <-->  10.0.1.1  fd00:1::1
//!                              10.0.2.1  fd00:2::1  <-->  10.0.2.2  fd00:2::2
//! ```
//!
//! The gateway forwards, so the client also reaches the server directly: the bare route of the benchmarks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use crate::netns::NetNs;

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

/// Client, gateway and server; devices `eth0` in the client and the server, `front` and `back` in the gateway.
#[derive(Debug)]
pub struct Triangle {
    /// Where clients run.
    pub client: NetNs,
    /// Where the gateway (or a peer it is compared with) runs.
    pub gateway: NetNs,
    /// Where the databases run.
    pub server: NetNs,
}

impl Triangle {
    /// Builds the three namespaces.
    pub fn new() -> Result<Self> {
        let triangle = Self {
            client: NetNs::new("client")?,
            gateway: NetNs::new("gateway")?,
            server: NetNs::new("server")?,
        };
        let Self { client, gateway, server } = &triangle;
        gateway.link("front", client, "eth0")?;
        gateway.link("back", server, "eth0")?;
        for (ns, device, v4, v6) in [
            (client, "eth0", CLIENT, CLIENT6),
            (gateway, "front", GATEWAY, GATEWAY6),
            (gateway, "back", GATEWAY_BACK, GATEWAY6_BACK),
            (server, "eth0", SERVER, SERVER6),
        ] {
            ns.address(device, &format!("{v4}/24"))?;
            ns.address(device, &format!("{v6}/64"))?;
        }
        gateway.sysctl("net/ipv4/ip_forward", "1")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        client.ip(&format!("route add default via {GATEWAY}"))?;
        client.ip(&format!("-6 route add default via {GATEWAY6}"))?;
        server.ip(&format!("route add default via {GATEWAY_BACK}"))?;
        server.ip(&format!("-6 route add default via {GATEWAY6_BACK}"))?;
        Ok(triangle)
    }
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

/// Every address of the server, in the order IPv4, IPv6.
pub fn server_addresses() -> [IpAddr; 2] {
    [SERVER.into(), SERVER6.into()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_client_reaches_the_server_through_the_gateway_over_both_families() {
        let triangle = Triangle::new().unwrap();
        for address in server_addresses() {
            let listener = triangle.server.run(|| TcpListener::bind((address, 7)).unwrap());
            let mut client = triangle.client.run(|| TcpStream::connect((address, 7)).unwrap());
            client.write_all(b"x").unwrap();
            let mut byte = [0];
            listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        }
    }
}
