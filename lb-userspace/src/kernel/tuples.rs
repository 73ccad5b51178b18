//! Socket addresses, and the tuples by which the programs' maps know connections.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use lb_common::packet::{Address, Tuple};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The tuple of packets from `source` to `destination`.
pub(crate) fn tuple(source: SocketAddr, destination: SocketAddr) -> Tuple {
    Tuple {
        source: address(source.ip()),
        destination: address(destination.ip()),
        source_port: source.port().to_be(),
        destination_port: destination.port().to_be(),
    }
}

/// An address as tuples hold it: an IPv4 address as the IPv6 address it maps to (RFC 4291, section 2.5.5.2).
pub(crate) fn address(ip: IpAddr) -> Address {
    let octets = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let (words, _) = octets.as_chunks::<4>();
    std::array::from_fn(|i| u32::from_ne_bytes(words[i]))
}

/// The inverse of [`address`], with a port in network byte order.
pub(crate) fn socket_address(address: &Address, port: u16) -> SocketAddr {
    let mut octets = [0; 16];
    for (bytes, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(address) {
        *bytes = word.to_ne_bytes();
    }
    SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), u16::from_be(port))
}

/// The source and the destination of a tuple.
pub(crate) fn ends(tuple: &Tuple) -> [SocketAddr; 2] {
    [
        socket_address(&tuple.source, tuple.source_port),
        socket_address(&tuple.destination, tuple.destination_port),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_into_a_tuple_and_back() {
        for text in ["192.0.2.1:443", "[2001:db8::1]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(ends(&tuple(address, address)), [address, address]);
        }
    }
}
