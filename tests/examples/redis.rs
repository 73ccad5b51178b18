//! `redis-one-address`.

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{Redis, eventually};

use crate::scene::Scene;

const NAMES: [&str; 2] = ["cache-a.redis.example.com", "cache-b.redis.example.com"];

#[test]
fn two_redis_behind_one_address() -> Result<()> {
    let scene = Scene::new("redis-one-address", &[11, 12])?;
    for name in NAMES {
        scene.certificate(name)?;
    }
    let mut servers = Vec::new();
    for address in ["10.0.2.11", "10.0.2.12"] {
        servers.push(Redis::plain_with(&scene.net.server, 6379, &["--bind", address])?);
        // Both have the same port, so that it is heard of does not tell that this one listens.
        eventually("the server to answer", || {
            let mut cli = scene.net.server.command("redis-cli");
            checked_output(cli.args(["-h", address, "set", "name", address])).ok()
        })?;
    }
    let example = scene.start()?;
    for (name, address) in NAMES.into_iter().zip(["10.0.2.11\n", "10.0.2.12\n"]) {
        let mut cli = tls_cli(&example.net.client, "10.0.1.1", 6379, name, &example.authority.path);
        assert_eq!(checked_output(cli.args(["get", "name"]))?, address);
    }
    assert_eq!(example.logged(2, "pool")?, ["cache-a", "cache-b"]);
    Ok(())
}
