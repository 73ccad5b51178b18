//! The name a client asks for.

use std::fmt;

use crate::reason::RejectReason;

/// Bytes in a DNS name as text, without the trailing dot (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A DNS host name, normalised: lower case, no trailing dot, 1 to 253 bytes of ASCII.
///
/// Labels hold letters, digits and inner hyphens (RFC 1123, section 2.1) and, beyond the RFC, underscores
/// anywhere: names such as `db_1.example.com` are in use. A last label of digits only would make it an IP
/// address, which RFC 6066 forbids here. Internationalised names come as A-labels (`xn--…`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerName(Box<str>);

impl ServerName {
    /// Validates and normalises a name as it came from the network.
    pub fn parse(name: &[u8]) -> Result<Self, RejectReason> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let valid = name.len() <= MAX_NAME
            && name.split(|&b| b == b'.').all(is_label)
            && !name.rsplit(|&b| b == b'.').next().is_some_and(|last| last.iter().all(u8::is_ascii_digit));
        let text = std::str::from_utf8(name).ok().filter(|_| valid).ok_or(RejectReason::SniInvalid)?;
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
        && !label.starts_with(b"-")
        && !label.ends_with(b"-")
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
        ] {
            assert_eq!(ServerName::parse(sent.as_bytes()).unwrap().as_str(), expected);
        }
    }

    #[test]
    fn what_is_no_host_name_is_rejected() {
        let long_label = format!("{}.example", "a".repeat(64));
        for sent in [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
            "-a.b",
            "a-.b",
            "a b",
            "a\0.b",
            "a/b",
            "*.example",
            "b\u{fc}cher.example",
            "10.0.0.1",
            "10.0.0.1.",
            "2001:db8::1",
            "[::1]",
            "a:443",
            "1",
            &long_label,
        ] {
            assert_eq!(ServerName::parse(sent.as_bytes()), Err(RejectReason::SniInvalid), "{sent:?}");
        }
        assert_eq!(ServerName::parse(b"\xff.example"), Err(RejectReason::SniInvalid));
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
        assert_eq!(ServerName::parse(name(255).as_bytes()), Err(RejectReason::SniInvalid));
    }
}
