//! `mysql` listeners, their routes and pools.

use super::*;

/// [`GOOD`] with a listener of MySQL's clients, passed through.
fn passed() -> String {
    changed(GOOD, "[[listener]]", "[[listener]]\nprotocol = \"mysql\"")
}

/// [`TERMINATED`] with one.
fn terminated() -> String {
    changed(TERMINATED, "[[listener]]", "[[listener]]\nprotocol = \"mysql\"")
}

#[test]
fn a_listener_may_say_what_its_clients_are_greeted_with() {
    let plain = accepted(&passed());
    assert_eq!(plain.listeners[0].protocol, Protocol::Mysql);
    assert_eq!((&plain.listeners[0].version, &plain.listeners[0].plugin), (&None, &None));
    let keys = "version = \"8.4.6\"\nplugin = \"mysql_clear_password\"\nprotocol";
    let config = accepted(&changed(&passed(), "protocol", keys));
    assert_eq!(config.listeners[0].version.as_deref(), Some("8.4.6"));
    assert_eq!(config.listeners[0].plugin.as_deref(), Some("mysql_clear_password"));
}

#[test]
fn other_listeners_greet_nobody() {
    assert_faults(
        &changed(GOOD, "[[listener]]", "[[listener]]\nversion = \"8.4.6\"\nplugin = \"x\""),
        r#"
        error: `version` of a listener that greets nobody
           at: "8.4.6"
         help: take it out; it goes with `protocol = "mysql"`
        error: `plugin` of a listener that greets nobody
           at: "x"
         help: take it out; it goes with `protocol = "mysql"`
        "#,
    );
    assert_faults(
        &changed(&passed(), "protocol", "version = \"8.4 6\"\nplugin = \"\"\nprotocol"),
        r#"
        error: this is nothing to greet with
           at: "8.4 6"
         help: 1 to 64 letters, digits and signs, no spaces
        error: this is nothing to greet with
           at: ""
         help: 1 to 64 letters, digits and signs, no spaces
        "#,
    );
}

#[test]
fn a_route_that_ends_tls_needs_tls_toward_the_servers() {
    assert_faults(
        &terminated(),
        r#"
        error: MySQL's TLS ends here, and the pool `redis` has no `tls`
           at: "redis"
         help: clients send passwords that only TLS protects: add `tls = {}` to the pool, or pass the client's TLS through: `tls = "passthrough"`
        "#,
    );
    accepted(&changed(&terminated(), "servers =", "tls = { server_name = \"db.internal\" }\nservers ="));
}

#[test]
fn checks_that_a_server_takes_for_failed_connections_are_warned_of() {
    let with = |health: &str| changed(&passed(), "servers =", &format!("health = {health}\nservers ="));
    assert_faults(
        &with("{ check = \"tcp\" }"),
        r#"
        warning: to a MySQL server each of these checks is a connection that failed
           at: "tcp"
         help: after `max_connect_errors` of them (100) it refuses the gateway: make it `check = "mysql"`
        "#,
    );
    for health in
        ["{ check = \"tcp\", port = 9200 }", "{ check = \"mysql\" }", "{ check = \"http\", port = 9200 }"]
    {
        assert_faults(&with(health), "");
    }
}
