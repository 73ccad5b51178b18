//! close: SIGTERM lets live connections finish, for a bounded time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::Value;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, eventually};

use crate::config::one_route;
use crate::world::World;
use snisplice_tests::backend::{Backend, echo};

const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway with one live connection, over which something was said.
fn scene(world: &World, drain_timeout: &str) -> Result<(Backend, Gateway, TcpStream)> {
    let backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&format!("[gateway]\ndrain_timeout = '{drain_timeout}'\n{}", one_route()))?;
    let hello = client_hello("app1.example.com", &[]);
    let mut stream = world.connect(443)?;
    stream.write_all(&hello)?;
    stream.read_exact(&mut vec![0; hello.len()])?;
    Ok((backend, gateway, stream))
}

fn says(stream: &mut TcpStream, text: &[u8]) -> Result<()> {
    stream.write_all(text)?;
    let mut seen = vec![0; text.len()];
    stream.read_exact(&mut seen)?;
    assert_eq!(seen, text);
    Ok(())
}

/// Of the routed connection: the attempts of a test to connect again may be in the log as well.
fn close_reason(gateway: &Gateway) -> Result<Value> {
    let log = gateway.access_log()?;
    Ok(log.iter().find(|line| line["route"] == "app1").context("no line")?["close_reason"].clone())
}

#[test]
fn after_sigterm_a_live_connection_goes_on_until_it_ends_and_no_new_one_begins() -> Result<()> {
    let world = World::new()?;
    let (_backend, mut gateway, mut stream) = scene(&world, "1m")?;
    gateway.process.signal(Signal::SIGTERM)?;
    eventually("the listener to close", || world.connect(443).is_err().then_some(()))?;
    says(&mut stream, b"still here")?;
    assert!(gateway.process.is_running());
    drop(stream);
    assert_eq!(gateway.process.wait(PATIENCE)?.code(), Some(0));
    assert_eq!(close_reason(&gateway)?, "client_closed");
    Ok(())
}

#[test]
fn the_drain_timeout_ends_what_is_still_live() -> Result<()> {
    let world = World::new()?;
    let (_backend, mut gateway, mut stream) = scene(&world, "500ms")?;
    gateway.process.signal(Signal::SIGTERM)?;
    assert!(gateway.process.wait(PATIENCE)?.success());
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    assert_eq!(close_reason(&gateway)?, "shutdown");
    Ok(())
}

#[test]
fn a_second_sigterm_does_not_wait() -> Result<()> {
    let world = World::new()?;
    let (_backend, mut gateway, stream) = scene(&world, "1h")?;
    gateway.process.signal(Signal::SIGTERM)?;
    eventually("the listener to close", || world.connect(443).is_err().then_some(()))?;
    assert!(gateway.process.is_running());
    gateway.process.signal(Signal::SIGTERM)?;
    gateway.process.wait(PATIENCE)?;
    assert_eq!(close_reason(&gateway)?, "shutdown");
    drop(stream);
    Ok(())
}

#[test]
fn operators_who_are_still_connected_hold_nothing_up() -> Result<()> {
    let world = World::new()?;
    let mut gateway = world.gateway(&format!("[gateway]\nadmin = '127.0.0.1:9900'\n{}", one_route()))?;
    // As many as are served at a time.
    let ask = || world.net.gateway.run(|| TcpStream::connect(("127.0.0.1", 9900)));
    let _browsers: Vec<_> = (0..64).map(|_| ask()).collect::<std::io::Result<_>>()?;
    let socket = gateway.state_dir()?.join("admin.sock");
    let mut operators = Vec::new();
    for _ in 0..32 {
        let mut operator = UnixStream::connect(&socket)?;
        operator.write_all(b"{}\n")?;
        operator.read_exact(&mut [0])?;
        operators.push(operator);
    }
    gateway.process.signal(Signal::SIGTERM)?;
    assert_eq!(gateway.process.wait(PATIENCE)?.code(), Some(0));
    Ok(())
}

#[test]
fn a_gateway_without_connections_stops_at_once_on_ctrl_c() -> Result<()> {
    let world = World::new()?;
    let (_backend, mut gateway, stream) = scene(&world, "1h")?;
    drop(stream);
    gateway.wait_access_log(1)?;
    gateway.process.signal(Signal::SIGINT)?;
    assert_eq!(gateway.process.wait(PATIENCE)?.code(), Some(0));
    Ok(())
}
