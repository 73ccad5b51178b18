//! What is declared of keys: the documentation has it, and it is true.

use std::fs;

use crate::config::diagnostic::Report;
use crate::config::tests::{GOOD, GOOD_HTTP, TERMINATED, changed, checked};
use crate::config::toml::key::Table;
use crate::config::toml::keys::{DOCUMENTED, HEALTH_TLS, VALUE};
use crate::config::toml::{self, with_tables_of_keys};

const DOCUMENTATION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");

#[test]
fn the_tables_of_the_documentation_are_those_that_are_declared() {
    let stored = fs::read_to_string(DOCUMENTATION).expect("the documentation");
    let declared = with_tables_of_keys(&stored).expect("a place for every table");
    if std::env::var_os("SNISPLICE_WRITE_DOCS").is_some() {
        fs::write(DOCUMENTATION, declared).expect("written");
        return;
    }
    let differs = stored.lines().zip(declared.lines()).find(|(stored, declared)| stored != declared);
    assert!(
        stored == declared,
        "docs/configuration.md differs from what is declared, first at {differs:?}: \
         SNISPLICE_WRITE_DOCS=1 cargo test -p snisplice --lib documentation"
    );
}

/// A file with nothing but this line, in this table.
fn alone(table: &Table, line: &str) -> String {
    match table.header {
        "the top level" => line.to_owned(),
        "access_log" => format!("[gateway.access_log]\n{line}"),
        "keepalive" => format!("[gateway.keepalive]\n{line}"),
        "client_rate" => format!("[[listener]]\n[listener.client_rate]\n{line}"),
        "certificate" => format!("[[route]]\n[route.certificate]\n{line}"),
        "client_auth" => format!("[[route]]\n[route.client_auth]\n{line}"),
        "a backend" => format!("[[route]]\nbackends = [{{ {line} }}]"),
        "a peer" => format!("[gateway]\npeers = [{{ {line} }}]"),
        "a server" => format!("[[pool]]\nservers = [{{ {line} }}]"),
        "health" => format!("[[pool]]\n[pool.health]\n{line}"),
        "tls of health" => format!("[[pool]]\n[pool.health.tls]\n{line}"),
        "eject" => format!("[[pool]]\n[pool.eject]\n{line}"),
        "ech" => format!("[[listener]]\n[listener.ech]\n{line}"),
        "tls of a pool" => format!("[[pool]]\n[pool.tls]\n{line}"),
        "match" => format!("[[route]]\n[[route.rule]]\nmatch = [{{ {line} }}]"),
        "a value" => format!("[[route]]\n[[route.rule]]\nmatch = [{{ headers = {{ x = {{ {line} }} }} }}]"),
        "a backend of a rule" => format!("[[route]]\n[[route.rule]]\nbackends = [{{ {line} }}]"),
        "header changes" => format!("[[route]]\n[[route.rule]]\n[route.rule.request_headers]\n{line}"),
        "mirror" => format!("[[route]]\n[[route.rule]]\nmirror = [{{ {line} }}]"),
        "rewrite" | "redirect" | "cors" | "retry" | "session" => {
            format!("[[route]]\n[[route.rule]]\n[route.rule.{}]\n{line}", table.header)
        }
        "[[route.rule]]" => format!("[[route]]\n[[route.rule]]\n{line}"),
        header => format!("{header}\n{line}"),
    }
}

/// The good configuration, with this line in this table.
fn in_good(table: &Table, line: &str) -> String {
    match table.header {
        "[gateway]" | "access_log" => format!("{}\n{GOOD}", alone(table, line)),
        "a peer" => format!("[gateway]\npeer_id = 1\npeers = [{{ {line} }}]\n{GOOD}"),
        "a backend" => changed(GOOD, "\"redis\"]", &format!("{{ pool = \"redis\", {line} }}]")),
        "a server" => {
            changed(GOOD, "[\"10.0.0.11:6379\"]", &format!("[{{ address = \"10.0.0.11:6379\", {line} }}]"))
        }
        "client_rate" => with_client_rate(line),
        "client_auth" => with_client_auth(line),
        "health" => with_health(line, line),
        "eject" => with_pool_key(&format!("eject = {{ {line} }}")),
        "ech" => with_ech(line),
        "[gateway_api]" => with_gateway_api(line),
        // Not where TLS is passed through.
        "tls of a pool" => {
            let tcp = changed(GOOD, "sni = [\"app1.example.com\"]", "");
            let tcp = changed(&tcp, "[[listener]]", "[[listener]]\nprotocol = \"tcp\"");
            format!("{tcp}\n[pool.tls]\nserver_name = \"redis.internal\"\n{line}")
        }
        "[[route.rule]]"
        | "match"
        | "a backend of a rule"
        | "header changes"
        | "mirror"
        | "rewrite"
        | "redirect"
        | "cors"
        | "retry"
        | "session" => with_rule(table, line),
        header => changed(GOOD, header, &format!("{header}\n{line}")),
    }
}

/// With a rule that a line of its own, or of a table in it, may be a part of.
fn with_rule(table: &Table, line: &str) -> String {
    let others = |line: &str| if line.is_empty() { String::new() } else { format!(", {line}") };
    let rule = match table.header {
        "a backend of a rule" => format!("backends = [{{ pool = 'redis'{} }}]", others(line)),
        "mirror" => format!("backends = ['redis']\nmirror = [{{ pool = 'redis'{} }}]", others(line)),
        "cors" => format!("backends = ['redis']\ncors = {{ origins = ['*']{} }}", others(line)),
        "session" => format!("backends = ['redis']\nsession = {{ cookie = 'server'{} }}", others(line)),
        "redirect" => format!("redirect = {{ port = 81{} }}", others(line)),
        "match" => format!("backends = ['redis']\nmatch = [{{ {line} }}]"),
        "header changes" => format!("backends = ['redis']\nrequest_headers = {{ {line} }}"),
        "[[route.rule]]" => format!("backends = ['redis']\n{line}"),
        header => format!("backends = ['redis']\n{header} = {{ {line} }}"),
    };
    changed(GOOD_HTTP, "backends = [\"redis\"]", &rule)
}

/// With a health check that a line, which begins with its key, may be a part of.
fn with_health(key: &str, line: &str) -> String {
    let check = match key.split(' ').next() {
        Some("database") => "check = 'postgres', user = 'health'",
        Some("path") => "check = 'http'",
        _ => "check = 'tcp'",
    };
    let line = if line.is_empty() { String::new() } else { format!(", {line}") };
    with_pool_key(&format!("health = {{ {check}{line} }}"))
}

/// With a `client_rate` that a line may be a part of.
fn with_client_rate(line: &str) -> String {
    let line = if line.is_empty() { String::new() } else { format!(", {line}") };
    changed(GOOD, "[[listener]]", &format!("[[listener]]\nclient_rate = {{ connections = 50{line} }}"))
}

/// With a `client_auth` that a line may be a part of.
fn with_client_auth(line: &str) -> String {
    let line = if line.is_empty() { String::new() } else { format!(", {line}") };
    changed(TERMINATED, "[[route]]", &format!("[[route]]\nclient_auth = {{ ca = ['authority.crt']{line} }}"))
}

fn with_ech(line: &str) -> String {
    let line = if line.is_empty() { String::new() } else { format!(", {line}") };
    changed(GOOD, "[[listener]]", &format!("[[listener]]\nech = {{ keys = ['ech.pem']{line} }}"))
}

fn with_gateway_api(line: &str) -> String {
    format!("{GOOD}\n[gateway_api]\nfrom = 'directory'\ndirectory = 'manifests'\n{line}")
}

fn with_pool_key(line: &str) -> String {
    changed(GOOD, "[[pool]]", &format!("[[pool]]\n{line}"))
}

fn read(text: &str) -> Vec<String> {
    let mut report = Report::default();
    toml::read(text, &mut report);
    report.finish("snisplice.toml", text).iter().map(|fault| fault.message.clone()).collect()
}

fn tables() -> impl Iterator<Item = &'static Table> {
    DOCUMENTED.into_iter().chain([&HEALTH_TLS, &VALUE])
}

#[test]
fn every_key_that_is_declared_is_read() {
    for table in tables() {
        for key in table.keys {
            let found = read(&alone(table, &format!("{} = 1979-05-27", key.name)));
            let expected = format!("`{}` must be ", key.name);
            assert!(
                found.iter().any(|message| message.starts_with(&expected)),
                "{} of {}: {found:?}",
                key.name,
                table.header
            );
        }
    }
}

#[test]
fn every_example_makes_sense() {
    // Those of the top level are headers.
    for table in tables().skip(1) {
        for key in table.keys {
            let line = if key.is_header() {
                key.example.to_owned()
            } else {
                format!("{} = {}", key.name, key.example)
            };
            let found = read(&alone(table, &line));
            let found: Vec<_> = found.iter().filter(|message| !message.contains(" without `")).collect();
            assert!(found.is_empty(), "{} of {}: {found:?}", key.name, table.header);
        }
    }
}

#[test]
fn a_key_with_its_default_changes_nothing() {
    let config = |text: &str| match checked(text) {
        Ok((config, _)) => format!("{config:?}"),
        Err(faults) => panic!("{faults}"),
    };
    let mut compared = 0;
    for table in DOCUMENTED {
        for key in table.keys {
            let default = key.default.as_ref().map(|default| default.show()).unwrap_or_default();
            let Some(value) = default.strip_prefix('`').and_then(|value| value.strip_suffix('`')) else {
                continue;
            };
            let without = match table.header {
                "access_log" => format!("[gateway.access_log]\n{GOOD}"),
                "client_rate" => with_client_rate(""),
                "client_auth" => with_client_auth(""),
                "health" => with_health(key.name, ""),
                "eject" => with_pool_key("eject = {}"),
                "ech" => with_ech(""),
                "[gateway_api]" => with_gateway_api(""),
                "tls of a pool" => in_good(table, ""),
                "[[route.rule]]"
                | "match"
                | "a backend of a rule"
                | "header changes"
                | "mirror"
                | "rewrite"
                | "redirect"
                | "cors"
                | "retry"
                | "session" => in_good(table, ""),
                _ => GOOD.to_owned(),
            };
            let with = in_good(table, &format!("{} = {value}", key.name));
            assert_eq!(config(&with), config(&without), "{} of {}", key.name, table.header);
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}
