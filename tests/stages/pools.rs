//! connect: pools whose servers have bounds, backups, and shares of their own.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use snisplice_tests::backend::{Backend, naming, naming_and_holding};
use snisplice_tests::{Gateway, eventually};

use crate::config::{listener, passthrough, pool, route, server};
use crate::world::World;

const NAME: &str = "app1.example.com";

/// A pool of servers that may have so many connections each.
fn bounded(ports: &[u16], most: usize, extra: &str) -> String {
    let entry = |port: &u16| format!("{{ address = '{}', max_connections = {most} }}", server(*port));
    let servers: Vec<String> = ports.iter().map(entry).collect();
    let pool = format!("[[pool]]\nname = 'app1'\nservers = [{}]\n{extra}\n", servers.join(", "));
    listener("") + &passthrough("app1", NAME) + &pool
}

/// What a server says that holds the connection.
fn said(stream: &mut TcpStream) -> Result<String> {
    let mut word = [0; 3];
    stream.read_exact(&mut word)?;
    Ok(String::from_utf8_lossy(&word).into_owned())
}

fn change(gateway: &Gateway, config: &str) -> Result<()> {
    gateway.write_config(config)?;
    gateway.reload()
}

fn waiting(gateway: &Gateway, count: u64) -> Result<()> {
    eventually("connections to wait", || {
        (gateway.status().ok()?.number("/pools/0/waiting") == count).then_some(())
    })
}

#[test]
fn whoever_finds_all_servers_full_waits_for_one_to_end() -> Result<()> {
    let world = World::new()?;
    let backends =
        [7001, 7002].map(|port| Backend::start(&world.net.server, port, naming_and_holding("one")));
    let _backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
    let gateway = world.gateway(&bounded(&[7001, 7002], 1, "connect_timeout = '1m'"))?;
    let mut first = world.open(NAME)?;
    let mut second = world.open(NAME)?;
    assert_eq!((said(&mut first)?, said(&mut second)?), ("one".into(), "one".into()));
    let mut third = world.open(NAME)?;
    waiting(&gateway, 1)?;
    let mut fourth = world.open(NAME)?;
    waiting(&gateway, 2)?;
    let live = gateway.status()?;
    for port in [7001, 7002] {
        assert_eq!(live.server("app1", &server(port))["active"], 1);
    }
    // In the order of their arrival.
    drop(second);
    assert_eq!(said(&mut third).context("the third")?, "one");
    waiting(&gateway, 1)?;
    drop(first);
    assert_eq!(said(&mut fourth).context("the fourth")?, "one");
    waiting(&gateway, 0)
}

/// However long they wait, and whenever each has begun.
#[test]
fn those_who_wait_are_served_in_the_order_of_their_arrival() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming_and_holding("one"))?;
    let gateway = world.gateway(&bounded(&[7001], 8, "connect_timeout = '1m'"))?;
    let mut served = Vec::new();
    for _ in 0..8 {
        let mut stream = world.open(NAME)?;
        said(&mut stream)?;
        served.push(stream);
    }
    let mut waiters = Vec::new();
    for count in 1..=8 {
        waiters.push(world.open(NAME)?);
        waiting(&gateway, count)?;
        // Longer than a waiter waits before it looks again for itself, all together, and not a divisor of that.
        std::thread::sleep(std::time::Duration::from_millis(70));
    }
    for (number, waiter) in waiters.iter_mut().enumerate() {
        drop(served.pop());
        assert_eq!(said(waiter).with_context(|| format!("number {number} of those who wait"))?, "one");
    }
    Ok(())
}

#[test]
fn the_queue_is_as_long_as_the_servers_are_wide_and_its_patience_ends() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming_and_holding("one"))?;
    let gateway = world.gateway(&bounded(&[7001], 2, "connect_timeout = '8s'"))?;
    let mut served = [world.open(NAME)?, world.open(NAME)?];
    for stream in &mut served {
        said(stream)?;
    }
    let waiters = [world.open(NAME)?, world.open(NAME)?];
    waiting(&gateway, 2)?;
    // The first to end is the one that found the queue full, though it came last.
    let last = world.open(NAME)?;
    let mine = last.local_addr()?.to_string();
    assert_eq!(crate::world::answer(last), "");
    let line = &gateway.wait_access_log(1)?[0];
    assert_eq!((&line["client"], &line["close_reason"]), (&mine.into(), &"servers_full".into()));
    for line in &gateway.wait_access_log(3)?[1..] {
        assert_eq!(line["close_reason"], "servers_full");
    }
    drop(waiters);
    for stream in &mut served {
        stream.write_all(b"still there")?;
    }
    Ok(())
}

#[test]
fn a_reload_that_allows_more_lets_those_in_who_wait() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming_and_holding("one"))?;
    let config = |most| bounded(&[7001], most, "connect_timeout = '1m'");
    let gateway = world.gateway(&config(1))?;
    let mut first = world.open(NAME)?;
    said(&mut first)?;
    change(&gateway, &config(2))?;
    let mut second = world.open(NAME)?;
    assert_eq!(said(&mut second)?, "one");
    // Those of before the reload count.
    let _third = world.open(NAME)?;
    waiting(&gateway, 1)
}

/// One client has the only place and a second waits for it; after the reload to this both the second and a third are served.
fn lets_in_who_waits(after: &str) -> Result<()> {
    let world = World::new()?;
    let backends =
        [7001, 7002, 7003].map(|port| Backend::start(&world.net.server, port, naming_and_holding("one")));
    let _backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
    let gateway = world.gateway(&bounded(&[7001], 1, WITH_PATIENCE))?;
    let mut first = world.open(NAME)?;
    said(&mut first)?;
    let mut second = world.open(NAME)?;
    waiting(&gateway, 1)?;
    change(&gateway, after)?;
    let mut third = world.open(NAME)?;
    assert_eq!(said(&mut second).context("the one that waits")?, "one");
    assert_eq!(said(&mut third).context("the one that comes after the reload")?, "one");
    waiting(&gateway, 0)
}

/// Longer than a test waits for anything.
const WITH_PATIENCE: &str = "connect_timeout = '1m'";

#[test]
fn who_waits_over_a_reload_is_let_in_where_a_server_may_have_more() -> Result<()> {
    lets_in_who_waits(&bounded(&[7001], 3, WITH_PATIENCE))
}

#[test]
fn who_waits_over_a_reload_is_let_in_where_a_server_has_no_bound_any_more() -> Result<()> {
    lets_in_who_waits(&(listener("") + &passthrough("app1", NAME) + &pool("app1", &[7001], WITH_PATIENCE)))
}

#[test]
fn who_waits_over_a_reload_is_let_in_where_there_are_more_servers() -> Result<()> {
    lets_in_who_waits(&bounded(&[7001, 7002, 7003], 1, WITH_PATIENCE))
}

/// Those of before and after the reload do not look for the same thing.
#[test]
fn who_waits_for_servers_that_are_spoken_to_otherwise_is_in_nobodys_way() -> Result<()> {
    let world = World::new()?;
    let heard_and_holding = |mut stream: TcpStream| {
        let mut start = [0; 3];
        stream.read_exact(&mut start)?;
        stream.write_all(if start == *b"PRO" { b"v1 " } else { b"tls" })?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    };
    let _backend = Backend::start(&world.net.server, 7001, heard_and_holding)?;
    let gateway = world.gateway(&bounded(&[7001], 1, WITH_PATIENCE))?;
    let mut first = world.open(NAME)?;
    assert_eq!(said(&mut first)?, "tls");
    let mut second = world.open(NAME)?;
    waiting(&gateway, 1)?;
    change(&gateway, &bounded(&[7001], 2, &format!("{WITH_PATIENCE}\nsend_proxy = 'v1'")))?;
    let mut third = world.open(NAME)?;
    assert_eq!(said(&mut third).context("the one that comes after the reload")?, "v1 ");
    drop((first, third));
    assert_eq!(said(&mut second).context("the one that waits")?, "tls");
    Ok(())
}

#[test]
fn a_backup_serves_while_all_others_are_gone() -> Result<()> {
    let world = World::new()?;
    let ns = &world.net.server;
    let first = Backend::start(ns, 7001, naming("first"))?;
    let _backup = Backend::start(ns, 7002, naming("backup"))?;
    let servers = format!("[{{ address = '{}', backup = true }}, '{}']", server(7002), server(7001));
    let pool = format!("[[pool]]\nname = 'app1'\nservers = {servers}\n");
    let _gateway = world.gateway(&(listener("") + &passthrough("app1", NAME) + &pool))?;
    for _ in 0..4 {
        assert_eq!(world.ask(NAME)?, "first");
    }
    drop(first);
    for _ in 0..4 {
        assert_eq!(world.ask(NAME)?, "backup");
    }
    let _first = Backend::start(ns, 7001, naming("first"))?;
    eventually("the first to serve again", || (world.ask(NAME).ok()? == "first").then_some(()))
}

#[test]
fn another_pool_stands_in_where_the_route_says_so() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("up"))?;
    let config = |extra: &str| {
        let backends = format!(
            "backends = [{{ pool = 'dead', weight = 1 }}, {{ pool = 'live', weight = 1 }}, \
             {{ pool = 'never', weight = 0 }}]\n{extra}"
        );
        listener("")
            + &route("app1", NAME, &backends)
            + &pool("dead", &[7009], "")
            + &pool("live", &[7001], "")
            + &pool("never", &[7001], "")
    };
    let gateway = world.gateway(&config(""))?;
    let mut answers = (0..4).map(|_| world.ask(NAME)).collect::<Result<Vec<_>>>()?;
    answers.sort();
    assert_eq!(answers, ["", "", "up", "up"]);
    change(&gateway, &config("retry_other_pool = true"))?;
    for _ in 0..4 {
        assert_eq!(world.ask(NAME)?, "up");
    }
    for line in &gateway.wait_access_log(8)?[4..] {
        assert_eq!(line["pool"], "live");
    }
    Ok(())
}

/// Nothing of the client's is lost by then, so the next server can have it all.
#[test]
fn a_postgres_server_that_refuses_tls_is_passed_over() -> Result<()> {
    let world = World::new()?;
    let answering = |answer: &'static [u8; 1]| {
        move |mut stream: TcpStream| {
            stream.read_exact(&mut [0; 8])?;
            stream.write_all(answer)?;
            naming("up")(stream)
        }
    };
    let _refuses = Backend::start(&world.net.server, 7001, answering(b"N"))?;
    let _takes = Backend::start(&world.net.server, 7002, answering(b"S"))?;
    let config =
        listener("protocol = 'postgres'") + &passthrough("app1", NAME) + &pool("app1", &[7001, 7002], "");
    let gateway = world.gateway(&config)?;
    for _ in 0..4 {
        let mut stream = world.connect(443)?;
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        stream.read_exact(&mut [0])?;
        stream.write_all(&snisplice_tests::tls::client_hello(NAME, &[]))?;
        assert_eq!(crate::world::answer(stream), "up");
    }
    for line in gateway.wait_access_log(4)? {
        assert_eq!(line["server"], server(7002).as_str());
    }
    Ok(())
}

#[test]
fn a_server_that_is_back_gets_its_share_slowly() -> Result<()> {
    let world = World::new()?;
    let backends = [7001, 7002].map(|port| Backend::start(&world.net.server, port, naming("up")));
    let _backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
    let config = |extra| listener("") + &passthrough("app1", NAME) + &pool("app1", &[7001, 7002], extra);
    let gateway = world.gateway(&config("slow_start = '10h'"))?;
    let total = |port| -> Result<u64> {
        let status = gateway.status()?;
        status.server("app1", &server(port))["total"].as_u64().context("no total")
    };
    let ask = |times| (0..times).try_for_each(|_| world.ask(NAME).map(drop));
    ask(20)?;
    // At the start of the process nobody has to be spared.
    assert_eq!((total(7001)?, total(7002)?), (10, 10));
    for command in ["drain", "undrain"] {
        ensure!(gateway.cli([command, &format!("app1/{}", server(7002))])?.status.success());
    }
    ask(40)?;
    // Two hundred and fifty-six times fewer than its share: the chance of six or more of forty is 1 in 10^9.
    let (old, back) = (total(7001)? - 10, total(7002)? - 10);
    assert_eq!(old + back, 40);
    ensure!(back < 6, "{back} of 40");
    change(&gateway, &config("slow_start = '1ms'"))?;
    ask(20)?;
    assert_eq!(total(7002)? - 10 - back, 10);
    Ok(())
}

#[test]
fn of_two_servers_drawn_at_random_the_one_with_fewer_connections_is_taken() -> Result<()> {
    let world = World::new()?;
    let backends =
        [7001, 7002].map(|port| Backend::start(&world.net.server, port, naming_and_holding("one")));
    let _backends = backends.into_iter().collect::<Result<Vec<_>>>()?;
    let config =
        listener("") + &passthrough("app1", NAME) + &pool("app1", &[7001, 7002], "balance = 'random'");
    let gateway = world.gateway(&config)?;
    let mut open = Vec::new();
    for count in 1..=20 {
        let mut stream = world.open(NAME)?;
        said(&mut stream)?;
        open.push(stream);
        let status = gateway.status()?;
        let active = |port| status.server("app1", &server(port))["active"].as_u64();
        // Two of two are drawn each time: neither is ever more than one ahead.
        let (a, b) = (active(7001).context("none")?, active(7002).context("none")?);
        ensure!(a + b == count && a.abs_diff(b) <= 1, "{a} and {b}");
    }
    Ok(())
}

#[test]
fn misuse_is_told_with_what_to_do() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("up"))?;
    let config = listener("")
        + &route("app1", NAME, "retry_other_pool = true")
        + &pool("app1", &[7001], "balance = 'source-hash'\nslow_start = '30s'");
    let gateway = world.gateway(&config)?;
    let output = gateway.process.output();
    for words in ["`retry_other_pool` has no effect", "`slow_start` has no effect with `source-hash`"] {
        ensure!(output.contains(words), "{words}: {output}");
    }
    // It is served all the same.
    assert_eq!(world.ask(NAME)?, "up");
    Ok(())
}
