//! Hello: reads the body of a complete ClientHello.
//!
//! Only what decides the route is validated: the framing of the extensions, server_name and ALPN. What two readers could
//! read differently there is rejected. Everything else is left to the server, which may accept more than the RFCs allow.
//!
//! tls-parser reads the front of the body and these two lists. It returns partial results where it can (a list that ends in
//! the middle of an element, bytes after a list, a block of extensions with a wrong length), so every length is compared
//! with what it has read.

use std::borrow::Cow;
use std::fmt;

use tls_parser::{
    SNIType, TlsCipherSuiteID, TlsExtension, parse_tls_extension_alpn_content,
    parse_tls_extension_sni_content, parse_tls_handshake_client_hello,
};

use super::records::Records;
use super::{ServerName, Starttls, postgres};
use crate::mysql::Asked;
use crate::reason::{OddName, RejectReason};

// Types of extensions.
pub(super) const SERVER_NAME: u16 = 0;
pub(super) const SIGNATURE_ALGORITHMS: u16 = 13;
pub(super) const ALPN: u16 = 16;
pub(super) const SUPPORTED_VERSIONS: u16 = 43;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The name asked for; `None` only if there is no server_name extension, or one with an `odd_name`. With
    /// Encrypted ClientHello, the public (outer) name.
    pub sni: Option<ServerName>,
    /// What the server_name extension holds instead of a DNS host name.
    pub odd_name: Option<OddName>,
    /// The application protocols offered.
    pub alpn: Alpn,
    /// The highest version offered.
    pub version: TlsVersion,
    /// Bytes of the window that the ClientHello's records take. What follows is early data for the server.
    pub length: usize,
    /// How the client has asked for TLS before it, and the server expects to be asked too.
    pub request: Option<TlsRequest>,
    /// It has the extension of Encrypted ClientHello (RFC 9849), which may be GREASE.
    pub offers_ech: bool,
}

impl ClientHello {
    /// Whether a PostgreSQL session is to be in this TLS: it was asked for as PostgreSQL does, or is negotiated so.
    pub fn is_postgres(&self) -> bool {
        match self.request {
            Some(request) => request == TlsRequest::Postgres,
            None => self.alpn.offers(postgres::ALPN),
        }
    }
}

/// How a protocol that begins in clear text asks for TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsRequest {
    /// PostgreSQL's SSLRequest.
    Postgres,
    /// A command of this protocol.
    Starttls(Starttls),
    /// MySQL's SSLRequest, after a greeting.
    Mysql(Asked),
}

/// The application protocols a client offers (RFC 7301), in its order of preference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alpn(
    /// Names, each after a length byte, as on the wire. None is empty or incomplete.
    Box<[u8]>,
);

impl Alpn {
    /// The names; arbitrary bytes, 1 to 255 each.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            let (name, tail) = tail.split_at_checked(length.into())?;
            rest = tail;
            Some(name)
        })
    }

    /// Whether `protocol` is among them.
    pub fn offers(&self, protocol: &[u8]) -> bool {
        self.iter().any(|name| name == protocol)
    }

    /// Whether the client offers none: the extension is absent.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Comma-separated and escaped: printable ASCII whatever the client sent.
impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, name.escape_ascii())?;
        }
        Ok(())
    }
}

/// A protocol version as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TlsVersion(pub u16);

impl TlsVersion {
    /// One of a closed set of names.
    pub const fn name(self) -> &'static str {
        match self.0 {
            0x0300 => "SSLv3",
            0x0301 => "TLSv1.0",
            0x0302 => "TLSv1.1",
            0x0303 => "TLSv1.2",
            0x0304 => "TLSv1.3",
            _ => "other",
        }
    }
}

impl fmt::Display for TlsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Reads a ClientHello's body. `length` and `request` are passed through.
pub(super) fn read(
    body: &[u8],
    length: usize,
    request: Option<TlsRequest>,
) -> Result<ClientHello, RejectReason> {
    let body = Body::parse(body).ok_or(RejectReason::HelloMalformed)?;
    let (sni, odd_name) = match body.server_names.as_deref().map(host_name).transpose()? {
        None => (None, None),
        Some(Ok(name)) => (Some(name), None),
        Some(Err(odd)) => (None, Some(odd)),
    };
    let offers_ech = body.extensions.contains(&ENCRYPTED_CLIENT_HELLO);
    let (alpn, version) = (Alpn(body.alpn.into()), body.version());
    Ok(ClientHello { sni, odd_name, alpn, version, length, request, offers_ech })
}

/// The host name of a server_name list, which may also have names of other types. Two host names are rejected: servers
/// differ in which one they take.
fn host_name(names: &[(SNIType, &[u8])]) -> Result<Result<ServerName, OddName>, RejectReason> {
    let mut hosts = names.iter().filter(|(kind, _)| *kind == SNIType::HostName);
    match (hosts.next(), hosts.next()) {
        (Some((_, name)), None) => Ok(ServerName::parse(name)),
        (None, _) if !names.is_empty() => Ok(Err(OddName::NotAName)),
        _ => Err(RejectReason::SniInvalid),
    }
}

/// The body of the ClientHello at the front of the window; `None` if it is not whole or malformed.
pub fn body(window: &[u8]) -> Option<Cow<'_, [u8]>> {
    Records::default().advance(window).ok()?
}

/// What the inner ClientHello asks for that `outer`, whose place in the window it shares, has carried encrypted.
pub fn inner(body: &[u8], outer: &ClientHello) -> Result<ClientHello, RejectReason> {
    read(body, outer.length, outer.request)
}

/// Whether a ClientHello of this body offers TLS 1.3 or later, and nothing older.
pub fn offers_no_older_than_1_3(body: &[u8]) -> bool {
    const TLS_1_3: u16 = 0x0304;
    Body::parse(body).and_then(|body| body.offered_versions().min()).is_some_and(|oldest| oldest >= TLS_1_3)
}

/// The highest version and the cipher suites that the ClientHello at the front of the window offers; `None` if it is
/// not whole or malformed.
pub fn offer(window: &[u8]) -> Option<(TlsVersion, Vec<u16>)> {
    let message = body(window)?;
    let body = Body::parse(&message)?;
    Some((body.version(), body.ciphers.iter().map(|cipher| cipher.0).collect()))
}

/// The parts of a ClientHello that are used, as sent: with GREASE, and not interpreted.
#[derive(Default)]
pub(super) struct Body<'a> {
    legacy_version: u16,
    /// The supported_versions extension; empty if it is absent or malformed.
    supported_versions: Vec<u16>,
    pub(super) ciphers: Vec<TlsCipherSuiteID>,
    /// Types of the extensions, in order.
    pub(super) extensions: Vec<u16>,
    pub(super) server_names: Option<Vec<(SNIType, &'a [u8])>>,
    /// Protocol names with a length byte each.
    pub(super) alpn: &'a [u8],
    /// Empty if the extension is absent or malformed.
    pub(super) signature_algorithms: Vec<u16>,
}

impl<'a> Body<'a> {
    /// `None` if it is malformed by RFC 8446 (section 4.1.2) and RFC 5246 (section 7.4.1.2).
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let (rest, hello) = parse_tls_handshake_client_hello(body).ok()?;
        // A block of extensions with a wrong length is left in `rest`, and `ext` is then `None`.
        if !rest.is_empty() || hello.ciphers.is_empty() || hello.comp.is_empty() {
            return None;
        }
        let mut body = Self { legacy_version: hello.version.0, ciphers: hello.ciphers, ..Self::default() };
        let mut block = hello.ext.unwrap_or_default();
        while let [type_high, type_low, length_high, length_low, rest @ ..] = block {
            let length = u16::from_be_bytes([*length_high, *length_low]);
            let (data, rest) = rest.split_at_checked(length.into())?;
            let kind = u16::from_be_bytes([*type_high, *type_low]);
            body.extension(kind, data)?;
            body.extensions.push(kind);
            block = rest;
        }
        block.is_empty().then_some(body)
    }

    /// The highest version offered (RFC 8446, section 4.2.1), GREASE ignored.
    pub(super) fn version(&self) -> TlsVersion {
        TlsVersion(self.offered_versions().max().unwrap_or(self.legacy_version))
    }

    /// The supported_versions extension, GREASE ignored.
    fn offered_versions(&self) -> impl Iterator<Item = u16> {
        self.supported_versions.iter().copied().filter(|&version| !is_grease(version))
    }

    /// Keeps an extension that is used. `None` for a server_name or ALPN extension whose elements do not fill `data`
    /// exactly, or that is there twice.
    fn extension(&mut self, kind: u16, data: &'a [u8]) -> Option<()> {
        match kind {
            SERVER_NAME => {
                let (_, TlsExtension::SNI(names)) = parse_tls_extension_sni_content(data).ok()? else {
                    return None;
                };
                let length = 2 + names.iter().map(|(_, name)| 3 + name.len()).sum::<usize>();
                if length != data.len() || self.server_names.replace(names).is_some() {
                    return None;
                }
            }
            ALPN => {
                let (_, TlsExtension::ALPN(names)) = parse_tls_extension_alpn_content(data).ok()? else {
                    return None;
                };
                let length = 2 + names.iter().map(|name| 1 + name.len()).sum::<usize>();
                if length != data.len() || names.is_empty() || names.contains(&&b""[..]) {
                    return None;
                }
                let first = self.alpn.is_empty();
                self.alpn = data.get(2..).filter(|_| first)?;
            }
            SUPPORTED_VERSIONS => {
                if let [length, list @ ..] = data {
                    self.supported_versions = numbers(list, (*length).into());
                }
            }
            SIGNATURE_ALGORITHMS => {
                if let [high, low, list @ ..] = data {
                    self.signature_algorithms = numbers(list, u16::from_be_bytes([*high, *low]).into());
                }
            }
            _ => {}
        }
        Some(())
    }
}

/// A list of 16-bit numbers; empty if it does not have `length` bytes, or an odd number of them.
fn numbers(list: &[u8], length: usize) -> Vec<u16> {
    if list.len() != length || !length.is_multiple_of(2) {
        return Vec::new();
    }
    list.chunks_exact(2).map(|number| u16::from_be_bytes([number[0], number[1]])).collect()
}

/// Values that clients send to keep servers tolerant (RFC 8701): 0x0a0a, 0x1a1a … 0xfafa.
pub(super) fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}
