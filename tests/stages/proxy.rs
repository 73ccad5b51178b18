//! accept: PROXY headers that are long, slow, or a real proxy's.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::process::Process;
use snisplice_tests::skip::has_program;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Gateway, TempDir, eventually, proxy, require};

use crate::config::{listener, passthrough, pool, route};
use crate::openssl::SClient;
use crate::world::World;

const CLIENT: &str = "192.0.2.7:5555";

fn header(block: u16) -> Result<Vec<u8>> {
    let [client, local]: [SocketAddrV4; 2] = [CLIENT.parse()?, "10.0.1.1:443".parse()?];
    Ok(proxy::header(client, local, block))
}

/// A gateway that trusts the client's address, in front of a server that sends everything back.
fn scene(extra: &str) -> Result<(Gateway, Backend, World)> {
    let world = World::new()?;
    let backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = "[gateway]\nworkers = 1\n".to_owned()
        + &listener(&format!("proxy_protocol = true\n{extra}"))
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    Ok((world.gateway(&config)?, backend, world))
}

const TRUSTED: &str = "trusted_proxies = ['10.0.1.2/32']";

/// Sends these pieces, each of which the gateway may read by itself, and reads what the server got of them.
fn say(mut stream: TcpStream, header: &[u8], piece: usize) -> Result<()> {
    let hello = client_hello("app1.example.com", &[]);
    for piece in [header, &hello].concat().chunks(piece) {
        stream.write_all(piece)?;
        thread::sleep(Duration::from_millis(2));
    }
    let mut got = vec![0; hello.len()];
    stream.read_exact(&mut got).context("the server's answer")?;
    assert_eq!(got, hello, "the server got something else");
    Ok(())
}

#[test]
fn a_header_may_be_as_long_as_its_format_allows_and_leaves_the_hello_alone() -> Result<()> {
    let (gateway, _backend, world) = scene(TRUSTED)?;
    let lengths = [15, 4080, 4081, 20_000, proxy::MAX_BLOCK];
    for block in lengths {
        for piece in [usize::MAX, 1447] {
            say(world.connect(443)?, &header(block)?, piece).with_context(|| format!("{block} {piece}"))?;
        }
    }
    let log = gateway.wait_access_log(2 * lengths.len())?;
    assert!(log.iter().all(|line| line["client"] == CLIENT && line["route"] == "app1"), "{log:?}");
    Ok(())
}

#[test]
fn a_header_that_trickles_obeys_hello_timeout() -> Result<()> {
    let (gateway, _backend, world) = scene(&format!("hello_timeout = '1s'\n{TRUSTED}"))?;
    let mut stream = world.connect(443)?;
    for byte in header(proxy::MAX_BLOCK)? {
        if stream.write_all(&[byte]).is_err() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    gateway.wait_status("it to be counted", |s| s.rejects("databases", "hello_timeout") == 1)?;
    Ok(())
}

#[test]
fn a_long_header_of_somebody_who_is_not_trusted_is_no_hello() -> Result<()> {
    let (gateway, _backend, world) = scene("trusted_proxies = ['10.0.1.77/32']")?;
    let mut stream = world.connect(443)?;
    // The gateway may have closed already.
    let _ = stream.write_all(&header(proxy::MAX_BLOCK)?);
    gateway.wait_status("it to be counted", |s| s.rejects("databases", "not_tls") == 1)?;
    Ok(())
}

/// Clients behind a proxy whose header was long own no more memory than others while their hello is awaited.
#[test]
fn a_long_header_leaves_no_memory_behind() -> Result<()> {
    const CROWD: u64 = 300;
    let (gateway, _backend, world) = scene(&format!("hello_timeout = '10m'\n{TRUSTED}"))?;
    let header = header(proxy::MAX_BLOCK)?;
    let open = || -> Result<TcpStream> {
        let mut stream = world.connect(443)?;
        stream.write_all(&header)?;
        Ok(stream)
    };
    // What the worker needs once.
    let _first: Vec<_> = (0..20).map(|_| open()).collect::<Result<_>>()?;
    say(world.connect(443)?, &header, usize::MAX)?;
    let before = gateway.process.memory_kib("VmRSS")?;
    let _crowd: Vec<_> = (0..CROWD).map(|_| open()).collect::<Result<_>>()?;
    // The only worker has read the headers when it has served this one behind them.
    say(world.connect(443)?, &header, usize::MAX)?;
    let grown = gateway.process.memory_kib("VmRSS")?.saturating_sub(before);
    assert!(grown < CROWD * 16, "{grown} KiB for {CROWD} clients");
    Ok(())
}

/// HAProxy ends the TLS of a client with a certificate and tells the gateway of it in all TLVs it has.
#[test]
fn haproxys_headers_are_read() -> Result<()> {
    require!(has_program("haproxy"), "haproxy is not installed");
    let world = World::new()?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = listener(&format!("proxy_protocol = true\n{TRUSTED}"))
        + &route("app1", "app1.example.com", &format!("tls = 'terminate'\ncertificate = {}", leaf.toml()))
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    let files = TempDir::new()?;
    let pair = files.join("pair.pem");
    fs::write(&pair, fs::read_to_string(&leaf.chain)? + &fs::read_to_string(&leaf.key)?)?;
    let authority = world.authority.path.display();
    let config = format!(
        "defaults\n  mode tcp\n  timeout connect 20s\n  timeout client 60s\n  timeout server 60s\n\
         frontend clients\n  bind 10.0.1.2:8443 ssl crt {} ca-file {authority} verify required\n  \
         unique-id-format %{{+X}}o%ci:%cp_%fi:%fp_%Ts_%rt:%pid\n  default_backend gateway\n\
         backend gateway\n  server gateway 10.0.1.1:443 ssl sni str(app1.example.com) verify none \
         send-proxy-v2-ssl-cn proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id\n",
        pair.display(),
    );
    let file = files.join("haproxy.cfg");
    fs::write(&file, config)?;
    let mut haproxy = world.net.client.command("haproxy");
    haproxy.arg("-db").arg("-f").arg(&file);
    let mut haproxy = Process::spawn("haproxy", haproxy)?;
    haproxy.wait_listening(&[8443])?;

    let args = ["-connect", "10.0.1.2:8443", "-quiet", "-cert"].map(Into::into);
    let args = args.into_iter().chain([leaf.chain.clone(), "-key".into(), leaf.key.clone()]);
    let mut client = SClient::start(&world, "app1.example.com", args)?;
    client.type_in("through both\n")?;
    client.wait_for("through both")?;
    let live = eventually("the connection", || gateway.connections().ok().filter(|live| live.len() == 1))?;
    // As HAProxy saw it.
    let client_port = live[0]["client"].as_str().and_then(|client| client.strip_prefix("10.0.1.2:"));
    let peers = gateway.process.output();
    assert!(client_port.is_some(), "{live:?}\n{peers}");
    drop(client);
    let log = gateway.wait_access_log(1)?;
    assert_eq!(log[0].get("sni"), Some(&Value::from("app1.example.com")), "{log:?}");
    Ok(())
}
