//! Whose request it is: the host that it names (RFC 9110, section 7.2; RFC 9112, section 3.2; RFC 9113, section 8.3.1).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use http::uri::Authority;
use http::{HeaderMap, Uri, Version, header::HOST};
use std::borrow::Cow;
use std::net::Ipv6Addr;

/// Bytes of a host with its port.
const MAX_AUTHORITY: usize = 253 + 1 + 6;

/// The request names no host, several, or something that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadHost;

/// The host that a request names, as it was written. `None`: HTTP/1.0 need not name one.
pub(super) fn authority_of<'r>(
    version: Version,
    uri: &'r Uri,
    headers: &'r HeaderMap,
) -> Result<Option<&'r str>, BadHost> {
    let mut lines = headers.get_all(HOST).iter();
    let line = lines.next().map(|line| line.to_str().map_err(|_| BadHost)).transpose()?;
    if lines.next().is_some() {
        return Err(BadHost);
    }
    match (uri.authority(), line) {
        // Both say the same, or a server might take the other one for true.
        (Some(target), Some(line)) if !target.as_str().eq_ignore_ascii_case(line) => Err(BadHost),
        (Some(target), _) => Ok(Some(target.as_str())),
        (None, Some(line)) => Ok(Some(line)),
        (None, None) if version == Version::HTTP_10 => Ok(None),
        (None, None) => Err(BadHost),
    }
}

/// The name in `host` or `host:port`, lower case, without the dot at its end. Addresses stay what they are.
pub(super) fn name_of(authority: &str) -> Result<Cow<'_, str>, BadHost> {
    if authority.len() > MAX_AUTHORITY {
        return Err(BadHost);
    }
    let (host, rest) = match authority.strip_prefix('[') {
        Some(ipv6) => {
            let end = ipv6.find(']').ok_or(BadHost)? + 2;
            (&authority[..end], &authority[end..])
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
    if !rest.is_empty() && !rest.strip_prefix(':').is_some_and(is_port) {
        return Err(BadHost);
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_name),
    };
    // What is made of it (a redirect, a request to a server) must be able to carry it.
    if !is_good || Authority::try_from(authority).is_err() {
        return Err(BadHost);
    }
    Ok(match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (HOST, HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn a_name_is_compared_without_case_port_and_last_dot() {
        for (authority, name) in [
            ("a.example.com", "a.example.com"),
            ("A.Example.COM:8443", "a.example.com"),
            ("a.example.com.", "a.example.com"),
            ("a.example.com.:80", "a.example.com"),
            ("a_b.example", "a_b.example"),
            ("localhost:", "localhost"),
            ("192.0.2.1:80", "192.0.2.1"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
            ("[::ffff:192.0.2.1]", "[::ffff:192.0.2.1]"),
        ] {
            assert_eq!(name_of(authority).as_deref(), Ok(name), "{authority}");
        }
        let long = "a".repeat(300);
        for authority in [
            "",
            ".",
            ":80",
            "a b",
            "a@b",
            "user@a.example",
            "a/b",
            "a:b",
            "a:80:80",
            "a:123456",
            "[::1",
            "[::1]x",
            "[g]",
            "[[1]",
            "[]",
            "[:::::::::]",
            "[::1].",
            "[fe80::1%25eth0]",
            "a,b",
            "a\tb",
            ".a",
            "ä.example",
            "a%2eb",
            "a\\b",
            &long,
        ] {
            assert_eq!(name_of(authority), Err(BadHost), "{authority}");
        }
    }

    #[test]
    fn one_host_and_no_other() {
        let of = |version, uri: &'static str, lines: &[&'static str]| {
            let headers = headers(lines);
            authority_of(version, &Uri::from_static(uri), &headers).map(|found| found.map(str::to_owned))
        };
        let found = |name: &str| Ok(Some(name.to_owned()));
        assert_eq!(of(Version::HTTP_11, "/", &["a.example"]), found("a.example"));
        assert_eq!(of(Version::HTTP_11, "http://a.example/", &["A.example"]), found("a.example"));
        assert_eq!(of(Version::HTTP_2, "https://a.example/", &[]), found("a.example"));
        assert_eq!(of(Version::HTTP_10, "/", &[]), Ok(None));
        for (version, uri, lines) in [
            (Version::HTTP_11, "/", &[][..]),
            (Version::HTTP_2, "/", &[]),
            (Version::HTTP_11, "/", &["a.example", "a.example"]),
            (Version::HTTP_11, "http://a.example/", &["b.example"]),
            (Version::HTTP_2, "https://a.example/", &["b.example"]),
            (Version::HTTP_2, "https://a.example/", &["a.example", "a.example"]),
        ] {
            assert_eq!(of(version, uri, lines), Err(BadHost), "{version:?} {uri} {lines:?}");
        }
    }
}
