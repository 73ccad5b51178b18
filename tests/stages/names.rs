//! connect: servers that are known by a name. The zone says of what it lacks that it may be taken for absent for a day.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use snisplice_tests::backend::{Backend, naming, naming_and_holding};
use snisplice_tests::process::checked_output;
use snisplice_tests::redis::tls_cli;
use snisplice_tests::{FailingNameServer, Gateway, Launch, NameServer, Redis, eventually, topology};

use crate::config::{listener, passthrough, route};
use crate::world::{World, silence, silenced};

/// Where the name server is; databases have others of the server's addresses.
const DNS: Ipv4Addr = topology::SERVER;

/// The default.
const ANSWERS: &str = "nameserver 10.0.2.2\n";

fn config(servers: &str, extra: &str) -> String {
    listener("")
        + &passthrough("app1", "app1.example.com")
        + &format!("[[pool]]\nname = 'app1'\nservers = [{servers}]\n{extra}\n")
}

fn world(addresses: &[&str]) -> Result<World> {
    let world = World::new()?;
    for address in addresses {
        world.net.server.address("eth0", address)?;
    }
    Ok(world)
}

fn start(world: &World, config: &str) -> Result<Gateway> {
    let launch = Launch { resolv_conf: Some(ANSWERS.to_owned()), ..Launch::default() };
    Gateway::start_with(&world.net.gateway, config, launch)
}

/// Waits until every server of the pool can be used.
fn resolved(gateway: &Gateway) -> Result<()> {
    let up = |status: &snisplice_tests::Status| {
        let servers = status.0["pools"][0]["servers"].as_array().cloned().unwrap_or_default();
        !servers.is_empty() && servers.iter().all(|server| server["state"] == "up")
    };
    gateway.wait_status("the names to be resolved", up).map(drop)
}

/// The addresses and the connections so far of each server of the pool.
fn members(gateway: &Gateway) -> Result<Vec<(String, u64)>> {
    let status = gateway.status()?;
    let servers = status.0["pools"][0]["servers"].as_array().context("a list")?.clone();
    let member =
        |server: serde_json::Value| Some((server["address"].as_str()?.to_owned(), server["total"].as_u64()?));
    servers.into_iter().map(member).collect::<Option<_>>().context("an address and a count")
}

#[test]
fn an_address_that_is_silent_costs_no_connection_and_is_remembered() -> Result<()> {
    let world = world(&["10.0.2.8/24", "10.0.2.9/24"])?;
    silence(&world.net.server, "ip daddr 10.0.2.8")?;
    let _backend = Backend::start_on(&world.net.server, [10, 0, 2, 9].into(), 7001, naming("nine"))?;
    let _names = NameServer::start(&world.net.server, DNS, "db A 10.0.2.8\ndb A 10.0.2.9")?;
    let gateway = start(&world, &config("'db.test:7001'", ""))?;
    resolved(&gateway)?;
    const CONNECTIONS: u64 = 6;
    for _ in 0..CONNECTIONS {
        assert_eq!(world.ask("app1.example.com")?, "nine");
    }
    let tried = silenced(&world.net.server)?;
    assert!((1..CONNECTIONS).contains(&tried), "the silent address was tried {tried} times");
    Ok(())
}

#[test]
fn addresses_of_both_families_are_tried() -> Result<()> {
    for (silent, good) in [("10.0.2.8", "fd00:2::9"), ("fd00:2::8", "10.0.2.9")] {
        let world = world(&["10.0.2.8/24", "10.0.2.9/24", "fd00:2::8/64", "fd00:2::9/64"])?;
        let family = |address: &str| if address.contains(':') { ("ip6", "AAAA") } else { ("ip", "A") };
        silence(&world.net.server, &format!("{} daddr {silent}", family(silent).0))?;
        let _backend = Backend::start_on(&world.net.server, good.parse()?, 7001, naming("good"))?;
        let records = [silent, good].map(|address| format!("db {} {address}", family(address).1)).join("\n");
        let _names = NameServer::start(&world.net.server, DNS, &records)?;
        let gateway = start(&world, &config("'db.test:7001'", ""))?;
        resolved(&gateway)?;
        for _ in 0..3 {
            assert_eq!(world.ask("app1.example.com")?, "good");
        }
    }
    Ok(())
}

#[test]
fn all_addresses_of_a_name_share_one_connect_timeout() -> Result<()> {
    let world = world(&["10.0.2.7/24", "10.0.2.8/24", "10.0.2.9/24"])?;
    silence(&world.net.server, "ip daddr { 10.0.2.7, 10.0.2.8 }")?;
    let _backend = Backend::start_on(&world.net.server, [10, 0, 2, 9].into(), 7001, naming("nine"))?;
    let records = "db A 10.0.2.7\ndb A 10.0.2.8\ndb A 10.0.2.9\nsilent A 10.0.2.7\nsilent A 10.0.2.8";
    let _names = NameServer::start(&world.net.server, DNS, records)?;
    // The third address has its turn within this time, too.
    let gateway = start(&world, &config("'db.test:7001'", "connect_timeout = '1500ms'"))?;
    resolved(&gateway)?;
    assert_eq!(world.ask("app1.example.com")?, "nine");
    gateway.write_config(&config("'silent.test:7001'", "connect_timeout = '1500ms'"))?;
    gateway.reload()?;
    assert_eq!(world.ask("app1.example.com")?, "");
    assert_eq!(gateway.wait_access_log(2)?[1]["close_reason"], "connect_timeout");
    Ok(())
}

#[test]
fn a_name_that_appears_is_found_though_its_zone_says_not_for_a_day() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("up"))?;
    let names = NameServer::start(&world.net.server, DNS, "")?;
    let gateway = start(&world, &config("'db.test:7001'", ""))?;
    let said = "cannot resolve; the addresses known stay in use";
    eventually("it not to be found", || gateway.process.stderr().contains(said).then_some(()))?;
    assert_eq!(world.ask("app1.example.com")?, "");
    assert_eq!(gateway.wait_access_log(1)?[0]["close_reason"], "no_server");
    names.change("db A 10.0.2.2")?;
    resolved(&gateway)?;
    assert_eq!(world.ask("app1.example.com")?, "up");
    Ok(())
}

#[test]
fn a_failed_query_says_nothing_of_the_addresses_of_its_family() -> Result<()> {
    let world = world(&["10.0.2.8/24", "10.0.2.9/24", "fd00:2::8/64"])?;
    silence(&world.net.server, "ip6 daddr fd00:2::8")?;
    let _backend = Backend::start_on(&world.net.server, [10, 0, 2, 9].into(), 7001, naming("nine"))?;
    let behind = [10, 0, 2, 8];
    let names = NameServer::start(&world.net.server, behind, "db A 10.0.2.9\ndb AAAA fd00:2::8")?;
    let front = FailingNameServer::start(&world.net.server, DNS, behind)?;
    let gateway = start(&world, &config("'db.test:7001'", "connect_timeout = '1s'"))?;
    resolved(&gateway)?;
    assert_eq!(world.ask("app1.example.com")?, "nine");

    front.fail(FailingNameServer::A);
    // Several look-ups, though each may ask twice.
    eventually("queries to fail", || (front.failed() >= 6).then_some(()))?;
    assert_eq!(world.ask("app1.example.com")?, "nine");
    let log = gateway.process.stderr();
    ensure!(log.contains("cannot resolve; the addresses known stay in use") && log.contains("(A)"), "{log}");
    let output = gateway.cli(["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.contains("cannot resolve db.test: "), "{said}");
    assert_eq!(world.ask("app1.example.com")?, "nine");

    // The name has no such address: now it goes.
    names.change("db AAAA fd00:2::8")?;
    front.fail(0);
    eventually("the address to go", || world.ask("app1.example.com").ok().filter(String::is_empty))?;
    Ok(())
}

#[test]
fn a_changed_resolv_conf_is_followed() -> Result<()> {
    let world = world(&["10.0.2.8/24", "10.0.2.9/24"])?;
    let _old = Backend::start_on(&world.net.server, [10, 0, 2, 8].into(), 7001, naming("old"))?;
    let _new = Backend::start_on(&world.net.server, [10, 0, 2, 9].into(), 7001, naming("new"))?;
    let _first = NameServer::start(&world.net.server, DNS, "db 86400 A 10.0.2.8")?;
    let _second = NameServer::start(&world.net.server, [10, 0, 2, 9], "db 86400 A 10.0.2.9")?;
    let gateway = start(&world, &config("'db.test:7001'", ""))?;
    resolved(&gateway)?;
    assert_eq!(world.ask("app1.example.com")?, "old");
    fs::write(gateway.file("resolv.conf"), "nameserver 10.0.2.9\n")?;
    eventually("the other name server's answer", || {
        world.ask("app1.example.com").ok().filter(|name| name == "new")
    })?;
    Ok(())
}

#[test]
fn a_reload_looks_every_name_up_and_says_which_is_not_there() -> Result<()> {
    let world = world(&["10.0.2.8/24", "10.0.2.9/24"])?;
    let _old = Backend::start_on(&world.net.server, [10, 0, 2, 8].into(), 7001, naming("old"))?;
    let _new = Backend::start_on(&world.net.server, [10, 0, 2, 9].into(), 7001, naming("new"))?;
    let names = NameServer::start(&world.net.server, DNS, "db 86400 A 10.0.2.8")?;
    let gateway = start(&world, &config("'db.test:7001'", ""))?;
    resolved(&gateway)?;
    assert_eq!(world.ask("app1.example.com")?, "old");

    names.change("db 86400 A 10.0.2.9\ntext TXT \"no address\"\n_s._tcp SRV 0 1 7001 gone")?;
    let servers = "'db.test:7001', 'missing.test:7001', 'text.test:7001', 'srv:_s._tcp.test'";
    gateway.write_config(&config(servers, ""))?;
    // The name server takes its time to read the zone.
    let said = eventually("the new zone", || {
        let output = gateway.cli(["reload"]).ok().filter(|output| output.status.success())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        said.contains("text.test: the name has no address").then_some(said)
    })?;
    for missing in [
        "cannot resolve missing.test: no such name",
        "cannot resolve text.test: the name has no address",
        "cannot resolve gone.test.: no such name",
    ] {
        ensure!(said.contains(missing), "{missing:?} is not in {said}");
    }
    assert!(!said.contains("db.test"), "{said}");
    let log = gateway.process.stderr();
    ensure!(log.contains("missing.test") && log.contains("no such name"), "{log}");
    // The answer to the reload came after those of the name server.
    for _ in 0..3 {
        assert_eq!(world.ask("app1.example.com")?, "new");
    }
    Ok(())
}

#[test]
fn a_reload_does_not_wait_for_a_name_server_that_is_silent() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("up"))?;
    let names = NameServer::start(&world.net.server, DNS, "db 86400 A 10.0.2.2")?;
    let gateway = start(&world, &config("'db.test:7001'", ""))?;
    resolved(&gateway)?;
    silence(&world.net.server, "udp dport 53")?;
    let output = gateway.cli(["reload"])?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.contains("cannot resolve db.test: no answer within 5s yet"),
        "{said}"
    );
    assert_eq!(world.ask("app1.example.com")?, "up");
    drop(names);
    Ok(())
}

#[test]
fn the_servers_of_a_service_come_and_go_with_its_records() -> Result<()> {
    let world = world(&["10.0.2.8/24", "10.0.2.9/24"])?;
    // Ports come from the records.
    let held = |port, address: [u8; 4], name| {
        Backend::start_on(&world.net.server, address.into(), port, naming_and_holding(name))
    };
    let _eight = held(7001, [10, 0, 2, 8], "eight")?;
    let _nine = held(7002, [10, 0, 2, 9], "nine")?;
    let hosts = "eight A 10.0.2.8\nnine A 10.0.2.9\n";
    let (first, second) = ("_s._tcp SRV 0 1 7001 eight\n", "_s._tcp SRV 0 1 7002 nine\n");
    let names = NameServer::start(&world.net.server, DNS, &(hosts.to_owned() + first))?;
    let admin = "[gateway]\nadmin = '127.0.0.1:9900'\n".to_owned();
    let gateway = start(&world, &(admin + &config("'srv:_s._tcp.test'", "balance = 'round-robin'")))?;
    let shown = |path: &str, what: &str| -> Result<()> {
        let url = format!("http://127.0.0.1:9900{path}");
        let text = checked_output(world.net.gateway.command("curl").args(["--fail", "--silent", &url]))?;
        ensure!(text.contains(what), "{what} is not in {text}");
        Ok(())
    };
    resolved(&gateway)?;
    let mut open = world.open("app1.example.com")?;
    let mut word = [0; 5];
    open.read_exact(&mut word)?;
    assert_eq!(&word, b"eight");

    names.change(&(hosts.to_owned() + first + second))?;
    gateway.wait_status("both", |s| s.server("app1", "nine.test:7002")["state"] == "up")?;
    for _ in 0..4 {
        world.ask_and_hang_up("app1.example.com")?;
    }
    let both = [("eight.test:7001".to_owned(), 3), ("nine.test:7002".to_owned(), 2)];
    assert_eq!(members(&gateway)?, both);
    shown("/metrics", "snisplice_server_up{pool=\"app1\",server=\"nine.test:7002\"} 1")?;
    // What the status page draws.
    shown("/status", "nine.test:7002")?;
    names.change(&(hosts.to_owned() + second))?;
    let only = [("nine.test:7002".to_owned(), 2)];
    eventually("the first to go", || members(&gateway).ok().filter(|members| *members == only))?;
    assert_eq!(world.ask_and_hang_up("app1.example.com")?, "nine");
    // Its connection stays, and counts when it returns.
    assert_eq!(gateway.connections()?[0]["server"], "eight.test:7001");
    names.change(&(hosts.to_owned() + first + second))?;
    gateway.wait_status("both again", |s| s.server("app1", "eight.test:7001")["active"] == 1)?;
    drop(open);
    gateway.wait_status("its end", |s| s.server("app1", "eight.test:7001")["active"] == 0)?;

    // Not offered at all.
    names.change(&(hosts.to_owned() + "_s._tcp SRV 0 0 0 ."))?;
    gateway.wait_status("none", |s| s.server("app1", "srv:_s._tcp.test")["state"] == "unresolved")?;
    shown("/metrics", "snisplice_server_up{pool=\"app1\",server=\"srv:_s._tcp.test\"} 0")?;
    assert_eq!(world.ask_and_hang_up("app1.example.com")?, "");
    Ok(())
}

#[test]
fn priorities_and_weights_of_a_service_are_those_of_its_records() -> Result<()> {
    let world = world(&["10.0.2.7/24", "10.0.2.8/24", "10.0.2.9/24"])?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let redis = |port, name| Redis::plain(&world.net.server, port)?.named(&world.net.server, name);
    let mut light = redis(6381, "light")?;
    let mut heavy = redis(6382, "heavy")?;
    let _later = redis(6383, "later")?;
    let records = "seven A 10.0.2.7\neight A 10.0.2.8\nnine A 10.0.2.9\n\
                   _redis._tcp SRV 20 0 6383 nine\n_redis._tcp SRV 10 1 6381 seven\n_redis._tcp SRV 10 3 6382 eight";
    let _names = NameServer::start(&world.net.server, DNS, records)?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let config = listener("")
        + &route("app1", "app1.example.com", &terminate)
        + "[[pool]]\nname = 'app1'\nservers = ['srv:_redis._tcp.test']\nbalance = 'round-robin'\n";
    let gateway = start(&world, &config)?;
    resolved(&gateway)?;
    let ask = || -> Result<String> {
        let gateway = topology::GATEWAY.to_string();
        let mut cli = tls_cli(&world.net.client, &gateway, 443, "app1.example.com", &world.authority.path);
        Ok(checked_output(cli.args(["get", "name"]))?.trim().to_owned())
    };
    let eight = (0..8).map(|_| ask()).collect::<Result<Vec<_>>>()?;
    let count = |name| eight.iter().filter(|seen| *seen == name).count();
    assert_eq!((count("light"), count("heavy")), (2, 6), "{eight:?}");

    // Of the lowest priority one is left, and then none.
    heavy.process.stop()?;
    assert_eq!([ask()?, ask()?, ask()?], ["light", "light", "light"]);
    light.process.stop()?;
    assert_eq!([ask()?, ask()?], ["later", "later"]);
    Ok(())
}
