//! Who the client is, for the server.

use std::fmt::Write as _;
use std::net::IpAddr;

use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What servers are told of where the requests of one connection for one host come from. Made once for many of them.
#[derive(Debug)]
pub struct Origin {
    host: Box<str>,
    address: HeaderValue,
    element: HeaderValue,
    scheme: HeaderValue,
    /// Absent: the request names none.
    named: Option<HeaderValue>,
}

impl Origin {
    /// `client`: its address, or that of the last proxy before this one. `host`: the request's, with a port if it has one; empty:
    /// none. `None`: these are no values of headers.
    pub fn new(client: IpAddr, tls: bool, host: &str) -> Option<Self> {
        let client = client.to_canonical();
        let scheme = if tls { "https" } else { "http" };
        let node = match client {
            IpAddr::V4(address) => format!("for={address}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\""),
        };
        let mut element = format!("{node};proto={scheme}");
        if !host.is_empty() && !host.contains(['"', '\\']) {
            // A port's colon is for a quoted text (RFC 7239, section 4); writing to a text does not fail.
            let _ = write!(element, ";host=\"{host}\"");
        }
        Some(Origin {
            host: host.into(),
            address: HeaderValue::try_from(client.to_string()).ok()?,
            element: HeaderValue::try_from(element).ok()?,
            scheme: HeaderValue::from_static(scheme),
            named: (!host.is_empty()).then(|| HeaderValue::from_str(host)).transpose().ok()?,
        })
    }

    /// Whether it is that of requests for this host.
    pub fn is_of(&self, host: &str) -> bool {
        *self.host == *host
    }
}

/// Says so in `X-Forwarded-For`, `-Proto` and `-Host` and in `Forwarded` (RFC 7239). What a client that is not `trusted` (one of
/// the listener's `trusted_proxies`) has sent under these names, or others that servers take for a proxy's word, goes.
pub fn forward(headers: &mut HeaderMap, origin: &Origin, trusted: bool) {
    if !trusted {
        strip_words_of_proxies(headers);
    }
    append(headers, X_FORWARDED_FOR, &origin.address);
    append(headers, FORWARDED, &origin.element);
    let absent = [(X_FORWARDED_PROTO, Some(&origin.scheme)), (X_FORWARDED_HOST, origin.named.as_ref())];
    for (name, value) in absent {
        if let Some(value) = value.filter(|_| !headers.contains_key(&name)) {
            headers.insert(name, value.clone());
        }
    }
}

/// Takes out what servers take for a proxy's word.
pub fn strip_words_of_proxies(headers: &mut HeaderMap) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| is_word_of_proxies(name)).cloned().collect();
    for name in names {
        headers.remove(name);
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
    let Some(_) = headers.get(&name) else {
        headers.insert(name, element.clone());
        return;
    };
    let lines = headers.get_all(&name).iter().chain([element]);
    let all: Vec<&str> = lines.filter_map(|value| value.to_str().ok()).collect();
    // Of parts of headers: always a value.
    if let Ok(value) = HeaderValue::try_from(all.join(", ")) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(sent: &[(&'static str, &'static str)], client: &str, trusted: bool) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        forward(&mut headers, &origin(client), trusted);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    const CLIENT: &str = "192.0.2.1";

    /// Of an IPv4 client, with TLS and a host; of another, without.
    fn origin(client: &str) -> Origin {
        let is_plain = client.contains(':');
        Origin::new(client.parse().unwrap(), !is_plain, if is_plain { "" } else { "a.example:8443" }).unwrap()
    }

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
        assert_eq!(
            forwarded(&[], "2001:db8::1", false),
            [
                "x-forwarded-for: 2001:db8::1",
                "forwarded: for=\"[2001:db8::1]\";proto=http",
                "x-forwarded-proto: http"
            ]
        );
        assert_eq!(forwarded(&[], "::ffff:192.0.2.1", false)[0], "x-forwarded-for: 192.0.2.1");
    }
}
