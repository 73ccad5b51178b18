//! accept: both families, who may connect, how many, and what happens when the process runs out of files.

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Launch, topology};

use crate::config::{listener, one_route, passthrough, pool, route};
use crate::world::{World, answer, dial};
use snisplice_tests::backend::{Backend, echo, naming, naming_and_holding};
use std::io::{Read, Write};

#[test]
fn one_port_serves_both_families_at_once() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let config = listener("bind = ['0.0.0.0:443', '[::]:443']")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    for target in [topology::gateway(443), topology::gateway6(443)] {
        let mut stream = dial(&world.net.client, target)?;
        stream.write_all(&client_hello("app1.example.com", &[]))?;
        assert_eq!(answer(stream), "one", "{target}");
    }

    let log = gateway.wait_access_log(2)?;
    let clients: Vec<&str> = log.iter().filter_map(|line| line["client"].as_str()).collect();
    for client in ["10.0.1.2:", "[fd00:1::2]:"] {
        assert!(clients.iter().any(|seen| seen.starts_with(client)), "{client} in {clients:?}");
    }
    assert_eq!(gateway.status()?.listener("databases", "total"), 2);
    Ok(())
}

#[test]
fn a_listener_of_one_family_leaves_the_other_alone() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let config = listener("bind = ['[fd00:1::1]:443']")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    let _gateway = world.gateway(&config)?;

    let mut stream = dial(&world.net.client, topology::gateway6(443))?;
    stream.write_all(&client_hello("app1.example.com", &[]))?;
    assert_eq!(answer(stream), "one");
    assert!(world.connect(443).is_err());
    Ok(())
}

#[test]
fn deny_wins_over_allow_and_what_is_not_allowed_is_denied() -> Result<()> {
    let world = World::new()?;
    world.net.client.address("eth0", "10.0.1.3/24")?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let limits = "bind = ['0.0.0.0:443', '[::]:443']\nallow = ['10.0.1.0/24']\ndeny = ['10.0.1.3/32']";
    let config = listener(limits) + &passthrough("app1", "app1.example.com") + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    let ask = |source: &str, target| -> Result<String> {
        // Who is turned away at once may meet the reset while still connecting.
        let Ok(mut stream) = world.connect_from(source.parse::<IpAddr>()?, target) else {
            return Ok(String::new());
        };
        // The gateway may have closed already.
        let _ = stream.write_all(&client_hello("app1.example.com", &[]));
        Ok(answer(stream))
    };
    assert_eq!(ask("10.0.1.2", topology::gateway(443))?, "one");
    assert_eq!(ask("10.0.1.3", topology::gateway(443))?, "");
    assert_eq!(ask("fd00:1::2", topology::gateway6(443))?, "");
    gateway.wait_status("two denied clients", |s| s.rejects("databases", "address_denied") == 2)?;
    Ok(())
}

#[test]
fn the_gateways_limit_of_connections_holds_and_frees() -> Result<()> {
    let config = format!("[gateway]\nmax_connections = 2\n{}", one_route());
    limit_holds_and_frees(&config, "gateway_full")
}

#[test]
fn a_listeners_limit_of_connections_holds_and_frees() -> Result<()> {
    let config = listener("max_connections = 2")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    limit_holds_and_frees(&config, "listener_full")
}

#[test]
fn a_routes_limit_of_connections_holds_and_frees() -> Result<()> {
    let config = listener("")
        + &route("app1", "app1.example.com", "tls = 'passthrough'\nmax_connections = 2")
        + &pool("app1", &[7001], "");
    limit_holds_and_frees(&config, "route_full")
}

/// Two connections are served, a third is turned away and counted, and served once a place is free.
fn limit_holds_and_frees(config: &str, reason: &str) -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming_and_holding("one"))?;
    let gateway = world.gateway(config)?;
    let open = || -> Result<_> {
        // Who is turned away at once may meet the reset while still connecting.
        let Ok(mut stream) = world.connect(443) else { return Ok(None) };
        let _ = stream.write_all(&client_hello("app1.example.com", &[]));
        let mut name = [0; 3];
        Ok(stream.read_exact(&mut name).is_ok_and(|()| name == *b"one").then_some(stream))
    };

    let first = open()?.context("the first is served")?;
    let _second = open()?.context("the second is served")?;
    assert!(open()?.is_none(), "the third is served");
    gateway.wait_status("the third to be counted", |s| s.rejects("databases", reason) == 1)?;

    drop(first);
    gateway.wait_status("a free place", |s| s.listener("databases", "active") == 1)?;
    assert!(open()?.is_some(), "nobody is served after a place became free");
    Ok(())
}

#[test]
fn a_full_route_of_a_tcp_listener_closes_without_a_word_of_tls() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = "[[listener]]\nname = 'plain'\nbind = ['0.0.0.0:444']\nprotocol = 'tcp'\n".to_owned()
        + "[[route]]\nname = 'tcp'\nlistener = 'plain'\nmax_connections = 1\nbackends = [{ pool = 'tcp' }]\n"
        + &pool("tcp", &[7001], "");
    let gateway = world.gateway(&config)?;
    let mut first = world.connect(444)?;
    first.write_all(b"one")?;
    first.read_exact(&mut [0; 3])?;
    let mut said = Vec::new();
    let _ = world.connect(444)?.read_to_end(&mut said);
    assert_eq!(said, b"");
    gateway.wait_status("the second to be counted", |s| s.rejects("plain", "route_full") == 1)?;
    Ok(())
}

#[test]
fn a_process_out_of_files_waits_instead_of_spinning_and_recovers() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming_and_holding("one"))?;
    let launch = Launch { open_files: Some(64), ..Launch::default() };
    let gateway = Gateway::start_with(&world.net.gateway, &one_route(), launch)?;

    // Silent clients, twice as many as the process has descriptors: they complete in the backlog.
    let crowd: Vec<_> = (0..128).map(|_| world.connect(443)).collect::<Result<_>>()?;
    snisplice_tests::eventually("the descriptors to be used up", || {
        gateway.process.open_files().ok().filter(|&n| n >= 60)
    })?;
    let before = gateway.process.cpu_ticks()?;
    thread::sleep(Duration::from_secs(2));
    let used = gateway.process.cpu_ticks()? - before;
    assert!(used <= 20, "{used} of 200 ticks while nothing could be done");

    drop(crowd);
    let served = snisplice_tests::eventually("the gateway to serve again", || {
        world.ask_and_hang_up("app1.example.com").ok().filter(|name| name == "one")
    })?;
    assert_eq!(served, "one");
    Ok(())
}

#[test]
fn every_worker_takes_its_share_of_connections() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&format!("[gateway]\nworkers = 2\n{}", one_route()))?;
    // CPU time of each thread so far, in nanoseconds.
    let busy = || -> Result<HashMap<String, u64>> {
        let mut busy = HashMap::new();
        for task in fs::read_dir(format!("/proc/{}/task", gateway.process.pid()))? {
            let task = task?;
            let schedstat = fs::read_to_string(task.path().join("schedstat"))?;
            let nanoseconds = schedstat.split(' ').next().context("schedstat has three numbers")?.parse()?;
            busy.insert(task.file_name().to_string_lossy().into_owned(), nanoseconds);
        }
        Ok(busy)
    };

    let before = busy()?;
    let hello = client_hello("app1.example.com", &[]);
    for _ in 0..200 {
        let mut stream = world.connect(443)?;
        stream.write_all(&hello)?;
        stream.read_exact(&mut vec![0; hello.len()])?;
    }
    let worked = busy()?;
    let mut spent: Vec<u64> =
        worked.iter().map(|(task, ns)| ns - before.get(task).copied().unwrap_or(0)).collect();
    spent.sort_unstable_by(|a, b| b.cmp(a));
    // By chance alone each of two gets 100 with a deviation of 7.
    assert!(spent[1] > spent[0] / 4, "nanoseconds of each thread, busiest first: {spent:?}");
    gateway.wait_status("200 connections", |s| s.route("app1", "total") == 200)?;
    Ok(())
}
