//! Origins (RFC 6454) that rules allow.

/// Whether one of [`Cors::origins`](super::Cors::origins) (`https://example.com`, `https://*.example.com:8443`, `*`) covers an origin. `*` stands for one label or more.
pub fn covers_origin(allowed: &str, origin: &str) -> bool {
    if allowed == "*" {
        return true;
    }
    let (Some(allowed), Some(origin)) = (parts(allowed), parts(origin)) else { return false };
    let host = match allowed.host.strip_prefix('*') {
        Some(end) => {
            let head = origin.host.len().checked_sub(end.len());
            head.filter(|head| *head > 0)
                .and_then(|head| origin.host.get(head..))
                .is_some_and(|tail| tail.eq_ignore_ascii_case(end))
        }
        None => allowed.host.eq_ignore_ascii_case(origin.host),
    };
    host && allowed.scheme == origin.scheme && allowed.port == origin.port
}

#[derive(PartialEq)]
struct Origin<'o> {
    scheme: &'o str,
    host: &'o str,
    port: u16,
}

/// Of `scheme://host[:port]`; the port of a scheme need not be said.
fn parts(origin: &str) -> Option<Origin<'_>> {
    let (scheme, rest) = origin.split_once("://")?;
    let default = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    match rest.rsplit_once(':') {
        // Of an IPv6 address.
        Some((_, port)) if port.ends_with(']') => Some(Origin { scheme, host: rest, port: default }),
        Some((host, port)) => Some(Origin { scheme, host, port: port.parse().ok()? }),
        None => Some(Origin { scheme, host: rest, port: default }),
    }
}

/// Whether it is one of [`Cors::origins`](super::Cors::origins).
pub(in crate::config) fn is_origin(text: &str) -> bool {
    let name = |host: &str| {
        let host = host.strip_prefix("*.").unwrap_or(host);
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let literal = |host: &str| host.starts_with('[') && host.ends_with(']');
    text == "*"
        || parts(text).is_some_and(|origin| origin.host == "*" || name(origin.host) || literal(origin.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for (pattern, origin, covered) in [
            ("*", "null", true),
            ("https://a.com", "https://a.com", true),
            ("https://A.com", "https://a.com", true),
            ("https://a.com", "http://a.com", false),
            ("https://a.com", "https://a.com:443", true),
            ("https://a.com:443", "https://a.com", true),
            ("https://a.com", "https://a.com:8443", false),
            ("https://*.a.com", "https://a.com", false),
            ("https://*.a.com", "https://.a.com", false),
            ("https://*.a.com", "https://x.a.com", true),
            ("https://*.a.com", "https://x.a.com.evil.com", false),
            ("https://*.a.com", "https://evila.com", false),
            ("https://*.a.com", "https://x.a.com:8443", false),
            ("https://*", "https://x.a.com", true),
            ("https://*", "http://x.a.com", false),
            ("https://*", "null", false),
            ("https://a.com", "https://a.com/", false),
            ("http://[::1]", "http://[::1]", true),
            ("http://[::1]:81", "http://[::1]:81", true),
            ("https://*é.com", "https://xé.com", true),
        ] {
            assert_eq!(covers_origin(pattern, origin), covered, "{pattern} {origin}");
        }
        for pattern in ["*", "https://a.com", "http://*.a.com:81", "https://*", "http://[::1]:81"] {
            assert!(is_origin(pattern), "{pattern}");
        }
        for pattern in [
            "",
            "a.com",
            "https://",
            "ftp://a.com",
            "https://a.*.com",
            "https://a.com/",
            "https://a.com:x",
            "null",
        ] {
            assert!(!is_origin(pattern), "{pattern}");
        }
    }
}
