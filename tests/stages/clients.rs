//! accept, route: what one client address may have, and that nobody takes another's place.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use snisplice_tests::backend::{Backend, echo, naming_and_holding};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, eventually, proxy, topology};

use crate::config::{listener, passthrough, pool, route};
use crate::openssl::SClient;
use crate::tolerance::metrics;
use crate::world::World;

const NAME: &str = "app1.example.com";
const FLOODER: &str = "10.0.1.2";
const OTHER: &str = "10.0.1.3";

/// A listener with this, and a gateway with that; one more client address of each family.
fn scene(gateway: &str, of_listener: &str, of_route: &str) -> Result<(World, Backend, Gateway)> {
    let world = World::new()?;
    for address in ["10.0.1.3/24", "fd00:1::3/64", "fd00:1:0:1::2/48"] {
        world.net.client.address("eth0", address)?;
    }
    world.net.gateway.ip("route add fd00:1:0:1::/64 dev front")?;
    let backend = Backend::start(&world.net.server, 7001, naming_and_holding("one"))?;
    let config = format!("[gateway]\nadmin = '127.0.0.1:9900'\n{gateway}\n")
        + &listener(&format!("bind = ['0.0.0.0:443', '[::]:443']\n{of_listener}"))
        + &route("app1", NAME, &format!("tls = 'passthrough'\n{of_route}"))
        + &passthrough("app2", "app2.example.com")
        + &pool("app1", &[7001], "")
        + &pool("app2", &[7001], "");
    let gateway = world.gateway(&config)?;
    Ok((world, backend, gateway))
}

/// A connection from this address; `None`: it was turned away so soon that it met the reset.
fn dial(world: &World, source: &str) -> Result<Option<TcpStream>> {
    let source: IpAddr = source.parse()?;
    let target = if source.is_ipv4() { topology::gateway(443) } else { topology::gateway6(443) };
    Ok(world.connect_from(source, target).ok())
}

/// A connection from this address that the server has answered; `None`: the client was turned away.
fn ask_for(world: &World, source: &str, sni: &str) -> Result<Option<TcpStream>> {
    let Some(mut stream) = dial(world, source)? else { return Ok(None) };
    let _ = stream.write_all(&client_hello(sni, &[]));
    let mut name = [0; 3];
    Ok(stream.read_exact(&mut name).is_ok_and(|()| name == *b"one").then_some(stream))
}

fn ask(world: &World, source: &str) -> Result<Option<TcpStream>> {
    ask_for(world, source, NAME)
}

fn rejects(gateway: &Gateway, reason: &str, number: u64) -> Result<()> {
    gateway.wait_status(reason, |status| status.rejects("databases", reason) == number).map(drop)
}

#[test]
fn a_client_that_opens_thousands_of_connections_takes_no_other_clients_place() -> Result<()> {
    const OPEN: usize = 40;
    const FLOOD: usize = 3000;
    // With all of the flooder's there is room for two more.
    let (world, _backend, gateway) = scene(
        &format!("max_connections = {}", OPEN + 2),
        &format!("client_rate = {{ open = {OPEN} }}\nhello_timeout = '1h'"),
        "",
    )?;
    let mut held = Vec::new();
    // Clients that say nothing, half a ClientHello, or a whole one.
    let hello = client_hello(NAME, &[]);
    for (number, said) in [0, 100, hello.len()].into_iter().cycle().take(OPEN).enumerate() {
        let mut stream = dial(&world, FLOODER)?.with_context(|| format!("connection {number}"))?;
        stream.write_all(&hello[..said])?;
        held.push(stream);
    }
    gateway.wait_status("the flood", |s| s.listener("databases", "active") == OPEN as u64)?;
    let mut more = Vec::new();
    for _ in 0..FLOOD {
        // Half a ClientHello, and the connection is left open.
        if let Some(mut stream) = dial(&world, FLOODER)? {
            let _ = stream.write_all(&hello[..100]);
            more.push(stream);
        }
    }
    rejects(&gateway, "client_full", FLOOD as u64)?;
    let _first = ask(&world, OTHER)?.context("another client is not served")?;
    let _second = ask(&world, "fd00:1::2")?.context("a client of IPv6 is not served")?;
    gateway.wait_status("both", |s| s.listener("databases", "active") == OPEN as u64 + 2)?;
    ensure!(ask(&world, FLOODER)?.is_none(), "the flooder is served");
    ensure!(gateway.status()?.rejects("databases", "gateway_full") == 0);
    // What it has given back it may have again.
    drop(held.pop());
    eventually("a free place", || ask(&world, FLOODER).ok().flatten())?;
    let log = gateway.wait_access_log(FLOOD)?;
    ensure!(log.iter().any(|line| line["close_reason"] == "client_full"), "{:?}", log.last());
    ensure!(
        metrics(&world.net.gateway)?
            .contains("snisplice_rejects_total{listener=\"databases\",reason=\"client_full\"} 300")
    );
    Ok(())
}

#[test]
fn a_client_opens_no_more_than_its_rate_and_a_reload_does_not_change_that() -> Result<()> {
    let (world, _backend, gateway) = scene("", "client_rate = { connections = 4, per = '1h' }", "")?;
    for number in 0..4 {
        // Open or not does not matter.
        ensure!(ask(&world, FLOODER)?.is_some(), "connection {number}");
    }
    for number in 1..4 {
        ensure!(ask(&world, FLOODER)?.is_none(), "served beyond its rate");
        rejects(&gateway, "client_rate", number)?;
        ensure!(ask(&world, OTHER)?.is_some(), "another client is refused");
        gateway.reload()?;
    }
    ensure!(gateway.status()?.rejects("databases", "client_rate") == 3);
    Ok(())
}

#[test]
fn the_addresses_of_a_64_are_one_client() -> Result<()> {
    let (world, _backend, gateway) = scene("", "client_rate = { open = 1 }", "")?;
    let _held = ask(&world, "fd00:1::2")?.context("the first")?;
    ensure!(ask(&world, "fd00:1::3")?.is_none(), "another address of the same /64 is served");
    rejects(&gateway, "client_full", 1)?;
    ensure!(ask(&world, "fd00:1:0:1::2")?.is_some(), "another /64 is refused");
    Ok(())
}

#[test]
fn a_routes_rate_counts_apart_and_an_end_gives_the_place_back() -> Result<()> {
    let (world, _backend, gateway) = scene("", "client_rate = { open = 3 }", "client_rate = { open = 1 }")?;
    let held = ask(&world, FLOODER)?.context("the first")?;
    // An alert, and the end.
    let output = SClient::start(&world, NAME, [""; 0])?.wait_end()?;
    ensure!(output.contains("alert internal error"), "{output}");
    rejects(&gateway, "route_client_full", 1)?;
    let _other_route = ask_for(&world, FLOODER, "app2.example.com")?.context("another route")?;
    let _other_client = ask(&world, OTHER)?.context("another client")?;
    drop(held);
    let _held = eventually("a free place", || ask(&world, FLOODER).ok().flatten())?;
    // With more allowed by the route, the listener's still holds, which has counted all the time.
    let config = std::fs::read_to_string(gateway.config_file())?;
    let config = config.replace("open = 1", "open = 9");
    ensure!(config.contains("open = 9"), "{config}");
    gateway.write_config_verbatim(&config)?;
    gateway.reload()?;
    let _third = ask(&world, FLOODER)?.context("under the new configuration")?;
    ensure!(ask(&world, FLOODER)?.is_none());
    rejects(&gateway, "client_full", 1)
}

#[test]
fn behind_a_proxy_its_clients_are_counted_and_not_the_proxy() -> Result<()> {
    let (world, _backend, gateway) = scene(
        "",
        "proxy_protocol = true\ntrusted_proxies = ['10.0.1.2/32']\nclient_rate = { open = 1 }",
        "client_rate = { connections = 100, open = 1 }",
    )?;
    let by_way = |client: &str| -> Result<Option<TcpStream>> {
        let mut stream = dial(&world, FLOODER)?.context("the proxy is turned away")?;
        let local: SocketAddr = topology::gateway(443);
        let (SocketAddr::V4(client), SocketAddr::V4(local)) = (client.parse()?, local) else {
            anyhow::bail!("IPv4")
        };
        stream.write_all(&proxy::header(client, local, 15))?;
        let _ = stream.write_all(&client_hello(NAME, &[]));
        let mut name = [0; 3];
        Ok(stream.read_exact(&mut name).is_ok_and(|()| name == *b"one").then_some(stream))
    };
    let _first = by_way("192.0.2.7:1000")?.context("a client")?;
    ensure!(by_way("192.0.2.7:1001")?.is_none(), "the same client once more");
    rejects(&gateway, "client_full", 1)?;
    let _second = by_way("192.0.2.8:1000")?.context("another client of the same proxy")?;
    // The proxy's own: whose they are nobody knows.
    let mut checks = Vec::new();
    for _ in 0..3 {
        let mut check = dial(&world, FLOODER)?.context("a check")?;
        check.write_all(b"PROXY UNKNOWN\r\n")?;
        check.write_all(&client_hello(NAME, &[]))?;
        check.read_exact(&mut [0; 3]).context("a check")?;
        checks.push(check);
    }
    ensure!(gateway.status()?.rejects("databases", "client_full") == 1);
    Ok(())
}

#[test]
fn a_hello_above_its_bound_is_refused_before_it_is_sent() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let hello = client_hello(NAME, &[]);
    let config = |bytes: usize| {
        listener(&format!("hello_bytes = {bytes}")) + &passthrough("app1", NAME) + &pool("app1", &[7001], "")
    };
    let gateway = world.gateway(&config(hello.len() - 1))?;
    let mut stream = world.connect(443)?;
    // Its length is here, and most of it will never be.
    stream.write_all(&hello[..9])?;
    let mut alert = Vec::new();
    let _ = stream.read_to_end(&mut alert);
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 50]);
    rejects(&gateway, "hello_too_large", 1)?;
    gateway.write_config(&config(hello.len()))?;
    gateway.reload()?;
    let mut stream = world.open(NAME)?;
    stream.read_exact(&mut vec![0; hello.len()])?;
    Ok(())
}
