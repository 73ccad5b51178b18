//! Reload: routes, pools and certificates change for new connections only.

use std::fs::{self, File, FileTimes};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use snisplice_tests::certs::Leaf;
use snisplice_tests::process::checked_output;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Redis, TempDir, eventually};

use crate::config::{listener, one_route, passthrough, pool, route, server};
use crate::openssl::SClient;
use crate::world::World;
use snisplice_tests::backend::{Backend, echo, naming};

/// A passed-through connection to an echoing backend, over which the hello has come back.
fn live_connection(world: &World) -> Result<TcpStream> {
    let hello = client_hello("app1.example.com", &[]);
    let mut stream = world.connect(443)?;
    stream.write_all(&hello)?;
    stream.read_exact(&mut vec![0; hello.len()])?;
    Ok(stream)
}

fn still_works(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still here")?;
    let mut seen = [0; 10];
    stream.read_exact(&mut seen)?;
    assert_eq!(&seen, b"still here");
    Ok(())
}

#[test]
fn sighup_adds_a_route_and_leaves_live_connections_and_counts_alone() -> Result<()> {
    let world = World::new()?;
    let _app1 = Backend::start(&world.net.server, 7001, echo)?;
    let _app2 = Backend::start(&world.net.server, 7002, naming("two"))?;
    let gateway = world.gateway(&one_route())?;
    let mut live = live_connection(&world)?;
    assert!(!world.ask("app2.example.com")?.contains("two"));

    gateway.write_config(
        &(one_route() + &passthrough("app2", "app2.example.com") + &pool("app2", &[7002], "")),
    )?;
    gateway.sighup()?;
    eventually("the new route", || world.ask("app2.example.com").ok().filter(|name| name == "two"))?;

    still_works(&mut live)?;
    let status = gateway.status()?;
    assert_eq!((status.route("app1", "active"), status.route("app1", "total")), (1, 1));
    assert!(status.rejects("databases", "unknown_sni") >= 1);
    assert_eq!(gateway.connections()?.len(), 1);
    Ok(())
}

#[test]
fn a_removed_route_serves_its_live_connections_to_their_end() -> Result<()> {
    let world = World::new()?;
    let _app1 = Backend::start(&world.net.server, 7001, echo)?;
    let _app2 = Backend::start(&world.net.server, 7002, naming("two"))?;
    let gateway = world.gateway(&one_route())?;
    let mut live = live_connection(&world)?;

    let config = listener("") + &passthrough("app2", "app2.example.com") + &pool("app2", &[7002], "");
    gateway.write_config(&config)?;
    gateway.reload()?;
    assert_eq!(world.ask("app2.example.com")?, "two");
    let alert = world.ask("app1.example.com")?;
    assert!(alert.as_bytes().starts_with(&[0x15]), "not an alert: {alert:?}");

    still_works(&mut live)?;
    assert_eq!(gateway.status()?.listener("databases", "active"), 1);
    drop(live);
    let closed = eventually("its line in the access log", || {
        gateway.access_log().ok()?.into_iter().find(|line| line["route"] == "app1")
    })?;
    assert_eq!(closed["close_reason"], "client_closed");
    Ok(())
}

#[test]
fn a_changed_pool_is_used_by_the_next_connection() -> Result<()> {
    let world = World::new()?;
    let _old = Backend::start(&world.net.server, 7001, naming("old"))?;
    let _new = Backend::start(&world.net.server, 7002, naming("new"))?;
    let gateway = world.gateway(&one_route())?;
    assert_eq!(world.ask("app1.example.com")?, "old");
    gateway.write_config(&one_route().replace(&server(7001), &server(7002)))?;
    gateway.reload()?;
    for _ in 0..4 {
        assert_eq!(world.ask("app1.example.com")?, "new");
    }
    gateway.wait_status("the counts of both", |s| s.route("app1", "total") == 5)?;
    Ok(())
}

#[test]
fn a_reload_names_each_key_that_waits_for_the_next_start_and_applies_the_others() -> Result<()> {
    let world = World::new()?;
    let _app1 = Backend::start(&world.net.server, 7001, echo)?;
    let mut gateway = world.gateway(&format!("[gateway]\ntiers = ['copy']\nworkers = 1\n{}", one_route()))?;
    let mut live = live_connection(&world)?;
    let changed =
        "[gateway]\ntiers = ['packet', 'copy']\nworkers = 2\nflow_table = 4096\ndrain_timeout = '200ms'\n";
    gateway.write_config(&format!("{changed}{}", one_route()))?;
    let output = gateway.cli(["reload"])?;
    let told = String::from_utf8(output.stderr)?;
    let waits =
        |key: &str| format!("warning: gateway.{key} has changed: it takes effect at the next start\n");
    assert_eq!(told, [waits("workers"), waits("flow_table"), waits("tiers")].concat());
    still_works(&mut live)?;
    // The drain timeout in force is the new one: the connection is not waited for until it ends.
    gateway.process.signal(Signal::SIGTERM)?;
    assert!(gateway.process.wait(Duration::from_secs(20))?.success());
    assert!(!matches!(live.read(&mut [0]), Ok(1..)));
    Ok(())
}

#[test]
fn a_renewed_certificate_is_shown_to_the_next_client_of_every_worker() -> Result<()> {
    let world = World::new()?;
    let _redis = Redis::plain(&world.net.server, 6379)?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let config = format!("[gateway]\nworkers = 2\n{}", listener(""))
        + &route("app1", "app1.example.com", &terminate)
        + &pool("app1", &[6379], "");
    let gateway = world.gateway(&config)?;
    let certificate = || shown_certificate(&world);
    let mut live = SClient::start(&world, "app1.example.com", [] as [&str; 0])?;
    live.wait_for("Verification: OK")?;

    let old = certificate()?;
    assert_eq!(certificate()?, old);
    // The same files, new content.
    world.authority.leaf(&["app1.example.com"])?;
    gateway.reload()?;
    let new = certificate()?;
    assert_ne!(new, old);
    for _ in 0..6 {
        assert_eq!(certificate()?, new);
    }
    live.type_in("ECHO still-here\r\n")?;
    live.wait_for("still-here")
}

#[test]
fn a_bad_file_changes_nothing_and_reload_says_why() -> Result<()> {
    let world = World::new()?;
    let _app1 = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&one_route())?;
    let mut live = live_connection(&world)?;

    // The file is bad and still says where the gateway is found, which is all that the command reads in it.
    let good = std::fs::read_to_string(gateway.config_file())?;
    gateway.write_config_verbatim(&format!(
        "{good}\n[[listener]]\nname = 'more'\nbind = ['0.0.0.0:444']\nspeed = 'fast'\n"
    ))?;
    let output = gateway.cli(["reload"])?;
    assert!(!output.status.success());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("speed"), "{stderr}");

    still_works(&mut live)?;
    drop(live_connection(&world)?);
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_on_sighup_and_the_log_says_why() -> Result<()> {
    let world = World::new()?;
    let _app1 = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&one_route())?;
    let good = std::fs::read(gateway.config_file())?;
    let mut live = live_connection(&world)?;

    gateway.write_config_verbatim(
        "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:443']\nspeed = 'fast'\n",
    )?;
    gateway.sighup()?;
    eventually("the reason in the log", || gateway.process.stderr().contains("speed").then_some(()))?;
    still_works(&mut live)?;
    drop(live_connection(&world)?);

    std::fs::write(gateway.config_file(), good)?;
    gateway.reload()?;
    assert_eq!(gateway.status()?.route("app1", "total"), 2);
    Ok(())
}

/// The certificate that a client is shown.
fn shown_certificate(world: &World) -> Result<String> {
    let openssl = SClient::start(world, "app1.example.com", [] as [&str; 0])?;
    openssl.wait_for("END CERTIFICATE")?;
    let output = openssl.finish()?;
    let (_, pem) = output.split_once("BEGIN CERTIFICATE").context("it shows one")?;
    Ok(pem.split_once("END CERTIFICATE").context("it ends")?.0.to_owned())
}

/// A file of the same length and times as all others made here, whatever it holds.
fn uniform(path: &Path, content: &[u8]) -> Result<()> {
    let mut content = content.to_vec();
    // PEM takes any text around its sections.
    content.resize(4096, b'\n');
    let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all(&content)?;
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    Ok(file.set_times(FileTimes::new().set_modified(then).set_accessed(then))?)
}

/// A gateway that watches, and shows the certificate in these files.
fn watching(world: &World, chain: &Path, key: &Path) -> Result<Gateway> {
    let terminate = format!("tls = 'terminate'\ncertificate = {{ chain = {chain:?}, key = {key:?} }}");
    let config = format!("[gateway]\nwatch = true\n{}", listener(""))
        + &route("app1", "app1.example.com", &terminate)
        + &pool("app1", &[6379], "");
    world.gateway(&config)
}

/// Renews the certificate in some way, and waits for it to be shown.
fn is_followed(world: &World, renew: impl FnOnce(&Leaf) -> Result<()>) -> Result<()> {
    let old = shown_certificate(world)?;
    renew(&world.authority.leaf(&["app1.example.com"])?)?;
    eventually("the new certificate", || shown_certificate(world).ok().filter(|shown| *shown != old))?;
    Ok(())
}

#[test]
fn watch_sees_a_certificate_of_the_same_length_with_preserved_times() -> Result<()> {
    let world = World::new()?;
    let files = TempDir::new()?;
    let [chain, key, new] = ["tls.crt", "tls.key", "new"].map(|name| files.join(name));
    let write = |leaf: &Leaf| {
        uniform(&chain, &fs::read(&leaf.chain)?)?;
        uniform(&key, &fs::read(&leaf.key)?)
    };
    write(&world.authority.leaf(&["app1.example.com"])?)?;
    let _gateway = watching(&world, &chain, &key)?;
    is_followed(&world, write).context("written over")?;
    is_followed(&world, |leaf| {
        for (path, content) in [(&chain, &leaf.chain), (&key, &leaf.key)] {
            uniform(&new, &fs::read(content)?)?;
            fs::rename(&new, path)?;
        }
        Ok(())
    })
    .context("replaced")
}

/// As Kubernetes mounts a Secret.
#[test]
fn watch_follows_links_that_are_swapped() -> Result<()> {
    let world = World::new()?;
    let files = TempDir::new()?;
    let publish = |version: &str, leaf: &Leaf| -> Result<()> {
        fs::create_dir(files.join(version))?;
        uniform(&files.join(version).join("tls.crt"), &fs::read(&leaf.chain)?)?;
        uniform(&files.join(version).join("tls.key"), &fs::read(&leaf.key)?)?;
        symlink(version, files.join("..data_tmp"))?;
        Ok(fs::rename(files.join("..data_tmp"), files.join("..data"))?)
    };
    publish("..1", &world.authority.leaf(&["app1.example.com"])?)?;
    for name in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(name), files.join(name))?;
    }
    let _gateway = watching(&world, &files.join("tls.crt"), &files.join("tls.key"))?;
    is_followed(&world, |leaf| {
        publish("..2", leaf)?;
        Ok(fs::remove_dir_all(files.join("..1"))?)
    })
}

/// A client of before a reload keeps the gateway looking, several times a second, whether what it is routed by is still in use.
#[test]
fn watch_goes_on_while_a_silent_client_is_from_before_a_reload() -> Result<()> {
    let world = World::new()?;
    let config = format!("[gateway]\nwatch = true\n{}", listener("hello_timeout = '10m'"))
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;
    let _silent = world.connect(443)?;
    gateway.wait_status("the client", |s| s.listener("databases", "active") == 1)?;
    gateway.write_config(&config.replace("app1.example.com", "app2.example.com"))?;
    gateway.reload()?;
    let generation = gateway.status()?.0["config_generation"].clone();
    gateway.write_config(&config.replace("app1.example.com", "app3.example.com"))?;
    gateway.wait_status("another generation", |s| s.0["config_generation"] != generation)?;
    Ok(())
}

#[test]
fn watch_waits_for_a_certificate_that_a_new_configuration_names() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let gateway = watching(&world, &leaf.chain, &leaf.key)?;
    let old = shown_certificate(&world)?;
    let config = fs::read_to_string(gateway.config_file())?;
    let next = world.authority.leaf(&["next.example.com"])?;
    let hidden = next.chain.with_extension("hidden");
    fs::rename(&next.chain, &hidden)?;
    let config = config.replace("app1.example.com.crt", "next.example.com.crt");
    gateway.write_config_verbatim(&config.replace("app1.example.com.key", "next.example.com.key"))?;
    eventually("the reason in the log", || {
        gateway.process.stderr().contains("next.example.com.crt").then_some(())
    })?;
    fs::rename(&hidden, &next.chain)?;
    eventually("the new certificate", || shown_certificate(&world).ok().filter(|shown| *shown != old))?;
    Ok(())
}

#[test]
fn a_changed_backlog_is_that_of_the_sockets_that_listen() -> Result<()> {
    let world = World::new()?;
    let _app1 = Backend::start(&world.net.server, 7001, naming("one"))?;
    let config = |backlog: u32| one_route().replace("bind =", &format!("backlog = {backlog}\nbind ="));
    let gateway = world.gateway(&config(300))?;
    let backlogs = || -> Result<Vec<String>> {
        let mut ss = world.net.gateway.command("ss");
        let sockets = checked_output(ss.args(["-Hltn", "sport", "=", ":443"]))?;
        Ok(sockets.lines().filter_map(|line| Some(line.split_whitespace().nth(2)?.to_owned())).collect())
    };
    assert!(backlogs()?.iter().all(|backlog| backlog == "300"), "{:?}", backlogs()?);
    for backlog in [400, 200] {
        gateway.write_config(&config(backlog))?;
        gateway.reload()?;
        let found = backlogs()?;
        assert!(!found.is_empty() && found.iter().all(|found| *found == backlog.to_string()), "{found:?}");
        assert_eq!(world.ask("app1.example.com")?, "one");
    }
    Ok(())
}
