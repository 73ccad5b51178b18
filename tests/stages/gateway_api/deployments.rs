//! Deployments that people run, by their manifests as they stand.

use std::io::{Read, Write};
use std::process::Command;

use anyhow::{Result, ensure};
use snisplice_tests::backend::{Backend, echo, naming_and_holding};
use snisplice_tests::process::{Process, checked_output};
use snisplice_tests::redis::tls_cli;

use snisplice_tests::{Launch, NameServer, Postgres, Redis, eventually, topology};

use super::*;
use crate::world::World;

/// What Redis at this name says its name is.
pub(super) fn name_at(world: &World, port: u16, sni: &str) -> Result<String> {
    let mut cli = tls_cli(&world.net.client, "10.0.1.1", port, sni, &world.authority.path);
    Ok(checked_output(cli.args(["get", "name"]))?.trim().to_owned())
}

#[test]
fn redis_behind_one_balancer() -> Result<()> {
    let world = World::new()?;
    let a = Redis::plain(&world.net.server, 7001)?.named(&world.net.server, "a")?;
    let b = Redis::plain(&world.net.server, 7002)?.named(&world.net.server, "b")?;
    let manifests = Manifests::new(Some("1-redis-behind-one-balancer.yaml"))?;
    let mut more = String::new();
    for (name, redis) in [("cache-a", &a), ("cache-b", &b)] {
        let leaf = world.authority.leaf(&[&format!("{name}.redis.example.com")])?;
        more += &secret(&format!("redis/{name}-tls"), &leaf)?;
        more += &slice(&format!("redis/{name}"), "redis", redis.port, &[ready(SERVER)]);
    }
    manifests.write("more.yaml", &more)?;
    let gateway = manifests.serve(&world)?;
    for (name, expected) in [("cache-a", "a"), ("cache-b", "b")] {
        assert_eq!(name_at(&world, 443, &format!("{name}.redis.example.com"))?, expected);
    }
    // A route in a version that clusters do not serve any more does the same.
    let alpha = deployed("alpha/1-tlsroute-v1alpha2.yaml")?;
    let of_v1 = deployed("1-redis-behind-one-balancer.yaml")?;
    let first = "kind: TLSRoute\nmetadata: { name: cache-a, namespace: redis }";
    assert!(of_v1.contains(first));
    let others: Vec<_> = of_v1.split("---\n").filter(|document| !document.contains(first)).collect();
    manifests.write("1-redis-behind-one-balancer.yaml", &others.join("---\n"))?;
    eventually("its end", || name_at(&world, 443, "cache-a.redis.example.com").is_err().then_some(()))?;
    manifests.write("alpha.yaml", &alpha)?;
    eventually("it again", || {
        (name_at(&world, 443, "cache-a.redis.example.com").ok()? == "a").then_some(())
    })?;
    assert_eq!(gateway.status()?.0["routes"].as_array().map(Vec::len), Some(2));
    Ok(())
}

#[test]
fn redis_at_several_sites() -> Result<()> {
    let world = World::new()?;
    let (client, server) = (&world.net.client, &world.net.server);
    // The other site is where the client is.
    client.address("eth0", "10.0.1.8/24")?;
    client.address("eth0", "10.0.1.9/24")?;
    let names = ["redis-0", "master", "b-master"].map(|name| format!("{name}.site-a.example.com"));
    let leaf = world.authority.leaf(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let redis = Redis::mutual_tls(server, 6380, &leaf)?;
    redis.command(
        server,
        &[
            "--cert",
            &leaf.chain.display().to_string(),
            "--key",
            &leaf.key.display().to_string(),
            "set",
            "name",
            "site-a",
        ],
    )?;
    let _raft = Backend::start(server, 7000, echo)?;
    let _health = Process::spawn("python3", http_server(server, 8080))?;
    let zone = "master.site-b A 10.0.1.9\n";
    let dns = NameServer::start(server, topology::SERVER, zone)?;
    let manifests = Manifests::new(Some("2-redis-multisite.yaml"))?;
    let manifest = deployed("2-redis-multisite.yaml")?;
    // The tests' zone is `test`.
    manifests.write(
        "2-redis-multisite.yaml",
        &manifest.replace("master.site-b.example.com", "master.site-b.test"),
    )?;
    let slices = slice("redis-a/redis-0", "raft", 7000, &[ready(SERVER)])
        + &slice("redis-a/redis-0", "http", 8080, &[ready(SERVER)])
        + &slice("redis-a/redis-0", "redis-tls", 6380, &[ready(SERVER)])
        + &slice("redis-a/redis-master", "redis-tls", 6380, &[ready(SERVER)]);
    manifests.write("slices.yaml", &slices)?;
    let launch = Launch { resolv_conf: Some("nameserver 10.0.2.2\n".to_owned()), ..Launch::default() };
    let gateway = manifests.serve_with(&world, "external_names = true", launch)?;

    let mut raft = world.connect(7000)?;
    raft.write_all(b"append entries")?;
    let mut answer = [0; 14];
    raft.read_exact(&mut answer)?;
    assert_eq!(&answer, b"append entries");
    let listing = eventually("the HTTP server", || {
        checked_output(client.command("curl").args(["-s", "-S", "-f", "http://10.0.1.1:8080/"])).ok()
    })?;
    assert!(listing.contains("Directory listing"), "{listing}");
    let ask = |sni: &str, with_certificate: bool| {
        let mut cli = tls_cli(client, "10.0.1.1", 6380, sni, &world.authority.path);
        if with_certificate {
            cli.arg("--cert").arg(&leaf.chain).arg("--key").arg(&leaf.key);
        }
        checked_output(cli.args(["get", "name"]))
    };
    for sni in &names[..2] {
        assert_eq!(ask(sni, true)?, "site-a\n");
        // The server's own authentication is in force: TLS is passed through.
        assert!(ask(sni, false).is_err());
    }
    // The master of another site, known by its name, which changes its address.
    let _nine = Backend::start_on(client, [10, 0, 1, 9].into(), 6380, naming_and_holding("nine"))?;
    let _eight = Backend::start_on(client, [10, 0, 1, 8].into(), 6380, naming_and_holding("eight"))?;
    let other_site = || -> Result<String> {
        let mut stream = world.connect(6380)?;
        stream.write_all(&snisplice_tests::tls::client_hello(&names[2], &[]))?;
        let mut name = [0; 16];
        let read = stream.read(&mut name)?;
        Ok(String::from_utf8_lossy(&name[..read]).into_owned())
    };
    eventually("the other site", || (other_site().ok()? == "nine").then_some(()))?;
    dns.change("master.site-b A 10.0.1.8\n")?;
    eventually("its other address", || (other_site().ok()? == "eight").then_some(()))?;
    assert!(gateway.status()?.0["listeners"].as_array().is_some_and(|listeners| listeners.len() == 3));
    Ok(())
}

fn http_server(ns: &snisplice_tests::NetNs, port: u16) -> Command {
    let mut command = ns.command("python3");
    command.args(["-m", "http.server", &port.to_string(), "--directory", "/proc/self/fdinfo"]);
    command
}

#[test]
fn between_clusters() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["hello.sample.svc.cluster.local"])?;
    let redis = Redis::tls(&world.net.server, 7500, &leaf)?.named(&world.net.server, "v1")?;
    let manifests = Manifests::new(Some("4-east-west.yaml"))?;
    manifests.write("slices.yaml", &slice("sample/hello", "http", redis.port, &[ready(SERVER)]))?;
    let _gateway = manifests.serve_with(&world, "auto_passthrough = true", Launch::default())?;
    let name = |port: u16, service: &str| format!("outbound_.{port}_._.{service}.sample.svc.cluster.local");
    assert_eq!(name_at(&world, 15443, &name(5000, "hello"))?, "v1");
    for unknown in [name(5001, "hello"), name(5000, "other"), "hello.sample.svc.cluster.local".to_owned()] {
        assert!(name_at(&world, 15443, &unknown).is_err(), "{unknown}");
    }
    Ok(())
}

#[test]
fn databases_on_one_address() -> Result<()> {
    let world = World::new()?;
    let (client, server) = (&world.net.client, &world.net.server);
    let leaf = world.authority.leaf(&["orders.db.example.com", "sessions.db.example.com"])?;
    let postgres = Postgres::start(server, 7432, "orders", Some(&leaf))?;
    let redis = Redis::tls(server, 7379, &leaf)?.named(server, "sessions")?;
    let _mongo = Backend::start(server, 7017, naming_and_holding("mongo"))?;
    let manifests = Manifests::new(Some("5-databases-one-address.yaml"))?;
    let service = |name: &str, port: u16, target: u16| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: dbs }}\nspec: {{ ports: [{{ name: db, port: {port} }}] }}\n"
        ) + &slice(&format!("dbs/{name}"), "db", target, &[ready(SERVER)])
    };
    manifests.write(
        "services.yaml",
        &(service("orders-rw", 5432, postgres.port) + &service("carts", 27017, 7017)),
    )?;
    manifests.write("sessions.yaml", &service("sessions", 6379, redis.port))?;
    let gateway = manifests.serve(&world)?;
    let psql = |query: &str| {
        let mut psql = client.command("psql");
        let connection = format!(
            "host=orders.db.example.com hostaddr=10.0.1.1 port=5432 user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
            world.authority.path.display()
        );
        psql.args(["-X", "-A", "-t", "-c", query, &connection]);
        checked_output(&mut psql)
    };
    assert_eq!(psql("show cluster_name")?.trim(), "orders");
    assert_eq!(name_at(&world, 6379, "sessions.db.example.com")?, "sessions");
    let mut mongo = world.connect(27017)?;
    mongo.write_all(&snisplice_tests::tls::client_hello("carts.db.example.com", &[]))?;
    let mut name = [0; 5];
    mongo.read_exact(&mut name)?;
    assert_eq!(&name, b"mongo");

    // One of them is switched off and on, while another has a session.
    manifests.remove("sessions.yaml")?;
    eventually("the end of the one", || {
        name_at(&world, 6379, "sessions.db.example.com").is_err().then_some(())
    })?;
    assert_eq!(psql("show cluster_name")?.trim(), "orders");
    manifests.write("sessions.yaml", &service("sessions", 6379, redis.port))?;
    eventually("it again", || {
        (name_at(&world, 6379, "sessions.db.example.com").ok()? == "sessions").then_some(())
    })?;
    mongo.set_nonblocking(true)?;
    let still_open =
        matches!(mongo.read(&mut name), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
    ensure!(still_open, "the session has ended");
    assert_eq!(gateway.status()?.listener("gateway:27017", "active"), 1);
    Ok(())
}
