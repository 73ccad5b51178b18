//! Connections that carry one request after another.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use snisplice_tests::backend::Backend;
use snisplice_tests::wait::patience;

use super::{ALL_TO_A, NAME, Scene, site};
use crate::config::pool;
use crate::openssl::SClient;

const GET: &[u8] = b"GET /status/200 HTTP/1.1\r\nHost: site.example.com\r\n\r\n";

/// Sends a request; the status line and the headers of the answer.
fn exchange(client: &mut BufReader<TcpStream>) -> Result<(String, String)> {
    ask(client, GET)
}

fn ask(client: &mut BufReader<TcpStream>, request: &[u8]) -> Result<(String, String)> {
    client.get_mut().write_all(request)?;
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let from = head.len();
        client.read_line(&mut head)?;
        let line = head[from..].trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        if line.is_empty() {
            break;
        }
    }
    client.read_exact(&mut vec![0; length])?;
    let (first, rest) = head.split_once("\r\n").context("no answer")?;
    Ok((first.to_owned(), rest.to_ascii_lowercase()))
}

#[test]
fn each_request_goes_by_the_configuration_of_its_time() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let mut client = BufReader::new(scene.world.connect(80)?);
    let (status, headers) = exchange(&mut client)?;
    assert!(status.ends_with("200 OK") && headers.contains("x-server: a"), "{status} {headers}");
    scene.gateway.write_config(&site(&scene.world, "[[route.rule]]\nbackends = [{ pool = 'b' }]\n", "")?)?;
    scene.gateway.reload()?;
    let (status, headers) = exchange(&mut client)?;
    assert!(status.ends_with("200 OK") && headers.contains("x-server: b"), "{status} {headers}");
    let none =
        site(&scene.world, "[[route.rule]]\nmatch = [{ path = '/x' }]\nbackends = [{ pool = 'b' }]\n", "")?;
    scene.gateway.write_config(&none)?;
    scene.gateway.reload()?;
    assert!(exchange(&mut client)?.0.ends_with("404 Not Found"));
    Ok(())
}

#[test]
fn a_connection_ends_with_its_listener_and_with_the_gateway() -> Result<()> {
    let mut scene = Scene::new(ALL_TO_A, "")?;
    let mut first = BufReader::new(scene.world.connect(80)?);
    exchange(&mut first)?;
    let moved = site(&scene.world, ALL_TO_A, "")?.replace("0.0.0.0:80", "0.0.0.0:81");
    scene.gateway.write_config(&moved)?;
    scene.gateway.reload()?;
    assert_eq!(first.read(&mut [0])?, 0);

    let mut second = BufReader::new(scene.world.connect(81)?);
    exchange(&mut second)?;
    scene.gateway.process.signal(Signal::SIGTERM)?;
    assert_eq!(second.read(&mut [0])?, 0);
    assert!(scene.gateway.process.wait(patience())?.success());
    let log = scene.gateway.access_log_text();
    assert_eq!(log.matches("\"dismissed\"").count(), 2, "{log}");
    Ok(())
}

#[test]
fn a_connection_without_a_certificate_that_is_now_asked_for_is_not_served() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let get = "GET /status/200 HTTP/1.1\r\nHost: site.example.com\r\n\r\n";
    let start = || SClient::start(&scene.world, NAME, ["-alpn", "http/1.1"]);
    let (mut kept, mut young) = (start()?, start()?);
    kept.type_in(get)?;
    kept.wait_for("as asked")?;
    young.wait_for("Verify return code")?;
    let asks = format!("tls = 'terminate'\nclient_ca = {:?}", scene.world.authority.path);
    let config = site(&scene.world, ALL_TO_A, "")?.replace("tls = 'terminate'", &asks);
    scene.gateway.write_config(&config)?;
    scene.gateway.reload()?;
    kept.wait_end()?;
    young.type_in(get)?;
    young.wait_for("421 Misdirected Request")?;
    let output = young.wait_end()?;
    assert!(!output.contains("as asked"), "{output}");
    Ok(())
}

#[test]
fn connections_to_servers_are_kept_and_those_that_died_are_not_used() -> Result<()> {
    let scene = Scene::new(ALL_TO_A, "")?;
    let url = "http://site.example.com/";
    let requests = vec![url; 20];
    scene.fetch(&requests)?;
    let total = |scene: &Scene| -> Result<u64> {
        let status = scene.gateway.status()?;
        Ok(status.server("a", &crate::config::server(8001))["total"].as_u64().unwrap_or_default())
    };
    // One for each worker.
    assert!(total(&scene)? <= 2, "{}", total(&scene)?);
    let Scene { gateway, a, b, world } = scene;
    drop(a);
    let a = super::serve(&world, "json", "server.py", &["8001", "a"], 8001)?;
    let scene = Scene { gateway, a, b, world };
    for _ in 0..4 {
        assert_eq!(scene.status(&["-X", "POST", "-d", "x", url])?, "200");
    }
    Ok(())
}

#[test]
fn max_connections_bounds_the_requests_under_way() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'few' }]\n";
    let few =
        pool("few", &[8001], "connect_timeout = '500ms'").replace("8001' }", "8001', max_connections = 1 }");
    let scene = Scene::new(rules, &few)?;
    let statuses: Vec<String> = std::thread::scope(|scope| {
        let ask = || scene.status(&["http://site.example.com/slow/2"]);
        let asked: Vec<_> = (0..2).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().expect("no panic")).collect::<Result<_>>()
    })?;
    let mut statuses = statuses;
    statuses.sort();
    assert_eq!(statuses, ["200", "503"]);
    Ok(())
}

#[test]
fn a_server_that_is_told_the_client_gets_a_connection_for_each() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'told' }]\n";
    let scene = Scene::new(rules, &pool("told", &[8003], "send_proxy = 'v1'"))?;
    // It answers each request with the client's port, as the header of its connection has it.
    let _server = Backend::start(&scene.world.net.server, 8003, |stream| {
        let mut stream = BufReader::new(stream);
        let mut header = String::new();
        stream.read_line(&mut header)?;
        let port = header.split(' ').nth(4).unwrap_or_default().to_owned();
        let mut line = String::new();
        while stream.read_line(&mut line)? > 0 {
            if line == "\r\n" {
                let answer = format!("HTTP/1.1 200 OK\r\nX-Port: {port}\r\nContent-Length: 0\r\n\r\n");
                stream.get_mut().write_all(answer.as_bytes())?;
            }
            line.clear();
        }
        Ok(())
    })?;
    for _ in 0..2 {
        let client = scene.world.connect(80)?;
        let port = client.local_addr()?.port();
        let mut client = BufReader::new(client);
        for _ in 0..3 {
            let (_, headers) = exchange(&mut client)?;
            assert!(headers.contains(&format!("x-port: {port}\r\n")), "{headers}");
        }
    }
    let status = scene.gateway.status()?;
    assert_eq!(status.server("told", &crate::config::server(8003))["total"], 2);
    Ok(())
}

#[test]
fn a_kept_connection_that_ends_does_not_count_against_its_server() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'both' }]\n";
    let scene = Scene::new(rules, &pool("both", &[8001, 8003], "eject = { failures = 1, time = '1h' }"))?;
    // It answers the first request of a connection, and ends that at the second one.
    let _server = Backend::start(&scene.world.net.server, 8003, |mut stream| {
        for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""] {
            let mut received = Vec::new();
            while !received.ends_with(b"\r\n\r\nx") {
                let mut buffer = [0; 4096];
                match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    n => received.extend_from_slice(&buffer[..n]),
                }
            }
            stream.write_all(answer.as_bytes())?;
        }
        Ok(())
    })?;
    let mut client = BufReader::new(scene.world.connect(80)?);
    let mut lost = 0;
    for _ in 0..16 {
        let post = b"POST / HTTP/1.1\r\nHost: site.example.com\r\nContent-Length: 1\r\n\r\nx";
        let (status, _) = ask(&mut client, post)?;
        lost += usize::from(status.contains(" 502 "));
    }
    assert_eq!(lost, 4);
    Ok(())
}

#[test]
fn an_answer_that_says_twice_where_it_ends_is_none() -> Result<()> {
    let rules = "[[route.rule]]\nbackends = [{ pool = 'odd' }]\n";
    let scene = Scene::new(rules, &pool("odd", &[8003], ""))?;
    let _server = Backend::start(&scene.world.net.server, 8003, |mut stream| {
        let _ = stream.read(&mut [0; 4096])?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n")
    })?;
    assert_eq!(scene.status(&["http://site.example.com/"])?, "502");
    Ok(())
}
