//! connect: servers that see the client's address (`source = "client"`), by the routing that docs/operating.md describes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use caps::Capability;
use nix::errno::Errno;
use snisplice_tests::backend::{Backend, echo, naming, read_record};
use snisplice_tests::gateway::binary;
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::{Duplex, Plan, exchange, reset_on_close};
use snisplice_tests::redis::tls_cli;
use snisplice_tests::skip::has_program;
use snisplice_tests::tls::client_hello;
use snisplice_tests::topology::{CLIENT, CLIENT6, GATEWAY, GATEWAY6, SERVER6, has_socket_match};
use snisplice_tests::{Gateway, Launch, Postgres, Redis, eventually, proxy, require, topology};

use crate::config::{listener, passthrough, pool, route};
use crate::world::World;

const BOTH: &str = "bind = ['0.0.0.0:443', '[::]:443']";
const CLIENTS: &str = "source = 'client'";
const SNI: &str = "app1.example.com";
const PATIENCE: Duration = Duration::from_secs(30);

const NO_MATCH: &str = "no nft, or a kernel without CONFIG_NFT_SOCKET";

/// A world whose answers are routed as documented.
fn world() -> Result<World> {
    let world = World::new()?;
    world.net.take_answers(None)?;
    Ok(world)
}

/// A pool of one server on the server's IPv6 address.
fn pool6(name: &str, port: u16, extra: &str) -> String {
    format!("[[pool]]\nname = '{name}'\nservers = ['[{SERVER6}]:{port}']\n{extra}\n")
}

/// A server that tells whom it has accepted, and waits for the end of the connection.
fn telling(world: &World, port: u16) -> Result<(Backend, Receiver<SocketAddr>)> {
    let (sender, peers) = mpsc::channel();
    let backend = Backend::start(&world.net.server, port, move |mut stream| {
        let peer = stream.peer_addr()?;
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        sender.send(peer).map_err(std::io::Error::other)?;
        read_record(&mut stream)?;
        stream.write_all(b"x")?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    })?;
    Ok((backend, peers))
}

/// Says hello on this connection, and waits until the server has answered.
fn served(mut stream: TcpStream, sni: &str) -> Result<TcpStream> {
    stream.write_all(&client_hello(sni, &[]))?;
    stream.read_exact(&mut [0]).context("the server's answer")?;
    Ok(stream)
}

#[test]
fn redis_lists_the_clients_address_passed_through_and_terminated() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    let names = ["app1.example.com", "app2.example.com", "app3.example.com", "app4.example.com"];
    let leaf = world.authority.leaf(&names)?;
    let _tls = Redis::tls(&world.net.server, 6381, &leaf)?;
    let _plain = Redis::plain(&world.net.server, 6379)?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let health = "health = { check = 'redis', interval = '200ms' }";
    let gateway = world.gateway(
        &(listener(BOTH)
            + &passthrough("passed4", names[0])
            + &route("ended4", names[1], &terminate)
            + &passthrough("passed6", names[2])
            + &route("ended6", names[3], &terminate)
            + &pool("passed4", &[6381], CLIENTS)
            + &pool("ended4", &[6379], &format!("{CLIENTS}\n{health}"))
            + &pool6("passed6", 6381, CLIENTS)
            + &pool6("ended6", 6379, CLIENTS)),
    )?;
    for (host, client, names) in [
        (IpAddr::from(GATEWAY), IpAddr::from(CLIENT), &names[..2]),
        (GATEWAY6.into(), CLIENT6.into(), &names[2..]),
    ] {
        for sni in names {
            let mut cli = tls_cli(&world.net.client, &host.to_string(), 443, sni, &world.authority.path);
            let listed = checked_output(cli.args(["client", "list"]))?;
            let of_client = format!(" addr={}:", bracketed(client));
            ensure!(listed.contains(&of_client), "{sni}: {listed}");
        }
    }
    // Checks come from the gateway itself.
    let status = gateway
        .wait_status("the check", |s| s.server("ended4", &crate::config::server(6379))["state"] == "up")?;
    ensure!(status.tier("copy", "total") == 4, "{status:?}");
    Ok(())
}

fn bracketed(ip: IpAddr) -> String {
    if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() }
}

#[test]
fn every_byte_arrives_in_both_directions() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    let plan = Plan::both_ways(8 << 20);
    let (sender, outcomes) = mpsc::channel();
    let mirrored = plan.mirrored();
    let _backend = Backend::start(&world.net.server, 7001, move |stream| {
        let peer = stream.peer_addr()?.ip().to_canonical();
        let outcome = exchange(Duplex::try_from(stream).map_err(std::io::Error::other)?, &mirrored);
        sender.send((peer, outcome)).map_err(std::io::Error::other)
    })?;
    let config = |bind: &str, pool: String| {
        format!(
            "[[listener]]\nname = 'databases'\nbind = ['{bind}']\nprotocol = 'tcp'\n[[route]]\nname = 'app1'\n\
                 listener = 'databases'\nbackends = ['app1']\n{pool}"
        )
    };
    for (client, target, bind, pool) in [
        (IpAddr::from(CLIENT), topology::gateway(443), "0.0.0.0:443", pool("app1", &[7001], CLIENTS)),
        (CLIENT6.into(), topology::gateway6(443), "[::]:443", pool6("app1", 7001, CLIENTS)),
    ] {
        let _gateway = world.gateway(&config(bind, pool))?;
        let stream = crate::world::dial(&world.net.client, target)?;
        exchange(stream.try_into()?, &plan).context("the client")?;
        let (peer, outcome) = outcomes.recv_timeout(PATIENCE)?;
        outcome.context("the server")?;
        ensure!(peer == client, "{peer}");
    }
    Ok(())
}

#[test]
fn postgresql_decides_by_the_clients_address() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    require!(has_program("postgres"), "postgresql is not installed");
    let world = world()?;
    world.net.client.address("eth0", "10.0.1.3/24")?;
    let leaf = world.authority.leaf(&["db1.example.com", "db2.example.com"])?;
    // A name that stands in two pools: as the client, and as the gateway.
    let hba = format!("host all all {CLIENT}/32 trust\nhost all all 10.0.0.0/16 reject");
    let _server = Postgres::start_with(&world.net.server, 5431, "db1", Some(&leaf), &hba)?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let _gateway = world.gateway(
        &("[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:5432']\nprotocol = 'postgres'\n".to_owned()
            + &passthrough("db1", "db1.example.com")
            + &route("db2", "db2.example.com", &terminate)
            + &pool("db1", &[5431], CLIENTS)
            + &pool("db2", &[5431], CLIENTS)),
    )?;
    let psql = |host: &str, from: &str| {
        let mut psql = world.net.client.command("psql");
        let connection =
            format!("host={host} hostaddr={GATEWAY} user=postgres sslmode=require connect_timeout=20");
        // Which of its addresses the client takes.
        world.net.client.ip(&format!("route replace {GATEWAY} dev eth0 src {from}"))?;
        anyhow::Ok(psql.args(["-X", &connection, "-Atc", "select inet_client_addr()"]).output()?)
    };
    for host in ["db1.example.com", "db2.example.com"] {
        let known = psql(host, "10.0.1.2")?;
        ensure!(String::from_utf8_lossy(&known.stdout).trim() == CLIENT.to_string(), "{host}: {known:?}");
        let other = psql(host, "10.0.1.3")?;
        let said = String::from_utf8_lossy(&other.stderr).into_owned();
        ensure!(said.contains("rejects connection for host \"10.0.1.3\""), "{host}: {said}");
    }
    Ok(())
}

#[test]
fn who_a_trusted_proxy_speaks_for_is_the_client() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    let (_backend, peers) = telling(&world, 7001)?;
    let gateway = world.gateway(
        &(listener("proxy_protocol = true\ntrusted_proxies = ['10.0.1.2/32']")
            + &passthrough("app1", SNI)
            + &pool("app1", &[7001], CLIENTS)),
    )?;
    let says = |client: &str| -> Result<TcpStream> {
        let mut stream = world.connect(443)?;
        stream.write_all(&proxy::header(client.parse()?, "10.0.1.1:443".parse()?, 15))?;
        stream.write_all(&client_hello(SNI, &[]))?;
        Ok(stream)
    };
    // A host that does not exist: the gateway answers for it.
    let mut stream = says("10.0.1.77:5555")?;
    stream.read_exact(&mut [0])?;
    ensure!(peers.recv_timeout(PATIENCE)?.ip() == IpAddr::from([10, 0, 1, 77]));
    drop(stream);
    // What would make the kernel take the gateway's own address.
    for (lines, nobody) in ["0.0.0.0:5555", "224.0.0.1:5555"].into_iter().enumerate() {
        says(nobody)?.read_to_end(&mut Vec::new())?;
        let log = gateway.wait_access_log(lines + 2)?;
        let refused = log.iter().filter(|line| line["close_reason"] == "client_address_unusable");
        ensure!(refused.count() == lines + 1, "{log:?}");
    }
    ensure!(peers.try_recv().is_err(), "a client that has no address has reached the server");
    Ok(())
}

#[test]
fn the_same_port_of_two_clients_or_two_listeners_or_again_is_no_clash() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    world.net.client.address("eth0", "10.0.1.3/24")?;
    let (_backend, peers) = telling(&world, 7001)?;
    let gateway = |ports: &str| {
        world.gateway(
            &(format!("[gateway]\nsource_ports = '{ports}'\n")
                + &listener("bind = ['0.0.0.0:443', '0.0.0.0:444']")
                + &passthrough("app1", SNI)
                + &pool("app1", &[7001], CLIENTS)),
        )
    };
    let open = |client: &str, port: u16| {
        // A process that another test has just started may still hold the last socket.
        let stream = eventually("a free port", || {
            match world.connect_by(client.parse().ok()?, topology::gateway(port)) {
                Err(error) if error.downcast_ref() == Some(&Errno::EADDRNOTAVAIL) => None,
                result => Some(result),
            }
        })??;
        served(stream, SNI)
    };
    for (ports, is_kept) in [("10240-29999", false), ("30000-40000", true)] {
        let _gateway = gateway(ports)?;
        let held = [open("10.0.1.2:33333", 443)?, open("10.0.1.3:33333", 443)?, open("10.0.1.2:33333", 444)?];
        let seen: Vec<_> = held.iter().map(|_| peers.recv_timeout(PATIENCE)).collect::<Result<_, _>>()?;
        let ips: Vec<_> = seen.iter().map(|peer| peer.ip().to_string()).collect();
        ensure!(ips == ["10.0.1.2", "10.0.1.3", "10.0.1.2"], "{seen:?}");
        ensure!((seen[0].port() == 33333) == is_kept, "{ports}: {seen:?}");
        let mut all: Vec<_> = seen.iter().map(SocketAddr::port).collect();
        all.sort_unstable();
        all.dedup();
        ensure!(all.len() == 3, "one port twice toward one server: {seen:?}");
        // The same client comes again by its port, at once: after a reset nothing of its own keeps it from that.
        held.iter().try_for_each(reset_on_close)?;
        drop(held);
        for _ in 0..20 {
            reset_on_close(&open("10.0.1.2:33333", 443)?)?;
            ensure!(peers.recv_timeout(PATIENCE)?.ip() == IpAddr::from(CLIENT));
        }
    }
    Ok(())
}

#[test]
fn a_server_whose_answers_do_not_come_back_is_passed_over_and_not_ejected() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    world.net.client.address("eth0", "10.0.1.3/24")?;
    // The server knows another way to one of the clients, which ends nowhere.
    world.net.server.ip("route add blackhole 10.0.1.3/32")?;
    let (_backend, peers) = telling(&world, 7001)?;
    let extra = format!("{CLIENTS}\nconnect_timeout = '600ms'\neject = {{ failures = 1, time = '10m' }}");
    let gateway =
        world.gateway(&(listener("") + &passthrough("app1", SNI) + &pool("app1", &[7001, 7002], &extra)))?;
    let second = Backend::start(&world.net.server, 7002, naming("second"))?;
    for lines in 1..=3 {
        let mut stream = world.connect_from([10, 0, 1, 3].into(), topology::gateway(443))?;
        stream.write_all(&client_hello(SNI, &[]))?;
        let _ = stream.read_to_end(&mut Vec::new());
        let log = gateway.wait_access_log(lines)?;
        ensure!(log[lines - 1]["close_reason"] == "client_address_unanswered", "{log:?}");
    }
    // Others still get there, and to both servers.
    drop(second);
    let status = gateway.status()?;
    for port in [7001, 7002] {
        ensure!(status.server("app1", &crate::config::server(port))["state"] == "up", "{status:?}");
    }
    served(world.connect_from(CLIENT.into(), topology::gateway(443))?, SNI)?;
    ensure!(peers.recv_timeout(PATIENCE)?.ip() == IpAddr::from(CLIENT));
    Ok(())
}

#[test]
fn clients_of_the_other_family_are_told_apart_from_servers_that_do_not_answer() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    let (_backend, peers) = telling(&world, 7001)?;
    let config = listener(BOTH) + &passthrough("app1", SNI) + &pool("app1", &[7001], CLIENTS);
    let gateway = world.gateway(&config)?;
    let mut stream = world.connect_from(CLIENT6.into(), topology::gateway6(443))?;
    stream.write_all(&client_hello(SNI, &[]))?;
    let _ = stream.read_to_end(&mut Vec::new());
    let log = gateway.wait_access_log(1)?;
    ensure!(log[0]["close_reason"] == "client_address_unusable", "{log:?}");
    served(world.connect(443)?, SNI)?;
    ensure!(peers.recv_timeout(PATIENCE)?.ip() == IpAddr::from(CLIENT));
    let said = String::from_utf8(gateway.cli(["check"])?.stderr)?;
    ensure!(
        said.contains("warning: IPv6 clients of this route can reach no server of the pool `app1`"),
        "{said}"
    );
    Ok(())
}

/// What passes through the gateway's host and is not the gateway's goes on as it is routed.
#[test]
fn what_clients_and_servers_say_to_each_other_directly_is_left_alone() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = world()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = listener("") + &passthrough("app1", SNI) + &pool("app1", &[7001], CLIENTS);
    let _gateway = world.gateway(&config)?;
    let mut direct = crate::world::dial(&world.net.client, topology::server(7001))?;
    for _ in 0..10 {
        let hello = client_hello(SNI, &[]);
        let mut through = world.connect(443)?;
        for stream in [&mut direct, &mut through] {
            stream.write_all(&hello)?;
            let mut back = vec![0; hello.len()];
            stream.read_exact(&mut back)?;
            ensure!(back == hello);
        }
    }
    Ok(())
}

#[test]
fn a_gateway_that_may_not_use_clients_addresses_says_so_and_a_reload_changes_nothing() -> Result<()> {
    let world = World::new()?;
    let with = |extra: &str| listener("") + &passthrough("app1", SNI) + &pool("app1", &[7001], extra);
    let launch =
        || Launch { without: vec![Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW], ..Launch::default() };
    let refused = Gateway::start_with(&world.net.gateway, &with(CLIENTS), launch());
    ensure!(refused.is_err(), "it has started");
    let gateway = Gateway::start_with(&world.net.gateway, &with(""), launch())?;
    gateway.write_config(&with(CLIENTS))?;
    let output = gateway.cli(["reload"])?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.contains("pool app1 has source = \"client\""), "{said}");
    Ok(())
}

#[test]
fn doctor_tells_whether_answers_come_back() -> Result<()> {
    require!(has_socket_match(), NO_MATCH);
    let world = World::new()?;
    let (_backend, _peers) = telling(&world, 7001)?;
    let gateway = world.gateway(
        &(listener(BOTH)
            + &route("app1", SNI, "backends = ['four', 'six']")
            + &pool("four", &[7001, 7009], CLIENTS)
            + &pool6("six", 7001, CLIENTS)),
    )?;
    let lines = || -> Result<Vec<String>> {
        // Where the gateway is.
        let mut doctor = world.net.gateway.command(binary()?);
        let output = checked_output(doctor.arg("doctor").arg("-c").arg(gateway.config_file()))?;
        let lines = output.lines().filter(|line| line.contains("answers to clients"));
        Ok(lines.map(str::to_owned).collect())
    };
    let judged = |lines: &[String], server: &str, state: &str, words: &str| {
        let line = lines.iter().find(|line| line.contains(server));
        let line = line.with_context(|| format!("no line of {server}: {lines:?}"))?;
        ensure!(line.starts_with(state) && line.contains(words), "{line}");
        Ok(())
    };
    let [four, six, dead] = ["four/10.0.2.2:7001", "six/[fd00:2::2]:7001", "four/10.0.2.2:7009"];
    // Nothing is set up here.
    let seen = lines()?;
    ensure!(seen.len() == 3, "{seen:?}");
    judged(&seen, four, "missing", "no answer to 192.0.2.1")?;
    judged(&seen, six, "missing", "no answer to 2001:db8::1")?;
    judged(&seen, dead, "note", "does not answer the gateway's own address")?;
    world.net.take_answers(None)?;
    // The server has a default route by the gateway.
    let seen = lines()?;
    judged(&seen, four, "ok", "its answers to 192.0.2.1")?;
    judged(&seen, six, "ok", "its answers to 2001:db8::1")?;
    // It loses one of them, and keeps the way to the gateway.
    world.net.server.ip("route del default")?;
    let seen = lines()?;
    judged(&seen, four, "missing", "no answer to 192.0.2.1")?;
    judged(&seen, six, "ok", "its answers to 2001:db8::1")?;
    Ok(())
}
