//! Health: servers are asked whether they work, and those that do not get no connections.

mod eject;
mod postgres;
mod redis;
mod servers;

use std::path::PathBuf;

use anyhow::{Context, Result};
use snisplice_tests::process::checked_output;
use snisplice_tests::{Gateway, Status, topology};

use crate::config::server;
use crate::world::World;

/// A listener of plain TCP at this port, with its route, toward a pool of its name.
fn tcp(name: &str, port: u16) -> String {
    format!(
        "[[listener]]\nname = '{name}'\nbind = ['0.0.0.0:{port}']\nprotocol = 'tcp'\n\
         [[route]]\nname = '{name}'\nlistener = '{name}'\nbackends = ['{name}']\n"
    )
}

/// The state of the server at a port, and why it is down.
fn state(status: &Status, pool: &str, port: u16) -> String {
    let server = status.server(pool, &server(port));
    let text = |key: &str| server[key].as_str().unwrap_or_default().to_owned();
    match &*text("reason") {
        "" => text("state"),
        reason => format!("{}: {reason}", text("state")),
    }
}

/// Waits until the servers of a pool are in these states.
fn wait_states(gateway: &Gateway, pool: &str, expected: &[(u16, &str)]) -> Result<Status> {
    gateway.wait_status(&format!("{pool} to be {expected:?}"), |status| {
        expected.iter().all(|(port, expected)| state(status, pool, *port) == *expected)
    })
}

/// A page of the admin address, with its status.
fn get(world: &World, path: &str) -> Result<String> {
    let mut curl = world.net.gateway.command("curl");
    checked_output(curl.args(["-s", "-w", "%{http_code}", &format!("http://127.0.0.1:9900{path}")]))
}

/// A sample of `/metrics`.
fn metric(world: &World, sample: &str) -> Result<u64> {
    let text = get(world, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(sample)).with_context(|| text.clone())?;
    Ok(line.trim().parse()?)
}

/// A file beside the configuration of a gateway that is not there yet.
fn secret(world: &World, name: &str, content: &str) -> Result<PathBuf> {
    let path = world.authority.path.with_file_name(name);
    std::fs::write(&path, content)?;
    Ok(path)
}

/// What redis-cli hears through the gateway's port.
fn redis(world: &World, port: u16, command: &[&str]) -> Result<String> {
    let mut cli = world.net.client.command("redis-cli");
    let host = topology::GATEWAY.to_string();
    checked_output(cli.args(["-h", &host, "-p", &port.to_string()]).args(command))
}
