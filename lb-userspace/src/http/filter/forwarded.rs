//! Who the client is, for the server.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct From<'r> {
    /// The client's address, or that of the last proxy before this one.
    pub client: IpAddr,
    /// Its connection is one of TLS.
    pub tls: bool,
    /// The request's host, with a port if it has one; empty: none.
    pub host: &'r str,
}

/// How that is said: in `X-Forwarded-For`, `-Proto` and `-Host` and in `Forwarded` (RFC 7239). The same for all requests of a
/// connection to one host.
#[derive(Debug)]
pub struct Words {
    client: HeaderValue,
    element: HeaderValue,
    scheme: HeaderValue,
    /// Absent: the request names none.
    host: Option<HeaderValue>,
}

impl Words {
    /// `None`: the host cannot be said in a header.
    pub fn new(from: From<'_>) -> Option<Self> {
        let client = from.client.to_canonical();
        let scheme = if from.tls { "https" } else { "http" };
        let node = match client {
            IpAddr::V4(address) => format!("for={address}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\""),
        };
        let mut element = format!("{node};proto={scheme}");
        if !from.host.is_empty() && !from.host.contains(['"', '\\']) {
            // A port's colon is for a quoted text (RFC 7239, section 4); writing to a text does not fail.
            let _ = write!(element, ";host=\"{}\"", from.host);
        }
        let host = (!from.host.is_empty()).then(|| HeaderValue::from_str(from.host));
        Some(Words {
            client: HeaderValue::try_from(client.to_string()).ok()?,
            element: HeaderValue::try_from(element).ok()?,
            scheme: HeaderValue::from_static(scheme),
            host: host.transpose().ok()?,
        })
    }

    /// Says so in the headers of a request. `trusted`: what the client says of those before it is passed on; else what it has
    /// sent under these names, or others that servers take for a proxy's word, goes.
    pub fn say(&self, headers: &mut HeaderMap, trusted: bool) {
        if !trusted && headers.keys().any(is_word_of_proxies) {
            let names: Vec<HeaderName> =
                headers.keys().filter(|name| is_word_of_proxies(name)).cloned().collect();
            for name in names {
                headers.remove(name);
            }
        }
        append(headers, X_FORWARDED_FOR, &self.client);
        append(headers, FORWARDED, &self.element);
        for (name, value) in [(X_FORWARDED_PROTO, Some(&self.scheme)), (X_FORWARDED_HOST, self.host.as_ref())]
        {
            if let Some(value) = value {
                headers.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
}

/// `X-Forwarded-*` and the like, also as servers read them that take `_` for `-`.
fn is_word_of_proxies(name: &HeaderName) -> bool {
    let bytes = name.as_str().as_bytes();
    let same = |a: &[u8], b: &[u8]| a.iter().zip(b).all(|(a, b)| *a == if *b == b'_' { b'-' } else { *b });
    let begins = |with: &[u8]| bytes.len() >= with.len() && same(with, bytes);
    *name == FORWARDED || begins(b"x-forwarded-") || (begins(b"x-real-ip") && bytes.len() == 9)
}

/// Adds an element to the list that the header's lines are together. What is no text goes.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &HeaderValue) {
    let mut all: Vec<&[u8]> = Vec::new();
    all.extend(
        headers.get_all(&name).iter().filter(|value| value.to_str().is_ok()).map(HeaderValue::as_bytes),
    );
    let list = match all.is_empty() {
        true => Some(element.clone()),
        false => {
            all.push(element.as_bytes());
            HeaderValue::from_bytes(&all.join(&b", "[..])).ok()
        }
    };
    // Of parts of headers: always a value.
    if let Some(list) = list {
        headers.insert(name, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(sent: &[(&'static str, &'static str)], from: From<'_>, trusted: bool) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Words::new(from).unwrap().say(&mut headers, trusted);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    const CLIENT: From<'_> =
        From { client: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), tls: true, host: "a.example:8443" };

    const SPOOFED: [(&str, &str); 12] = [
        ("x-forwarded-for", "203.0.113.1"),
        ("x-forwarded-for", "203.0.113.2"),
        ("x-forwarded-proto", "gopher"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-client-cert", "By=x"),
        ("x-forwarded-port", "1"),
        ("x_forwarded_for", "203.0.113.3"),
        ("x-forwarded_for", "203.0.113.3"),
        ("x-real-ip", "203.0.113.4"),
        ("x_real_ip", "203.0.113.4"),
        ("forwarded", "for=203.0.113.5"),
        ("x-forward", "stays"),
    ];

    #[test]
    fn a_client_says_nothing_about_itself() {
        let said = [
            "x-forwarded-for: 192.0.2.1",
            "forwarded: for=192.0.2.1;proto=https;host=\"a.example:8443\"",
            "x-forwarded-proto: https",
            "x-forwarded-host: a.example:8443",
        ];
        assert_eq!(forwarded(&[], CLIENT, false), said);
        let mut with_spoofed = forwarded(&SPOOFED, CLIENT, false);
        assert_eq!(with_spoofed.remove(0), "x-forward: stays");
        assert_eq!(with_spoofed, said);
    }

    #[test]
    fn a_trusted_proxy_is_appended_to_what_it_says() {
        let said = forwarded(&SPOOFED, CLIENT, true);
        for line in [
            "x-forwarded-for: 203.0.113.1, 203.0.113.2, 192.0.2.1",
            "forwarded: for=203.0.113.5, for=192.0.2.1;proto=https;host=\"a.example:8443\"",
            "x-forwarded-proto: gopher",
            "x-forwarded-host: evil.example",
            "x-forwarded-client-cert: By=x",
            "x-real-ip: 203.0.113.4",
        ] {
            assert!(said.iter().any(|said| said == line), "{line}: {said:?}");
        }
    }

    #[test]
    fn addresses_of_version_6() {
        let client = |text: &str| From { client: text.parse().unwrap(), tls: false, host: "", ..CLIENT };
        assert_eq!(
            forwarded(&[], client("2001:db8::1"), false),
            [
                "x-forwarded-for: 2001:db8::1",
                "forwarded: for=\"[2001:db8::1]\";proto=http",
                "x-forwarded-proto: http"
            ]
        );
        assert_eq!(forwarded(&[], client("::ffff:192.0.2.1"), false)[0], "x-forwarded-for: 192.0.2.1");
    }
}
