//! Another host or path.

use http::header::HOST;
use http::request;
use http::uri::{Authority, InvalidUri, InvalidUriParts, PathAndQuery, Uri};

use crate::config::{PathMatch, PathRewrite, RequestMatch, Rewrite};

/// Why a request is not rewritten: what comes out is too long, or no host.
#[derive(Debug, thiserror::Error)]
pub enum BadTarget {
    /// Its path or host.
    #[error(transparent)]
    Part(#[from] InvalidUri),
    /// All of it.
    #[error(transparent)]
    Whole(#[from] InvalidUriParts),
}

/// Rewrites a request that the match `of` has fitted. `path` is its path as it was compared
/// ([`compared`](crate::config::compared)). The query stays.
pub fn rewrite(
    request: &mut request::Parts,
    by: &Rewrite,
    of: &RequestMatch,
    path: &str,
) -> Result<(), BadTarget> {
    let mut uri = request.uri.clone().into_parts();
    // `OPTIONS *` asks about the server, not about a resource of it (RFC 9110, section 7.1).
    if let Some(rewrite) = by.path.as_ref().filter(|_| path != "*") {
        uri.path_and_query = Some(target(&rewritten(path, rewrite, of), request.uri.query())?);
    }
    if let Some(host) = &by.host {
        // Absent from a request in HTTP/1, whose host is in the header alone.
        if uri.authority.is_some() {
            uri.authority = Some(Authority::try_from(host.as_bytes())?);
        }
        request.headers.insert(HOST, host.clone());
    }
    request.uri = Uri::from_parts(uri)?;
    Ok(())
}

/// A path and the query of a request.
fn target(path: &str, query: Option<&str>) -> Result<PathAndQuery, InvalidUri> {
    match query {
        Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
        None => PathAndQuery::try_from(path),
    }
}

/// The path that comes out. Of a replaced prefix, whole segments go and a slash at the end of the new one does not count; of one
/// that may end in the middle of a segment, only two slashes in a row become one.
pub(super) fn rewritten(path: &str, by: &PathRewrite, of: &RequestMatch) -> String {
    let (new, rest) = match by {
        PathRewrite::Full(new) => (&**new, ""),
        PathRewrite::Prefix(new) => {
            let prefix = match &of.path {
                None => "",
                Some(PathMatch::Prefix(prefix)) => prefix.trim_end_matches('/'),
                Some(PathMatch::Begin(begin)) => begin,
                // Configurations have it with prefixes alone: here it is the path that has matched.
                Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => path,
            };
            let rest = path.strip_prefix(prefix).unwrap_or_default();
            match rest.starts_with('/') || !matches!(&of.path, Some(PathMatch::Begin(_))) {
                true => (new.trim_end_matches('/'), rest),
                false => (&**new, rest),
            }
        }
    };
    match (new, rest) {
        ("", "") => "/".to_owned(),
        _ => format!("{new}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn prefix(prefix: &str) -> RequestMatch {
        RequestMatch { path: Some(PathMatch::Prefix(prefix.into())), ..RequestMatch::default() }
    }

    /// The table in the documentation of the Gateway API's HTTPPathModifier, and what it leaves open.
    #[test]
    fn prefixes() {
        for (path, of, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/", "/xyz", "/xyz/foo"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/", "/", "/", "/"),
            ("/foo/bar", "/", "/", "/foo/bar"),
        ] {
            let by = PathRewrite::Prefix(new.into());
            assert_eq!(rewritten(path, &by, &prefix(of)), expected, "{path} {of} {new}");
        }
        for (path, of, new, expected) in [
            ("/api", "/api", "/", "/"),
            ("/api/x", "/api", "/", "/x"),
            ("/apix", "/api", "/", "/x"),
            ("/apix", "/api", "/v1", "/v1x"),
            ("/api/x", "/api/", "/", "/x"),
            ("/api/x", "/api/", "/v1/", "/v1/x"),
            ("/api/", "/api/", "/v1/", "/v1/"),
            ("/api", "/api", "/v1/", "/v1/"),
        ] {
            let begin = RequestMatch { path: Some(PathMatch::Begin(of.into())), ..RequestMatch::default() };
            let by = PathRewrite::Prefix(new.into());
            assert_eq!(rewritten(path, &by, &begin), expected, "{path} {of} {new}");
        }
        assert_eq!(rewritten("/foo", &PathRewrite::Prefix("/x".into()), &RequestMatch::default()), "/x/foo");
        assert_eq!(rewritten("/foo", &PathRewrite::Full("/x/".into()), &prefix("/")), "/x/");
    }

    #[test]
    fn the_query_stays_and_the_host_is_where_the_request_has_it() {
        let by = Rewrite {
            host: Some(HeaderValue::from_static("new.example:8080")),
            path: Some(PathRewrite::Prefix("/new".into())),
        };
        for (from, to) in [
            ("/old/x?a=/old&b", "/new/x?a=/old&b"),
            ("/old?", "/new?"),
            ("/old", "/new"),
            ("*", "*"),
            ("https://old.example/old/x?q", "https://new.example:8080/new/x?q"),
        ] {
            let (mut parts, ()) =
                http::Request::get(from).header("host", "old.example").body(()).unwrap().into_parts();
            let path = parts.uri.path().to_owned();
            rewrite(&mut parts, &by, &prefix("/old"), &path).unwrap();
            assert_eq!(parts.uri.to_string(), to);
            assert_eq!(parts.headers["host"], "new.example:8080");
        }
    }

    #[test]
    fn what_comes_out_too_long_is_an_error() {
        let (mut parts, ()) = http::Request::get("/old?q").body(()).unwrap().into_parts();
        let by = Rewrite { host: None, path: Some(PathRewrite::Full("/x".repeat(40_000).into())) };
        assert!(rewrite(&mut parts, &by, &prefix("/old"), "/old").is_err());
    }
}
