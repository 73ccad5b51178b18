//! MySQL clients that get no server, and such as are none.

use std::io::{Read, Write};

use anyhow::Result;
use snisplice_tests::mysql::{Family, is_installed};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Backend, eventually, require};

use super::{MARIADB, PORT, PYMYSQL, Scene, complaint, has_pymysql, listener, python, said};
use crate::config::{passthrough, pool, route};
use crate::world::World;

/// A greeting as MariaDB 10.11 sends it: by hand, for servers that are none.
fn greeting() -> Vec<u8> {
    let mut payload =
        b"\x0a10.11.19-MariaDB\0\x07\0\0\0saltsalt\0\xfe\xff\x2d\x02\0\xff\x81\x15\0\0\0\0\0\0\x1d\0\0\0"
            .to_vec();
    payload.extend(b"saltsaltsalt\0mysql_native_password\0");
    packet(0, &payload)
}

fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    [&[payload.len() as u8, 0, 0, sequence], payload].concat()
}

/// PROTOCOL_41, SECURE_CONNECTION, PLUGIN_AUTH, and SSL.
fn ssl_request() -> Vec<u8> {
    let mut payload = 0x0008_8a00_u32.to_le_bytes().to_vec();
    payload.extend([0, 0, 0, 1, 45]);
    payload.resize(32, 0);
    packet(1, &payload)
}

/// A server that only greets, and answers what comes by a refused login.
fn greeter(world: &World, port: u16) -> Result<Backend> {
    Backend::start(&world.net.server, port, |mut stream: std::net::TcpStream| {
        stream.write_all(&greeting())?;
        let mut received = [0; 1024];
        // SSLRequest and more, from clients; a login, from the gateway itself.
        let read = stream.read(&mut received)?;
        if read > 36 {
            stream.write_all(&packet(2, b"\xff\x15\x04#28000denied"))?;
        }
        while stream.read(&mut received)? > 0 {}
        Ok(())
    })
}

#[test]
fn whoever_is_no_mysql_client_or_goes_half_way_is_refused_for_its_own_reason() -> Result<()> {
    let world = World::new()?;
    let _server = greeter(&world, 3301)?;
    let config =
        listener("hello_timeout = '1s'") + &passthrough("db1", "db1.example.com") + &pool("db1", &[3301], "");
    let gateway = world.gateway(&config)?;
    let hello = client_hello("db1.example.com", &[]);
    let request = ssl_request();
    let mut expected = 0;
    // Every end within the request, and some within the ClientHello.
    let whole = [&request[..], &hello].concat();
    for length in (0..=request.len()).chain([request.len() + 1, whole.len() - 1]) {
        let mut stream = world.connect(PORT)?;
        let mut greeting = [0; 4];
        stream.read_exact(&mut greeting)?;
        assert_eq!(greeting[3], 0, "the sequence number of the first packet");
        stream.write_all(&whole[..length])?;
        drop(stream);
        expected += u64::from(length > 0);
    }
    gateway.wait_status("those who went", |s| s.rejects("databases", "closed_before_hello") == expected)?;
    gateway.wait_status("who said nothing", |s| s.rejects("databases", "closed_before_data") == 1)?;
    for (reason, bytes) in [
        ("mysql_malformed", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("mysql_malformed", hello.clone()),
        ("not_tls", [&request[..], b"SELECT 1"].concat()),
        ("not_tls", [&request[..], &request].concat()),
        ("hello_timeout", request[..20].to_vec()),
        ("mysql_cleartext", packet(1, &[&0x0008_8200_u32.to_le_bytes()[..], &[0; 28], b"app\0\0"].concat())),
        ("unknown_sni", [&request[..], &client_hello("nobody.example.com", &[])].concat()),
    ] {
        let before = gateway.status()?.rejects("databases", reason);
        let mut stream = world.connect(PORT)?;
        stream.write_all(&bytes)?;
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        let last = &heard[heard.len().saturating_sub(7)..];
        if reason == "unknown_sni" {
            assert_eq!(last, [21, 3, 3, 0, 2, 2, 112]);
        }
        gateway.wait_status(reason, |s| s.rejects("databases", reason) == before + 1)?;
    }
    Ok(())
}

#[test]
fn servers_that_are_none_are_passed_over() -> Result<()> {
    let world = World::new()?;
    let says = |port: u16, words: Vec<u8>| {
        Backend::start(&world.net.server, port, move |mut stream: std::net::TcpStream| {
            stream.write_all(&words)?;
            while stream.read(&mut [0; 1024])? > 0 {}
            Ok(())
        })
    };
    let _none = says(3302, b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())?;
    let _endless = says(3303, [255; 4096].to_vec())?;
    let mut clear = greeting();
    // Without SSL.
    clear[4 + 18 + 4 + 9 + 1] &= !8;
    let _clear = says(3304, clear)?;
    let _right = greeter(&world, 3301)?;
    let pool = pool("db1", &[3302, 3303, 3304, 3301], "connect_timeout = '20s'");
    let config = listener("hello_timeout = '20s'") + &passthrough("db1", "db1.example.com") + &pool;
    let gateway = world.gateway(&config)?;
    for _ in 0..4 {
        let mut stream = world.connect(PORT)?;
        stream.write_all(&[ssl_request(), client_hello("db1.example.com", &[])].concat())?;
        // The greeting, and nothing else: the server waits for more.
        let mut header = [0; 4];
        stream.read_exact(&mut header)?;
        stream.read_exact(&mut vec![0; header[0].into()])?;
        gateway.wait_status("it to be routed", |s| s.server("db1", "10.0.2.2:3301")["active"] == 1)?;
        drop(stream);
        gateway.wait_status("it to end", |s| s.route("db1", "active") == 0)?;
    }
    Ok(())
}

#[test]
fn before_any_server_is_heard_there_is_nothing_to_greet_with() -> Result<()> {
    let world = World::new()?;
    let config = listener("") + &route("db1", "*", "") + &pool("db1", &[3301], "");
    let gateway = world.gateway(&config)?;
    let refused = || -> Result<Vec<u8>> {
        let mut heard = Vec::new();
        world.connect(PORT)?.read_to_end(&mut heard)?;
        Ok(heard)
    };
    let heard = refused()?;
    // CR_CONN_HOST_ERROR.
    assert!(heard[3..].starts_with(b"\0\xff\xd3\x07none of the database servers"), "{heard:?}");
    gateway.wait_status("it to be counted", |s| s.rejects("databases", "mysql_no_server") == 1)?;

    let _server = greeter(&world, 3301)?;
    eventually("the server to be heard", || {
        let mut header = [0; 5];
        world.connect(PORT).ok()?.read_exact(&mut header).ok()?;
        (header[4] == 10).then_some(())
    })
}

#[test]
fn who_gets_no_server_hears_why_in_mysqls_own_words() -> Result<()> {
    require!(is_installed(Family::Mariadb), MARIADB);
    require!(has_pymysql(), PYMYSQL);
    let mut scene = Scene::new(&["--max-connections=10"], "")?;
    let clear = complaint(&python(&scene.world, "clear()")?);
    assert!(clear.contains("(3159, 'this gateway needs TLS with SNI"), "{clear}");
    scene.gateway.wait_status("it to be counted", |s| s.rejects("databases", "mysql_cleartext") == 1)?;

    // ER_CON_COUNT_ERROR, of the server; passed through nobody can say so inside of TLS.
    let many = "held = []
try:
    while len(held) < 20: held.append(connect('db3'))
except pymysql.err.OperationalError as error:
    print(len(held) >= 10, error.args)
try:
    connect('db1')
except Exception as error:
    print(type(error).__name__)
";
    let lines = said(&python(&scene.world, many)?);
    assert!(lines.starts_with("True (1040, 'Too many connections')\n"), "{lines}");

    scene.server.process.stop()?;
    for (name, expected) in
        [("db3", "(2003, 'the database server cannot be reached')"), ("nobody", "unrecognized name")]
    {
        let words = complaint(&python(&scene.world, &format!("connect('{name}')"))?);
        assert!(words.to_lowercase().contains(expected), "{name}: {words}");
    }
    eventually("each to be logged with its reason", || {
        let log = scene.gateway.access_log().ok()?;
        let closed = |reason: &str| log.iter().filter(|line| line["close_reason"] == reason).count();
        let alone = (closed("connect_failed"), closed("unknown_sni")) == (1, 1);
        (alone && closed("server_preamble") >= 2).then_some(())
    })
}
