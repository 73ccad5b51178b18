//! `source` of pools.

use super::*;

/// [`GOOD`] with this pool.
fn with(bind: &str, servers: &str, extra: &str) -> String {
    let text = changed(GOOD, "\"10.0.0.11:6379\"", servers);
    changed(
        &changed(&text, "\"0.0.0.0:443\"", bind),
        "servers =",
        &format!("source = \"client\"\n{extra}\nservers ="),
    )
}

#[test]
fn whose_address_servers_see_is_said() {
    let config = accepted(&with("\"0.0.0.0:443\"", "\"10.0.0.11:6379\", \"redis.example.com:6379\"", ""));
    assert_eq!(config.pools[0].source, SourceAddress::Client);
    assert_eq!(accepted(GOOD).pools[0].source, SourceAddress::Gateway);
}

#[test]
fn what_does_not_go_with_it_is_warned_of() {
    assert_faults(
        &with("\"0.0.0.0:443\"", "\"127.0.0.1:6379\"", "send_proxy = \"v2\""),
        r#"
        warning: `send_proxy` beside `source = "client"`: servers are told the client's address twice
           at: "v2"
         help: take one of them out
        warning: a server on the gateway itself answers clients elsewhere directly, past the gateway
           at: "127.0.0.1:6379"
         help: `source = "client"` is for servers that answer through the gateway
        "#,
    );
}

#[test]
fn clients_reach_servers_of_their_own_family() {
    let (v4, v6, help) = (
        "\"0.0.0.0:443\"",
        "\"[::]:443\"",
        "help: an address of one family cannot be a source toward the other: take `source` out, or add servers",
    );
    assert_faults(
        &with(v4, "\"[2001:db8::1]:6379\"", ""),
        &format!(
            "error: IPv4 clients of this route can reach no server of the pool `redis`
             at: \"redis\"
             {help}"
        ),
    );
    assert_faults(
        &with(&format!("{v4}, {v6}"), "\"10.0.0.11:6379\"", ""),
        &format!(
            "warning: IPv6 clients of this route can reach no server of the pool `redis`
             at: \"redis\"
             {help}"
        ),
    );
    accepted(&with(&format!("{v4}, {v6}"), "\"10.0.0.11:6379\", \"[2001:db8::1]:6379\"", ""));
    // What is behind a name is not known, and not for whom a proxy speaks.
    accepted(&with(v6, "\"redis.example.com:6379\"", ""));
    let proxied = changed(
        &with(v4, "\"[2001:db8::1]:6379\"", ""),
        "bind =",
        "proxy_protocol = true\ntrusted_proxies = [\"10.0.0.7\"]\nbind =",
    );
    accepted(&proxied);
}
