//! Servers whose connections fail have a rest from them.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Result;
use snisplice_tests::backend::{Backend, naming, read_record};
use snisplice_tests::eventually;

use super::{state, wait_states};
use crate::config::{listener, passthrough, pool};
use crate::world::World;

fn config(ports: &[u16], eject: &str) -> String {
    listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", ports, eject)
}

/// Resets the connection instead of an answer.
fn resetting(mut stream: TcpStream) -> io::Result<()> {
    read_record(&mut stream)?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
}

/// Connects until the server has been ejected so many times, and gives for how long each time.
fn ejections(world: &World, gateway: &snisplice_tests::Gateway, number: usize) -> Result<Vec<String>> {
    eventually(&format!("{number} ejections"), || {
        let _ = world.ask("app1.example.com");
        let said = gateway.process.stderr();
        let ejected = said.lines().filter(|line| line.contains("ejected: connections to it fail"));
        let times: Vec<_> = ejected
            .filter_map(|line| line.split_whitespace().find_map(|word| word.strip_prefix("time=")))
            .map(str::to_owned)
            .collect();
        (times.len() >= number).then_some(times)
    })
}

#[test]
fn a_server_that_cannot_be_reached_is_ejected_for_a_time_that_grows() -> Result<()> {
    let world = World::new()?;
    let _one = Backend::start(&world.net.server, 7001, naming("one"))?;
    let gateway = world.gateway(&config(&[7001, 7002], "eject = { failures = 3, time = '100ms' }"))?;
    assert_eq!(ejections(&world, &gateway, 3)?[..3], ["100ms", "200ms", "400ms"]);

    gateway.write_config(&config(&[7001, 7002], "eject = { failures = 1, time = '1h' }"))?;
    gateway.reload()?;
    ejections(&world, &gateway, 4)?;
    wait_states(&gateway, "app1", &[(7001, "up"), (7002, "down: ejected")])?;
    let failed = || -> Result<u64> { Ok(gateway.status()?.route("app1", "total")) };
    let before = failed()?;
    for _ in 0..6 {
        assert_eq!(world.ask("app1.example.com")?, "one");
    }
    assert_eq!(failed()?, before + 6);
    Ok(())
}

#[test]
fn a_server_that_resets_before_its_first_byte_is_ejected() -> Result<()> {
    let world = World::new()?;
    let _one = Backend::start(&world.net.server, 7001, naming("one"))?;
    let _two = Backend::start(&world.net.server, 7002, resetting)?;
    let gateway = world.gateway(&config(&[7001, 7002], "eject = { failures = 3, time = '1h' }"))?;
    ejections(&world, &gateway, 1)?;
    let status = gateway.status()?;
    assert_eq!((&*state(&status, "app1", 7001), &*state(&status, "app1", 7002)), ("up", "down: ejected"));
    for _ in 0..6 {
        assert_eq!(world.ask("app1.example.com")?, "one");
    }
    Ok(())
}

#[test]
fn the_last_server_is_never_ejected() -> Result<()> {
    let world = World::new()?;
    let eject = "eject = { failures = 1, time = '1h' }";
    let gateway = world.gateway(&config(&[7001, 7002], eject))?;
    for _ in 0..6 {
        assert_eq!(world.ask("app1.example.com")?, "");
    }
    let status = gateway.status()?;
    let states = [7001, 7002].map(|port| state(&status, "app1", port));
    let ejected = states.iter().filter(|state| *state == "down: ejected").count();
    assert_eq!((ejected, states.contains(&"up".to_owned())), (1, true), "{states:?}");
    // The ejected one is still there for those that have no other.
    let log = gateway.wait_access_log(6)?;
    assert!(log.iter().all(|line| line["close_reason"] == "connect_failed"), "{log:?}");
    let port = if states[0] == "up" { 7002 } else { 7001 };
    let _back = Backend::start(&world.net.server, port, naming("back"))?;
    assert_eq!(world.ask("app1.example.com")?, "back");
    Ok(())
}
