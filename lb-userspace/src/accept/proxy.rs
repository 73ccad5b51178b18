//! The PROXY header, version 1 or 2, that a trusted load balancer in front of the gateway sends first.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::reason::RejectReason;
use ppp::{HeaderResult, PartialResult, v1, v2};
use std::net::SocketAddr;

/// How a version 1 header begins, and the longest one with its line end (PROXY protocol specification, section 2.1).
const V1_START: &[u8] = b"PROXY ";
const V1_MAX: usize = 107;

/// A header read from the front of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes it takes.
    pub length: usize,
    /// The client and the address it connected to; `None` for LOCAL and UNKNOWN (a health check of the proxy).
    pub endpoints: Option<(SocketAddr, SocketAddr)>,
}

/// Reads the header at the front of `window`; `Ok(None)`: it is not complete yet. Pure. With 65 551 bytes it is complete or
/// malformed: the fixed part of version 2, and as many bytes as its 16-bit length can say (section 2.2).
pub fn read_header(window: &[u8]) -> Result<Option<Header>, RejectReason> {
    let malformed = RejectReason::ProxyHeaderMalformed;
    if is_open_line(window) {
        return Ok(None);
    }
    let header = match HeaderResult::parse(window) {
        HeaderResult::V2(header) if header.is_incomplete() => return Ok(None),
        // `Incomplete` is an error too: the line has ended, or is too long.
        HeaderResult::V1(header) => {
            let header = header.map_err(|_| malformed)?;
            let endpoints = match header.addresses {
                v1::Addresses::Tcp4(a) => Some((
                    SocketAddr::from((a.source_address, a.source_port)),
                    SocketAddr::from((a.destination_address, a.destination_port)),
                )),
                v1::Addresses::Tcp6(a) => Some((
                    SocketAddr::from((a.source_address, a.source_port)),
                    SocketAddr::from((a.destination_address, a.destination_port)),
                )),
                v1::Addresses::Unknown => None,
            };
            Header { length: header.header.len(), endpoints }
        }
        HeaderResult::V2(header) => {
            let header = header.map_err(|_| malformed)?;
            let endpoints = match (header.command, header.addresses) {
                (v2::Command::Local, _) => None,
                (_, v2::Addresses::IPv4(a)) => Some((
                    SocketAddr::from((a.source_address, a.source_port)),
                    SocketAddr::from((a.destination_address, a.destination_port)),
                )),
                (_, v2::Addresses::IPv6(a)) => Some((
                    SocketAddr::from((a.source_address, a.source_port)),
                    SocketAddr::from((a.destination_address, a.destination_port)),
                )),
                _ => None,
            };
            Header { length: header.len(), endpoints }
        }
    };
    Ok(Some(header))
}

/// Whether the window is empty, or may be the beginning of a version 1 header. ppp takes some incomplete lines ("PROXY TCP4
/// 192.0.2.1 192.0.2.2 1 ") for malformed ones.
fn is_open_line(window: &[u8]) -> bool {
    let start = &window[..window.len().min(V1_START.len())];
    V1_START.starts_with(start) && window.len() < V1_MAX && !window.windows(2).any(|pair| pair == b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ProxyVersion;
    use crate::connect::{Endpoints, proxy_header};
    use proptest::prelude::*;

    const MAX_HEADER: usize = 16 + u16::MAX as usize;

    fn header(version: ProxyVersion, client: &str, local: &str) -> (Vec<u8>, (SocketAddr, SocketAddr)) {
        let endpoints = Endpoints { client: client.parse().unwrap(), local: local.parse().unwrap() };
        (proxy_header(version, endpoints, Some("a.example")), (endpoints.client, endpoints.local))
    }

    #[test]
    fn every_prefix_is_incomplete_until_the_header_is_whole() {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            for (client, local) in
                [("192.0.2.1:1", "192.0.2.2:443"), ("[2001:db8::1]:1", "[2001:db8::2]:443")]
            {
                let (mut bytes, endpoints) = header(version, client, local);
                let length = bytes.len();
                for prefix in 0..length {
                    assert_eq!(read_header(&bytes[..prefix]), Ok(None), "{prefix} of {length}");
                }
                bytes.extend(b"\x16\x03\x01 what follows");
                assert_eq!(read_header(&bytes), Ok(Some(Header { length, endpoints: Some(endpoints) })));
            }
        }
    }

    #[test]
    fn a_local_command_has_no_endpoints() {
        let bytes = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
        assert_eq!(read_header(bytes), Ok(Some(Header { length: 16, endpoints: None })));
    }

    #[test]
    fn a_client_hello_is_not_a_header() {
        assert_eq!(read_header(b"\x16\x03\x01\x02\x00\x01"), Err(RejectReason::ProxyHeaderMalformed));
    }

    #[test]
    fn the_longest_header_of_version_2_is_read_and_nothing_behind_it() {
        let mut bytes =
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff\xc0\x00\x02\x07\x0a\x00\x01\x01\x15\xb3\x01\xbb".to_vec();
        bytes.resize(MAX_HEADER, 0);
        assert_eq!(read_header(&bytes[..MAX_HEADER - 1]), Ok(None));
        bytes.extend(b"\x16\x03\x01");
        let endpoints = ("192.0.2.7:5555".parse().unwrap(), "10.0.1.1:443".parse().unwrap());
        assert_eq!(read_header(&bytes), Ok(Some(Header { length: MAX_HEADER, endpoints: Some(endpoints) })));
    }

    #[test]
    fn a_line_that_has_ended_or_is_too_long_is_not_waited_for() {
        let malformed = Err(RejectReason::ProxyHeaderMalformed);
        assert_eq!(read_header(b"PROXY TCP4\r\n"), malformed);
        let line = [V1_START, &b"TCP4 192.0.2.1 "[..], &[b'1'; V1_MAX]].concat();
        assert_eq!(read_header(&line[..V1_MAX - 1]), Ok(None));
        assert_eq!(read_header(&line[..V1_MAX]), malformed);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..6000)) {
            if let Ok(Some(header)) = read_header(&bytes) {
                prop_assert!(header.length <= bytes.len());
            }
        }

        #[test]
        fn nothing_behind_the_signature_panics_or_is_waited_for_for_ever(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            length in any::<u16>(),
        ) {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
            header.extend(&bytes);
            if let Some(place) = header.get_mut(14..16) {
                place.copy_from_slice(&length.to_be_bytes());
            }
            let _ = read_header(&header);
            header.resize(MAX_HEADER, 0);
            prop_assert_ne!(read_header(&header), Ok(None));
        }
    }
}
