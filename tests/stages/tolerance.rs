//! What clients send against the RFCs, or in their odder corners: where a server takes it and a route for it exists, it
//! reaches the server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use snisplice_tests::process::{Process, checked_output};
use snisplice_tests::{Gateway, NetNs, certs::KeyKind, topology};

use crate::config::{listener, passthrough, pool};
use crate::openssl::SClient;
use crate::world::{World, answer, dial};

const ALPN: u16 = 16;
const SERVER_NAME: u16 = 0;
const SUPPORTED_VERSIONS: u16 = 43;
const KEY_SHARE: u16 = 51;

/// A vector, its length in so many bytes in front.
fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes()[4 - length_bytes..], content].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vector(2, data)].concat()
}

/// A server_name extension with this list of types and names.
fn names(list: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        list.iter().flat_map(|(kind, name)| [vec![*kind], vector(2, name)].concat()).collect();
    extension(SERVER_NAME, &vector(2, &list))
}

pub(crate) fn name(name: &[u8]) -> Vec<u8> {
    names(&[(0, name)])
}

fn record(version: u16, payload: &[u8]) -> Vec<u8> {
    [vec![22], version.to_be_bytes().to_vec(), vector(2, payload)].concat()
}

/// What OpenSSL 3.0 sends without a name, in parts.
pub(crate) struct Sample {
    /// The body up to the cipher suites: version, random, session id.
    pub(crate) front: Vec<u8>,
    pub(crate) suites: Vec<u8>,
    /// Type and whole extension.
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Sample {
    pub(crate) fn read() -> Result<Self> {
        let file = "data/client-hellos/openssl-3.0-no-sni.bin";
        let hello = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
        let number = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
        // Record header 5, message header 4, version 2, random 32; session id.
        let session = 5 + 4 + 2 + 32;
        let suites = session + 1 + usize::from(hello[session]);
        // One compression method; the length of the extensions.
        let mut at = suites + 2 + number(suites) + 2 + 2;
        let mut extensions = Vec::new();
        while at < hello.len() {
            let end = at + 4 + number(at + 2);
            extensions.push((number(at) as u16, hello[at..end].to_vec()));
            at = end;
        }
        let front = hello[9..suites].to_vec();
        Ok(Self { front, suites: hello[suites + 2..suites + 2 + number(suites)].to_vec(), extensions })
    }

    fn without(&self, kinds: &[u16]) -> Vec<u8> {
        let kept = self.extensions.iter().filter(|(kind, _)| !kinds.contains(kind));
        kept.flat_map(|(_, extension)| extension.clone()).collect()
    }

    /// The handshake message with these suites, and this block of extensions if there is to be one.
    fn message(&self, suites: &[u8], block: Option<&[u8]>) -> Vec<u8> {
        let block = block.map(|block| vector(2, block)).unwrap_or_default();
        let body = [&self.front, &vector(2, suites), &[1, 0][..], &block].concat();
        [vec![1], vector(3, &body)].concat()
    }

    /// Framed, with an extension in front of its own.
    pub(crate) fn with(&self, extension: &[u8]) -> Vec<u8> {
        let block = [extension, &self.without(&[])].concat();
        framed(&self.message(&self.suites, Some(&block)))
    }

    /// The same as before TLS 1.3, of this version.
    pub(crate) fn old(&self, version: u16, extension: &[u8]) -> Vec<u8> {
        let block = [extension, &self.without(&[SUPPORTED_VERSIONS, KEY_SHARE])].concat();
        let mut message = self.message(&self.suites, Some(&block));
        message[4..6].copy_from_slice(&version.to_be_bytes());
        framed(&message)
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    message.chunks(1 << 14).flat_map(|payload| record(0x0301, payload)).collect()
}

/// A ClientHello in the framing of SSLv2 (RFC 5246, appendix E.2), of this version.
fn sslv2(version: u16) -> Vec<u8> {
    let suites: Vec<u8> =
        [0x2f_u16, 0x35, 0x9c, 0xc013, 0xc02f].iter().flat_map(|s| [0, (s >> 8) as u8, *s as u8]).collect();
    let mut message = vec![1];
    message.extend(version.to_be_bytes());
    message.extend([suites.len() as u16, 0, 32].iter().flat_map(|length| length.to_be_bytes()));
    message.extend(suites);
    message.extend([7; 32]);
    [&(0x8000 | message.len() as u16).to_be_bytes()[..], &message].concat()
}

/// What some server in use takes, by a name for it.
fn cases(sample: &Sample) -> Vec<(String, Vec<u8>)> {
    let plain = sample.without(&[]);
    let message = sample.message(&sample.suites, Some(&plain));
    let long = [b'a'; 255];
    let mut cases = Vec::new();
    let mut add = |what: &str, hello: Vec<u8>| cases.push((what.to_owned(), hello));
    for odd in [
        &b"10.0.0.1"[..],
        b"2001:db8::1",
        b"db_1.example",
        b"app.example.",
        b"-app-.example",
        b"1.2.3.4.5",
        b"two words",
        b"a..b",
        b"app.example:443",
        b"b\xc3\xbccher.example",
        b"",
        &long,
    ] {
        add(&format!("the name {}", odd.escape_ascii()), sample.with(&name(odd)));
    }
    add("a name of another type", sample.with(&names(&[(1, b"x")])));
    add("a name of another type beside one", sample.with(&names(&[(0, b"app.example"), (1, b"x")])));
    for version in [0x0300, 0x0303, 0x0304, 0x03ff] {
        add(&format!("a record of version {version:04x}"), record(version, &message));
    }
    add("an empty record in front", [record(0x0301, b""), framed(&message)].concat());
    let (first, second) = message.split_at(50);
    add(
        "an empty record in the middle",
        [record(0x0301, first), record(0x0301, b""), record(0x0301, second)].concat(),
    );
    add("records of one byte", message.chunks(1).flat_map(|byte| record(0x0301, byte)).collect());
    add("encrypt_then_mac with contents", {
        let block = [sample.without(&[22]), extension(22, b"x")].concat();
        framed(&sample.message(&sample.suites, Some(&block)))
    });
    add("an unknown extension twice", sample.with(&extension(0x7777, b"").repeat(2)));
    add("GREASE twice", sample.with(&extension(0x2a2a, b"").repeat(2)));
    add("an empty max_fragment_length", sample.with(&extension(1, b"")));
    let protocols: Vec<u8> = (0..400).flat_map(|n| vector(1, format!("p{n:04}").as_bytes())).collect();
    add("400 protocols", sample.with(&extension(ALPN, &vector(2, &protocols))));
    add("an extension of 60 000 bytes", sample.with(&extension(0x7777, &[0; 60_000])));
    let many = [&sample.suites[..], &[0x7a, 0x7b].repeat((65_534 - sample.suites.len()) / 2)].concat();
    add("65 534 bytes of cipher suites", framed(&sample.message(&many, Some(&plain))));
    add("no extensions", framed(&sample.message(&sample.suites, None)));
    add("an empty block of extensions", framed(&sample.message(&sample.suites, Some(b""))));
    for version in [0x0301, 0x0302, 0x0303] {
        add(&format!("a hello of version {version:04x}"), sample.old(version, b""));
        add(&format!("the framing of SSLv2, version {version:04x}"), sslv2(version));
    }
    cases
}

/// Whether the answer to a ClientHello is a ServerHello.
fn is_taken(mut stream: TcpStream, hello: &[u8]) -> bool {
    let mut start = [0; 6];
    stream.write_all(hello).is_ok()
        && stream.read_exact(&mut start).is_ok()
        && (start[0], start[5]) == (22, 2)
}

/// `openssl s_server` and `gnutls-serv` that take all they can, on ports 7001 and 7002.
fn servers(world: &World) -> Result<[Process; 2]> {
    let ns = &world.net.server;
    let leaf = world.authority.leaf_with(KeyKind::Rsa2048, &["app.example"])?;
    let start = |name: &str, command, port| -> Result<Process> {
        let mut process = Process::spawn(name, command)?;
        process.wait_listening(&[port])?;
        Ok(process)
    };
    let mut openssl = ns.command("openssl");
    openssl.args(["s_server", "-accept", "7001", "-quiet", "-min_protocol", "TLSv1"]);
    openssl.args(["-cipher", "ALL:@SECLEVEL=0", "-www", "-cert"]).arg(&leaf.chain).arg("-key").arg(&leaf.key);
    let mut gnutls = ns.command("gnutls-serv");
    gnutls.args(["--port", "7002", "--http", "--quiet", "--priority", "NORMAL:+VERS-ALL:%COMPAT"]);
    gnutls.arg("--x509certfile").arg(&leaf.chain).arg("--x509keyfile").arg(&leaf.key);
    Ok([start("openssl", openssl, 7001)?, start("gnutls", gnutls, 7002)?])
}

/// A `*` route of its own for each of the servers: OpenSSL behind port 443, GnuTLS behind port 444.
fn gateway(world: &World) -> Result<Gateway> {
    let second = "[[listener]]\nname = 'second'\nbind = ['0.0.0.0:444']\n\
                  [[route]]\nname = 'gnutls'\nlistener = 'second'\nsni = ['*']\nbackends = ['gnutls']\n";
    world.gateway(
        &(listener("")
            + &passthrough("openssl", "*")
            + second
            + &pool("openssl", &[7001], "")
            + &pool("gnutls", &[7002], "")),
    )
}

#[test]
fn what_a_server_takes_reaches_it() -> Result<()> {
    let world = World::new()?;
    let _servers = servers(&world)?;
    let gateway = gateway(&world)?;
    let mut refused = Vec::new();
    for (what, hello) in cases(&Sample::read()?) {
        let mut taken = false;
        for (direct, through) in [(7001, 443), (7002, 444)] {
            if is_taken(dial(&world.net.gateway, topology::server(direct))?, &hello) {
                taken = true;
                if !is_taken(world.connect(through)?, &hello) {
                    refused.push(format!("{what}, by the server of port {direct}"));
                }
            }
        }
        ensure!(taken, "neither server takes {what}");
    }
    let status = gateway.status()?;
    assert!(refused.is_empty(), "refused: {refused:#?}\n{status:?}");
    assert_eq!(status.number("/listeners/0/odd_names/ip_address"), 2);
    Ok(())
}

#[test]
fn what_two_readers_could_read_in_two_ways_is_refused_whoever_takes_it() -> Result<()> {
    let world = World::new()?;
    let _servers = servers(&world)?;
    let gateway = gateway(&world)?;
    let sample = Sample::read()?;
    let host: (u8, &[u8]) = (0, b"app.example");
    for (reason, hello) in [
        ("sni_invalid", sample.with(&names(&[host, host]))),
        ("sni_invalid", sample.with(&names(&[]))),
        ("hello_malformed", sample.with(&name(b"app.example").repeat(2))),
        ("hello_malformed", sample.with(&extension(SERVER_NAME, b""))),
        ("hello_malformed", sample.with(&extension(SERVER_NAME, &vector(2, b"\0\0\x09app")))),
        ("not_tls", sslv2(0x0002)),
    ] {
        let before = gateway.status()?.rejects("databases", reason);
        assert!(!is_taken(world.connect(443)?, &hello), "{reason}");
        gateway.wait_status(reason, |s| s.rejects("databases", reason) == before + 1)?;
    }
    assert_eq!(gateway.status()?.route("openssl", "total"), 0);
    Ok(())
}

#[test]
fn an_odd_name_reaches_its_wildcard() -> Result<()> {
    let world = World::new()?;
    let _servers = servers(&world)?;
    let gateway =
        world.gateway(&(listener("") + &passthrough("all", "*.example.com") + &pool("all", &[7001], "")))?;
    let sample = Sample::read()?;
    for odd in [&b"-a.example.com"[..], b"a-.b_.example.com", b"1.example.com.", b"9.example.com"] {
        let hello = sample.with(&name(odd));
        assert!(is_taken(world.connect(443)?, &hello), "{}", odd.escape_ascii());
    }
    // A name that is none is covered by no pattern but `*`, whatever it ends in.
    assert!(!is_taken(world.connect(443)?, &sample.with(&name(b"a b.example.com"))));
    gateway.wait_status("it to be counted", |s| s.rejects("databases", "sni_invalid") == 1)?;
    let status = gateway.status()?;
    assert_eq!(status.number("/listeners/0/odd_names/not_a_name"), 1, "{status:?}");
    Ok(())
}

#[test]
fn an_ip_address_as_name_is_taken_for_none() -> Result<()> {
    let world = World::new()?;
    let _servers = servers(&world)?;
    let routes = "[gateway]\nadmin = '127.0.0.1:9900'\n".to_owned()
        + &listener("")
        + &passthrough("named", "app.example")
        + "[[listener]]\nname = 'names'\nbind = ['0.0.0.0:444']\n\
           [[route]]\nname = 'strict'\nlistener = 'names'\nsni = ['app.example']\nbackends = ['named']\n"
        + &pool("named", &[7002], "");
    let fallback = passthrough("fallback", "*") + &pool("fallback", &[7001], "");
    let gateway = world.gateway(&(routes + &fallback))?;

    let openssl = SClient::start(&world, "10.0.1.1", [""; 0])?;
    openssl.wait_for("Cipher is")?;
    let output = openssl.finish()?;
    assert!(output.contains("Verification: OK"), "{output}");
    let line = gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["route"], line.get("sni")), (&"fallback".into(), None), "{line}");

    // Where no route takes clients without a name, it is refused as they are.
    let mut stream = world.connect(444)?;
    stream.write_all(&Sample::read()?.with(&name(b"10.0.1.1")))?;
    stream.shutdown(Shutdown::Write)?;
    answer(stream);
    let status = gateway.wait_status("the second", |s| s.rejects("names", "no_sni") == 1)?;
    for listener in [0, 1] {
        assert_eq!(status.number(&format!("/listeners/{listener}/odd_names/ip_address")), 1, "{status:?}");
    }
    let table = gateway.cli(["status"])?.stdout;
    assert!(String::from_utf8_lossy(&table).contains("ip_address"));
    let metrics = metrics(&world.net.gateway)?;
    for listener in ["databases", "names"] {
        let sample = format!("snisplice_odd_names_total{{listener=\"{listener}\",kind=\"ip_address\"}} 1\n");
        assert!(metrics.contains(&sample), "{metrics}");
    }
    Ok(())
}

/// `/metrics` of a gateway whose `admin` is 127.0.0.1:9900.
pub(crate) fn metrics(ns: &NetNs) -> Result<String> {
    let mut curl = ns.command("curl");
    checked_output(curl.args(["--fail", "--silent", "--show-error", "http://127.0.0.1:9900/metrics"]))
        .context("metrics")
}

/// How many requests of HTTP the same gateway has answered for this reason, or broken off.
pub(crate) fn answers(ns: &NetNs, reason: &str) -> Result<u64> {
    let metrics = metrics(ns)?;
    let label = format!("reason=\"{reason}\"");
    let lines = metrics.lines().filter(|line| line.starts_with("snisplice_http_answers_total{"));
    let counts = lines.filter(|line| line.contains(&label));
    Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
}
