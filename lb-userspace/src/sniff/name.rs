//! The name a client asks for.

use std::fmt;
use std::net::IpAddr;

use crate::reason::OddName;

/// Bytes in a DNS name as text, without the trailing dot (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A DNS host name, normalised: lower case, no trailing dot, 1 to 253 bytes of ASCII.
///
/// Labels hold letters, digits and hyphens (RFC 1123, section 2.1) and, beyond the RFC, underscores and hyphens
/// anywhere: names such as `db_1.example.com` are in use. Internationalised names come as A-labels (`xn--…`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

impl ServerName {
    /// Validates and normalises a name as it came from the network.
    pub fn parse(name: &[u8]) -> Result<Self, OddName> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let text = std::str::from_utf8(name).map_err(|_| OddName::NotAName)?;
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if bare.parse::<IpAddr>().is_ok() {
            return Err(OddName::IpAddress);
        }
        if name.len() > MAX_NAME || !name.split(|&b| b == b'.').all(is_label) {
            return Err(OddName::NotAName);
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(label: &[u8]) -> bool {
    (1..=MAX_LABEL).contains(&label.len())
        && label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_lower_case_and_has_no_trailing_dot() {
        for (sent, expected) in [
            ("app1.redis.example", "app1.redis.example"),
            ("App1.REDIS.example.", "app1.redis.example"),
            ("localhost", "localhost"),
            ("db_1._tcp.example", "db_1._tcp.example"),
            ("1.2.3.4.in-addr.arpa", "1.2.3.4.in-addr.arpa"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("-a.b-.example", "-a.b-.example"),
            ("1.2.3.4.5", "1.2.3.4.5"),
        ] {
            assert_eq!(ServerName::parse(sent.as_bytes()).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn what_is_no_host_name_is_odd() {
        let long_label = format!("{}.example", "a".repeat(64));
        for sent in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "a b",
            "a\0.b",
            "a/b",
            "*.example",
            "b\u{fc}cher.example",
            "a:443",
            "10.0.0.1:443",
            "[a.example]",
            &long_label,
        ] {
            assert_eq!(ServerName::parse(sent.as_bytes()), Err(OddName::NotAName), "{sent:?}");
        }
        assert_eq!(ServerName::parse(b"\xff.example"), Err(OddName::NotAName));
        for sent in ["10.0.0.1", "10.0.0.1.", "2001:db8::1", "[::1]", "::ffff:10.0.0.1"] {
            assert_eq!(ServerName::parse(sent.as_bytes()), Err(OddName::IpAddress), "{sent:?}");
        }
    }

    #[test]
    fn a_name_has_at_most_253_bytes_without_its_trailing_dot() {
        let name = |length: usize| {
            let mut name = "a.".repeat(length / 2 + 1);
            name.truncate(length);
            name
        };
        assert_eq!(ServerName::parse(name(253).as_bytes()).unwrap().as_str().len(), 253);
        assert_eq!(ServerName::parse((name(253) + ".").as_bytes()).unwrap().as_str().len(), 253);
        assert_eq!(ServerName::parse(name(255).as_bytes()), Err(OddName::NotAName));
    }
}
