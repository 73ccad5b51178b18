//! Answers that send the client elsewhere.

use http::header::{HeaderValue, InvalidHeaderValue, LOCATION};
use http::{Response, Uri};

use super::rewrite::rewritten;
use crate::config::{Redirect, RequestMatch};

/// Where a request has come to.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'r> {
    /// The connection is one of TLS.
    pub tls: bool,
    /// What the client calls it, without port; an IPv6 address in brackets; empty: nothing (HTTP/1.0).
    pub host: &'r str,
    /// Of the listener.
    pub port: u16,
}

/// The answer to a request that the match `of` has fitted. `path` is its path as it was compared
/// ([`compared`](crate::config::compared)). The query stays.
pub fn redirect(
    by: &Redirect,
    arrival: Arrival<'_>,
    uri: &Uri,
    of: &RequestMatch,
    path: &str,
) -> Result<Response<()>, InvalidHeaderValue> {
    let location = HeaderValue::try_from(location(by, arrival, uri, of, path))?;
    let mut response = Response::new(());
    *response.status_mut() = by.status;
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}

fn location(by: &Redirect, arrival: Arrival<'_>, uri: &Uri, of: &RequestMatch, path: &str) -> String {
    let scheme = by.scheme.as_deref().unwrap_or(if arrival.tls { "https" } else { "http" });
    let well_known = match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    };
    let of_scheme = by.scheme.as_ref().and(well_known);
    let port = by.port.or(of_scheme).unwrap_or(arrival.port);
    let port = if Some(port) == well_known { String::new() } else { format!(":{port}") };
    let host = by.host.as_deref().unwrap_or(arrival.host);
    // `OPTIONS *` asks about the server, not about a resource of it (RFC 9110, section 7.1).
    let of_server = |path: &str| if path == "*" { "/".to_owned() } else { path.to_owned() };
    let path = match &by.path {
        Some(rewrite) => rewritten(&of_server(path), rewrite, of),
        // Behind no host, two slashes would be the beginning of one.
        None if host.is_empty() => of_server(path),
        None => of_server(uri.path()),
    };
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if host.is_empty() {
        // Of the same host, whatever that is (RFC 9110, section 10.2.2).
        return format!("{path}{query}");
    }
    format!("{scheme}://{host}{port}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PathMatch, PathRewrite};
    use http::StatusCode;

    const NOTHING: Redirect =
        Redirect { scheme: None, host: None, path: None, port: None, status: StatusCode::FOUND };

    fn to(by: &Redirect, tls: bool, port: u16, uri: &str) -> String {
        from("a.example", by, tls, port, uri)
    }

    fn from(host: &str, by: &Redirect, tls: bool, port: u16, uri: &str) -> String {
        let of = RequestMatch { path: Some(PathMatch::Prefix("/old".into())), ..RequestMatch::default() };
        let uri = Uri::try_from(uri).unwrap();
        let response = redirect(by, Arrival { tls, host, port }, &uri, &of, uri.path()).unwrap();
        assert_eq!(response.status(), by.status);
        response.headers()["location"].to_str().unwrap().to_owned()
    }

    /// As the conformance suite's HTTPRouteRedirectPortAndScheme has it.
    #[test]
    fn ports_are_the_schemes_or_the_listeners() {
        for (tls, listener, scheme, port, expected) in [
            (false, 80, None, None, "http://a.example/x"),
            (false, 80, None, Some(80), "http://a.example/x"),
            (false, 80, None, Some(8080), "http://a.example:8080/x"),
            (false, 80, Some("https"), None, "https://a.example/x"),
            (false, 80, Some("https"), Some(443), "https://a.example/x"),
            (false, 80, Some("https"), Some(8443), "https://a.example:8443/x"),
            (false, 8080, None, None, "http://a.example:8080/x"),
            (false, 8080, None, Some(80), "http://a.example/x"),
            (false, 8080, Some("https"), None, "https://a.example/x"),
            (true, 443, None, None, "https://a.example/x"),
            (true, 443, None, Some(443), "https://a.example/x"),
            (true, 443, None, Some(8443), "https://a.example:8443/x"),
            (true, 443, Some("http"), None, "http://a.example/x"),
            (true, 443, Some("http"), Some(80), "http://a.example/x"),
            (true, 443, Some("http"), Some(8080), "http://a.example:8080/x"),
            (false, 80, None, Some(443), "http://a.example:443/x"),
        ] {
            let by = Redirect { scheme: scheme.map(Box::from), port, ..NOTHING };
            assert_eq!(to(&by, tls, listener, "/x"), expected);
        }
    }

    #[test]
    fn paths_hosts_and_statuses() {
        let host =
            Redirect { host: Some("b.example".into()), status: StatusCode::PERMANENT_REDIRECT, ..NOTHING };
        assert_eq!(to(&host, true, 443, "/old/x?a=1"), "https://b.example/old/x?a=1");
        let prefix = Redirect { path: Some(PathRewrite::Prefix("/new".into())), ..NOTHING };
        assert_eq!(to(&prefix, true, 443, "/old/x?a=1"), "https://a.example/new/x?a=1");
        let full = Redirect { path: Some(PathRewrite::Full("/new".into())), ..NOTHING };
        assert_eq!(to(&full, true, 443, "https://a.example/old/x"), "https://a.example/new");
        assert_eq!(to(&NOTHING, true, 443, "//b.example/x"), "https://a.example//b.example/x");
        assert_eq!(from("", &full, true, 443, "/old"), "/new");
        assert_eq!(to(&host, true, 443, "*"), "https://b.example/");
        assert_eq!(to(&full, true, 443, "*"), "https://a.example/new");
    }
}
