//! connect: the next server when one fails, names, and PROXY headers.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, Launch, NetNs, Process, TempDir, eventually, topology};

use crate::config::{listener, passthrough, pool, route, server};
use crate::world::{World, answer, dial, silence};
use snisplice_tests::backend::{Backend, naming};

fn config(ports: &[u16], extra: &str) -> String {
    listener("") + &passthrough("app1", "app1.example.com") + &pool("app1", ports, extra)
}

#[test]
fn a_server_that_is_down_is_passed_over_for_the_next() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("up"))?;
    let gateway = world.gateway(&config(&[7009, 7001], "balance = 'round-robin'"))?;
    for _ in 0..6 {
        assert_eq!(world.ask("app1.example.com")?, "up");
    }
    for line in gateway.wait_access_log(6)? {
        assert_eq!(line["server"], server(7001).as_str());
    }
    assert_eq!(gateway.status()?.route("app1", "total"), 6);
    Ok(())
}

#[test]
fn a_client_is_turned_away_when_every_server_is_down() -> Result<()> {
    let world = World::new()?;
    let gateway = world.gateway(&config(&[7008, 7009], ""))?;
    assert_eq!(world.ask("app1.example.com")?, "");
    let log = gateway.wait_access_log(1)?;
    assert_eq!(log[0]["close_reason"], "connect_failed");
    assert_eq!(log[0]["route"], "app1");
    assert_eq!(gateway.status()?.route("app1", "active"), 0);
    Ok(())
}

#[test]
fn a_terminated_client_is_turned_away_when_every_server_is_down() -> Result<()> {
    let world = World::new()?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let config = listener("") + &route("app1", "app1.example.com", &terminate) + &pool("app1", &[7009], "");
    let gateway = world.gateway(&config)?;
    let openssl = crate::openssl::SClient::start(&world, "app1.example.com", [] as [&str; 0])?;
    let output = openssl.wait_end()?;
    // It has a session by then: its end is a close_notify, not a cut.
    assert!(output.contains("\nclosed") && !output.contains("unexpected eof"), "{output}");
    assert_eq!(gateway.wait_access_log(1)?[0]["close_reason"], "connect_failed");
    Ok(())
}

#[test]
fn a_server_that_never_answers_is_given_up_after_the_connect_timeout() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, naming("up"))?;
    silence(&world.net.server, "tcp dport 7009")?;
    let extra = "balance = 'round-robin'\nconnect_timeout = '200ms'";
    let gateway = world.gateway(&config(&[7009, 7001], extra))?;
    for _ in 0..2 {
        assert_eq!(world.ask("app1.example.com")?, "up");
    }
    for line in gateway.wait_access_log(2)? {
        assert_eq!(line["server"], server(7001).as_str());
    }
    Ok(())
}

#[test]
fn the_connect_timeout_of_the_last_server_is_the_reason_of_the_close() -> Result<()> {
    let world = World::new()?;
    silence(&world.net.server, "tcp dport 7009")?;
    let gateway = world.gateway(&config(&[7009], "connect_timeout = '200ms'"))?;
    assert_eq!(world.ask("app1.example.com")?, "");
    assert_eq!(gateway.wait_access_log(1)?[0]["close_reason"], "connect_timeout");
    Ok(())
}

#[test]
fn a_server_known_by_name_is_followed_when_its_address_changes() -> Result<()> {
    let world = World::new()?;
    world.net.server.address("eth0", "10.0.2.3/24")?;
    let _old = Backend::start_on(&world.net.server, topology::SERVER.into(), 7001, naming("old"))?;
    let _new = Backend::start_on(&world.net.server, [10, 0, 2, 3].into(), 7001, naming("new"))?;
    let names = Names::start(&world.net.server, "10.0.2.2 db.test\n")?;
    let launch = Launch { resolv_conf: Some("nameserver 10.0.2.2\n".to_owned()), ..Launch::default() };
    let config = listener("")
        + &passthrough("app1", "app1.example.com")
        + "[[pool]]\nname = 'app1'\nservers = [{ address = 'db.test:7001' }]\n";
    let _gateway = Gateway::start_with(&world.net.gateway, &config, launch)?;

    eventually("the name to be resolved", || {
        world.ask("app1.example.com").ok().filter(|name| name == "old")
    })?;
    names.change("10.0.2.3 db.test\n")?;
    eventually("the new address", || world.ask("app1.example.com").ok().filter(|name| name == "new"))?;
    assert_eq!(world.ask("app1.example.com")?, "new");
    Ok(())
}

/// dnsmasq with answers that are good for one second.
struct Names {
    process: Process,
    files: TempDir,
}

impl Names {
    fn start(ns: &NetNs, hosts: &str) -> Result<Self> {
        let files = TempDir::new()?;
        fs::write(files.join("hosts"), hosts)?;
        let mut dnsmasq = ns.command("dnsmasq");
        dnsmasq.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--user=root",
        ]);
        dnsmasq.args(["--local-ttl=1", "--pid-file=", "--log-facility=-", "--log-queries"]);
        dnsmasq.arg(format!("--addn-hosts={}", files.join("hosts").display()));
        let mut process = Process::spawn("dnsmasq", dnsmasq)?;
        process.wait_listening(&[53])?;
        Ok(Self { process, files })
    }

    fn change(&self, hosts: &str) -> Result<()> {
        fs::write(self.files.join("hosts"), hosts)?;
        self.process.signal(Signal::SIGHUP)
    }
}

/// A backend that reports what it receives until the end of the stream.
fn recording(ns: &NetNs) -> Result<(Backend, mpsc::Receiver<Vec<u8>>)> {
    let (sender, received) = mpsc::channel();
    let record = move |mut stream: TcpStream| -> io::Result<()> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        sender.send(bytes).map_err(io::Error::other)
    };
    Ok((Backend::start(ns, 7001, record)?, received))
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_version_1_proxy_header_tells_the_server_who_the_client_is() -> Result<()> {
    let world = World::new()?;
    let (_backend, received) = recording(&world.net.server)?;
    let _gateway = world.gateway(&config(&[7001], "send_proxy = 'v1'"))?;
    let hello = client_hello("app1.example.com", &[]);
    let mut stream = world.connect(443)?;
    stream.write_all(&hello)?;
    let port = stream.local_addr()?.port();
    drop(stream);
    let expected = [format!("PROXY TCP4 10.0.1.2 10.0.1.1 {port} 443\r\n").as_bytes(), &hello].concat();
    assert_eq!(received.recv_timeout(PATIENCE)?, expected);
    Ok(())
}

#[test]
fn a_version_2_proxy_header_tells_the_server_who_the_client_is() -> Result<()> {
    let world = World::new()?;
    let (_backend, received) = recording(&world.net.server)?;
    let config = listener("bind = ['[::]:443']")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "send_proxy = 'v2'");
    let _gateway = world.gateway(&config)?;
    let hello = client_hello("app1.example.com", &[]);
    let mut stream = dial(&world.net.client, topology::gateway6(443))?;
    stream.write_all(&hello)?;
    let port = stream.local_addr()?.port();
    drop(stream);

    let bytes = received.recv_timeout(PATIENCE)?;
    // Signature; version 2, PROXY; TCP over IPv6.
    let (header, rest) = bytes.split_at_checked(16).context("a header")?;
    assert_eq!(header[..14], *b"\r\n\r\n\0\r\nQUIT\n\x21\x21");
    let (addresses, after) = rest.split_at(usize::from(u16::from_be_bytes([header[14], header[15]])));
    assert_eq!(addresses[..16], topology::CLIENT6.octets());
    assert_eq!(addresses[16..32], topology::GATEWAY6.octets());
    assert_eq!(addresses[32..36], [port.to_be_bytes(), 443u16.to_be_bytes()].concat());
    assert_eq!(after, hello);
    Ok(())
}

#[test]
fn a_trusted_proxy_says_who_the_client_is_and_others_speak_for_themselves() -> Result<()> {
    let world = World::new()?;
    world.net.client.address("eth0", "10.0.1.3/24")?;
    let _backend = Backend::start(&world.net.server, 7001, naming("one"))?;
    let config = listener("proxy_protocol = true\ntrusted_proxies = ['10.0.1.2/32']")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;
    let hello = client_hello("app1.example.com", &[]);
    let send = |source: [u8; 4], header: &[u8]| -> Result<String> {
        let mut stream = world.connect_from(source.into(), topology::gateway(443))?;
        stream.write_all(&[header, &hello].concat())?;
        Ok(answer(stream))
    };

    let v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x08\x0a\x00\x01\x01\x15\xb3\x01\xbb";
    assert_eq!(send([10, 0, 1, 2], b"PROXY TCP4 192.0.2.7 10.0.1.1 5555 443\r\n")?, "one");
    assert_eq!(send([10, 0, 1, 2], v2)?, "one");
    assert_eq!(send([10, 0, 1, 3], b"")?, "one");
    assert_eq!(send([10, 0, 1, 2], b"PROXY NONSENSE\r\n")?, "");
    assert_eq!(send([10, 0, 1, 2], b"")?, "");

    let log = gateway.wait_access_log(5)?;
    let routed = log.iter().filter(|line| line["route"] == "app1");
    let clients: Vec<&str> = routed.filter_map(|line| line["client"].as_str()).collect();
    assert_eq!(clients.len(), 3, "{log:?}");
    for client in ["192.0.2.7:5555", "192.0.2.8:5555", "10.0.1.3:"] {
        assert!(clients.iter().any(|seen| seen.starts_with(client)), "{client} in {clients:?}");
    }
    gateway.wait_status("both to be counted", |s| s.rejects("databases", "proxy_header_malformed") == 2)?;
    Ok(())
}
