//! PostgreSQL: primary and standby, and the ways to log in.

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::skip::has_program;
use snisplice_tests::{Postgres, require, topology};

use super::{secret, tcp, wait_states};
use crate::config::pool;
use crate::world::World;

/// Whom a new connection reaches.
fn reached(world: &World) -> Result<String> {
    let mut psql = world.net.client.command("psql");
    let options = format!("host={} port=5432 user=postgres connect_timeout=20", topology::GATEWAY);
    Ok(checked_output(psql.args(["-X", &options, "-Atc", "show cluster_name"]))?.trim().to_owned())
}

#[test]
fn a_pool_follows_the_primary_when_it_dies_and_stays_with_the_new_one() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let world = World::new()?;
    let ns = &world.net.server;
    let mut primary = Postgres::start(ns, 5431, "one", None)?;
    let standby = primary.standby(ns, 5433, "two")?;
    let check =
        "health = { check = 'postgres', role = 'primary', user = 'postgres', interval = '1s', fall = 2 }";
    let reads = check.replace("primary", "standby");
    let config = tcp("db", 5432) + &pool("db", &[5431, 5433], check) + &tcp("reads", 5434);
    let gateway = world.gateway(&(config + &pool("reads", &[5431, 5433], &reads)))?;
    for _ in 0..4 {
        assert_eq!(reached(&world)?, "one");
    }
    wait_states(&gateway, "db", &[(5431, "up"), (5433, "down: wrong_role")])?;
    wait_states(&gateway, "reads", &[(5431, "down: wrong_role"), (5433, "up")])?;

    primary.process.stop()?;
    standby.sql(ns, "select pg_promote()")?;
    wait_states(&gateway, "db", &[(5431, "down: refused"), (5433, "up")])?;
    for _ in 0..4 {
        assert_eq!(reached(&world)?, "two");
    }
    // Nobody is left to read from.
    wait_states(&gateway, "reads", &[(5433, "down: wrong_role")])?;

    let _back = primary.start_again(ns, "one")?;
    wait_states(&gateway, "db", &[(5431, "up"), (5433, "up")])?;
    for _ in 0..4 {
        assert_eq!(reached(&world)?, "two", "the one that was it before");
    }
    Ok(())
}

#[test]
fn a_check_logs_in_as_the_server_asks() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let world = World::new()?;
    let ns = &world.net.server;
    let leaf = world.authority.leaf(&["db.internal"])?;
    let hba = "host all scram all scram-sha-256\nhost all md5 all md5\nhost all clear all password\n\
               host all refused all reject\n";
    let server = Postgres::start_with(ns, 5431, "db", Some(&leaf), hba)?;
    server.sql(ns, "create role trusted login")?;
    for (user, encryption) in [("scram", "scram-sha-256"), ("md5", "md5"), ("clear", "scram-sha-256")] {
        let create = format!(
            "set password_encryption = '{encryption}'; create role {user} login password 'p4ss \u{fc}'"
        );
        server.sql(ns, &create)?;
    }
    let [right, wrong] =
        [("right", "p4ss \u{fc}\n"), ("wrong", "p4ss u\n")].map(|(name, word)| secret(&world, name, word));
    let (right, wrong) = (format!("password_file = {:?}", right?), format!("password_file = {:?}", wrong?));
    let tls = format!("tls = {{ ca = {:?}, server_name = 'db.internal' }}", world.authority.path);
    let misnamed = format!("tls = {{ ca = {:?}, server_name = 'other.internal' }}", world.authority.path);
    let checks = [
        ("nobody", String::new(), "up"),
        ("nobody-tls", tls.clone(), "up"),
        ("misnamed", misnamed, "down: certificate_name"),
        ("trusted", "user = 'trusted', role = 'primary'".into(), "up"),
        ("scram", format!("user = 'scram', role = 'primary', {right}"), "up"),
        ("scram-tls", format!("user = 'scram', role = 'primary', {right}, {tls}"), "up"),
        ("scram-wrong", format!("user = 'scram', {wrong}"), "down: login_failed"),
        ("scram-none", "user = 'scram'".into(), "down: login_failed"),
        ("md5", format!("user = 'md5', role = 'primary', {right}"), "up"),
        ("md5-wrong", format!("user = 'md5', {wrong}"), "down: login_failed"),
        ("clear-tls", format!("user = 'clear', role = 'primary', {right}, {tls}"), "up"),
        ("clear-wrong", format!("user = 'clear', {wrong}, {tls}"), "down: login_failed"),
        ("clear", format!("user = 'clear', {right}"), "down: login_failed"),
        ("refused", format!("user = 'refused', {right}"), "down: login_failed"),
        ("database", format!("user = 'scram', {right}, database = 'absent'"), "down: server_error"),
        ("standby", format!("user = 'scram', {right}, role = 'standby'"), "down: wrong_role"),
    ];
    let config: String = (6000..)
        .zip(&checks)
        .map(|(port, (name, keys, _))| {
            let keys = if keys.is_empty() { String::new() } else { format!(", {keys}") };
            let check = format!("health = {{ check = 'postgres', interval = '20s', timeout = '20s'{keys} }}");
            tcp(name, port) + &pool(name, &[5431], &check)
        })
        .collect();
    let gateway = world.gateway(&config)?;
    for (name, _, expected) in &checks {
        wait_states(&gateway, name, &[(5431, expected)])?;
    }
    // Those that end well leave no trace there.
    let log = server.process.stderr();
    assert!(!log.contains("unexpected EOF") && !log.contains("could not receive data"), "{log}");
    let said = gateway.process.stderr();
    assert!(!said.contains("p4ss"), "{said}");
    Ok(())
}

#[test]
fn a_server_without_tls_says_so() -> Result<()> {
    require!(has_program("postgres"), "postgresql is not installed");
    let world = World::new()?;
    let _server = Postgres::start(&world.net.server, 5431, "db", None)?;
    let check = "health = { check = 'postgres', interval = '1s', tls = {} }";
    let gateway = world.gateway(&(tcp("db", 5432) + &pool("db", &[5431], check)))?;
    wait_states(&gateway, "db", &[(5431, "down: tls_refused")])?;
    Ok(())
}
