//! `redis-failover`.

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Redis, eventually};

use crate::scene::Scene;

const NAME: &str = "orders.redis.example.com";

#[test]
fn clients_reach_the_master_before_and_after_a_failover() -> Result<()> {
    let scene = Scene::new("redis-failover", &[11, 12])?;
    scene.certificate(NAME)?;
    let (net, authority) = (&scene.net, scene.authority.path.clone());
    let _old = Redis::plain_with(&net.server, 6379, &["--bind", "10.0.2.11"])?;
    let replica =
        ["--bind", "10.0.2.12", "--replica-announce-ip", "10.0.2.12", "--replicaof", "10.0.2.11 6379"];
    let _new = Redis::plain_with(&net.server, 6379, &replica)?;
    let at = |ns: &snisplice_tests::NetNs, address: &str, command: &[&str]| {
        let mut cli = ns.command("redis-cli");
        checked_output(cli.args(["-h", address]).args(command))
    };
    eventually("the replica to follow", || {
        let role = at(&net.server, "10.0.2.12", &["role"]).ok()?;
        role.contains("connected").then_some(())
    })?;

    let example = scene.start()?;
    let ask = |command: &[&str]| {
        let mut cli = tls_cli(&example.net.client, "10.0.1.1", 6379, NAME, &authority);
        checked_output(cli.args(command))
    };
    assert_eq!(ask(&["set", "greeting", "hello"])?.trim(), "OK");
    at(&example.net.server, "10.0.2.11", &["failover", "to", "10.0.2.12", "6379"])?;
    let wrong_role = |address: &str| {
        example.gateway.wait_status("the old master to be out", |status| {
            status.server("orders", address)["state"] != "up"
        })
    };
    wrong_role("10.0.2.11:6379")?;
    eventually("the new master to take writes", || {
        (ask(&["set", "greeting", "again"]).ok()?.trim() == "OK").then_some(())
    })?;
    assert_eq!(at(&example.net.server, "10.0.2.12", &["get", "greeting"])?.trim(), "again");
    Ok(())
}
