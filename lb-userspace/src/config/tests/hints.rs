//! The hint of each mistake that people make with addresses and names names the mend.

use super::{GOOD, assert_faults, changed, checked};

/// `old` of a good configuration, once for each of these values; the hints, in their order.
fn hints(old: &str, key: impl Fn(&str) -> String, values: &[(&str, &str)]) {
    for (value, hint) in values {
        let faults = checked(&changed(GOOD, old, &key(value))).map(drop).expect_err(value);
        let fault = faults.iter().next().expect("an error");
        assert_eq!(fault.help.as_deref(), Some(*hint), "{value}: {}", fault.message);
    }
}

#[test]
fn a_server() {
    hints(
        "\"10.0.0.11:6379\"",
        |value| format!("{value:?}"),
        &[
            ("redis://redis.example.com:6379", "not a URL, only host and port: `\"redis.example.com:6379\"`"),
            ("redis://:secret@10.0.0.11:6380/0", "not a URL, only host and port: `\"10.0.0.11:6380\"`"),
            ("rediss://redis.example.com", "not a URL, only host and port: `\"redis.example.com:6379\"`"),
            ("postgresql://pg.example.com/app", "not a URL, only host and port: `\"pg.example.com:5432\"`"),
            ("https://[2001:db8::1]/", "not a URL, only host and port: `\"[2001:db8::1]:443\"`"),
            ("tcp://10.0.0.11:6379", "not a URL, only host and port: `\"10.0.0.11:6379\"`"),
            ("tcp://redis", "add the port that the server listens on: `\"redis:PORT\"`"),
            ("10.0.0.11:6379/", "not a URL, only host and port: `\"10.0.0.11:6379\"`"),
            (" 10.0.0.11:6379 ", "`\"10.0.0.11:6379\"`"),
            ("localhost", "add the port that the server listens on: `\"localhost:PORT\"`"),
            ("10.0.0.11", "add the port that the server listens on: `\"10.0.0.11:PORT\"`"),
            ("2001:db8::1", "add the port that the server listens on: `\"[2001:db8::1]:PORT\"`"),
            ("2001:db8::1:6379", "`\"[2001:db8::1]:6379\"`"),
            (":6379", "name the host; this one is `\"127.0.0.1:6379\"`"),
            ("*:6379", "name the host; this one is `\"127.0.0.1:6379\"`"),
            ("unix:/run/redis.sock", "servers are reached by TCP: for example `\"127.0.0.1:6379\"`"),
            ("/run/redis.sock", "servers are reached by TCP: for example `\"127.0.0.1:6379\"`"),
            ("a.test:1, b.test:2", "one item for each: `\"a.test:1\"`, `\"b.test:2\"`"),
        ],
    );
}

#[test]
fn an_address_to_listen_on() {
    let values = [
        ("443", "on all addresses: `\"0.0.0.0:443\"` and `\"[::]:443\"`"),
        ("*:443", "on all addresses: `\"0.0.0.0:443\"` and `\"[::]:443\"`"),
        (":::443", "on all addresses: `\"0.0.0.0:443\"` and `\"[::]:443\"`"),
        ("443 ssl", "on all addresses: `\"0.0.0.0:443\"` and `\"[::]:443\"`"),
        ("0.0.0.0", "add a port: `\"0.0.0.0:PORT\"`"),
        ("[::]", "add a port: `\"[::]:PORT\"`"),
        ("::1", "add a port: `\"[::1]:PORT\"`"),
        ("2001:db8::1:443", "`\"[2001:db8::1]:443\"`"),
        ("localhost:443", "`\"127.0.0.1:443\"` or `\"[::1]:443\"`"),
        ("LOCALHOST", "`\"127.0.0.1:PORT\"` or `\"[::1]:PORT\"`"),
        ("localhost:\\u001b[2J", "`\"127.0.0.1:PORT\"` or `\"[::1]:PORT\"`"),
        (
            "gw.example.com:443",
            "names are not looked up here: write an address of this host, or `\"0.0.0.0:PORT\"`",
        ),
        ("eth0:443", "names are not looked up here: write an address of this host, or `\"0.0.0.0:PORT\"`"),
        ("tcp://0.0.0.0:443", "not a URL, only address and port: `\"0.0.0.0:443\"`"),
        (" 0.0.0.0:443", "`\"0.0.0.0:443\"`"),
        ("0.0.0.0:443,[::]:443", "one item for each: `\"0.0.0.0:443\"`, `\"[::]:443\"`"),
        ("0.0.0.0:70000", "for example `\"0.0.0.0:443\"` or `\"[::]:443\"`"),
    ];
    hints("\"0.0.0.0:443\"", |value| format!("\"{value}\""), &values);
    let values = [
        ("http://127.0.0.1:9900/metrics", "not a URL, only address and port: `\"127.0.0.1:9900\"`"),
        ("http://localhost:9900", "`\"127.0.0.1:9900\"` or `\"[::1]:9900\"`"),
        ("unix:/run/snisplice/admin.sock", "it listens on TCP alone: for example `\"127.0.0.1:9900\"`"),
    ];
    hints("[[listener]]", |value| format!("[gateway]\nadmin = {value:?}\n[[listener]]"), &values);
}

#[test]
fn a_server_name() {
    hints(
        "\"app1.example.com\"",
        |value| format!("'{value}'"),
        &[
            ("a.test:443", "the name alone: `\"a.test\"`"),
            ("https://a.test", "the name alone: `\"a.test\"`"),
            ("https://a.test:8443/login?next=/", "the name alone: `\"a.test\"`"),
            ("postgres://app@a.test/app", "the name alone: `\"a.test\"`"),
            ("a.test/", "the name alone: `\"a.test\"`"),
            (" a.test", "the name alone: `\"a.test\"`"),
            ("https://*.a.test", "the name alone: `\"*.a.test\"`"),
            ("*.*.example.com", "`\"*.example.com\"` covers one or more labels in front of `example.com`"),
            ("*example.com", "`\"*.example.com\"` covers one or more labels in front of `example.com`"),
            (".example.com", "`\"*.example.com\"` for the names below it, `\"example.com\"` for itself"),
            ("a.test, b.test", "one item for each: `\"a.test\"`, `\"b.test\"`"),
            (
                "~^app[0-9]+\\.example\\.com$",
                "no regular expressions; `\"*.example.com\"` is every name below `example.com`",
            ),
            ("10.0.0.1:443", "`\"*\"` takes clients without a name"),
            ("https://[2001:db8::1]/", "`\"*\"` takes clients without a name"),
            ("", "`\"*\"` takes every name, and clients that send none"),
        ],
    );
}

#[test]
fn a_name_in_capitals_is_none_of_them() {
    assert_faults(&changed(GOOD, "app1.example.com", "APP1.Example.COM"), "");
    assert_faults(&changed(GOOD, "10.0.0.11:6379", "Redis.Example.COM.:6379"), "");
}

#[test]
fn a_network() {
    hints(
        "[[route]]",
        |value| format!("allow = [{value:?}]\n[[route]]"),
        &[
            ("all", "everybody: `\"0.0.0.0/0\"` and `\"::/0\"`"),
            ("*", "everybody: `\"0.0.0.0/0\"` and `\"::/0\"`"),
            ("localhost", "`\"127.0.0.0/8\"` and `\"::1\"`"),
            ("10.1.0.0/255.255.0.0", "`\"10.1.0.0/16\"`"),
            (" 10.0.0.0/8", "`\"10.0.0.0/8\"`"),
            ("10.0.0.1:443", "the address alone: `\"10.0.0.1\"`"),
            ("[2001:db8::1]:443", "the address alone: `\"2001:db8::1\"`"),
            ("[2001:db8::1]", "the address alone: `\"2001:db8::1\"`"),
            ("10.0.0.0/8, 192.168.0.0/16", "one item for each: `\"10.0.0.0/8\"`, `\"192.168.0.0/16\"`"),
        ],
    );
}
