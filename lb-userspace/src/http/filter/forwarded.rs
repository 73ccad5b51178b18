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
    /// It is one of the listener's `trusted_proxies`: what it says of those before it is passed on.
    pub trusted: bool,
    /// Its connection is one of TLS.
    pub tls: bool,
    /// The request's host, with a port if it has one; empty: none.
    pub host: &'r str,
}

/// Says so in `X-Forwarded-For`, `-Proto` and `-Host` and in `Forwarded` (RFC 7239). What a client that is not trusted has sent
/// under these names, or others that servers take for a proxy's word, goes.
pub fn forward(headers: &mut HeaderMap, from: From<'_>) {
    if !from.trusted {
        let names: Vec<HeaderName> =
            headers.keys().filter(|name| is_word_of_proxies(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
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
    append(headers, X_FORWARDED_FOR, &client.to_string());
    append(headers, FORWARDED, &element);
    let absent = [(X_FORWARDED_PROTO, scheme), (X_FORWARDED_HOST, from.host)];
    for (name, value) in absent.into_iter().filter(|(_, value)| !value.is_empty()) {
        if !headers.contains_key(&name)
            && let Ok(value) = HeaderValue::from_str(value)
        {
            headers.insert(name, value);
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

/// Adds an element to the list that the header's lines are together. What is no text stays a line of its own.
fn append(headers: &mut HeaderMap, name: HeaderName, element: &str) {
    let mut all: Vec<&str> = headers.get_all(&name).iter().filter_map(|value| value.to_str().ok()).collect();
    all.push(element);
    // Of parts of headers: always a value.
    if let Ok(value) = HeaderValue::try_from(all.join(", ")) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(sent: &[(&'static str, &'static str)], from: From<'_>) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        forward(&mut headers, from);
        headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
    }

    const CLIENT: From<'_> = From {
        client: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        trusted: false,
        tls: true,
        host: "a.example:8443",
    };

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
        assert_eq!(forwarded(&[], CLIENT), said);
        let mut with_spoofed = forwarded(&SPOOFED, CLIENT);
        assert_eq!(with_spoofed.remove(0), "x-forward: stays");
        assert_eq!(with_spoofed, said);
    }

    #[test]
    fn a_trusted_proxy_is_appended_to_what_it_says() {
        let said = forwarded(&SPOOFED, From { trusted: true, ..CLIENT });
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
            forwarded(&[], client("2001:db8::1")),
            [
                "x-forwarded-for: 2001:db8::1",
                "forwarded: for=\"[2001:db8::1]\";proto=http",
                "x-forwarded-proto: http"
            ]
        );
        assert_eq!(forwarded(&[], client("::ffff:192.0.2.1"))[0], "x-forwarded-for: 192.0.2.1");
    }
}
