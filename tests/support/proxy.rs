//! What a proxy in front of the gateway says first.

use std::net::SocketAddrV4;

/// The longest block that a header of version 2 announces: addresses and TLVs.
pub const MAX_BLOCK: u16 = u16::MAX;

/// A PROXY header of version 2 (PROXY protocol specification, section 2.2) for a client that connected to `local`. Its
/// block has this length, at least 15: behind the addresses stands one TLV of a type for experiments.
pub fn header(client: SocketAddrV4, local: SocketAddrV4, block: u16) -> Vec<u8> {
    const ADDRESSES: u16 = 12;
    const TLV: u16 = 3;
    let value = block - ADDRESSES - TLV;
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend(block.to_be_bytes());
    header.extend(client.ip().octets());
    header.extend(local.ip().octets());
    header.extend(client.port().to_be_bytes());
    header.extend(local.port().to_be_bytes());
    header.push(0xf0);
    header.extend(value.to_be_bytes());
    // What a ClientHello begins with, to be sure that nobody takes it for one.
    header.extend([22, 3, 1].into_iter().cycle().take(usize::from(value)));
    header
}
