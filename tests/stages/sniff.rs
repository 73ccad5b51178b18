//! sniff: real ClientHellos however they are cut, and every way in which there is none.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use snisplice_tests::tls::{Client, client_hello};

use crate::config::{listener, one_route, passthrough, pool, route};
use crate::world::{World, answer};
use snisplice_tests::backend::{Backend, echo};

#[test]
fn a_hello_of_one_byte_segments_is_passed_through_whole() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&one_route())?;

    let hello = client_hello("app1.example.com", &[]);
    let mut stream = world.connect(443)?;
    dribble(&mut stream, &hello)?;
    let mut seen = vec![0; hello.len()];
    stream.read_exact(&mut seen)?;
    assert_eq!(seen, hello);
    assert_eq!(gateway.status()?.route("app1", "active"), 1);
    Ok(())
}

#[test]
fn a_hello_of_one_byte_segments_is_terminated() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let leaf = world.authority.leaf(&["app1.example.com"])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}", leaf.toml());
    let config = listener("") + &route("app1", "app1.example.com", &terminate) + &pool("app1", &[7001], "");
    let _gateway = world.gateway(&config)?;

    let client = Client::new(&world.authority.path, rustls::ALL_VERSIONS, None)?;
    let mut duplex = client.connect_sending(world.connect(443)?, "app1.example.com", dribble)?;
    duplex.writer.write_all(b"hello")?;
    let mut seen = [0; 5];
    duplex.reader.read_exact(&mut seen)?;
    assert_eq!(&seen, b"hello");
    Ok(())
}

/// One segment for each byte.
fn dribble(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte])?;
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn every_captured_hello_is_routed_and_arrives_unchanged() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let config = listener("") + &passthrough("app1", "*") + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/client-hellos");
    let manifest: Value = serde_json::from_slice(&fs::read(directory.join("manifest.json"))?)?;
    let manifest = manifest.as_object().context("the manifest is an object")?;
    for (i, (file, facts)) in manifest.iter().enumerate() {
        let hello = fs::read(directory.join(file))?;
        let mut stream = world.connect(443)?;
        stream.write_all(&hello)?;
        let mut seen = vec![0; hello.len()];
        stream.read_exact(&mut seen).with_context(|| file.clone())?;
        assert_eq!(seen, hello, "{file}");
        drop(stream);
        let log = gateway.wait_access_log(i + 1)?;
        assert_eq!(log[i]["sni"], facts["sni"], "{file}");
    }
    Ok(())
}

#[test]
fn a_client_that_says_nothing_or_half_a_hello_is_timed_out() -> Result<()> {
    let world = World::new()?;
    let config = listener("hello_timeout = '300ms'")
        + &passthrough("app1", "app1.example.com")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    let silent = world.connect(443)?;
    let mut halfway = world.connect(443)?;
    halfway.write_all(&client_hello("app1.example.com", &[])[..100])?;
    answer(silent);
    answer(halfway);
    let status =
        gateway.wait_status("both to be counted", |s| s.rejects("databases", "hello_timeout") == 2)?;
    assert_eq!(status.listener("databases", "active"), 0);
    Ok(())
}

#[test]
fn every_malformed_beginning_is_refused_for_its_own_reason() -> Result<()> {
    let world = World::new()?;
    let config = listener("")
        + &route("app1", "app1.example.com", "tls = 'passthrough'\nalpn = ['postgresql']")
        + &pool("app1", &[7001], "");
    let gateway = world.gateway(&config)?;

    let hello = client_hello("app1.example.com", &[]);
    let cases: [(&str, Vec<u8>); 9] = [
        ("closed_before_data", Vec::new()),
        ("closed_before_hello", hello[..hello.len() - 1].to_vec()),
        ("not_tls", b"GET / HTTP/1.1\r\nHost: app1.example.com\r\n\r\n".to_vec()),
        ("hello_malformed", with_lying_extensions(&hello)),
        ("hello_too_large", vec![0x16, 3, 1, 0, 5, 1, 0x0f, 0xff, 0xff, 3]),
        ("sni_invalid", patched(&hello, "app1.example.com", "app1\n\x1b[31m.\0.com")),
        ("unknown_sni", client_hello("nobody.example.com", &[])),
        ("no_sni", client_hello("10.0.1.1", &[])),
        ("alpn_mismatch", client_hello("app1.example.com", &[b"h2"])),
    ];
    for (reason, bytes) in cases {
        let mut stream = world.connect(443)?;
        stream.write_all(&bytes)?;
        stream.shutdown(Shutdown::Write)?;
        answer(stream);
        gateway.wait_status(reason, |s| s.rejects("databases", reason) == 1)?;
    }
    let status = gateway.status()?;
    assert_eq!(status.route("app1", "total"), 0);
    assert_eq!(status.listener("databases", "active"), 0);
    Ok(())
}

#[test]
fn a_name_that_tls_does_not_take_is_turned_away_where_it_ends() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let leaf = world.authority.leaf(&["*.example.com"])?;
    let config = listener("")
        + &route("ended", "*", &format!("tls = 'terminate'\ncertificate = {}", leaf.toml()))
        + &route("passed", "*.passed.example.com", "tls = 'passthrough'")
        + &pool("ended", &[7001], "")
        + &pool("passed", &[7001], "");
    let gateway = world.gateway(&config)?;

    let hello = client_hello("app1.example.com", &[]);
    for (refused, name) in
        ["app-.example.com", "-app.example.com", "app1.example.123", "app1 example.com"].iter().enumerate()
    {
        let mut stream = world.connect(443)?;
        stream.write_all(&patched(&hello, "app1.example.com", name))?;
        stream.shutdown(Shutdown::Write)?;
        answer(stream);
        gateway.wait_status(name, |s| s.rejects("databases", "sni_invalid") == refused as u64 + 1)?;
    }
    let hello = patched(&client_hello("app1.passed.example.com", &[]), "app1.passed", "app-.passed");
    let mut stream = world.connect(443)?;
    stream.write_all(&hello)?;
    let mut seen = vec![0; hello.len()];
    stream.read_exact(&mut seen)?;
    assert_eq!(seen, hello);
    Ok(())
}

/// The hello with a length of its extensions that goes beyond the message.
fn with_lying_extensions(hello: &[u8]) -> Vec<u8> {
    let mut lying = hello.to_vec();
    // Record header 5, handshake header 4, version 2, random 32; then three fields with a length.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(lying[at]);
    at += 2 + usize::from(u16::from_be_bytes([lying[at], lying[at + 1]]));
    at += 1 + usize::from(lying[at]);
    lying[at..at + 2].fill(0xff);
    lying
}

/// Replaces bytes by as many others.
fn patched(hello: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at =
        hello.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text is there");
    let mut patched = hello.to_vec();
    patched[at..at + to.len()].copy_from_slice(to.as_bytes());
    patched
}

#[test]
fn a_spelling_of_the_same_name_finds_the_same_route() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let gateway = world.gateway(&one_route())?;

    // One letter more, to have room for the trailing dot.
    let hello = client_hello("app1.example.comx", &[]);
    for name in ["APP1.Example.COM.", "app1.example.com."] {
        let hello = patched(&hello, "app1.example.comx", name);
        let mut stream = world.connect(443)?;
        stream.write_all(&hello)?;
        stream.read_exact(&mut vec![0; hello.len()]).with_context(|| name.to_owned())?;
    }
    gateway.wait_status("both on the route", |s| s.route("app1", "total") == 2)?;
    Ok(())
}
