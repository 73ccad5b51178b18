//! Hello: from the body of a whole ClientHello to what the later stages want to know of it.
//!
//! tls-parser reads the body. It gives partial results where it can (a list that ends in the middle of an
//! element, bytes behind a list, an extensions block it cannot make sense of), so every length it was given
//! is held against what it read.

use std::fmt;

use tls_parser::{
    SNIType, TlsCipherSuiteID, TlsExtension, parse_tls_client_hello_extension,
    parse_tls_handshake_client_hello,
};

use super::ServerName;
use crate::reason::RejectReason;

/// Bytes of protocol names kept with a connection; clients send about a dozen.
const MAX_ALPN: usize = 1024;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The name asked for; `None` only if there is no server_name extension. With Encrypted ClientHello, the
    /// public (outer) name.
    pub sni: Option<ServerName>,
    /// The application protocols offered.
    pub alpn: Alpn,
    /// The highest version offered.
    pub version: TlsVersion,
    /// Bytes of the window that the ClientHello's records take. What follows is early data, and the server's.
    pub length: usize,
    /// A PostgreSQL SSLRequest was answered in front of it: the server expects one too. Direct TLS: false.
    pub postgres: bool,
}

/// The application protocols a client offers (RFC 7301), in its order of preference.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alpn(
    /// Names with a length byte each, as on the wire; none of them empty, none of them cut.
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

    /// Whether the client offers none, which it does by leaving the extension out.
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

/// Reads a ClientHello's body. `length` and `postgres` are passed through.
pub(super) fn read(body: &[u8], length: usize, postgres: bool) -> Result<ClientHello, RejectReason> {
    let body = Body::parse(body).ok_or(RejectReason::HelloMalformed)?;
    let sni = match body.server_names.as_deref() {
        None => None,
        Some(&[(SNIType::HostName, name)]) => Some(ServerName::parse(name)?),
        Some(_) => return Err(RejectReason::SniInvalid),
    };
    if body.alpn.len() > MAX_ALPN {
        return Err(RejectReason::HelloTooLarge);
    }
    Ok(ClientHello { sni, alpn: Alpn(body.alpn.into()), version: body.version(), length, postgres })
}

/// What we use of a ClientHello, as sent: GREASE included, nothing interpreted.
#[derive(Default)]
pub(super) struct Body<'a> {
    legacy_version: u16,
    /// The supported_versions extension; empty if there is none.
    supported_versions: Vec<u16>,
    pub(super) ciphers: Vec<TlsCipherSuiteID>,
    /// Types of the extensions, in order, no two equal.
    pub(super) extensions: Vec<u16>,
    pub(super) server_names: Option<Vec<(SNIType, &'a [u8])>>,
    /// Protocol names with a length byte each.
    pub(super) alpn: &'a [u8],
    pub(super) signature_algorithms: Vec<u16>,
}

impl<'a> Body<'a> {
    /// `None` if it contradicts itself, or RFC 8446 (section 4.1.2) and RFC 5246 (section 7.4.1.2).
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let (rest, hello) = parse_tls_handshake_client_hello(body).ok()?;
        // A block of extensions whose length lies is left in `rest`, and `ext` is then `None`.
        if !rest.is_empty() || hello.ciphers.is_empty() || hello.comp.is_empty() {
            return None;
        }
        let mut body = Self { legacy_version: hello.version.0, ciphers: hello.ciphers, ..Self::default() };
        let mut block = hello.ext.unwrap_or_default();
        while !block.is_empty() {
            let (rest, extension) = parse_tls_client_hello_extension(block).ok()?;
            let [type_high, type_low, _, _, data @ ..] = &block[..block.len() - rest.len()] else {
                return None;
            };
            body.extensions.push(u16::from_be_bytes([*type_high, *type_low]));
            body.extension(extension, data)?;
            block = rest;
        }
        body.has_no_extension_twice().then_some(body)
    }

    /// The highest version offered (RFC 8446, section 4.2.1), GREASE ignored.
    pub(super) fn version(&self) -> TlsVersion {
        let offered = self.supported_versions.iter().copied().filter(|&version| !is_grease(version));
        TlsVersion(offered.max().unwrap_or(self.legacy_version))
    }

    /// Keeps what we use, if its elements fill `data` exactly.
    fn extension(&mut self, extension: TlsExtension<'a>, data: &'a [u8]) -> Option<()> {
        let length = match extension {
            TlsExtension::SNI(names) => {
                let length = 2 + names.iter().map(|(_, name)| 3 + name.len()).sum::<usize>();
                self.server_names = Some(names);
                length
            }
            TlsExtension::ALPN(names) => {
                if names.is_empty() || names.contains(&&b""[..]) {
                    return None;
                }
                self.alpn = data.get(2..)?;
                2 + names.iter().map(|name| 1 + name.len()).sum::<usize>()
            }
            TlsExtension::SupportedVersions(versions) => {
                self.supported_versions = versions.iter().map(|version| version.0).collect();
                // tls-parser skips the list's own length.
                let length = 2 * versions.len();
                if versions.is_empty() || usize::from(*data.first()?) != length {
                    return None;
                }
                1 + length
            }
            TlsExtension::SignatureAlgorithms(algorithms) => {
                let length = 2 + 2 * algorithms.len();
                self.signature_algorithms = algorithms;
                length
            }
            _ => return Some(()),
        };
        (length == data.len()).then_some(())
    }

    fn has_no_extension_twice(&self) -> bool {
        let mut types = self.extensions.clone();
        types.sort_unstable();
        types.windows(2).all(|pair| pair[0] != pair[1])
    }
}

/// Values that clients send to keep servers tolerant (RFC 8701): 0x0a0a, 0x1a1a … 0xfafa.
pub(super) fn is_grease(value: u16) -> bool {
    let [high, low] = value.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}
