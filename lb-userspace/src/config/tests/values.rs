//! Single values.

use super::*;

#[test]
fn the_nearer_keepalive_wins_key_by_key() {
    let text = changed(GOOD, "bind =", "keepalive = { idle = \"32767s\", count = 127 }\nbind =");
    let text = changed(&text, "servers =", "keepalive = { interval = \"1s\" }\nservers =");
    let config = accepted(&format!("[gateway]\nkeepalive = {{ idle = \"1m\", interval = \"15s\" }}\n{text}"));
    let keepalive = |idle, interval, count| Keepalive { idle: Some(idle), interval: Some(interval), count };
    assert_eq!(config.gateway.live.keepalive, keepalive(60, 15, None));
    assert_eq!(config.listeners[0].keepalive, keepalive(32_767, 15, Some(127)));
    assert_eq!(config.pools[0].keepalive, keepalive(60, 1, None));
}

#[test]
fn a_keepalive_that_the_kernel_does_not_take_is_an_error() {
    let text = changed(GOOD, "bind =", "keepalive = { idle = \"0s\", interval = \"1500ms\" }\nbind =");
    let text = changed(&text, "servers =", "keepalive = { idle = \"32768s\", count = 128 }\nservers =");
    assert_faults(
        &format!("[gateway]\nkeepalive = {{ idel = \"60s\", count = 0, interval = 15 }}\n{text}"),
        r#"
        error: unknown key `idel` in keepalive
           at: idel
         help: did you mean `idle`?
        error: `count` must be from 1 to 127
           at: 0
         help: for example `count = 4`
        error: `interval` must be a string, not an integer
           at: 15
         help: for example `interval = "15s"`
        error: `idle` must be from 1 to 32767 seconds, without a fraction
           at: "0s"
         help: for example `idle = "60s"`
        error: `interval` must be from 1 to 32767 seconds, without a fraction
           at: "1500ms"
         help: for example `interval = "15s"`
        error: `idle` must be from 1 to 32767 seconds, without a fraction
           at: "32768s"
         help: for example `idle = "60s"`
        error: `count` must be from 1 to 127
           at: 128
         help: for example `count = 4`
        "#,
    );
    assert_faults(
        &format!("[gateway]\nkeepalive = \"60s\"\n{GOOD}"),
        r#"
        error: `keepalive` must be a table, not a string
           at: "60s"
         help: for example `keepalive = { idle = "60s", interval = "15s", count = 4 }`
        "#,
    );
}

#[test]
fn source_ports_are_a_range_of_some_size_above_the_services() {
    for (ports, why) in [
        ("10240", "two ports with a `-` between them"),
        ("10240-", "a port is a number up to 65535"),
        ("10240-+20000", "a port is a number up to 65535"),
        ("10240-65536", "a port is a number up to 65535"),
        ("1023-5000", "ports below 1024 belong to services"),
        ("10240-10494", "it must have at least 256 ports, the lower one first"),
        ("29999-10240", "it must have at least 256 ports, the lower one first"),
    ] {
        assert_faults(
            &format!("[gateway]\nsource_ports = \"{ports}\"\n{GOOD}"),
            &format!(
                "error: `{ports}` is not a range of source ports: {why}
                    at: \"{ports}\"
                  help: for example `\"10240-29999\"`"
            ),
        );
    }
    let widest = accepted(&format!("[gateway]\nsource_ports = \"1024-65535\"\n{GOOD}"));
    assert_eq!(widest.gateway.fixed.source_ports, 1024..=65_535);
}

#[test]
fn a_duration_needs_a_unit_and_must_be_of_use() {
    let text = changed(GOOD, "bind =", "hello_timeout = \"5\"\nbind =");
    let text = changed(&text, "sni =", "idle_timeout = \"0s\"\nmax_age = \"0ms\"\nsni =");
    assert_faults(
        &changed(&text, "servers =", "connect_timeout = \"9years\"\nservers ="),
        r#"
        error: `5` is not a duration: time unit needed, for example 5sec or 5ms
           at: "5"
         help: a number and a unit: `"500ms"`, `"5s"`, `"1h 30m"`
        error: `idle_timeout` must not be zero
           at: "0s"
         help: leave it out for no timeout
        error: `max_age` must not be zero
           at: "0ms"
         help: leave it out for no timeout
        error: `9years` is too long
           at: "9years"
         help: at most `"365days"`
        "#,
    );
}

#[test]
fn a_network_must_be_in_cidr_notation() {
    let text = changed(GOOD, "bind =", "deny = [\"10.0.0.0/33\", \"example.com\"]\nbind =");
    assert_faults(
        &text,
        r#"
        error: `10.0.0.0/33` is not a network in CIDR notation
           at: "10.0.0.0/33"
         help: for example `"10.0.0.0/8"` or `"2001:db8::/32"`
        error: `example.com` is not a network in CIDR notation
           at: "example.com"
         help: for example `"10.0.0.0/8"` or `"2001:db8::/32"`
        "#,
    );
}

#[test]
fn bits_behind_a_networks_prefix_are_warned_of_and_dropped() {
    let text = changed(GOOD, "bind =", "deny = [\"10.0.0.1/8\"]\nbind =");
    assert_faults(
        &text,
        r#"
        warning: `10.0.0.1/8` has bits set behind its prefix
           at: "10.0.0.1/8"
         help: it is taken as `10.0.0.0/8`; for one address leave the prefix out: `10.0.0.1`
        "#,
    );
    assert_eq!(checked(&text).unwrap().0.listeners[0].deny, ["10.0.0.0/8".parse().unwrap()]);
}

#[test]
fn an_address_to_listen_on_is_an_ip_address_with_a_port() {
    let bad = "[\":443\", \"localhost:443\", \"0.0.0.0:0\"]";
    assert_faults(
        &changed(GOOD, "[\"0.0.0.0:443\"]", bad),
        r#"
        error: `:443` is not an IP address with a port
           at: ":443"
         help: on all addresses: `"0.0.0.0:443"` and `"[::]:443"`
        error: `localhost:443` is not an IP address with a port
           at: "localhost:443"
         help: `"127.0.0.1:443"` or `"[::1]:443"`
        error: `0.0.0.0:0` has port 0
           at: "0.0.0.0:0"
         help: a port from 1 to 65535
        "#,
    );
}

#[test]
fn a_server_is_an_ip_address_or_a_host_name_with_a_port() {
    let bad = r#"
        "redis.internal",
        "2001:db8::1:6379",
        "[2001:db8::g]:6379",
        "10.0.0.300:6379",
        "re dis:6379",
        "redis..internal:6379",
        "redis:0",
        "redis:+1",
    "#;
    assert_faults(
        &changed(GOOD, "\"10.0.0.11:6379\"", bad),
        r#"
        error: `redis.internal` is not the address of a server: it has no port
           at: "redis.internal"
         help: add the port that the server listens on: `"redis.internal:PORT"`
        error: `2001:db8::1:6379` is not the address of a server: an IPv6 address stands in brackets
           at: "2001:db8::1:6379"
         help: `"[2001:db8::1]:6379"`
        error: `[2001:db8::g]:6379` is not the address of a server: not an IPv6 address
           at: "[2001:db8::g]:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `10.0.0.300:6379` is not the address of a server: not an IPv4 address
           at: "10.0.0.300:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `re dis:6379` is not the address of a server: labels are made of letters, digits and `-`
           at: "re dis:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `redis..internal:6379` is not the address of a server: a label is empty
           at: "redis..internal:6379"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `redis:0` is not the address of a server: the port is a number from 1 to 65535
           at: "redis:0"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        error: `redis:+1` is not the address of a server: the port is a number from 1 to 65535
           at: "redis:+1"
         help: for example `"10.0.0.11:6379"`, `"[2001:db8::1]:6379"` or `"redis.example.com:6379"`
        "#,
    );
}

#[test]
fn servers_may_be_those_of_a_service() {
    let servers =
        r#""10.0.0.11:6379", "srv:_Redis._tcp.example.com", { address = "srv:redis.", backup = true }"#;
    let config = accepted(&GOOD.replace("\"10.0.0.11:6379\"", servers));
    let origins: Vec<_> = config.pools[0].servers.iter().map(|server| server.origin.to_string()).collect();
    assert_eq!(origins, ["10.0.0.11:6379", "srv:_redis._tcp.example.com", "srv:redis."]);
    assert!(config.pools[0].servers[2].backup);
}

#[test]
fn a_service_has_neither_port_nor_weight() {
    let bad = r#"
        "srv:_redis._tcp.example.com:6379",
        "srv:",
        "_redis._tcp.example.com",
        { address = "srv:redis", weight = 2 },
        "srv:REDIS",
    "#;
    assert_faults(
        &changed(GOOD, "\"10.0.0.11:6379\"", bad),
        r#"
        error: `srv:_redis._tcp.example.com:6379` is not the name of a service: labels are made of letters, digits and `-`
           at: "srv:_redis._tcp.example.com:6379"
         help: ports come from its SRV records: `"srv:_redis._tcp.example.com"`
        error: `srv:` is not the name of a service: a label is empty
           at: "srv:"
         help: for example `"srv:_redis._tcp.example.com"`
        error: `_redis._tcp.example.com` is not the address of a server: it has no port
           at: "_redis._tcp.example.com"
         help: for the servers of its SRV records: `"srv:_redis._tcp.example.com"`
        error: a service has no `weight`: its SRV records have them
           at: 2
         help: take it out
        error: pool `redis` has the server `srv:redis` twice
           at: "srv:REDIS"
         help: take one of them out
        "#,
    );
}

#[test]
fn a_server_name_is_a_host_name_or_a_wildcard() {
    let bad = r#"
        "a.*.example.com",
        "app*.example.com",
        "*.",
        "",
        "app..example.com",
        "-app.example.com",
        "app 1.example.com",
        "bücher.example.com",
        "10.0.0.1",
    "#;
    assert_faults(
        &changed(GOOD, "\"app1.example.com\"", bad),
        r#"
        error: `a.*.example.com` is not a server name: `*` stands only for the whole first label
           at: "a.*.example.com"
         help: `"*.example.com"` for one or more labels, `"*"` for every name
        error: `app*.example.com` is not a server name: `*` stands only for the whole first label
           at: "app*.example.com"
         help: `"*.example.com"` for one or more labels, `"*"` for every name
        error: `*.` is not a server name: a label is empty
           at: "*."
         help:
        error: `` is not a server name: a label is empty
           at: ""
         help: `"*"` takes every name, and clients that send none
        error: `app..example.com` is not a server name: a label is empty
           at: "app..example.com"
         help:
        error: `-app.example.com` is not a server name: a label starts or ends with `-`
           at: "-app.example.com"
         help:
        error: `app 1.example.com` is not a server name: labels are made of letters, digits and `-`
           at: "app 1.example.com"
         help:
        error: `bücher.example.com` is not a server name: it is not ASCII
           at: "bücher.example.com"
         help: clients send the A-label form, `xn--…`: write that
        error: `10.0.0.1` is not a server name: clients send no IP addresses there
           at: "10.0.0.1"
         help: `"*"` takes clients without a name
        "#,
    );
    accepted(&changed(GOOD, "app1.example.com", "outbound_.6379_._.Redis.svc."));
}

#[test]
fn a_server_name_fits_into_dns() {
    let with = |sni: &str| checked(&changed(GOOD, "app1.example.com", sni)).map(drop);
    let label = "a".repeat(63);
    let name = format!("{label}.{label}.{label}.{}", "a".repeat(61));
    assert_eq!(name.len(), 253);
    assert!(with(&name).is_ok() && with(&format!("{name}.")).is_ok());
    let message = |faults: Diagnostics| faults.iter().next().unwrap().message.clone();
    assert!(message(with(&format!("{name}a")).unwrap_err()).ends_with("it is longer than 253 bytes"));
    assert!(
        message(with(&format!("a{label}.com")).unwrap_err()).ends_with("a label is longer than 63 bytes")
    );
}

#[test]
fn a_name_must_fit_commands_and_metrics() {
    for (name, shown) in [("", ""), ("a/b", "a/b"), ("a b", "a b"), ("a\\nb", "a\\nb")] {
        let faults = checked(&changed(GOOD, "sni =", &format!("name = \"{name}\"\nsni ="))).unwrap_err();
        let [fault] = &faults.iter().collect::<Vec<_>>()[..] else { panic!("{faults}") };
        assert_eq!(fault.message, format!("`{shown}` cannot be a name"));
        assert_eq!(fault.help.as_deref(), Some("1 to 253 bytes without spaces, control characters and `/`"));
    }
}

#[test]
fn an_alpn_protocol_has_1_to_255_bytes() {
    assert_faults(
        &changed(GOOD, "sni =", "alpn = [\"\"]\nsni ="),
        r#"
        error: `` is not an ALPN protocol name
           at: ""
         help: 1 to 255 bytes, for example `"h2"` or `"postgresql"`
        "#,
    );
}

#[test]
fn an_item_listed_twice_is_an_error() {
    let text = r#"
        [gateway]
        tiers = ["copy", "copy"]
        interfaces = ["eth0", "eth0"]

        [[listener]]
        bind = ["[::]:443", "[0::0]:443"]

        [[route]]
        listener = "listener-1"
        sni = ["a.example.com", "A.example.com."]
        alpn = ["h2", "h2"]
        backends = ["redis"]

        [[pool]]
        name = "redis"
        servers = ["Redis:1", "redis:1"]
    "#;
    assert_faults(
        text,
        r#"
        error: `copy` is twice in `tiers`
           at: "copy"
         help: take one of them out
        error: `eth0` is twice in `interfaces`
           at: "eth0"
         help: take one of them out
        error: `[::]:443` is listened on twice
           at: "[0::0]:443"
         help: take one of them out
        error: `a.example.com` is twice in `sni`
           at: "A.example.com."
         help: take one of them out
        error: `h2` is twice in `alpn`
           at: "h2"
         help: take one of them out
        error: pool `redis` has the server `redis:1` twice
           at: "redis:1"
         help: take one of them out
        "#,
    );
}

#[test]
fn the_gateway_is_found_in_a_file_whose_routes_are_wrong() {
    let wrong = "[gateway]\nstate_dir = '/run/other'\n[[route]]\nsnj = 1\n[[rout]]\n";
    assert!(check_text(wrong, "x.toml", &*FILES, UnixTime::since_unix_epoch(NOW)).is_err());
    let (gateway, _) = check_gateway(wrong, "x.toml").expect("nothing is wrong with [gateway]");
    assert_eq!(gateway.fixed.state_dir, Path::new("/run/other"));
    let (gateway, _) = check_gateway(GOOD, "x.toml").expect("good");
    assert_eq!(gateway.fixed.state_dir, Path::new("/run/snisplice"));
    // What is wrong with itself, and what may hide it, counts.
    for text in ["[gateway]\nstate_dir = 'here'", "[gateway]\nstatedir = '/here'", "x = [\n[gateway]\n"] {
        assert!(check_gateway(text, "x.toml").is_err(), "{text}");
    }
}

#[test]
fn gateway_values_must_be_usable() {
    let text = format!(
        r#"
        [gateway]
        interfaces = "eth0"
        bpffs = "bpf"
        state_dir = "/{}"
        access_log = {{ path = "x.log", format = "xml" }}
        {GOOD}"#,
        "d".repeat(80),
    );
    assert_faults(
        &text,
        r#"
        error: `interfaces` must be `"auto"` or a list, not `eth0`
           at: "eth0"
         help: `interfaces = ["eth0"]`
        error: `bpf` is not an absolute path
           at: "bpf"
         help: start it with `/`
        error: this path is too long for a socket in it
           at: "/dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
         help: at most 80 bytes: the kernel bounds a socket's path at 107
        error: `x.log` is not an absolute path
           at: "x.log"
         help: start it with `/`, or write `"-"` for standard output
        error: `format` cannot be `xml`
           at: "xml"
         help: one of `"json"`, `"text"`
        "#,
    );
    let text = format!("[gateway]\ninterfaces = [\"a/b\"]\ntiers = [\"fast\"]\n{GOOD}");
    assert_faults(
        &text,
        r#"
        error: `a/b` cannot be a network interface
           at: "a/b"
         help: 1 to 15 bytes, as `ip link` shows them
        error: `tiers` cannot be `fast`
           at: "fast"
         help: one of `"packet"`, `"sockmap"`, `"ktls"`, `"copy"`
        "#,
    );
}

#[test]
fn a_tier_behind_copy_is_warned_of_and_dropped() {
    let text = format!("[gateway]\ntiers = [\"copy\", \"packet\"]\n{GOOD}");
    assert_faults(
        &text,
        r#"
        warning: the tier `packet` is never reached
           at: "packet"
         help: put `"copy"` last: it takes every connection
        "#,
    );
    assert_eq!(checked(&text).unwrap().0.gateway.live.tiers, [Tier::Copy]);
}
