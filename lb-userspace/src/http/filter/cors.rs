//! Cross-origin resource sharing (Fetch standard, section 3.2), answered for the servers.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, request};

use crate::config::{Cors, covers_origin};

/// The answer to a request that only asks whether another may be made; `None`: this is no such request. To other origins it is
/// 403.
pub fn preflight(cors: &Cors, request: &request::Parts) -> Option<Response<()>> {
    let origin = request.headers.get(ORIGIN).filter(|_| request.method == Method::OPTIONS)?;
    let method = request.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
    let mut response = Response::new(());
    if !allows(cors, origin) {
        *response.status_mut() = StatusCode::FORBIDDEN;
        response.headers_mut().insert(VARY, HeaderValue::from_name(ORIGIN));
        return Some(response);
    }
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    of_origin(cors, origin, headers);
    // Where all are allowed, what is asked for is said: with credentials, `*` is a name like others.
    put(
        headers,
        ACCESS_CONTROL_ALLOW_METHODS,
        if all(&cors.methods) { Some(method.clone()) } else { list(&cors.methods) },
    );
    let asked = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS);
    put(
        headers,
        ACCESS_CONTROL_ALLOW_HEADERS,
        if all(&cors.headers) { asked.cloned() } else { list(&cors.headers) },
    );
    if !all(&cors.exposed) {
        put(headers, ACCESS_CONTROL_EXPOSE_HEADERS, list(&cors.exposed));
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, cors.max_age.into());
    headers.append(VARY, HeaderValue::from_name(ACCESS_CONTROL_REQUEST_METHOD));
    headers.append(VARY, HeaderValue::from_name(ACCESS_CONTROL_REQUEST_HEADERS));
    Some(response)
}

/// Says in a server's answer whether scripts of the request's `Origin` may see it. What the server itself has said about that goes.
pub fn answer(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    for name in [
        ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE,
    ] {
        headers.remove(name);
    }
    let Some(origin) = origin.filter(|origin| allows(cors, origin)) else {
        headers.append(VARY, HeaderValue::from_name(ORIGIN));
        return;
    };
    let exposed = match all(&cors.exposed) && cors.credentials {
        // Here `*` would be a name like others.
        true => joined(headers.keys().map(HeaderName::as_str)),
        false => list(&cors.exposed),
    };
    put(headers, ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    of_origin(cors, origin, headers);
}

/// What preflights and other requests of an allowed origin are answered alike.
fn of_origin(cors: &Cors, origin: &HeaderValue, headers: &mut HeaderMap) {
    // The origin itself, also where all are allowed: with credentials `*` does not count.
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    headers.append(VARY, HeaderValue::from_name(ORIGIN));
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    cors.origins.iter().any(|allowed| covers_origin(allowed, origin))
}

fn all(names: &[Box<str>]) -> bool {
    names.iter().any(|name| **name == *"*")
}

fn list(names: &[Box<str>]) -> Option<HeaderValue> {
    joined(names.iter().map(|name| &**name))
}

/// With commas between them; `None` of none.
fn joined<'n>(names: impl Iterator<Item = &'n str>) -> Option<HeaderValue> {
    let text = names.collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(text).ok().filter(|value| !value.is_empty())
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<Box<str>> {
        text.split_whitespace().map(Box::from).collect()
    }

    fn listed() -> Cors {
        Cors {
            origins: names("https://www.foo.com https://*.bar.com http://plain.com:8080"),
            credentials: true,
            methods: names("GET OPTIONS"),
            headers: names("x-header-1 x-header-2"),
            exposed: names("x-header-3 x-header-4"),
            max_age: 3600,
        }
    }

    fn all_allowed(credentials: bool) -> Cors {
        Cors {
            origins: names("*"),
            credentials,
            methods: names("*"),
            headers: names("*"),
            exposed: names("*"),
            max_age: 5,
        }
    }

    fn ask(cors: &Cors, method: &str, lines: &[(&str, &str)]) -> Option<Vec<String>> {
        let mut request = http::Request::builder().method(method);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let response = preflight(cors, &request.body(()).unwrap().into_parts().0)?;
        let mut said = vec![response.status().as_str().to_owned()];
        said.extend(lines_of(response.headers()));
        Some(said)
    }

    fn lines_of(headers: &HeaderMap) -> Vec<String> {
        let line =
            |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
        headers.iter().map(line).map(|line| line.replace("access-control-", "")).collect()
    }

    const METHOD: &str = "access-control-request-method";
    const HEADERS: &str = "access-control-request-headers";
    const VARIES: [&str; 3] = ["vary: origin", "vary: request-method", "vary: request-headers"];

    #[test]
    fn preflights_of_allowed_origins_are_told_what_is_allowed() {
        for origin in ["https://www.foo.com", "https://www.bar.com", "https://xpto.www.bar.com"] {
            let said = ask(
                &listed(),
                "OPTIONS",
                &[("origin", origin), (METHOD, "GET"), (HEADERS, "x-header-1, x-header-2")],
            );
            let first = ["204".to_owned(), format!("allow-origin: {origin}")];
            let rest = [
                "allow-credentials: true",
                "allow-methods: GET, OPTIONS",
                "allow-headers: x-header-1, x-header-2",
                "expose-headers: x-header-3, x-header-4",
                "max-age: 3600",
            ];
            let mut said = said.unwrap();
            let varies: Vec<_> = said.extract_if(.., |line| line.starts_with("vary")).collect();
            assert_eq!(varies, VARIES);
            assert_eq!(said[..2], first);
            assert_eq!(said[2..], rest);
        }
    }

    #[test]
    fn where_all_is_allowed_what_is_asked_for_is_said() {
        for credentials in [false, true] {
            let lines = [("origin", "https://foobar.com:12345"), (METHOD, "PUT"), (HEADERS, "x-1, x-2")];
            let said = ask(&all_allowed(credentials), "OPTIONS", &lines).unwrap();
            for line in [
                "204",
                "allow-origin: https://foobar.com:12345",
                "allow-methods: PUT",
                "allow-headers: x-1, x-2",
                "max-age: 5",
            ] {
                assert!(said.iter().any(|said| said == line), "{line}: {said:?}");
            }
            assert_eq!(said.iter().any(|line| line == "allow-credentials: true"), credentials);
            assert!(!said.iter().any(|line| line.starts_with("expose")));
        }
    }

    #[test]
    fn other_origins_are_told_nothing_and_other_requests_go_on() {
        let refused =
            ask(&listed(), "OPTIONS", &[("origin", "https://foobar.com"), (METHOD, "GET")]).unwrap();
        assert_eq!(refused, ["403", "vary: origin"]);
        assert_eq!(ask(&listed(), "OPTIONS", &[("origin", "https://www.foo.com")]), None);
        assert_eq!(ask(&listed(), "GET", &[("origin", "https://www.foo.com"), (METHOD, "GET")]), None);
        assert_eq!(ask(&listed(), "OPTIONS", &[(METHOD, "GET")]), None);
    }

    #[test]
    fn what_the_server_says_itself_goes() {
        let server = |lines: &[(&'static str, &'static str)]| -> HeaderMap {
            lines
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect()
        };
        let evil = HeaderValue::from_static("https://evil.com");
        let mut headers = server(&[("access-control-allow-origin", "*"), ("etag", "1"), ("vary", "accept")]);
        answer(&listed(), Some(&evil), &mut headers);
        let mut said = lines_of(&headers);
        said.sort();
        assert_eq!(said, ["etag: 1", "vary: accept", "vary: origin"]);
        let good = HeaderValue::from_static("https://www.foo.com");
        let mut headers = server(&[("access-control-allow-origin", "*"), ("etag", "1")]);
        answer(&listed(), Some(&good), &mut headers);
        let mut said = lines_of(&headers);
        said.sort();
        assert_eq!(
            said,
            [
                "allow-credentials: true",
                "allow-origin: https://www.foo.com",
                "etag: 1",
                "expose-headers: x-header-3, x-header-4",
                "vary: origin"
            ]
        );
        for (credentials, exposed) in [(false, "*"), (true, "etag")] {
            let mut headers = server(&[("etag", "1")]);
            answer(&all_allowed(credentials), Some(&good), &mut headers);
            assert_eq!(headers["access-control-expose-headers"], exposed);
        }
    }
}
