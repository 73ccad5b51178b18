//! Connections in the packet tier whose route a reload takes away.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;

use snisplice_tests::pump::Duplex;

use crate::case::{Expect, config};
use crate::ends::Opening;
use crate::scene::{Scene, meets_reset};
use crate::strangers::settled;

/// The route's connections go elsewhere from here on: its name is gone.
fn rename(scene: &Scene, gateway: &str) -> Result<()> {
    let text = config(&scene.opening, scene.net.server_addresses[0], None, "");
    let text = text.replacen("name = 'app1'", "name = 'renamed'", 1);
    scene.gateway.write_config(&(gateway.to_owned() + &text))?;
    scene.gateway.reload()
}

fn are_reset(scene: &Scene, (client, server, said): (Duplex, TcpStream, u64)) -> Result<()> {
    meets_reset(&client.socket).context("the client")?;
    meets_reset(&server).context("the server")?;
    let log = scene.gateway.wait_access_log(1)?;
    ensure!(log[0]["close_reason"] == "route_removed" && log[0]["route"] == "app1", "{log:?}");
    ensure!(log[0]["bytes_in"].as_u64() >= Some(said + 4), "{log:?}");
    Expect::Packet.check(&log[0])
}

fn works(client: &mut Duplex, server: &mut TcpStream) -> Result<()> {
    server.write_all(b"x")?;
    client.reader.read_exact(&mut [0])?;
    client.writer.write_all(b"y")?;
    Ok(server.read_exact(&mut [0])?)
}

#[test]
fn a_connection_of_a_killed_route_is_reset_at_both_ends() -> Result<()> {
    let scene = Scene::new(Opening::default(), "on_removal = 'kill'")?;
    let connection = scene.connection()?;
    scene.spliced(1)?;
    rename(&scene, "")?;
    are_reset(&scene, connection)
}

#[test]
fn a_connection_of_a_drained_route_is_reset_when_the_timeout_is_over() -> Result<()> {
    const GATEWAY: &str = "[gateway]\ndrain_timeout = '6s'\n";
    let scene = Scene::with_gateway(Opening::default(), GATEWAY, "on_removal = 'drain'")?;
    let (mut client, mut server, said) = scene.connection()?;
    scene.spliced(1)?;
    rename(&scene, GATEWAY)?;
    works(&mut client, &mut server)?;
    are_reset(&scene, (client, server, said))
}

#[test]
fn a_connection_of_a_route_that_keeps_them_goes_on() -> Result<()> {
    let scene = Scene::new(Opening::default(), "")?;
    let (mut client, mut server, _) = scene.connection()?;
    scene.spliced(1)?;
    rename(&scene, "")?;
    let (_client, _server, _) = scene.connection()?;
    scene.spliced(2)?;
    works(&mut client, &mut server)
}

#[test]
fn an_adopted_connection_of_a_killed_route_is_reset_at_both_ends() -> Result<()> {
    let mut scene = Scene::new(Opening::default(), "on_removal = 'kill'")?;
    let connection = scene.connection()?;
    settled(&scene, "packet", 1)?;
    scene.gateway.kill_and_restart()?;
    scene.spliced(1)?;
    rename(&scene, "")?;
    are_reset(&scene, connection)
}

/// Nobody can tell any more what its route wanted.
#[test]
fn a_connection_whose_route_goes_while_no_process_runs_is_kept() -> Result<()> {
    let mut scene = Scene::new(Opening::default(), "on_removal = 'kill'")?;
    let (mut client, mut server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    scene.gateway.kill()?;
    let text = config(&scene.opening, scene.net.server_addresses[0], None, "");
    scene.gateway.write_config(&text.replacen("name = 'app1'", "name = 'renamed'", 1))?;
    scene.gateway.start_again()?;
    scene.spliced(1)?;
    scene.gateway.reload()?;
    scene.spliced(1)?;
    works(&mut client, &mut server)
}
