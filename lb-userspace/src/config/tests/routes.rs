//! What keys of listeners, routes and backends mean for each other.

use super::*;

#[test]
fn proxy_headers_are_taken_only_from_named_proxies() {
    assert_faults(
        &changed(GOOD, "bind =", "proxy_protocol = true\nbind ="),
        r#"
        error: `proxy_protocol` without `trusted_proxies`
           at: true
         help: name the proxies that may speak for clients, for example `trusted_proxies = ["10.0.0.0/8"]`
        "#,
    );
}

#[test]
fn a_tls_route_needs_a_server_name() {
    assert_faults(
        &changed(GOOD, "sni = [\"app1.example.com\"]\n", ""),
        r#"
        error: [[route]] without `sni`
           at: [[route]]
         help: for example `sni = ["redis-1.example.com"]`; `sni = ["*"]` takes every name, and clients without one
        "#,
    );
}

#[test]
fn a_tcp_route_has_nothing_of_tls() {
    let text = changed(TERMINATED, "bind =", "protocol = \"tcp\"\nbind =");
    assert_faults(
        &changed(&text, "sni =", "alpn = [\"h2\"]\nclient_ca = \"ca.crt\"\nsni ="),
        r#"
        error: a route of a `tcp` listener has no `alpn`
           at: ["h2"]
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `client_ca`
           at: "ca.crt"
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `sni`
           at: ["app1.example.com"]
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `tls`
           at: "terminate"
         help: take it out, or make the listener's `protocol` `"tls"`
        error: a route of a `tcp` listener has no `certificate`
           at: { chain = "app1.crt", key = "app1.key" }
         help: take it out, or make the listener's `protocol` `"tls"`
        "#,
    );
}

#[test]
fn a_tcp_listener_has_exactly_one_route() {
    let tcp =
        changed(GOOD, "bind =", "protocol = \"tcp\"\nbind =").replace("sni = [\"app1.example.com\"]\n", "");
    accepted(&tcp);
    let second = "[[route]]\nlistener = \"databases\"\nbackends = [\"redis\"]";
    let none = "[[listener]]\nbind = [\"0.0.0.0:444\"]\nprotocol = \"tcp\"";
    assert_faults(
        &format!("{tcp}{second}\n{none}"),
        r#"
        error: the `tcp` listener `databases` has more than one route
           at: "databases"
         help: one route with several `backends` shares connections out by weight
        error: the `tcp` listener `listener-2` has no route
           at: [[listener]]
         help: add a `[[route]]` with `listener = "listener-2"`
        "#,
    );
}

#[test]
fn some_backend_must_have_a_weight() {
    assert_faults(
        &changed(GOOD, "[\"redis\"]", "[{ pool = \"redis\", weight = 0 }]"),
        r#"
        error: every backend has weight 0: no connection can go anywhere
           at: [{ pool = "redis", weight = 0 }]
         help: give one of them a weight from 1 to 256
        "#,
    );
}

#[test]
fn routes_that_tie_are_an_error_that_names_both() {
    let second = |lines: &str| {
        format!("[[route]]\nname = \"second\"\nlistener = \"databases\"\nbackends = [\"redis\"]\n{lines}")
    };
    let text = format!("{GOOD}{}", second("sni = [\"x.example.com\", \"APP1.example.com.\"]"));
    assert_faults(
        &text,
        r#"
        error: routes `app1.example.com` and `second` tie: both take `app1.example.com`
           at: "APP1.example.com."
         help: take it out of one of them, or tell them apart by `alpn`
        "#,
    );
    let diagnostics = checked(&text).unwrap_err();
    let (related, what) = diagnostics.iter().next().unwrap().related.clone().unwrap();
    assert_eq!((&text[span_of(&related)], what), ("\"app1.example.com\"", "also here"));

    let first = changed(GOOD, "sni =", "alpn = [\"h2\", \"postgresql\"]\nsni =");
    let second = second("sni = [\"app1.example.com\"]\nalpn = [\"http/1.1\", \"h2\"]");
    assert_faults(
        &format!("{first}{second}"),
        r#"
        error: routes `app1.example.com` and `second` tie: both take `app1.example.com` with ALPN `h2`
           at: "app1.example.com"
         help: take it out of one of them, or tell them apart by `alpn`
        "#,
    );
}
