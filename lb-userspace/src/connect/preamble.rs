//! What the server gets before the client's bytes: a PROXY header, its protocol's request for TLS, and TLS itself.

use super::starttls::{self, Step};
use crate::clock::now_ms;
use crate::config::ProxyVersion;
use crate::mysql::capability::SSL;
use crate::mysql::{self, Asked, Greeted, ServerError};
use crate::reason::{CloseReason, TlsError};
use crate::serving::Server;
use crate::sniff::TlsRequest;
use crate::socket::{canonical, read_some, write_all};
use crate::tls::{ClientTls, Dialling, HandshakeError, ServerTls, Session};
use ppp::v2::{Builder, Command, Protocol, Version};
use ppp::{v1, v2};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// PostgreSQL's SSLRequest: length 8, code 80877103 (PostgreSQL documentation, "Message Formats").
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// PROXY protocol specification, section 2.2: types of TLVs, and of those within `PP2_TYPE_SSL`.
mod tlv {
    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const SSL: u8 = 0x20;
    pub(super) const SSL_VERSION: u8 = 0x21;
    pub(super) const SSL_CN: u8 = 0x22;
    pub(super) const SSL_CIPHER: u8 = 0x23;
}

/// The same, section 2.2.6: bits of the field `client` of `PP2_TYPE_SSL`.
mod client_bit {
    /// The client speaks TLS.
    pub(super) const SSL: u8 = 0x01;
    /// It has shown a certificate on this connection.
    pub(super) const CERT_CONN: u8 = 0x02;
    /// It has shown a certificate at least once in this TLS session.
    pub(super) const CERT_SESS: u8 = 0x04;
}

/// The connection that a PROXY header describes: the client's leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The client, or what a trusted proxy's own header said.
    pub client: SocketAddr,
    /// Where the client connected to.
    pub local: SocketAddr,
}

impl Endpoints {
    /// Those of the client's leg. `local`: what a trusted proxy's own header said. `None`: the client has left.
    pub fn of(client: SocketAddr, local: Option<&SocketAddr>, socket: &TcpStream) -> Option<Self> {
        let local = local.copied().or_else(|| socket.local_addr().ok())?;
        Some(Self { client, local })
    }
}

/// The PROXY header for one connection (PROXY protocol specification, sections 2.1 and 2.2). Version 2 carries the SNI as
/// `PP2_TYPE_AUTHORITY`; and if the gateway has ended the client's TLS, what was agreed on and who the client is, as
/// `PP2_TYPE_ALPN` and `PP2_TYPE_SSL`.
pub fn proxy_header(
    version: ProxyVersion,
    endpoints: Endpoints,
    sni: Option<&str>,
    tls: Option<&ClientTls>,
) -> Vec<u8> {
    let (client, local) = same_family(endpoints);
    match version {
        ProxyVersion::V1 => v1::Addresses::from((client, local)).to_string().into_bytes(),
        ProxyVersion::V2 => {
            let addresses = v2::Addresses::from((client, local));
            let builder = Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses);
            // Writing fails only above 64 KiB: an SNI has at most 253 bytes, a protocol and a common name 255 and 256.
            with_tlvs(builder, sni, tls).and_then(Builder::build).unwrap_or_default()
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

fn with_tlvs(mut builder: Builder, sni: Option<&str>, tls: Option<&ClientTls>) -> io::Result<Builder> {
    if let Some(alpn) = tls.and_then(|tls| tls.alpn.as_ref()) {
        builder = builder.write_tlv(tlv::ALPN, alpn)?;
    }
    if let Some(sni) = sni {
        builder = builder.write_tlv(tlv::AUTHORITY, sni.as_bytes())?;
    }
    if let Some(tls) = tls {
        builder = builder.write_tlv(tlv::SSL, &ssl_value(tls))?;
    }
    Ok(builder)
}

/// The value of `PP2_TYPE_SSL`: the bits, `verify` (0: a certificate was shown, and is good), and the TLVs within.
fn ssl_value(tls: &ClientTls) -> Vec<u8> {
    let (bits, verify) = match &tls.certificate {
        None => (0, 1u32),
        Some(certificate) if certificate.resumed => (client_bit::CERT_SESS, 0),
        Some(_) => (client_bit::CERT_CONN | client_bit::CERT_SESS, 0),
    };
    let mut value = vec![client_bit::SSL | bits];
    value.extend(verify.to_be_bytes());
    let common_name = tls.certificate.as_ref().and_then(|certificate| certificate.common_name.as_deref());
    let parts = [(tlv::SSL_VERSION, tls.version), (tlv::SSL_CN, common_name), (tlv::SSL_CIPHER, tls.cipher)];
    for (kind, text) in parts {
        if let Some(text) = text
            && let Ok(length) = u16::try_from(text.len())
        {
            value.push(kind);
            value.extend(length.to_be_bytes());
            value.extend(text.as_bytes());
        }
    }
    value
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
    /// How it is asked for TLS: for a client that was promised it, or for the gateway's own.
    pub request: Option<TlsRequest>,
    /// TLS is to follow. Without it a server that speaks first is only let do so.
    pub tls: bool,
    /// The name that the client has asked for, for a server that wants to know.
    pub name: Option<Box<str>>,
}

/// A server did not answer as it should.
pub(super) struct Unwelcome {
    pub(super) reason: CloseReason,
    /// Why its TLS failed, if that did.
    pub(super) tls_error: Option<TlsError>,
    /// What a MySQL server has said in place of its greeting.
    pub(super) words: Option<Box<ServerError>>,
}

/// A server has answered as it should.
pub(super) struct Welcome {
    /// Present: the gateway's own TLS.
    pub(super) session: Option<Box<Session<Dialling>>>,
    /// A MySQL server's number of the connection.
    pub(super) thread: Option<u32>,
}

impl From<CloseReason> for Unwelcome {
    fn from(reason: CloseReason) -> Self {
        Self { reason, tls_error: None, words: None }
    }
}

impl Greeting {
    /// Whether something is sent as soon as the server is connected, and not only once it has spoken. `tls`: the gateway's own
    /// follows. `at_once`: or else the client's first bytes.
    pub(super) fn is_sent_first(&self, tls: bool, at_once: bool) -> bool {
        !self.header.is_empty()
            || match self.request {
                Some(TlsRequest::Postgres) if self.tls => true,
                // Most of these servers speak first.
                Some(TlsRequest::Mysql(_) | TlsRequest::Starttls(_)) => false,
                Some(TlsRequest::Postgres) | None => tls || at_once,
            }
    }

    /// Tells the server, and has its answer if there is to be one. `tls`: the gateway's own follows.
    pub(super) async fn exchange(
        &self,
        socket: &mut TcpStream,
        deadline: Instant,
        server: &Server,
        tls: Option<&ServerTls>,
    ) -> Result<Welcome, Unwelcome> {
        if !self.header.is_empty() {
            write_all(socket, &self.header).await.map_err(|_| CloseReason::ServerReset)?;
        }
        let thread = match &self.request {
            Some(TlsRequest::Postgres) if self.tls => {
                request_postgres(socket, deadline).await?;
                None
            }
            Some(TlsRequest::Mysql(asked)) if self.tls => {
                Some(request_mysql(socket, deadline, server, asked).await?)
            }
            Some(TlsRequest::Starttls(protocol)) => {
                let local = socket.local_addr().map_err(|_| CloseReason::ServerReset)?.ip();
                let script = starttls::script(*protocol, self.tls, self.name.as_deref(), local);
                // Boxed: other connections need not pay for its future.
                let done = timeout_at(deadline, Box::pin(follow(socket, script))).await;
                done.unwrap_or(Err(CloseReason::ConnectTimeout))?;
                None
            }
            Some(TlsRequest::Postgres | TlsRequest::Mysql(_)) | None => None,
        };
        let Some(tls) = tls else { return Ok(Welcome { session: None, thread }) };
        // Boxed: most pools have no TLS, and their connections need not pay for its future.
        match Box::pin(handshake(socket, deadline, server, tls)).await {
            Ok(session) => Ok(Welcome { session: Some(Box::new(session)), thread }),
            Err(error) => {
                tracing::debug!(server = %server.address, %error, "TLS handshake with the server failed");
                Err(Unwelcome {
                    reason: CloseReason::ServerTlsFailed,
                    tls_error: Some(error.cause()),
                    words: None,
                })
            }
        }
    }
}

async fn handshake(
    socket: &TcpStream,
    deadline: Instant,
    server: &Server,
    tls: &ServerTls,
) -> Result<Session<Dialling>, HandshakeError> {
    let (config, name) = tls.toward(&server.address, now_ms()).ok_or(HandshakeError::Nameless)?;
    let session = timeout_at(deadline, Session::connect(socket, config, name)).await;
    session.unwrap_or(Err(HandshakeError::TimedOut))
}

/// Asks a PostgreSQL server for TLS.
async fn request_postgres(server: &mut TcpStream, deadline: Instant) -> Result<(), CloseReason> {
    let exchange = async {
        server.write_all(&SSL_REQUEST).await?;
        // Exactly one byte: what follows belongs to the client's TLS, or the gateway's.
        server.read_u8().await
    };
    match timeout_at(deadline, exchange).await {
        Ok(Ok(b'S')) => Ok(()),
        Ok(Ok(_)) => Err(CloseReason::ServerPreamble),
        Ok(Err(_)) => Err(CloseReason::ServerReset),
        Err(_) => Err(CloseReason::ConnectTimeout),
    }
}

/// Goes through a dialogue with a server, to its end.
async fn follow(server: &TcpStream, script: Vec<Step>) -> Result<(), CloseReason> {
    for step in script {
        write_all(server, &step.say).await.map_err(|_| CloseReason::ServerReset)?;
        let mut said = Vec::new();
        loop {
            match (step.judge)(&said) {
                Some(true) => break,
                None if said.len() < starttls::MAX_ANSWER => {}
                Some(false) | None => return Err(CloseReason::ServerPreamble),
            }
            if read_some(server, &mut said).await.map_err(|_| CloseReason::ServerReset)? == 0 {
                return Err(CloseReason::ServerPreamble);
            }
        }
    }
    Ok(())
}

/// Hears a MySQL server's greeting, and asks it for TLS; its number of the connection.
async fn request_mysql(
    socket: &mut TcpStream,
    deadline: Instant,
    server: &Server,
    asked: &Asked,
) -> Result<u32, Unwelcome> {
    let greeted = async {
        let mut header = [0; mysql::HEADER];
        socket.read_exact(&mut header).await?;
        let [low, middle, high, _] = header;
        let length = u32::from_le_bytes([low, middle, high, 0]) as usize;
        if length > mysql::MAX_GREETING {
            return Ok(None);
        }
        // Exactly: what follows belongs to the client's TLS, or the gateway's.
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await?;
        Ok(mysql::read_greeting(&payload))
    };
    let greeted: Result<io::Result<Option<Greeted>>, _> = timeout_at(deadline, greeted).await;
    let (greeting, thread) = match greeted {
        Err(_) => return Err(CloseReason::ConnectTimeout.into()),
        Ok(Err(_)) => return Err(CloseReason::ServerReset.into()),
        Ok(Ok(None)) => return Err(CloseReason::ServerPreamble.into()),
        Ok(Ok(Some(Greeted::Refused(error)))) => {
            tracing::debug!(server = %server.address, code = error.code, "refuses the connection");
            let words = Some(Box::new(error));
            return Err(Unwelcome { reason: CloseReason::ServerPreamble, tls_error: None, words });
        }
        Ok(Ok(Some(Greeted::Welcome(greeting, thread)))) => (greeting, thread),
    };
    let suits = greeting.capabilities & SSL != 0 && asked.request.suits(&greeting);
    server.state.mysql.hear(greeting);
    if !suits {
        return Err(CloseReason::ServerPreamble.into());
    }
    write_all(socket, &asked.request.packet()).await.map_err(|_| CloseReason::ServerReset)?;
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::ClientCertificate;

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
    fn a_server_that_speaks_first_is_let_do_so() {
        use crate::sniff::Starttls;
        let greeting = |request| Greeting { request, tls: true, ..Greeting::default() };
        for (request, tls, at_once, expected) in [
            (None, false, false, false),
            (None, false, true, true),
            (None, true, false, true),
            (Some(TlsRequest::Postgres), false, false, true),
            (Some(TlsRequest::Starttls(Starttls::Smtp)), true, true, false),
        ] {
            assert_eq!(
                greeting(request).is_sent_first(tls, at_once),
                expected,
                "{request:?} {tls} {at_once}"
            );
            let told = Greeting { header: b"PROXY".to_vec(), ..greeting(request) };
            assert!(told.is_sent_first(tls, at_once), "{request:?}");
        }
    }

    #[test]
    fn version_1_is_one_line_of_text() {
        let header = proxy_header(
            ProxyVersion::V1,
            endpoints("192.0.2.1:5000", "198.51.100.7:443"),
            Some("a.b"),
            None,
        );
        assert_eq!(String::from_utf8(header).unwrap(), "PROXY TCP4 192.0.2.1 198.51.100.7 5000 443\r\n");
    }

    #[test]
    fn version_1_of_ipv6() {
        let header =
            proxy_header(ProxyVersion::V1, endpoints("[2001:db8::1]:5000", "[2001:db8::2]:443"), None, None);
        assert_eq!(String::from_utf8(header).unwrap(), "PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n");
    }

    #[test]
    fn an_ipv4_client_of_a_dual_stack_socket_is_ipv4() {
        let header = proxy_header(
            ProxyVersion::V1,
            endpoints("[::ffff:192.0.2.1]:5000", "[::ffff:198.51.100.7]:443"),
            None,
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
            None,
        );
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        expected.extend((12 + 3 + 15u16).to_be_bytes());
        expected.extend([192, 0, 2, 1, 198, 51, 100, 7]);
        expected.extend(5000u16.to_be_bytes());
        expected.extend(443u16.to_be_bytes());
        expected.extend(b"\x02\x00\x0fapp.example.com");
        assert_eq!(header, expected);
    }

    /// The TLVs of a header of version 2 for IPv4.
    fn tlvs(tls: &ClientTls) -> Vec<u8> {
        let endpoints = endpoints("192.0.2.1:5000", "198.51.100.7:443");
        proxy_header(ProxyVersion::V2, endpoints, None, Some(tls)).split_off(16 + 12)
    }

    #[test]
    fn version_2_tells_of_the_clients_tls() {
        let certificate = ClientCertificate { common_name: Some("app1".to_owned()), resumed: false };
        let mut tls = ClientTls {
            version: Some("TLSv1.3"),
            cipher: Some("TLS_AES_128_GCM_SHA256"),
            alpn: Some(b"h2".to_vec()),
            certificate: Some(certificate.clone()),
        };
        let (alpn, version) = (b"\x01\0\x02h2".as_slice(), b"\x21\0\x07TLSv1.3".as_slice());
        let cipher = b"\x23\0\x16TLS_AES_128_GCM_SHA256".as_slice();
        let with_name = [version, b"\x22\0\x04app1", cipher].concat();
        let ssl = |head: &[u8; 5], rest: &[u8]| {
            let length = u16::try_from(head.len() + rest.len()).unwrap().to_be_bytes();
            [alpn, b"\x20", &length, head, rest].concat()
        };
        assert_eq!(tlvs(&tls), ssl(b"\x07\0\0\0\0", &with_name));
        tls.certificate = Some(ClientCertificate { resumed: true, ..certificate });
        assert_eq!(tlvs(&tls), ssl(b"\x05\0\0\0\0", &with_name));
        tls.certificate = None;
        assert_eq!(tlvs(&tls), ssl(b"\x01\0\0\0\x01", &[version, cipher].concat()));
    }
}
