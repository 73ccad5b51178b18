//! Routes of requests, and their rules.

use super::*;
use crate::config::http::{Carrier, Fraction};
use ::http::{Method, StatusCode};

/// Lines of a rule, in a good route.
fn with(lines: &str) -> String {
    changed(GOOD_HTTP, "backends = [\"redis\"]", lines)
}

/// Of a configuration with nothing worse than warnings.
fn rule(lines: &str) -> Rule<usize> {
    let (config, _) = checked(&with(lines)).unwrap_or_else(|faults| panic!("{faults}"));
    config.routes[0].rules().remove(0)
}

#[test]
fn all_keys_of_a_rule() {
    let text = with(
        r#"
        name = "details"
        hosts = ["WWW.example.com"]
        match = [
            { path_prefix = "/details/" },
            { path = "/%61//b", method = "GET", headers = { Magic = "foo", x-v = { regex = 'v[12]' } }, query = { great = "example" } },
            { path_regex = '/v[0-9]+/.*' },
        ]
        backends = [{ pool = "redis", weight = 99, request_headers = { add = { x-canary = "1" } } }, "other"]
        request_headers = { set = { x-env = "prod" }, remove = ["X-Debug"] }
        response_headers = { add = { x-served-by = "edge" } }
        rewrite = { host = "internal.example.com:8080" }
        mirror = [{ pool = "other", percent = 10 }]
        cors = { origins = ["https://*.example.com"], methods = ["GET", "PUT"], headers = ["*"], credentials = true, max_age = "1h" }
        request_timeout = "10s"
        backend_timeout = "2s"
        retry = { attempts = 2, statuses = [502, 503], backoff = "100ms" }
        session = { cookie = "server", timeout = "1h", permanent = true }
        "#,
    );
    let config = accepted(&format!(
        "{text}\n[[pool]]\nname = \"other\"\nhttp2 = true\nservers = [\"10.0.0.12:80\"]\n"
    ));
    let route = &config.routes[0];
    assert!(matches!(route.action, Action::Terminate(_)) && route.backends.is_empty());
    let rules = route.rules();
    let [rule] = rules.as_slice() else { panic!("{rules:?}") };
    assert_eq!((&*rule.name, rule.grpc), ("details", false));
    assert_eq!(*rule.hosts, [SniPattern::Exact("www.example.com".into())]);
    let [prefix, exact, regex] = &rule.matches[..] else { panic!("{:?}", rule.matches) };
    assert_eq!(prefix.path, Some(PathMatch::Prefix("/details".into())));
    assert_eq!(exact.path, Some(PathMatch::Exact("/a/b".into())));
    assert_eq!((&exact.method, exact.headers[0].0.as_str()), (&Some(Method::GET), "magic"));
    assert!(matches!(&exact.headers[1].1, ValueMatch::Regex(pattern) if pattern.is_match("v2")));
    assert_eq!(exact.query, [("great".into(), ValueMatch::Exact("example".into()))]);
    assert!(matches!(&regex.path, Some(PathMatch::Regex(pattern)) if pattern.is_match("/v1/x")));
    let [first, second] = &rule.backends[..] else { panic!("{:?}", rule.backends) };
    assert_eq!((first.pool, first.weight, second.pool, second.weight), (Some(0), 99, Some(1), 1));
    assert_eq!(first.filters.request_headers.add[0].0, "x-canary");
    assert_eq!(rule.filters.request_headers.set[0].1, "prod");
    assert_eq!(rule.filters.request_headers.remove[0], "x-debug");
    assert_eq!(rule.filters.response_headers.add[0].1, "edge");
    assert_eq!(rule.filters.rewrite.as_ref().unwrap().host.as_ref().unwrap(), "internal.example.com:8080");
    let mirror = &rule.filters.mirrors[0];
    assert_eq!(
        (mirror.pool, mirror.share),
        (Some(1), Fraction { numerator: 10, denominator: 100.try_into().unwrap() })
    );
    let cors = rule.filters.cors.as_deref().unwrap();
    assert_eq!((cors.max_age, cors.credentials, cors.methods.len(), &*cors.headers[0]), (3600, true, 2, "*"));
    assert_eq!(
        rule.timeouts,
        Timeouts { request: Some(Duration::from_secs(10)), backend: Some(Duration::from_secs(2)) }
    );
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!(
        (retry.attempts, &retry.statuses[..]),
        (2, &[StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE][..])
    );
    let session = rule.persistence.as_ref().unwrap();
    assert_eq!((&*session.name, session.carrier), ("server", Carrier::PermanentCookie));
    assert!(!config.pools[0].http2 && config.pools[1].http2);
}

#[test]
fn what_is_not_said_of_a_rule() {
    let plain = rule("backends = [\"redis\"]");
    assert_eq!((&*plain.name, plain.hosts.len(), plain.matches.len()), ("app1.example.com", 0, 0));
    assert_eq!((plain.timeouts, plain.retry, plain.persistence), (Timeouts::default(), None, None));
    let redirect = rule("redirect = { path_prefix = \"/\" }").filters.redirect.unwrap();
    assert_eq!((redirect.status, redirect.path), (StatusCode::FOUND, Some(PathRewrite::Prefix("/".into()))));
    let retry = rule("backends = [\"redis\"]\nretry = {}").retry.unwrap();
    assert_eq!((retry.attempts, retry.backoff), (1, Duration::from_millis(25)));
    let session = rule("backends = [\"redis\"]\nsession = { header = \"x-session\" }").persistence.unwrap();
    assert_eq!((session.carrier, session.absolute_timeout), (Carrier::Header, None));
    let cors = rule("backends = [\"redis\"]\ncors = { origins = [\"*\"] }").filters.cors.unwrap();
    assert_eq!((cors.max_age, cors.credentials, cors.methods.len()), (5, false, 0));
}

/// The same routes on a listener without TLS.
const CLEAR: &str = r#"
[[listener]]
name = "web"
bind = ["0.0.0.0:80"]
protocol = "http"
trusted_proxies = ["10.0.0.0/8"]

[[route]]
listener = "web"
sni = ["app1.example.com"]
[[route.rule]]
redirect = { scheme = "https", status = 301 }

[[route]]
listener = "web"
sni = ["*"]
protocol = "http"
[[route.rule]]
backends = ["web"]

[[pool]]
name = "web"
servers = ["10.0.0.11:80"]
"#;

#[test]
fn a_listener_without_tls_has_several_routes() {
    let config = accepted(CLEAR);
    assert_eq!(config.listeners[0].protocol, Protocol::Http);
    assert_eq!(config.listeners[0].trusted_proxies.len(), 1);
    assert!(!config.listeners[0].proxy_protocol);
    assert!(config.routes.iter().all(|route| route.rules().len() == 1));
}

#[test]
fn where_requests_are_not_seen() {
    let passthrough = changed(
        GOOD_HTTP,
        "tls = \"terminate\"\ncertificate = { chain = \"wild.crt\", key = \"wild.key\" }\n",
        "",
    );
    assert_faults(
        &passthrough,
        r#"
        error: requests are seen only where TLS ends
           at: "http"
         help: add `tls = "terminate"` and a `certificate`
        "#,
    );
    assert_faults(
        &changed(GOOD_HTTP, "[[listener]]\n", "[[listener]]\nprotocol = \"postgres\"\n"),
        r#"
        error: clients of this listener send no requests of HTTP
           at: "http"
         help: make the listener's `protocol` `"tls"` or `"http"`, or take this out
        "#,
    );
    assert_faults(
        &changed(GOOD_HTTP, "protocol = \"http\"\n", ""),
        r#"
        error: a rule for requests, in a route that does not look for any
           at: [[route.rule]]
         help: add `protocol = "http"` to the route
        "#,
    );
    assert_faults(
        &changed(CLEAR, "protocol = \"http\"\n[[route.rule]]", "protocol = \"bytes\"\n[[route.rule]]"),
        r#"
        error: a route of an `http` listener carries requests
           at: "bytes"
         help: take it out, or make it `"http"`
        error: a rule for requests, in a route that does not look for any
           at: [[route.rule]]
         help: add `protocol = "http"` to the route
        "#,
    );
}

#[test]
fn of_a_listener_that_is_not_there_nothing_more_is_said() {
    assert_faults(
        &changed(CLEAR, "listener = \"web\"", "listener = \"wab\""),
        r#"
        error: no listener is named `wab`
           at: "wab"
         help: known are `web`
        "#,
    );
}

#[test]
fn a_listener_without_tls_has_nothing_of_it() {
    let text =
        changed(CLEAR, "protocol = \"http\"\n", "protocol = \"http\"\nech = { keys = [\"ech.pem\"] }\n");
    assert_faults(
        &changed(&text, "sni = [\"app1.example.com\"]\n", "alpn = [\"h2\"]\ntls = \"terminate\"\n"),
        r#"
        error: a `http` listener has no `ech`: it reads no ClientHello
           at: { keys = ["ech.pem"] }
         help: take it out, or let the listener's `protocol` be `tls`
        error: [[route]] without `sni`
           at: [[route]]
         help: for example `sni = ["redis-1.example.com"]`; `sni = ["*"]` takes every name, and clients without one
        error: a route of a `http` listener has no `alpn`
           at: ["h2"]
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `http` listener has no `tls`
           at: "terminate"
         help: take it out, or make the listener's `protocol` `"tls"`
        "#,
    );
}

#[test]
fn a_route_of_requests_has_rules_and_nothing_of_bytes() {
    assert_faults(
        &changed(
            GOOD_HTTP,
            "[[route.rule]]\nbackends = [\"redis\"]",
            "alpn = [\"h2\", \"postgresql\"]\nbackends = [\"redis\"]\nretry_other_pool = true",
        ),
        r#"
        error: [[route]] with `protocol = "http"`, and without a rule
           at: [[route]]
         help: add a `[[route.rule]]`: with `backends` alone it takes every request
        error: "postgresql" is no HTTP that is spoken here
           at: "postgresql"
         help: `"h2"` and `"http/1.1"` are; without `alpn` both
        error: a route of requests has no `backends`
           at: ["redis"]
         help: a `[[route.rule]]` has them
        error: a route of requests has no `retry_other_pool`
           at: true
         help: `retry` of a rule is what requests have
        "#
        .replace("\"postgresql\" is", "`postgresql` is")
        .as_str(),
    );
}

#[test]
fn a_rule_must_lead_somewhere() {
    assert_faults(
        &with("match = [{ path = \"/\" }]\nrequest_timeout = \"1s\"\nbackend_timeout = \"2s\""),
        r#"
        error: [[route.rule]] without `backends`
           at: [[route.rule]]
         help: for example `backends = ["reviews"]`; or a `redirect`
        error: `backend_timeout` is longer than `request_timeout`
           at: "2s"
         help: one attempt is a part of the whole
        "#,
    );
    assert_faults(
        &with(
            "backends = [{ pool = \"redis\", weight = 0 }, { pool = \"radis\", weight = 0 }]\nmirror = [{ pool = \"reddis\" }]",
        ),
        r#"
        error: every backend has weight 0: no request can go anywhere
           at: [{ pool = "redis", weight = 0 }, { pool = "radis", weight = 0 }]
         help: give one of them a weight from 1 to 256
        error: no pool is named `radis`
           at: "radis"
         help: did you mean `redis`?
        error: no pool is named `reddis`
           at: "reddis"
         help: did you mean `redis`?
        "#,
    );
    assert_faults(
        &with(
            "redirect = { host = \"a.example.com\" }\nbackends = [\"redis\"]\nrewrite = { path = \"/\" }\nretry = {}",
        ),
        r#"
        error: `backends` beside a `redirect`: no request goes to a server
           at: ["redis"]
         help: take one of them out
        error: `rewrite` beside a `redirect`: no request goes to a server
           at: { path = "/" }
         help: take one of them out
        warning: `retry` has no effect beside a `redirect`
           at: {}
         help: take it out
        "#,
    );
}

#[test]
fn matches_that_say_too_much_or_what_no_request_has() {
    assert_faults(
        &with(
            r#"backends = ["redis"]
            match = [{ path = "/a", path_prefix = "/a", path_regex = "/a" }, { path = "a" }, { path_prefix = "/a/../b" },
                { path = "/a?b=c" }, { method = "get" }, { method = "G T" }, { headers = { host = "a", "a b" = "c", X-A = "1", x-a = "2" } },
                { path_regex = '/a(b' }, { path_regex = "/\\w{1000}" }, { query = { a = 1, b = { regex = "[" }, c = { rex = "x" } } }]"#,
        ),
        r#"
        error: `path_prefix` beside `path`
           at: "/a"
         help: take one of them out
        error: `path_regex` beside `path`
           at: "/a"
         help: take one of them out
        error: this is no path of an HTTP request
           at: "a"
         help: it begins with `/` and has no spaces: for example `path = "/health"`
        error: `/a/../b` is no path of a rule: the path has a segment `.` or `..`
           at: "/a/../b"
         help: no request that has such a path is taken
        error: `/a?b=c` is no path of a rule: it has no query and no fragment
           at: "/a?b=c"
         help: a query is matched with `query`
        error: `get` is no method that clients send
           at: "get"
         help: methods are told apart by case: `"GET"`
        error: `G T` is no method
           at: "G T"
         help: for example `"GET"`
        error: the host is not matched as a header
           at: host
         help: name it in the route's `sni`, or in the rule's `hosts`
        error: `a b` is no name of a header
           at: "a b"
         help: letters, digits and `-`: for example `x-version`
        error: `x-a` is twice in `headers`
           at: x-a
         help: take one of them out
        error: this is no regular expression: unclosed group
           at: (
         help: the syntax is that of Rust's regex; quotes of the kind `'…'` leave backslashes alone
        error: this is no regular expression: it is too large
           at: "/\\w{1000}"
         help: the syntax is that of Rust's regex; quotes of the kind `'…'` leave backslashes alone
        error: an item of `query` must be a string, not an integer
           at: 1
         help: for example `query = { great = "example" }`
        error: this is no regular expression: unclosed character class
           at: [
         help: the syntax is that of Rust's regex; quotes of the kind `'…'` leave backslashes alone
        error: a value without `regex`
           at: { rex = "x" }
         help: for example `regex = 'v[12]'`
        error: unknown key `rex` in a value
           at: rex
         help: known are `regex`
        "#,
    );
    let many = vec!["{ method = \"GET\" }"; 65].join(", ");
    let (Ok((_, faults)) | Err(faults)) =
        checked(&with(&format!("backends = [\"redis\"]\nmatch = [{many}]")));
    assert!(faults.iter().any(|fault| fault.message == "more than 64 matches in one rule"));
}

#[test]
fn headers_that_are_not_for_rules() {
    assert_faults(
        &with(
            r#"backends = ["redis"]
            request_headers = { set = { Host = "a", Content-Length = "5" }, add = { x-a = "a\u0001" }, remove = ["Connection", "x a"] }
            session = { header = "Transfer-Encoding" }"#,
        ),
        r#"
        error: the host is not changed as a header
           at: Host
         help: `rewrite = { host = "…" }` gives servers another
        error: `content-length` is not for rules to change
           at: Content-Length
         help: it says where a message ends, or how its connection goes on, which the gateway does itself
        error: `a\u{1}` is no value of a header
           at: "a\u0001"
         help: it has no control characters
        error: `connection` is not for rules to change
           at: "Connection"
         help: it says where a message ends, or how its connection goes on, which the gateway does itself
        error: `x a` is no name of a header
           at: "x a"
         help: letters, digits and `-`: for example `x-version`
        error: `transfer-encoding` is not for rules to change
           at: "Transfer-Encoding"
         help: it says where a message ends, or how its connection goes on, which the gateway does itself
        "#,
    );
}

#[test]
fn paths_that_take_the_place_of_others() {
    assert_faults(
        &with(
            r#"backends = ["redis"]
            match = [{ path_prefix = "/a" }, { path = "/b" }]
            rewrite = { path_prefix = "/c", path = "/d", host = "a b" }"#,
        ),
        r#"
        error: a new `path_prefix` where not every `match` has one
           at: "/c"
         help: match by `path_prefix`, or give a whole new `path`
        error: `path_prefix` beside `path`
           at: "/c"
         help: take one of them out
        error: `a b` is no host
           at: "a b"
         help: for example `"internal.example.com"`
        "#,
    );
    assert_faults(
        &with("redirect = { scheme = \"ftp\", host = \"a.example.com:80\", status = 304, port = 0 }"),
        r#"
        error: `scheme` cannot be `ftp`
           at: "ftp"
         help: one of `"http"`, `"https"`
        error: `a.example.com:80` is no host to go to
           at: "a.example.com:80"
         help: a name without port: for example `"www.example.com"`; the port is for `port`
        error: 304 is no redirect
           at: 304
         help: one of 301, 302, 303, 307, 308
        error: `port` must be from 1 to 65535
           at: 0
         help: for example `port = 8443`
        "#,
    );
}

#[test]
fn sessions_and_other_sites() {
    assert_faults(
        &with(
            "backends = [\"redis\"]\nsession = { timeout = \"500ms\" }\ncors = { origins = [\"*\", \"example.com\"], methods = [\"get\"] }",
        ),
        r#"
        error: `session` without `cookie` or `header`
           at: { timeout = "500ms" }
         help: for example `session = { cookie = "server" }`
        error: `timeout` of a session is counted in seconds
           at: "500ms"
         help: at least `"1s"`
        error: `example.com` is no origin
           at: "example.com"
         help: a scheme and a host: `"https://example.com"` or `"https://*.example.com"`; or `"*"`
        error: `get` is no method that clients send
           at: "get"
         help: methods are told apart by case: `"GET"`
        "#,
    );
    assert_faults(
        &with(
            "backends = [\"redis\"]\nsession = { cookie = \"a\", header = \"b\", permanent = true }\ncors = { origins = [\"*\", \"https://a.com\"] }",
        ),
        r#"
        error: `header` beside `cookie`
           at: "b"
         help: take one of them out
        error: `permanent` without a `timeout`
           at: true
         help: for example `timeout = "24h"`, which is how long the cookie lasts
        error: `"*"` beside others in `origins`
           at: { origins = ["*", "https://a.com"] }
         help: `"*"` alone is all of them
        "#,
    );
    assert_faults(
        &with("backends = [\"redis\"]\nsession = { header = \"b\", permanent = true }"),
        r#"
        error: `permanent` without a `cookie`
           at: true
         help: what is in a header lasts as long as the client repeats it
        "#,
    );
}

#[test]
fn what_no_request_gets_to() {
    let second = |lines: &str| format!("[[route.rule]]\nbackends = [\"redis\"]\n{lines}\n");
    let text = with(&format!(
        "backends = [\"redis\"]\nmatch = [{{ headers = {{ a = \"1\", b = \"2\" }} }}]\n{}{}{}",
        second("match = [{ path_prefix = \"/\", headers = { b = \"2\", a = \"1\" } }, { method = \"GET\" }]"),
        second("hosts = [\"app1.example.com\", \"www.example.com\"]"),
        second("hosts = [\"app1.example.com\"]\nmatch = [{ path_prefix = \"/\" }]"),
    ));
    assert_faults(
        &text,
        r#"
        warning: no request ever gets here: an earlier match is the same
           at: { path_prefix = "/", headers = { b = "2", a = "1" } }
         help: take one of them out
        warning: no request ever gets here: an earlier match is the same
           at: { path_prefix = "/" }
         help: take one of them out
        "#,
    );
    assert_faults(
        &with("backends = [\"redis\"]\nhosts = [\"app1.example.com\", \"other.example.com\"]"),
        r#"
        error: the route does not take `other.example.com`
           at: "other.example.com"
         help: add it to the route's `sni`, or take it out
        "#,
    );
}

#[test]
fn what_only_requests_have_a_use_for() {
    assert_faults(
        &changed(GOOD, "servers =", "http2 = true\nservers ="),
        r#"
        warning: `http2` has no effect: no rule names the pool `redis`
           at: true
         help: what is passed on is not looked into
        "#,
    );
    let with_check = |check: &str| {
        let keys = format!("http2 = true\nhealth = {{ {check} }}\nservers =");
        changed(GOOD_HTTP, "servers =", &keys)
    };
    assert_faults(
        &with_check("check = \"http\""),
        r#"
        warning: this check asks in HTTP/1.1, and the pool's requests are HTTP/2
           at: "http"
         help: servers that speak nothing but HTTP/2 fail it: make it `check = "tcp"` or `"tls"`, or ask at another `port`
        "#,
    );
    assert_faults(&with_check("check = \"http\", port = 9000"), "");
    assert_faults(&with_check("check = \"tcp\""), "");
    assert_faults(
        &changed(GOOD, "bind =", "trusted_proxies = [\"10.0.0.0/8\"]\nbind ="),
        r#"
        warning: `trusted_proxies` has no effect without `proxy_protocol`
           at: ["10.0.0.0/8"]
         help: add `proxy_protocol = true`
        "#,
    );
}

#[test]
fn servers_of_a_rule_that_see_the_clients_address_are_of_its_family() {
    assert_faults(
        &changed(
            GOOD_HTTP,
            "servers = [\"10.0.0.11:6379\"]",
            "source = \"client\"\nservers = [\"[2001:db8::1]:80\"]",
        ),
        r#"
        error: IPv4 clients of this route can reach no server of the pool `redis`
           at: "redis"
         help: an address of one family cannot be a source toward the other: take `source` out, or add servers
        "#,
    );
}

#[test]
fn a_key_of_a_rule_in_its_route_is_sent_there() {
    assert_faults(
        &changed(GOOD_HTTP, "sni =", "redirect = { port = 80 }\nsni ="),
        r#"
        error: unknown key `redirect` in [[route]]
           at: redirect
         help: it belongs in `[[route.rule]]`
        "#,
    );
}
