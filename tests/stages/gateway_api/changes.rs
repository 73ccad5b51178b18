//! What changes while connections are open: servers, certificates, grants, listeners.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use snisplice_tests::backend::{Backend, naming, naming_and_holding};
use snisplice_tests::threads::{NoThreads, can_be_bounded};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Redis, eventually, require};

use super::*;
use crate::openssl::SClient;
use crate::world::{World, answer};

/// A Gateway with a passthrough listener on port 443, a route for `app.example.com` to the Service `db/app`, port 1.
const PASSED: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: db }\n\
    spec:\n  gatewayClassName: edge\n  listeners:\n    - { name: tls, protocol: TLS, port: 443, tls: { mode: Passthrough } }\n\
    ---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: app, namespace: db }\n\
    spec:\n  parentRefs: [{ name: gw }]\n  hostnames: [app.example.com]\n  rules: [{ backendRefs: [{ name: app, port: 1 }] }]\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: { name: app, namespace: db }\nspec: { ports: [{ name: x, port: 1 }] }\n";

pub(super) fn still_open(stream: &mut TcpStream) -> Result<()> {
    stream.set_nonblocking(true)?;
    let read = stream.read(&mut [0]);
    stream.set_nonblocking(false)?;
    ensure!(matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{read:?}");
    Ok(())
}

#[test]
fn a_service_is_scaled_and_no_connection_is_lost() -> Result<()> {
    let world = World::new()?;
    let names = ["one", "two", "three", "four"];
    let mut backends = Vec::new();
    for (name, n) in names.into_iter().zip(11..) {
        world.net.server.address("eth0", &format!("10.0.2.{n}/24"))?;
        backends.push(Backend::start_on(
            &world.net.server,
            [10, 0, 2, n].into(),
            7001,
            naming_and_holding(name),
        )?);
    }
    let manifests = Manifests::new(None)?;
    manifests.write("app.yaml", PASSED)?;
    let scale = |count: usize| {
        let endpoints: Vec<_> = (11..).take(count).map(|n| ready(&format!("10.0.2.{n}"))).collect();
        manifests.write("slices.yaml", &slice("db/app", "x", 7001, &endpoints))
    };
    scale(1)?;
    let gateway = manifests.serve(&world)?;
    let generation = gateway.status()?.number("/config_generation");
    let open = || -> Result<(TcpStream, String)> {
        let mut stream = world.open("app.example.com")?;
        let mut name = [0; 16];
        let read = stream.read(&mut name)?;
        ensure!(read > 0, "refused");
        Ok((stream, String::from_utf8_lossy(&name[..read]).into_owned()))
    };
    let mut kept = vec![open()?];
    scale(4)?;
    let mut seen = std::collections::BTreeSet::new();
    eventually("all of them", || {
        let (stream, name) = open().ok()?;
        kept.push((stream, name.clone()));
        seen.insert(name);
        (seen.len() == 4).then_some(())
    })?;
    scale(1)?;
    gateway.wait_status("the first alone", |status| {
        status.0["pools"][0]["servers"].as_array().is_some_and(|servers| servers.len() == 1)
    })?;
    for _ in 0..6 {
        assert_eq!(open()?.1, "one");
    }
    for (stream, _) in &mut kept {
        still_open(stream)?;
    }
    // Endpoints alone make no new configuration.
    assert_eq!(gateway.status()?.number("/config_generation"), generation);
    // Without endpoints clients are refused, with nothing but the end of the connection.
    scale(0)?;
    eventually("no server", || open().is_err().then_some(()))?;
    assert_eq!(world.ask("app.example.com")?, "");
    // Nobody waits for a Service that has none.
    let ready = gateway.cli(["status"])?;
    ensure!(ready.status.success());
    Ok(())
}

#[test]
fn a_server_that_ends_serves_only_while_there_is_no_other() -> Result<()> {
    let world = World::new()?;
    world.net.server.address("eth0", "10.0.2.9/24")?;
    let _old = Backend::start_on(&world.net.server, [10, 0, 2, 2].into(), 7001, naming("old"))?;
    let _new = Backend::start_on(&world.net.server, [10, 0, 2, 9].into(), 7001, naming("new"))?;
    let manifests = Manifests::new(None)?;
    manifests.write("app.yaml", PASSED)?;
    let ending = format!(
        "{{ addresses: [{SERVER}], conditions: {{ ready: false, serving: true, terminating: true }} }}"
    );
    manifests.write("slices.yaml", &slice("db/app", "x", 7001, std::slice::from_ref(&ending)))?;
    let _gateway = manifests.serve(&world)?;
    assert_eq!(world.ask("app.example.com")?, "old");
    manifests.write("slices.yaml", &slice("db/app", "x", 7001, &[ending, ready("10.0.2.9")]))?;
    eventually("the new one", || (world.ask("app.example.com").ok()? == "new").then_some(()))?;
    for _ in 0..4 {
        assert_eq!(world.ask("app.example.com")?, "new");
    }
    Ok(())
}

/// The same as [`PASSED`], but with TLS ended at the gateway with the Secret `certs/app`.
fn ended(grant: bool) -> String {
    let text = PASSED
        .replace("tls: { mode: Passthrough }", "tls: { certificateRefs: [{ name: app, namespace: certs }] }");
    assert_ne!(text, PASSED);
    let granted = "---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: { name: g, namespace: certs }\n\
                   spec:\n  from: [{ group: gateway.networking.k8s.io, kind: Gateway, namespace: db }]\n  to: [{ group: \"\", kind: Secret }]\n";
    if grant { text + granted } else { text }
}

#[test]
fn a_rotated_secret_is_for_new_handshakes() -> Result<()> {
    let world = World::new()?;
    let redis = Redis::plain(&world.net.server, 7001)?;
    let manifests = Manifests::new(None)?;
    manifests.write("app.yaml", &(ended(true) + &slice("db/app", "x", redis.port, &[ready(SERVER)])))?;
    let issue = |serial: u64| -> Result<()> {
        let leaf = world
            .authority
            .leaf_as(&["app.example.com"], |params| params.serial_number = Some(serial.into()))?;
        manifests.write("secret.yaml", &secret("certs/app", &leaf)?)
    };
    issue(0x1111)?;
    let gateway = manifests.serve(&world)?;
    let mut open = SClient::start(&world, "app.example.com", ["-showcerts"])?;
    open.type_in("ping\r\n")?;
    open.wait_for("+PONG")?;
    let serial = || -> Result<String> {
        let mut openssl = world.net.client.command("sh");
        openssl.args([
            "-c",
            "openssl s_client -connect 10.0.1.1:443 -servername app.example.com </dev/null 2>/dev/null | openssl x509 -noout -serial",
        ]);
        Ok(snisplice_tests::process::checked_output(&mut openssl)?.trim().to_owned())
    };
    assert_eq!(serial()?, "serial=1111");
    issue(0x2222)?;
    eventually("the new certificate", || (serial().ok()? == "serial=2222").then_some(()))?;
    open.type_in("echo still\r\n")?;
    open.wait_for("still")?;
    // One that cannot be used ends the route, and says so; nobody gets the one before.
    manifests.write("secret.yaml", "---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: { name: app, namespace: certs }\ndata: { tls.crt: eA==, tls.key: eA== }\n")?;
    eventually("no certificate", || serial().is_err().then_some(()))?;
    let object = wait_object(&gateway, "Gateway", "gw", "what is wrong", |object| {
        conditions(&object["status"]["listeners"][0]["conditions"])
            .contains(&"ResolvedRefs=False InvalidCertificateRef".to_owned())
    })?;
    let said = object.to_string();
    assert!(said.contains("tls.crt"), "{said}");
    issue(0x3333)?;
    eventually("the next certificate", || (serial().ok()? == "serial=3333").then_some(()))?;
    open.type_in("echo alive\r\n")?;
    open.wait_for("alive")?;
    Ok(())
}

#[test]
fn a_grant_that_is_revoked_ends_what_it_allowed() -> Result<()> {
    let world = World::new()?;
    let redis = Redis::plain(&world.net.server, 7001)?;
    let manifests = Manifests::new(None)?;
    let leaf = world.authority.leaf(&["app.example.com"])?;
    manifests.write(
        "secret.yaml",
        &(secret("certs/app", &leaf)? + &slice("db/app", "x", redis.port, &[ready(SERVER)])),
    )?;
    manifests.write("app.yaml", &ended(true))?;
    let gateway = manifests.serve(&world)?;
    let reached = || {
        let mut session = SClient::start(&world, "app.example.com", ["-quiet"])?;
        session.type_in("ping\r\n")?;
        session.wait_for("+PONG")
    };
    reached()?;
    manifests.write("app.yaml", &ended(false))?;
    wait_object(&gateway, "Gateway", "gw", "the revocation", |object| {
        conditions(&object["status"]["listeners"][0]["conditions"])
            .contains(&"ResolvedRefs=False RefNotPermitted".to_owned())
    })?;
    let refused = SClient::start(&world, "app.example.com", ["-quiet"])?.wait_end()?;
    assert!(!refused.contains("alert"), "{refused}");
    manifests.write("app.yaml", &ended(true))?;
    wait_object(&gateway, "Gateway", "gw", "the grant", |object| {
        conditions(&object["status"]["listeners"][0]["conditions"])
            .contains(&"ResolvedRefs=True ResolvedRefs".to_owned())
    })?;
    reached()
}

#[test]
fn a_directory_that_is_a_volume_of_kubernetes_is_swapped_as_a_whole() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, naming("app"))?;
    let volume = Manifests(TempDir::new()?);
    let version = |number: u32, host: &str| -> Result<()> {
        let data = format!("..{number}");
        fs::create_dir(volume.0.join(&data))?;
        let text = CLASS.to_owned()
            + &PASSED.replace("app.example.com", host)
            + &slice("db/app", "x", 7001, &[ready(SERVER)]);
        fs::write(volume.0.join(&data).join("all.yaml"), text)?;
        symlink(&data, volume.0.join("..tmp"))?;
        Ok(fs::rename(volume.0.join("..tmp"), volume.0.join("..data"))?)
    };
    version(1, "one.example.com")?;
    symlink("..data/all.yaml", volume.0.join("all.yaml"))?;
    let _gateway = volume.serve(&world)?;
    assert_eq!(world.ask("one.example.com")?, "app");
    version(2, "two.example.com")?;
    eventually("the second version", || (world.ask("two.example.com").ok()? == "app").then_some(()))?;
    assert_eq!(world.ask("one.example.com")?, "");
    Ok(())
}

#[test]
fn shares_of_backends_that_cannot_be_had_are_refused() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, naming("app"))?;
    let manifests = Manifests::new(None)?;
    let text = PASSED
        .replace("{ name: app, port: 1 }", "{ name: app, port: 1, weight: 3 }, { name: gone, port: 1 }");
    manifests.write("app.yaml", &(text + &slice("db/app", "x", 7001, &[ready(SERVER)])))?;
    let _gateway = manifests.serve(&world)?;
    let mut answers = Vec::new();
    for _ in 0..40 {
        let mut stream = world.connect(443)?;
        stream.write_all(&client_hello("app.example.com", &[]))?;
        answers.push(answer(stream));
    }
    let served = answers.iter().filter(|answer| *answer == "app").count();
    let refused = answers.iter().filter(|answer| answer.is_empty()).count();
    assert_eq!((served, refused), (30, 10));
    Ok(())
}

#[test]
fn a_change_that_could_not_be_looked_at_is_looked_at_later() -> Result<()> {
    require!(can_be_bounded(), "the threads of a process cannot be bounded here (no cgroup of pids)");
    let world = World::new()?;
    let _one = Backend::start(&world.net.server, 7001, naming("one"))?;
    let _two = Backend::start(&world.net.server, 7002, naming("two"))?;
    let manifests = Manifests::new(None)?;
    manifests.write("app.yaml", PASSED)?;
    manifests.write("slices.yaml", &slice("db/app", "x", 7001, &[ready(SERVER)]))?;
    let gateway = manifests.serve(&world)?;
    assert_eq!(world.ask("app.example.com")?, "one");
    let bounded = NoThreads::of(gateway.process.pid())?;
    manifests.write("slices.yaml", &slice("db/app", "x", 7002, &[ready(SERVER)]))?;
    eventually("the failure", || gateway.process.stderr().contains("cannot start a thread").then_some(()))?;
    assert_eq!(world.ask("app.example.com")?, "one");
    drop(bounded);
    eventually("the other server", || (world.ask("app.example.com").ok()? == "two").then_some(()))?;
    // And the next change.
    manifests.write("app.yaml", &PASSED.replace("app.example.com", "new.example.com"))?;
    eventually("the other name", || (world.ask("new.example.com").ok()? == "two").then_some(()))?;
    Ok(())
}
