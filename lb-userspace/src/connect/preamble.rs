//! What the server gets before the client's bytes: a PROXY header, and PostgreSQL's request for TLS.

use crate::config::ProxyVersion;
use crate::reason::CloseReason;
use crate::socket::{canonical, write_all};
use ppp::v2::{Builder, Command, Protocol, Version};
use ppp::{v1, v2};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// PostgreSQL's SSLRequest: length 8, code 80877103 (PostgreSQL documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// PROXY protocol specification, section 2.2.
const PP2_TYPE_AUTHORITY: u8 = 0x02;

/// The connection that a PROXY header describes: the client's leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The client, or what a trusted proxy's own header said.
    pub client: SocketAddr,
    /// Where the client connected to.
    pub local: SocketAddr,
}

/// The PROXY header for one connection (PROXY protocol specification, sections 2.1 and 2.2). Version 2 carries
/// the SNI as `PP2_TYPE_AUTHORITY`.
pub fn proxy_header(version: ProxyVersion, endpoints: Endpoints, sni: Option<&str>) -> Vec<u8> {
    let (client, local) = same_family(endpoints);
    match version {
        ProxyVersion::V1 => v1::Addresses::from((client, local)).to_string().into_bytes(),
        ProxyVersion::V2 => {
            let addresses = v2::Addresses::from((client, local));
            let builder = Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses);
            // Writing fails only above 64 KiB; an SNI has at most 253 bytes.
            match sni {
                Some(sni) => builder.write_tlv(PP2_TYPE_AUTHORITY, sni.as_bytes()).and_then(Builder::build),
                None => builder.build(),
            }
            .unwrap_or_default()
        }
    }
}

/// The PROXY header of a connection that the gateway makes for itself: it speaks for nobody (as above).
pub(super) fn own_proxy_header(version: ProxyVersion) -> &'static [u8] {
    match version {
        ProxyVersion::V1 => b"PROXY UNKNOWN\r\n",
        // The signature; version 2, LOCAL; no addresses.
        ProxyVersion::V2 => b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0",
    }
}

/// The addresses in one family: IPv4 if both are IPv4 or IPv4-mapped, else IPv6.
fn same_family(Endpoints { client, local }: Endpoints) -> (SocketAddr, SocketAddr) {
    let (client, local) = (canonical(client), canonical(local));
    let mapped = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        std::net::IpAddr::V6(_) => address,
    };
    if client.is_ipv4() == local.is_ipv4() { (client, local) } else { (mapped(client), mapped(local)) }
}

/// What a server is told before the client's first byte.
#[derive(Default)]
pub struct Greeting {
    /// Who the client is ([`proxy_header`]); empty: the server is not told.
    pub header: Vec<u8>,
    /// It is asked for TLS in PostgreSQL's way, on behalf of a client that was promised it.
    pub postgres: bool,
}

impl Greeting {
    /// Tells the server, and has its answer if there is to be one.
    pub(super) async fn exchange(
        &self,
        server: &mut TcpStream,
        timeout: Duration,
    ) -> Result<(), CloseReason> {
        if !self.header.is_empty() {
            write_all(server, &self.header).await.map_err(|_| CloseReason::ServerReset)?;
        }
        if self.postgres {
            request_tls(server, timeout).await?;
        }
        Ok(())
    }
}

/// Asks a PostgreSQL server for TLS, because the client's own request for it was answered with yes.
async fn request_tls(server: &mut TcpStream, timeout: Duration) -> Result<(), CloseReason> {
    let exchange = async {
        server.write_all(&SSL_REQUEST).await?;
        // Exactly one byte: what follows belongs to the client's TLS.
        server.read_u8().await
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(Ok(b'S')) => Ok(()),
        Ok(Ok(_)) => Err(CloseReason::ServerPreamble),
        Ok(Err(_)) => Err(CloseReason::ServerReset),
        Err(_) => Err(CloseReason::ConnectTimeout),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(client: &str, local: &str) -> Endpoints {
        Endpoints { client: client.parse().unwrap(), local: local.parse().unwrap() }
    }

    #[test]
    fn what_the_gateway_says_of_itself_is_understood_and_has_no_addresses() {
        let v1 = v1::Header::try_from(own_proxy_header(ProxyVersion::V1)).unwrap();
        assert_eq!(v1.addresses, v1::Addresses::Unknown);
        let v2 = v2::Header::try_from(own_proxy_header(ProxyVersion::V2)).unwrap();
        assert_eq!((v2.command, v2.addresses), (Command::Local, v2::Addresses::Unspecified));
    }

    #[test]
    fn version_1_is_one_line_of_text() {
        let header =
            proxy_header(ProxyVersion::V1, endpoints("192.0.2.1:5000", "198.51.100.7:443"), Some("a.b"));
        assert_eq!(String::from_utf8(header).unwrap(), "PROXY TCP4 192.0.2.1 198.51.100.7 5000 443\r\n");
    }

    #[test]
    fn version_1_of_ipv6() {
        let header =
            proxy_header(ProxyVersion::V1, endpoints("[2001:db8::1]:5000", "[2001:db8::2]:443"), None);
        assert_eq!(String::from_utf8(header).unwrap(), "PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n");
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_is_ipv4() {
        let header = proxy_header(
            ProxyVersion::V1,
            endpoints("[::ffff:192.0.2.1]:5000", "[::ffff:198.51.100.7]:443"),
            None,
        );
        assert_eq!(String::from_utf8(header).unwrap(), "PROXY TCP4 192.0.2.1 198.51.100.7 5000 443\r\n");
    }

    #[test]
    fn version_2_carries_the_sni() {
        let header = proxy_header(
            ProxyVersion::V2,
            endpoints("192.0.2.1:5000", "198.51.100.7:443"),
            Some("app.example.com"),
        );
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        expected.extend((12 + 3 + 15u16).to_be_bytes());
        expected.extend([192, 0, 2, 1, 198, 51, 100, 7]);
        expected.extend(5000u16.to_be_bytes());
        expected.extend(443u16.to_be_bytes());
        expected.extend(b"\x02\x00\x0fapp.example.com");
        assert_eq!(header, expected);
    }
}
