//! `health`, `eject` and `on_down` of a pool.

use std::time::Duration;

use super::{GOOD, accepted, assert_faults, changed};
use crate::config::{Check, Eject, Health, HealthTls, Login, OnDown, Pool, Role, Secret};

fn with(keys: &str) -> String {
    changed(GOOD, "servers =", &format!("{keys}\nservers ="))
}

fn pool(keys: &str) -> Pool {
    accepted(&with(keys)).pools.remove(0)
}

fn health(keys: &str) -> Health {
    (**pool(&format!("health = {{ {keys} }}")).health.as_ref().expect("health")).clone()
}

#[test]
fn what_is_left_out_has_its_default() {
    let seconds = Duration::from_secs;
    let (interval, timeout) = (seconds(5), seconds(2));
    let tcp = Health { check: Check::Tcp, interval, timeout, rise: 2, fall: 3, port: None, tls: None };
    assert_eq!(health("check = \"tcp\""), tcp);
    let tls = Some(HealthTls::default());
    assert_eq!(health("check = \"tls\""), Health { check: Check::Tls, tls, ..tcp.clone() });
    let redis = Check::Redis { role: None, login: None };
    assert_eq!(health("check = \"redis\""), Health { check: redis, ..tcp.clone() });
    let postgres = Check::Postgres { role: None, login: None, database: "postgres".into() };
    assert_eq!(health("check = \"postgres\""), Health { check: postgres, ..tcp.clone() });
    let http = Check::Http { path: "/".into(), host: None, status: vec![] };
    assert_eq!(health("check = \"http\""), Health { check: http, ..tcp });
    // No longer than the interval.
    assert_eq!(health("check = \"tcp\", interval = \"500ms\"").timeout, Duration::from_millis(500));
    assert_eq!(pool("eject = {}").eject, Some(Eject { failures: 3, time: seconds(10) }));
    assert_eq!((pool("").eject, pool("").on_down), (None, OnDown::Keep));
}

#[test]
fn what_is_given_counts() {
    let all = "check = \"postgres\", interval = \"1s\", timeout = \"1s\", rise = 1, fall = 4, port = 5433, \
               role = \"standby\", user = \"health\", password_file = \"password\", database = \"app\", \
               tls = { ca = \"ca.crt\", server_name = \"db.internal\" }";
    let health = health(all);
    let login = Login { user: Some("health".into()), password: Some(Secret::new(b"s e\"cret")) };
    let check = Check::Postgres { role: Some(Role::Replica), login: Some(login), database: "app".into() };
    assert_eq!((&health.check, health.port, health.rise, health.fall), (&check, Some(5433), 1, 4));
    let tls = health.tls.as_ref().unwrap();
    assert_eq!(tls.ca.as_ref().unwrap().certificates.len(), 1);
    assert_eq!(tls.server_name.as_ref().unwrap().to_str(), "db.internal");
    assert!(!format!("{health:?}").contains("cret"), "a password is never shown");
    let pool =
        pool("health = { check = \"tcp\" }\non_down = \"kill\"\neject = { failures = 1, time = \"1m\" }");
    assert_eq!(pool.on_down, OnDown::Kill);
    assert_eq!(pool.eject, Some(Eject { failures: 1, time: Duration::from_secs(60) }));
}

#[test]
fn a_check_says_what_it_is() {
    assert_faults(
        &with("health = { interval = \"5s\" }"),
        r#"
        error: health without `check`
           at: { interval = "5s" }
         help: for example `check = "redis"`
        "#,
    );
    assert_faults(
        &with("health = { check = \"ping\", rise = 0, interval = \"1ms\" }"),
        r#"
        error: `check` cannot be `ping`
           at: "ping"
         help: one of `"tcp"`, `"tls"`, `"redis"`, `"postgres"`, `"mysql"`, `"http"`
        error: `rise` must be from 1 to 1000
           at: 0
         help: for example `rise = 2`
        error: `interval` must be at least 100 ms
           at: "1ms"
         help: for example `interval = "5s"`
        "#,
    );
}

#[test]
fn keys_of_other_checks_are_refused() {
    assert_faults(
        &with("health = { check = \"tcp\", role = \"master\", path = \"/\", tls = {}, database = \"app\" }"),
        r#"
        error: a check by `tcp` has no `role`
           at: "master"
         help: take it out; it goes with `check = "redis"` or `check = "postgres"`
        error: a check by `tcp` has no `path`
           at: "/"
         help: take it out; it goes with `check = "http"`
        error: a check by `tcp` has no `tls`
           at: {}
         help: take it out; it goes with `check = "tls"` or `check = "redis"` or `check = "postgres"` or `check = "mysql"` or `check = "http"`
        error: a check by `tcp` has no `database`
           at: "app"
         help: take it out; it goes with `check = "postgres"`
        "#,
    );
}

#[test]
fn one_check_ends_before_the_next() {
    assert_faults(
        &with("health = { check = \"tcp\", timeout = \"6s\" }"),
        r#"
        error: `timeout` is longer than `interval`, 5s
           at: "6s"
         help: one check ends before the next begins: raise `interval`, or lower `timeout`
        "#,
    );
}

#[test]
fn who_asks_for_more_has_to_log_in() {
    let login = "a server tells more only after a login: add `user = \"NAME\"`, a role that may log in and needs no other right";
    assert_faults(
        &with("health = { check = \"postgres\", role = \"master\", password_file = \"password\" }"),
        &format!(
            r#"
        error: `role` of a PostgreSQL check without `user`
           at: "master"
         help: {login}
        error: `password_file` of a PostgreSQL check without `user`
           at: "password"
         help: {login}
        "#
        ),
    );
    assert_faults(
        &with("health = { check = \"redis\", user = \"health\" }"),
        r#"
        error: `user` without `password_file`
           at: "health"
         help: add `password_file = "FILE"`, or take `user` out
        "#,
    );
}

#[test]
fn files_are_there_and_hold_what_they_should() {
    assert_faults(
        &with("health = { check = \"redis\", password_file = \"absent\" }"),
        r#"
        error: cannot read `absent`: entity not found
           at: "absent"
         help: a relative path starts at the directory of this file
        "#,
    );
    assert_faults(
        &with("health = { check = \"redis\", password_file = \"lines\" }"),
        r#"
        error: cannot use `lines`: it has several lines
           at: "lines"
         help: one line, with the password
        "#,
    );
    assert_faults(
        &with("health = { check = \"redis\", password_file = \"zero\" }"),
        r#"
        error: this password has a zero byte, or more than 1024 bytes
           at: "zero"
         help: one line, with the password
        "#,
    );
    assert_faults(
        &with("health = { check = \"tls\", tls = { ca = \"password\", server_name = \"a b\" } }"),
        r#"
        error: cannot use `password`: it holds no certificate
           at: "password"
         help: a PEM file with the certificates that sign those of servers
        error: `a b` is not a server name
           at: "a b"
         help: a host name or an IP address
        "#,
    );
}

#[test]
fn a_password_is_sent_to_nobody_who_is_not_known() {
    assert_faults(
        &with(
            "health = { check = \"redis\", password_file = \"password\", tls = { server_name = \"redis.internal\" } }",
        ),
        r#"
        error: `tls` without `ca`, and a password to send
           at: { server_name = "redis.internal" }
         help: whoever stands between could take it: add `ca = "FILE"` to `tls`
        "#,
    );
}

#[test]
fn what_goes_into_a_request_cannot_break_it() {
    assert_faults(
        &with(r#"health = { check = "http", path = "/a b", host = "x\r\nY: z", status = [200, 99] }"#),
        r#"
        error: this is no path of an HTTP request
           at: "/a b"
         help: it begins with `/` and has no spaces: for example `path = "/health"`
        error: this is no host of an HTTP request
           at: "x\r\nY: z"
         help: a name, with a port if it is not 80: for example `host = "db.example.com:8008"`
        error: `status` must be from 100 to 599
           at: 99
         help: for example `status = [200]`
        "#,
    );
    assert_faults(
        &with(r#"health = { check = "postgres", user = "a\u0000b" }"#),
        r#"
        error: this is no `user`
           at: "a\u0000b"
         help: 1 to 128 bytes, none of them a control character
        "#,
    );
}

#[test]
fn on_down_needs_somebody_who_notices() {
    assert_faults(
        &with("on_down = \"kill\""),
        r#"
        error: `on_down` without `health`: nobody would notice
           at: "kill"
         help: add `health = { check = "tcp" }`, or take it out
        "#,
    );
    assert_faults(
        &with("health = { check = \"tcp\" }\non_down = \"drop\"\neject = { failures = 0, time = \"0s\" }"),
        r#"
        error: `on_down` cannot be `drop`
           at: "drop"
         help: one of `"keep"`, `"kill"`
        error: `failures` must be from 1 to 1000
           at: 0
         help: for example `failures = 5`
        error: `time` must not be zero
           at: "0s"
         help: for example `time = "30s"`
        "#,
    );
}
