//! Redis: its role, its password, and that it is there at all.

use anyhow::Result;
use snisplice_tests::{Redis, eventually};

use super::{redis, secret, state, tcp, wait_states};
use crate::config::pool;
use crate::world::World;

const FOLLOW: &str = "health = { check = 'redis', role = 'master', interval = '200ms', rise = 2, fall = 2 }";

/// A master and its replica, which has what it has.
fn pair(world: &World) -> Result<[Redis; 2]> {
    let ns = &world.net.server;
    let master = Redis::plain(ns, 7001)?;
    let replica = Redis::plain_with(ns, 7002, &["--replicaof", "127.0.0.1 7001"])?;
    eventually("the replica to follow", || {
        replica.command(ns, &["role"]).ok().filter(|role| role.contains("connected")).map(drop)
    })?;
    Ok([master.named(ns, "7001")?, replica])
}

/// Whom a new connection reaches.
fn reached(world: &World) -> Option<String> {
    let info = redis(world, 6379, &["info", "server"]).ok()?;
    Some(info.lines().find_map(|line| line.strip_prefix("tcp_port:"))?.trim().to_owned())
}

#[test]
fn a_pool_follows_the_master_when_it_dies_and_stays_with_the_new_one() -> Result<()> {
    let world = World::new()?;
    let [mut master, replica] = pair(&world)?;
    let gateway = world.gateway(&(tcp("db", 6379) + &pool("db", &[7001, 7002], FOLLOW)))?;
    // From the very first connection on.
    for _ in 0..6 {
        assert_eq!(reached(&world).as_deref(), Some("7001"));
    }
    wait_states(&gateway, "db", &[(7001, "up"), (7002, "down: wrong_role")])?;

    master.process.stop()?;
    replica.command(&world.net.server, &["replicaof", "no", "one"])?;
    wait_states(&gateway, "db", &[(7001, "down: refused"), (7002, "up")])?;
    for _ in 0..6 {
        redis(&world, 6379, &["incr", "counter"])?;
        assert_eq!(reached(&world).as_deref(), Some("7002"));
    }
    assert_eq!(replica.command(&world.net.server, &["get", "counter"])?.trim(), "6");

    // Started again, the old one thinks that it is the master, until somebody tells it otherwise.
    let back = Redis::plain(&world.net.server, 7001)?;
    wait_states(&gateway, "db", &[(7001, "up"), (7002, "up")])?;
    for _ in 0..6 {
        assert_eq!(reached(&world).as_deref(), Some("7002"), "the one that was it before");
    }
    back.command(&world.net.server, &["replicaof", "127.0.0.1", "7002"])?;
    wait_states(&gateway, "db", &[(7001, "down: wrong_role"), (7002, "up")])?;
    Ok(())
}

#[test]
fn a_switch_of_roles_counts_at_once_and_ends_what_is_open_if_so_configured() -> Result<()> {
    let world = World::new()?;
    let [master, replica] = pair(&world)?;
    // So many checks in a row that only what a server says of itself can be in time.
    let follow =
        "health = { check = 'redis', role = 'master', interval = '200ms', rise = 1000, fall = 1000 }";
    let kill = format!("{follow}\non_down = 'kill'");
    let config = tcp("db", 6379) + &pool("db", &[7001, 7002], &kill) + &tcp("kept", 6380);
    let gateway = world.gateway(&(config + &pool("kept", &[7001, 7002], follow)))?;
    wait_states(&gateway, "db", &[(7001, "up"), (7002, "down: wrong_role")])?;
    wait_states(&gateway, "kept", &[(7001, "up"), (7002, "down: wrong_role")])?;
    let [killed, kept] = [world.connect(6379)?, world.connect(6380)?];
    gateway.wait_status("both to be open", |s| s.route("db", "active") + s.route("kept", "active") == 2)?;

    replica.command(&world.net.server, &["replicaof", "no", "one"])?;
    master.command(&world.net.server, &["replicaof", "127.0.0.1", "7002"])?;
    wait_states(&gateway, "db", &[(7001, "down: wrong_role"), (7002, "up")])?;
    assert_eq!(reached(&world).as_deref(), Some("7002"));
    let ended = gateway.wait_access_log(2)?;
    let reasons: Vec<_> =
        ended.iter().filter(|line| line["route"] == "db").map(|l| &l["close_reason"]).collect();
    assert!(reasons.contains(&&"server_down".into()), "{ended:?}");
    assert_eq!(gateway.status()?.route("kept", "active"), 1);
    drop((killed, kept));
    Ok(())
}

#[test]
fn a_password_is_right_or_wrong() -> Result<()> {
    let world = World::new()?;
    let acl = ["--requirepass", "hunter2", "--user", "health", "on", ">pass;word", "+ping", "+role"];
    let _server = Redis::plain_with(&world.net.server, 7001, &acl)?;
    let [right, wrong, user] = [("right", "hunter2\n"), ("wrong", "hunter3"), ("user", "pass;word\r\n")]
        .map(|(name, word)| secret(&world, name, word));
    let check = |keys: &str| format!("health = {{ check = 'redis', interval = '200ms', {keys} }}");
    let config = |of_changed: &std::path::Path| -> Result<String> {
        let file = |path: &std::path::Path| format!("password_file = {path:?}");
        Ok(tcp("changed", 6379)
            + &pool("changed", &[7001], &check(&file(of_changed)))
            + &tcp("user", 6380)
            + &pool(
                "user",
                &[7001],
                &check(&format!("role = 'master', user = 'health', {}", file(user.as_ref().unwrap()))),
            )
            + &tcp("none", 6381)
            + &pool("none", &[7001], &check("rise = 1")))
    };
    let gateway = world.gateway(&config(&wrong?)?)?;
    wait_states(&gateway, "changed", &[(7001, "down: login_failed")])?;
    wait_states(&gateway, "none", &[(7001, "down: login_failed")])?;
    wait_states(&gateway, "user", &[(7001, "up")])?;
    let said = gateway.process.stderr();
    assert!(said.contains("down: login_failed: WRONGPASS"), "{said}");
    assert!(!said.contains("hunter"), "{said}");

    gateway.write_config(&config(&right?)?)?;
    gateway.reload()?;
    wait_states(&gateway, "changed", &[(7001, "up")])?;
    Ok(())
}

#[test]
fn a_server_that_loads_its_data_is_down() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.server;
    let files = snisplice_tests::TempDir::new()?;
    let directory = files.path().display().to_string();
    let mut server = Redis::plain_with(ns, 7001, &["--dir", &directory])?;
    let fill = "for n = 1, 1000 do redis.call('set', 'key' .. n, string.rep('x', 100)) end";
    server.command(ns, &["eval", fill, "0"])?;
    server.command(ns, &["save"])?;
    let gateway = world.gateway(
        &(tcp("db", 6379) + &pool("db", &[7001], "health = { check = 'redis', interval = '100ms' }")),
    )?;
    wait_states(&gateway, "db", &[(7001, "up")])?;
    server.process.stop()?;
    // A tenth of a second for each key, and clients are heard between them.
    let slowly = [
        "--dir",
        &directory,
        "--key-load-delay",
        "100000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let slow = Redis::plain_with(ns, 7001, &slowly)?;
    let loading = gateway.wait_status("it to load", |status| state(status, "db", 7001) == "down: loading")?;
    assert_eq!(loading.server("db", &crate::config::server(7001))["active"], 0);
    slow.command(ns, &["config", "set", "key-load-delay", "0"])?;
    wait_states(&gateway, "db", &[(7001, "up")])?;
    Ok(())
}
