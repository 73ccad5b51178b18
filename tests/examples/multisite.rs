//! `redis-multisite`.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Process, Redis, TempDir, eventually};

use crate::scene::{Running, Scene, knowing};

const MASTER: &str = "redis-0.site-a.example.com";

#[test]
fn a_replica_of_another_site_follows_through_the_gateway_also_while_that_is_gone() -> Result<()> {
    let scene = Scene::new("redis-multisite", &[11, 12])?;
    let leaf = scene.authority.leaf(&[MASTER])?;
    let of_site_b = scene.authority.leaf(&["site-b.example.com"])?;
    let tls = |further: &'static [&'static str]| Redis::tls_with(&scene.net.server, 6380, &leaf, further);
    let _other = tls(&["--tls-auth-clients", "yes", "--bind", "10.0.2.12"])?;
    let _master = tls(&["--tls-auth-clients", "yes", "--bind", "10.0.2.11"])?;
    let files = TempDir::new()?;
    let hosts = files.join("hosts");
    fs::write(&hosts, format!("10.0.1.1 {MASTER}\n"))?;

    let mut example = scene.start()?;
    // The README's command; without persistence, and in clear text to its own clients.
    let mut replica = knowing(&example.net.client, &hosts, "redis-server");
    replica.args(["--port", "6379", "--tls-replication", "yes", "--tls-auth-clients", "yes"]);
    replica.arg("--tls-cert-file").arg(&of_site_b.chain).arg("--tls-key-file").arg(&of_site_b.key);
    replica.arg("--tls-ca-cert-file").arg(&of_site_b.authority).args(["--replicaof", MASTER, "6380"]);
    replica.args(["--save", "", "--dir"]).arg(files.path());
    let mut replica = Process::spawn("replica", replica)?;
    replica.wait_listening(&[6379])?;

    let site = |example: &Running, value: &str| -> Result<()> {
        // Both servers have the same port, so that it is heard of does not tell that this one listens.
        eventually("the master to answer", || {
            let mut cli = tls_cli(&example.net.server, "10.0.2.11", 6380, MASTER, &leaf.authority);
            cli.arg("--cert").arg(&leaf.chain).arg("--key").arg(&leaf.key);
            checked_output(cli.args(["set", "site", value])).ok()
        })?;
        eventually("the replica to have it", || {
            let mut cli = example.net.client.command("redis-cli");
            let read = checked_output(cli.args(["get", "site"])).ok()?;
            (read.trim() == value).then_some(())
        })
    };
    site(&example, "a")?;
    let links = example.gateway.connections()?;
    assert_eq!(links.len(), 1, "{links:?}");
    assert_eq!((&links[0]["tier"], &links[0]["route"]), (&"packet".into(), &"redis-0".into()));

    // Killed in the middle of its handover, the gateway would leave a connection that is reset.
    std::thread::sleep(Duration::from_millis(500));
    example.gateway.kill()?;
    site(&example, "b")?;
    example.gateway.start_again()?;
    site(&example, "c")?;
    assert_eq!(example.gateway.connections()?[0]["id"], links[0]["id"], "the very same connection");

    // Somebody without a certificate of the authority reaches the server, and is refused by it.
    let mut stranger = tls_cli(&example.net.client, "10.0.1.1", 6380, MASTER, &leaf.authority);
    assert!(checked_output(stranger.args(["get", "site"])).is_err());
    Ok(())
}
