//! Servers and pools that an operator drains: no new connections, over reloads and restarts.

use std::fs;

use anyhow::{Result, ensure};
use snisplice_tests::Gateway;
use snisplice_tests::backend::{Backend, naming};

use crate::config::{listener, one_route, passthrough, pool, server};
use crate::world::World;

const NAME: &str = "app1.example.com";

fn config() -> String {
    listener("") + &passthrough("app1", NAME) + &pool("app1", &[7001, 7002], "")
}

fn told(gateway: &Gateway, args: [&str; 2]) -> Result<()> {
    let output = gateway.cli(args)?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    Ok(())
}

/// The states of both servers.
fn states(gateway: &Gateway) -> Result<[String; 2]> {
    let status = gateway.status()?;
    Ok([7001, 7002]
        .map(|port| status.server("app1", &server(port))["state"].as_str().unwrap_or("none").into()))
}

struct Scene {
    gateway: Gateway,
    _backends: [Backend; 2],
    world: World,
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let backends = [
            Backend::start(&world.net.server, 7001, naming("one"))?,
            Backend::start(&world.net.server, 7002, naming("two"))?,
        ];
        let gateway = world.gateway(&config())?;
        Ok(Self { gateway, _backends: backends, world })
    }

    /// Who answers six connections, each once.
    fn answers(&self) -> Result<Vec<String>> {
        let mut names: Vec<_> = (0..6).map(|_| self.world.ask(NAME)).collect::<Result<_>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }
}

#[test]
fn a_drained_server_stays_drained_over_a_reload_a_restart_and_a_crash() -> Result<()> {
    let mut scene = Scene::new()?;
    ensure!(scene.answers()? == ["one", "two"]);
    told(&scene.gateway, ["drain", &format!("app1/{}", server(7001))])?;
    ensure!(states(&scene.gateway)? == ["draining", "up"] && scene.answers()? == ["two"]);
    scene.gateway.reload()?;
    ensure!(states(&scene.gateway)? == ["draining", "up"] && scene.answers()? == ["two"]);
    scene.gateway.restart()?;
    ensure!(states(&scene.gateway)? == ["draining", "up"] && scene.answers()? == ["two"]);
    scene.gateway.kill_and_restart()?;
    ensure!(states(&scene.gateway)? == ["draining", "up"] && scene.answers()? == ["two"]);
    told(&scene.gateway, ["undrain", &format!("app1/{}", server(7001))])?;
    scene.gateway.restart()?;
    ensure!(states(&scene.gateway)? == ["up", "up"] && scene.answers()? == ["one", "two"]);
    Ok(())
}

#[test]
fn a_drained_pool_takes_no_connection_with_all_the_servers_it_gets() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.gateway.write_config(&one_route())?;
    scene.gateway.reload()?;
    told(&scene.gateway, ["drain", "app1"])?;
    ensure!(scene.world.ask(NAME)?.is_empty());
    // A new server is drained, too.
    scene.gateway.write_config(&config())?;
    scene.gateway.reload()?;
    ensure!(states(&scene.gateway)? == ["draining", "draining"] && scene.answers()? == [""]);
    scene.gateway.restart()?;
    ensure!(states(&scene.gateway)? == ["draining", "draining"] && scene.answers()? == [""]);
    ensure!(scene.gateway.access_log()?.iter().any(|line| line["close_reason"] == "no_server"));

    // What is said of a server holds beside it.
    let first = format!("app1/{}", server(7001));
    told(&scene.gateway, ["drain", &first])?;
    told(&scene.gateway, ["undrain", "app1"])?;
    ensure!(states(&scene.gateway)? == ["draining", "up"] && scene.answers()? == ["two"]);
    told(&scene.gateway, ["drain", "app1"])?;
    let refused = scene.gateway.cli(["undrain", &first])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && why.contains("snisplice undrain app1"), "{why}");
    for unknown in ["nowhere", "app1/10.9.9.9:1", "app1/"] {
        ensure!(!scene.gateway.cli(["drain", unknown])?.status.success(), "{unknown}");
    }
    Ok(())
}

#[test]
fn what_is_not_configured_any_more_is_forgotten_and_the_log_says_so() -> Result<()> {
    let mut scene = Scene::new()?;
    let second = format!("app1/{}", server(7002));
    told(&scene.gateway, ["drain", &second])?;
    scene.gateway.write_config(&one_route())?;
    scene.gateway.reload()?;
    ensure!(scene.gateway.process.stderr().contains(&second));
    scene.gateway.write_config(&config())?;
    scene.gateway.reload()?;
    ensure!(states(&scene.gateway)? == ["up", "up"]);

    // The same at a start; and a file that nobody can have meant stops nothing.
    let file = scene.gateway.file("state").join("drained");
    ensure!(fs::read_to_string(&file)?.is_empty());
    fs::write(
        &file,
        format!("gone\ngone/10.0.0.1:1\napp1/10.0.0.1:1\napp1/no address\n\n{second}\n\u{1b}[2J\n"),
    )?;
    scene.gateway.restart()?;
    ensure!(states(&scene.gateway)? == ["up", "draining"] && scene.answers()? == ["one"]);
    let log = scene.gateway.process.stderr();
    ensure!(log.contains("\"app1/10.0.0.1:1\"") && !log.contains("\u{1b}[2J"), "{log}");
    ensure!(fs::read_to_string(&file)? == format!("{second}\n"));
    Ok(())
}
