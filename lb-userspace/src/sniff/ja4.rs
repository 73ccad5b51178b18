//! JA4: a fingerprint of the client's TLS library.
//!
//! JA4 as in technical_details/JA4.md of github.com/FoxIO-LLC/ja4 (BSD 3-Clause; the rest of JA4+ is not used).

use std::fmt;

use sha2::{Digest, Sha256};

use super::hello::{ALPN, Body, SERVER_NAME, is_grease};
use super::records::Records;

/// Hexadecimal digits kept of each hash.
const HASH_DIGITS: usize = 12;

/// A fingerprint: `t13d1516h2_8daaf6152771_e5627efa2ab1`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ja4(
    /// ASCII.
    [u8; 36],
);

/// The fingerprint of the ClientHello at the front of the window; `None` if it is not whole or malformed.
pub fn ja4(window: &[u8]) -> Option<Ja4> {
    let message = Records::default().advance(window).ok()??;
    let body = Body::parse(&message)?;
    let not_grease = |value: &u16| !is_grease(*value);

    let mut ciphers: Vec<u16> = body.ciphers.iter().map(|cipher| cipher.0).filter(not_grease).collect();
    ciphers.sort_unstable();
    let mut extensions: Vec<u16> = body.extensions.iter().copied().filter(not_grease).collect();
    let counts = [ciphers.len(), extensions.len()].map(|count| count.min(99));
    extensions.retain(|&kind| kind != SERVER_NAME && kind != ALPN);
    extensions.sort_unstable();
    let algorithms: Vec<u16> = body.signature_algorithms.iter().copied().filter(not_grease).collect();

    let mut listed = list(&extensions);
    if !algorithms.is_empty() {
        listed = format!("{listed}_{}", list(&algorithms));
    }
    let version = match body.version().0 {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        _ => "00",
    };
    let sni = if body.server_names.is_some() { 'd' } else { 'i' };
    let [protocol_first, protocol_last] = protocol(body.alpn);
    let text = format!(
        "t{version}{sni}{:02}{:02}{protocol_first}{protocol_last}_{}_{}",
        counts[0],
        counts[1],
        hash(&list(&ciphers)),
        hash(&listed),
    );
    Some(Ja4(text.into_bytes().try_into().ok()?))
}

impl Ja4 {
    /// The fingerprint as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Ja4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ja4({self})")
    }
}

fn list(values: &[u16]) -> String {
    values.iter().map(|value| format!("{value:04x}")).collect::<Vec<_>>().join(",")
}

/// Zeros for an empty list, rather than the hash of nothing.
fn hash(list: &str) -> String {
    if list.is_empty() {
        return "0".repeat(HASH_DIGITS);
    }
    Sha256::digest(list).iter().take(HASH_DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
}

/// First and last character of the first protocol offered, or of its hexadecimal form.
fn protocol(alpn: &[u8]) -> [char; 2] {
    let name = alpn.split_first().and_then(|(&length, rest)| rest.get(..length.into())).unwrap_or_default();
    let (Some(&first), Some(&last)) = (name.first(), name.last()) else {
        return ['0', '0'];
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [first.into(), last.into()];
    }
    [first >> 4, last & 0x0f].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_its_first_and_last_character() {
        // The examples of JA4.md.
        for (alpn, expected) in [
            (&b""[..], ['0', '0']),
            (b"\x02h2", ['h', '2']),
            (b"\x08http/1.1\x02h2", ['h', '1']),
            (b"\x01h", ['h', 'h']),
            (b"\x01\xab", ['a', 'b']),
            (b"\x02\xab\xcd", ['a', 'd']),
            (b"\x02\x30\xab", ['3', 'b']),
            (b"\x04\x30\x31\xab\xcd", ['3', 'd']),
            (b"\x04\x30\xab\xcd\x31", ['0', '1']),
        ] {
            assert_eq!(protocol(alpn), expected, "{}", alpn.escape_ascii());
        }
    }

    #[test]
    fn a_list_hashes_as_in_the_specification() {
        let ciphers = "002f,0035,009c,009d,1301,1302,1303,c013,c014,c02b,c02c,c02f,c030,cca8,cca9";
        assert_eq!(hash(ciphers), "8daaf6152771");
        assert_eq!(hash(""), "000000000000");
    }
}
