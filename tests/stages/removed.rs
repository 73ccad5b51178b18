//! Reload: what becomes of connections whose route is gone, of those that are in the middle of their first words, and of
//! everybody else while very many routes are read.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice::kernel::version::{KernelVersion, sockmap_sound};
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::Duplex;
use snisplice_tests::skip::skipped;
use snisplice_tests::tls::{Client, client_hello};
use snisplice_tests::{Gateway, eventually};

use crate::config::{listener, one_route, pool, route};
use crate::world::World;

/// A gateway with the routes `passed`, `ended` (which ends TLS) and `other`, all toward one server that echoes.
struct Scene {
    gateway: Gateway,
    settings: String,
    _backend: Backend,
    client: Client,
    world: World,
}

impl Scene {
    /// `settings` are of the gateway, `extra` of both routes that are going to be removed.
    fn new(settings: &str, extra: &str) -> Result<Self> {
        let world = World::new()?;
        let backend = Backend::start(&world.net.server, 7001, echo)?;
        let leaf = world.authority.leaf(&["ended.example.com"])?;
        let ended = format!("tls = 'terminate'\ncertificate = {}\n{extra}", leaf.toml());
        let config = Self::left(settings) + &to_server("passed", extra) + &to_server("ended", &ended);
        let gateway = world.gateway(&config)?;
        let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
        Ok(Self { gateway, settings: settings.to_owned(), _backend: backend, client, world })
    }

    /// Without the routes that are removed.
    fn left(settings: &str) -> String {
        format!("[gateway]\n{settings}\n")
            + &listener("")
            + &to_server("other", "")
            + &pool("server", &[7001], "")
    }

    fn open(&self, name: &str) -> Result<Duplex> {
        let sni = format!("{name}.example.com");
        let mut duplex = match name {
            "ended" => self.client.connect(self.world.connect(443)?, &sni)?,
            _ => {
                let hello = client_hello(&sni, &[]);
                let mut stream = self.world.connect(443)?;
                stream.write_all(&hello)?;
                stream.read_exact(&mut vec![0; hello.len()])?;
                stream.try_into()?
            }
        };
        says(&mut duplex)?;
        Ok(duplex)
    }

    fn remove(&self) -> Result<()> {
        self.gateway.write_config(&Self::left(&self.settings))?;
        self.gateway.reload()
    }

    /// The line of the access log about the only connection of a route.
    fn logged(&self, route: &str) -> Result<Value> {
        eventually("the connection's line in the access log", || {
            self.gateway.access_log().ok()?.into_iter().find(|line| line["route"] == route)
        })
    }
}

/// A route toward the only pool.
fn to_server(name: &str, extra: &str) -> String {
    route(name, &format!("{name}.example.com"), &format!("backends = ['server']\n{extra}"))
}

/// The connection carries bytes both ways.
fn says(duplex: &mut Duplex) -> Result<()> {
    duplex.writer.write_all(b"still here")?;
    let mut seen = [0; 10];
    duplex.reader.read_exact(&mut seen)?;
    ensure!(&seen == b"still here");
    Ok(())
}

/// The connection ends, and not in order.
fn is_cut(duplex: &mut Duplex) -> Result<()> {
    let seen = duplex.reader.read(&mut [0; 1]);
    ensure!(seen.is_err(), "{seen:?} instead of a reset");
    Ok(())
}

/// Tiers of passed-through connections that this kernel can do.
fn tiers() -> Vec<&'static str> {
    match sockmap_sound(&KernelVersion::running().expect("the kernel has a version")) {
        Ok(()) => vec!["copy", "sockmap"],
        Err(fault) => {
            skipped(&format!("not in the sockmap tier: this kernel {fault}"));
            vec!["copy"]
        }
    }
}

fn only(tier: &str) -> String {
    let tiers = if tier == "copy" { "'copy'" } else { "'sockmap', 'copy'" };
    format!("tiers = [{tiers}]")
}

#[test]
fn connections_of_a_killed_route_are_reset_and_no_others() -> Result<()> {
    for tier in tiers() {
        let scene = Scene::new(&only(tier), "on_removal = 'kill'")?;
        let [mut passed, mut ended, mut other] = ["passed", "ended", "other"].map(|name| scene.open(name));
        scene.remove()?;
        for (name, duplex, tier) in [("passed", &mut passed, tier), ("ended", &mut ended, "copy")] {
            is_cut(duplex.as_mut().expect("it was open")).with_context(|| format!("{name} in {tier}"))?;
            let line = scene.logged(name)?;
            ensure!(line["close_reason"] == "route_removed" && line["tier"] == tier, "{line}");
        }
        says(other.as_mut().expect("it was open"))?;
        ensure!(scene.gateway.status()?.listener("databases", "active") == 1);
    }
    Ok(())
}

#[test]
fn connections_of_a_drained_route_may_end_until_the_timeout_is_over() -> Result<()> {
    for tier in tiers() {
        let settings = only(tier) + "\ndrain_timeout = '6s'";
        let scene = Scene::new(&settings, "on_removal = 'drain'")?;
        let (mut passed, mut ended) = (scene.open("passed")?, scene.open("ended")?);
        let leaves = scene.open("passed")?;
        scene.remove()?;
        says(&mut passed).context("passed, within the timeout")?;
        says(&mut ended).context("ended, within the timeout")?;
        drop(leaves);
        ensure!(scene.logged("passed")?["close_reason"] == "client_closed");
        is_cut(&mut passed)?;
        is_cut(&mut ended)?;
        ensure!(scene.logged("ended")?["close_reason"] == "route_removed");
    }
    Ok(())
}

#[test]
fn a_drained_route_that_returns_in_time_keeps_its_connections() -> Result<()> {
    let scene = Scene::new("drain_timeout = '6s'", "on_removal = 'drain'")?;
    let (mut passed, mut ended) = (scene.open("passed")?, scene.open("ended")?);
    scene.remove()?;
    scene.gateway.write_config(&(Scene::left(&scene.settings) + &to_server("passed", "")))?;
    scene.gateway.reload()?;
    // Removed at the same time, and not again there.
    is_cut(&mut ended)?;
    says(&mut passed)
}

#[test]
fn a_client_that_comes_before_the_reload_and_speaks_after_it_is_routed_as_before_and_then_reset() -> Result<()>
{
    let scene = Scene::new("", "on_removal = 'kill'")?;
    let mut early = scene.world.connect(443)?;
    scene.gateway.wait_status("it to be accepted", |status| status.listener("databases", "active") == 1)?;
    scene.remove()?;
    early.write_all(&client_hello("passed.example.com", &[]))?;
    // How far it gets is open.
    while matches!(early.read(&mut [0; 64]), Ok(1..)) {}
    let line = scene.logged("passed")?;
    ensure!(line["close_reason"] == "route_removed", "{line}");
    let late = scene.world.ask("passed.example.com")?;
    ensure!(late.as_bytes().starts_with(&[0x15]), "not an alert: {late:?}");
    Ok(())
}

const ROUTES: usize = 10_000;

/// The smallest gateway, and so many routes more.
fn very_many_routes() -> String {
    let mut config = one_route();
    for number in 0..ROUTES {
        let name = format!("r{number}");
        _ = write!(config, "{}", route(&name, &format!("{name}.example.com"), "backends = ['app1']"));
    }
    config
}

/// A passed-through connection to an echoing backend, over which the hello has come back.
fn live_connection(world: &World) -> Result<TcpStream> {
    let hello = client_hello("app1.example.com", &[]);
    let mut stream = world.connect(443)?;
    stream.write_all(&hello)?;
    stream.read_exact(&mut vec![0; hello.len()])?;
    Ok(stream)
}

#[test]
fn clients_are_served_while_ten_thousand_routes_are_read() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    // With one worker, nobody else could serve them.
    let gateway = world.gateway(&format!("[gateway]\nworkers = 1\n{}", very_many_routes()))?;
    let mut live = live_connection(&world)?;
    let served = thread::scope(|scope| -> Result<_> {
        let reload = scope.spawn(|| gateway.reload());
        let mut served = 0;
        while !reload.is_finished() {
            let mut said = [7];
            live.write_all(&said)?;
            live.read_exact(&mut said)?;
            drop(live_connection(&world)?);
            served += 1;
        }
        reload.join().expect("no assertion in there")?;
        Ok(served)
    })?;
    // The command alone takes as long as some of these rounds; the reload as long as hundreds.
    ensure!(served > 20, "{served}");
    Ok(())
}

#[test]
fn connections_do_not_keep_the_configurations_that_they_came_with() -> Result<()> {
    const RELOADS: usize = 10;
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&very_many_routes())?;
    let mut live = vec![live_connection(&world)?];
    let before = gateway.process.memory_kib("VmRSS")?;
    for _ in 0..RELOADS {
        gateway.reload()?;
        live.push(live_connection(&world)?);
    }
    let after = eventually("the configurations of the past to be let go of", || {
        gateway.process.memory_kib("VmRSS").ok().filter(|after| *after < before * 2)
    });
    after.with_context(|| format!("{before} KiB before, {:?} after", gateway.process.memory_kib("VmRSS")))?;
    for stream in &mut live {
        stream.write_all(&[7])?;
        stream.read_exact(&mut [0])?;
    }
    Ok(())
}

#[test]
fn what_is_said_of_very_many_routes_takes_memory_only_while_it_is_said() -> Result<()> {
    let world = World::new()?;
    let gateway = world.gateway(&format!("[gateway]\nadmin = '127.0.0.1:9900'\n{}", very_many_routes()))?;
    let memory = || gateway.process.memory_kib("VmRSS");
    // What was read of the configuration is given back beside the start.
    let before = eventually("the start to be over", || {
        let before = memory().ok()?;
        sleep(Duration::from_millis(200));
        (memory().ok()? == before).then_some(before)
    })?;
    let mut said = 0;
    for _ in 0..3 {
        let mut curl = world.net.gateway.command("curl");
        let url = "http://127.0.0.1:9900/metrics";
        said = checked_output(curl.args(["--fail", "--silent", url]))?.len() as u64 / 1024;
    }
    // Some of its pages have something in them that is still needed.
    eventually("the memory of the answers to go back", || {
        (memory().ok()?.saturating_sub(before) < said / 6).then_some(())
    })
    .with_context(|| format!("{before} KiB before, {:?} after answers of {said} KiB", memory()))
}
