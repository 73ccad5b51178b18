//! Keys, and the types of their values.

use super::*;

#[test]
fn an_unknown_key_comes_with_the_known_one_it_resembles_or_all() {
    let text = changed(GOOD, "bind =", "hello_timout = \"1s\"\nbind =");
    let text = changed(&text, "\"10.0.0.11:6379\"", "{ address = \"10.0.0.11:6379\", zzz = 1 }");
    assert_faults(
        &format!("[gatewai]\n{text}"),
        r#"
        error: unknown key `gatewai` in the top level
           at: gatewai
         help: did you mean `gateway`?
        error: unknown key `hello_timout` in [[listener]]
           at: hello_timout
         help: did you mean `hello_timeout`?
        error: unknown key `zzz` in a server
           at: zzz
         help: known are `address`, `weight`, `backup`, `max_connections`
        "#,
    );
}

#[test]
fn a_key_in_the_wrong_table_is_sent_to_the_right_one() {
    assert_faults(
        &changed(GOOD, "bind =", "idle_timeout = \"1s\"\nbind ="),
        r#"
        error: unknown key `idle_timeout` in [[listener]]
           at: idle_timeout
         help: it belongs in `[[route]]`
        "#,
    );
}

#[test]
fn a_value_of_the_wrong_type_is_an_error() {
    let text = r#"
        gateway = 2020-01-01

        [[listener]]
        name = 5
        bind = "0.0.0.0:443"
        proxy_protocol = "yes"
        hello_timeout = 5
        backlog = 1.5

        [[route]]
        listener = ["databases"]
        sni = ["app1.example.com"]
        backends = [true]

        [pool]
        name = "redis"
        servers = ["10.0.0.11:6379"]
    "#;
    assert_faults(
        text,
        r#"
        error: `gateway` must be a table, not a date
           at: 2020-01-01
         help: write `[gateway]`
        error: `name` must be a string, not an integer
           at: 5
         help: for example `name = "databases"`
        error: `bind` must be a list, not a string
           at: "0.0.0.0:443"
         help: `bind = ["0.0.0.0:443"]`
        error: `proxy_protocol` must be `true` or `false`, not a string
           at: "yes"
         help: for example `proxy_protocol = true`
        error: `hello_timeout` must be a string, not an integer
           at: 5
         help: for example `hello_timeout = "5s"`
        error: `backlog` must be an integer, not a float
           at: 1.5
         help: for example `backlog = 4096`
        error: `listener` must be a string, not a list
           at: ["databases"]
         help: for example `listener = "databases"`
        error: an item of `backends` must be a table, not a boolean
           at: true
         help: for example `backends = ["redis-1"]`
        error: `pool` is a list of tables
           at: [pool]
         help: write `[[pool]]`
        "#,
    );
}

#[test]
fn a_required_key_is_missed_at_its_table() {
    assert_faults(
        "[[listener]]\n[[route]]\n[[pool]]\n",
        r#"
        error: [[listener]] without `bind`
           at: [[listener]]
         help: for example `bind = ["0.0.0.0:443", "[::]:443"]`
        error: [[route]] without `listener`
           at: [[route]]
         help: for example `listener = "databases"`
        error: [[route]] without `backends`
           at: [[route]]
         help: for example `backends = ["redis-1"]`
        error: [[pool]] without `name`
           at: [[pool]]
         help: for example `name = "redis-1"`
        error: [[pool]] without `servers`
           at: [[pool]]
         help: for example `servers = ["10.0.0.11:6379"]`
        "#,
    );
    let text = changed(GOOD, "\"10.0.0.11:6379\"", "{ weight = 1 }");
    assert_faults(
        &changed(&text, "\"redis\"]", "{ weight = 2 }]"),
        r#"
        error: a backend without `pool`
           at: { weight = 2 }
         help: for example `pool = "redis-1"`
        error: a server without `address`
           at: { weight = 1 }
         help: for example `address = "10.0.0.11:6379"`
        "#,
    );
}

#[test]
fn a_list_that_needs_an_item_must_not_be_empty() {
    let text = r#"
        [gateway]
        interfaces = []
        tiers = []

        [[listener]]
        bind = []
        allow = []

        [[route]]
        listener = "listener-1"
        sni = []
        backends = []

        [[pool]]
        name = "redis"
        servers = []
    "#;
    assert_faults(
        text,
        r#"
        error: `interfaces` must not be empty
           at: []
         help: for example `interfaces = ["eth0"]`
        error: `tiers` must not be empty
           at: []
         help: for example `tiers = ["packet", "copy"]`
        error: `bind` must not be empty
           at: []
         help: for example `bind = ["0.0.0.0:443", "[::]:443"]`
        error: an empty `allow` would turn every client away
           at: []
         help: leave `allow` out to let everyone in
        error: `sni` must not be empty
           at: []
         help: for example `sni = ["redis-1.example.com"]`
        error: `backends` must not be empty
           at: []
         help: for example `backends = ["redis-1"]`
        error: `servers` must not be empty
           at: []
         help: for example `servers = ["10.0.0.11:6379"]`
        "#,
    );
}

#[test]
fn a_word_outside_a_closed_set_is_an_error() {
    let text = changed(GOOD, "servers", "balance = \"leastconn\"\nsend_proxy = \"yes\"\nservers");
    assert_faults(
        &changed(&text, "bind =", "protocol = \"quic\"\nbind ="),
        r#"
        error: `protocol` cannot be `quic`
           at: "quic"
         help: one of `"tls"`, `"postgres"`, `"mysql"`, `"smtp"`, `"imap"`, `"pop3"`, `"ldap"`, `"xmpp"`, `"http"`, `"tcp"`
        error: `balance` cannot be `leastconn`
           at: "leastconn"
         help: did you mean `least-connections`?
        error: `send_proxy` cannot be `yes`
           at: "yes"
         help: one of `"v1"`, `"v2"`
        "#,
    );
}

#[test]
fn an_integer_out_of_range_is_an_error() {
    let text = changed(GOOD, "bind =", "max_connections = 0\nbacklog = 99999999999999999999\nbind =");
    let text = changed(&text, "\"redis\"]", "{ pool = \"redis\", weight = 257 }]");
    let text = changed(&text, "\"10.0.0.11:6379\"", "{ address = \"10.0.0.11:6379\", weight = 0 }");
    assert_faults(
        &format!("[gateway]\nworkers = -1\n{text}"),
        r#"
        error: `workers` must be from 0 to 1024
           at: -1
         help: for example `workers = 0`
        error: `max_connections` must be from 1 to 1000000000
           at: 0
         help: for example `max_connections = 100000`
        error: `backlog` must be from 1 to 2147483647
           at: 99999999999999999999
         help: for example `backlog = 4096`
        error: `weight` must be from 0 to 256
           at: 257
         help: for example `weight = 1`
        error: `weight` must be from 1 to 256
           at: 0
         help: for example `weight = 1`
        "#,
    );
}
