//! Servers that take their time: what is not waited for any longer.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::backend::Backend;
use snisplice_tests::pump::reset_on_close;
use snisplice_tests::wait::patience;

use super::echo::next_request;
use super::odd::{Odd2, WELL};
use super::scene::{ODD, ODD_HTTP2, Scene, VERSIONS};
use crate::http_hostile::HOST;
use crate::http_hostile::frames::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, Raw, SETTINGS};

/// A server that takes connections, and what it says of each.
struct Silent {
    asked: Receiver<()>,
    ended: Receiver<()>,
    _backend: Backend,
}

impl Silent {
    /// `begin`: what it does with a request. It says nothing more, and waits for the end.
    fn start(
        scene: &Scene,
        port: u16,
        begin: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let ((ask, asked), (end, ended)) = (channel(), channel());
        let tell: Mutex<(Sender<()>, Sender<()>)> = Mutex::new((ask, end));
        let backend = Backend::start(&scene.world.net.server, port, move |mut stream| {
            let (ask, end) = tell.lock().expect("no thread panics").clone();
            begin(&mut stream)?;
            let _ = ask.send(());
            // However it ends.
            let _ = io::copy(&mut stream, &mut io::sink());
            let _ = end.send(());
            Ok(())
        })?;
        Ok(Silent { asked, ended, _backend: backend })
    }
}

fn take(what: &Receiver<()>, times: usize, bound: Duration) -> Result<()> {
    (0..times).try_for_each(|turn| what.recv_timeout(bound).with_context(|| format!("{turn} of {times}")))
}

/// A request has come.
fn asked(stream: &mut TcpStream) -> io::Result<()> {
    next_request(&mut BufReader::new(stream.try_clone()?)).map(drop)
}

#[test]
fn clients_that_leave_while_the_server_thinks_let_its_connections_go() -> Result<()> {
    const CLIENTS: usize = 20;
    let scene = Scene::new("", "")?;
    let get = format!("GET /odd/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let silent = Silent::start(&scene, ODD, asked)?;
    for is_reset in [true, false] {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let mut client = scene.connect()?;
            client.write_all(get.as_bytes())?;
            if is_reset {
                reset_on_close(&client)?;
            }
            clients.push(client);
        }
        take(&silent.asked, CLIENTS, patience())?;
        drop(clients);
        take(&silent.ended, CLIENTS, patience()).context("the server's connections")?;
    }
    // HTTP/2: a stream that is reset, and a connection that ends.
    let mut resets = Raw::new(scene.connect()?)?;
    let mut ends = Raw::new(scene.connect()?)?;
    for raw in [&mut resets, &mut ends] {
        raw.request(1, "GET", "/odd/x", true)?;
    }
    take(&silent.asked, 2, patience())?;
    resets.frame(crate::http_hostile::frames::RST_STREAM, 0, 1, &8u32.to_be_bytes())?;
    take(&silent.ended, 1, patience()).context("a stream that was reset")?;
    drop(ends);
    take(&silent.ended, 1, patience()).context("a connection of HTTP/2 that has ended")?;
    drop(resets);
    // Nobody got an answer, and all are gone.
    let lines = scene.gateway.wait_access_log(2 * (2 * CLIENTS + 2))?;
    let requests: Vec<_> = lines.iter().filter(|line| line["path"] == "/odd/x").collect();
    assert_eq!(requests.len(), 2 * CLIENTS + 2);
    assert!(
        requests.iter().all(|line| line["status"].is_null() && line["end"] == "incomplete"),
        "{requests:?}"
    );
    let closes = |reason: &str| lines.iter().filter(|line| line["close_reason"] == reason).count();
    assert!(closes("client_reset") >= CLIENTS && closes("client_closed") >= CLIENTS, "{lines:?}");
    assert!(scene.gateway.connections()?.is_empty());
    Ok(())
}

#[test]
fn a_client_that_only_ends_what_it_sends_gets_its_answer() -> Result<()> {
    let scene = Scene::new("", "")?;
    let _server = Backend::start(&scene.world.net.server, ODD, |mut stream| {
        asked(&mut stream)?;
        // Far less than a client may wait that has sent a FIN.
        std::thread::sleep(Duration::from_secs(1));
        super::echo::own(&mut stream, "GET", "/odd/x")
    })?;
    let mut client = scene.connect()?;
    write!(client, "GET /odd/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
    client.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    client.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("/odd/x"), "{answer}");
    Ok(())
}

/// All that comes of a request in HTTP/1.1, and whether its end is a reset.
fn exchange(scene: &Scene, request: &str) -> Result<(String, bool)> {
    let mut client = scene.connect()?;
    client.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let is_reset = match client.read_to_end(&mut answer) {
        Ok(_) => false,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
        Err(error) => return Err(error.into()),
    };
    Ok((String::from_utf8_lossy(&answer).into_owned(), is_reset))
}

#[test]
fn an_answer_that_stands_still_is_cut_so_that_its_client_sees_it() -> Result<()> {
    let scene = Scene::new("idle_timeout = '1s'", "")?;
    let _server = Silent::start(&scene, ODD, |stream| {
        asked(stream)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    })?;
    let odd2 = Odd2::start(&scene, &[])?;
    odd2.does(Some(std::sync::Arc::new(|raw: &mut Raw, stream| {
        raw.headers(stream, &[(":status", "200")], false)?;
        raw.data(stream, b"hello", false)
    })));
    for path in ["/odd/x", "/odd2/x"] {
        let (answer, _) = exchange(&scene, &format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))?;
        ensure!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\n5\r\nhello\r\n"),
            "{path}: {answer}"
        );
        ensure!(!answer.ends_with("0\r\n\r\n"), "{path}: it is whole: {answer}");
        // There the end of the connection is that of the answer.
        let (answer, is_reset) = exchange(&scene, &format!("GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n"))?;
        ensure!(answer.contains("hello") && is_reset, "{path}: it is whole: {answer}");

        let mut raw = Raw::new(scene.connect()?)?;
        raw.request(1, "GET", path, true)?;
        let frames = raw.until_answered(1)?;
        let body = frames.iter().filter(|frame| frame.kind == DATA).flat_map(|frame| frame.payload.clone());
        assert_eq!(String::from_utf8_lossy(&body.collect::<Vec<_>>()), "hello", "{path}: {frames:?}");
        let ends = |frame: &&crate::http_hostile::frames::Frame| {
            frame.stream == 1 && matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0
        };
        ensure!(!frames.iter().any(|frame| ends(&frame)), "{path}: it is whole: {frames:?}");
        for version in VERSIONS {
            let got = scene.ask(version, path, &[])?;
            ensure!(!got.is_whole && got.body == b"hello", "{path}: {got:?}");
        }
    }
    scene.serves_others()
}

/// Sockets between client and gateway hold some 20 KB from here on, and at most [`HELD`]: the rest of an answer that is not taken
/// stays in the gateway.
fn narrow(scene: &Scene) -> Result<()> {
    scene.world.net.gateway.sysctl("net/ipv4/tcp_wmem", "4096 8192 8192")?;
    scene.world.net.client.sysctl("net/ipv4/tcp_rmem", "4096 8192 8192")
}

/// The bytes of an answer's body of which [`narrow`] sockets hold a part only. The gateway takes all of it from the server (it
/// holds twice 64 KiB), for which the answer is over then.
const HELD: usize = 100 * 1024;

#[test]
fn an_answer_whose_end_is_not_taken_is_cut_so_that_its_client_sees_it() -> Result<()> {
    let scene = Scene::new("idle_timeout = '1s'", "")?;
    narrow(&scene)?;
    let _server = Silent::start(&scene, ODD, |stream| {
        asked(stream)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        stream.write_all(&[b'a'; HELD])?;
        stream.shutdown(Shutdown::Write)
    })?;
    // The end of the connection is that of the answer.
    let mut client = scene.connect()?;
    write!(client, "GET /odd/x HTTP/1.0\r\nHost: {HOST}\r\n\r\n")?;
    let lines = scene.gateway.wait_access_log(2)?;
    ensure!(lines[0]["end"] == "complete", "the gateway has not taken all of it: {lines:?}");
    ensure!(lines[1]["close_reason"] == "idle_timeout", "{lines:?}");
    let mut answer = Vec::new();
    let end = client.read_to_end(&mut answer);
    ensure!(answer.starts_with(b"HTTP/1.0 200 ") && answer.len() < HELD, "{} bytes", answer.len());
    let error = end.err().with_context(|| format!("{} bytes look like all of it", answer.len()))?;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    scene.serves_others()
}

/// A server that answers `/odd/x` before all of the request has come, and nothing else. It takes one request a connection.
fn early(scene: &Scene) -> Result<Silent> {
    Silent::start(scene, ODD, |stream| {
        let request = next_request(&mut BufReader::new(stream.try_clone()?))?;
        if request.is_some_and(|(_, path)| path == "/odd/x") {
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {HELD}\r\n\r\n")?;
            stream.write_all(&[b'a'; HELD])?;
        }
        Ok(())
    })
}

/// A client to whom its answer was given before it had sent all, and who has taken a part of the answer only. `next`: what it
/// sends behind the rest. `before`: lines of the access log.
fn not_taken(scene: &Scene, next: &str, before: usize) -> Result<TcpStream> {
    let mut client = scene.connect()?;
    write!(client, "POST /odd/x HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\na")?;
    let lines = scene.gateway.wait_access_log(before + 1)?;
    ensure!(lines[before]["end"] == "complete", "the gateway has not taken all of it: {lines:?}");
    write!(client, "b{next}")?;
    Ok(client)
}

#[test]
fn what_comes_of_the_next_request_comes_behind_the_last_answer() -> Result<()> {
    let scene = Scene::new("", "")?;
    narrow(&scene)?;
    let _server = early(&scene)?;
    let expects = format!(
        "POST /odd/next HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
    );
    for (next, said) in [("no request\r\n\r\n", "HTTP/1.1 400 "), (&expects, "HTTP/1.1 100 ")] {
        let before = scene.gateway.access_log()?.len();
        let client = not_taken(&scene, next, before)?;
        // A body is held back for a second, until 100 is said.
        std::thread::sleep(Duration::from_millis(1500));
        let mut answer = BufReader::new(client);
        assert!(next_request(&mut answer)?.is_some_and(|(_, status)| status == "200"));
        let (mut body, mut behind) = (vec![0; HELD], vec![0; said.len()]);
        answer.read_exact(&mut body)?;
        ensure!(body == [b'a'; HELD], "{said} is within the answer");
        answer.read_exact(&mut behind)?;
        assert_eq!(String::from_utf8_lossy(&behind), said);
        drop(answer);
        scene.gateway.wait_access_log(before + 2)?;
    }
    scene.serves_others()
}

#[test]
fn a_connection_whose_client_does_not_take_the_end_is_not_held_for_ever() -> Result<()> {
    let scene = Scene::new("idle_timeout = '1s'", "")?;
    narrow(&scene)?;
    let _server = early(&scene)?;
    for (next, sends_no_more) in [("GET /odd/next HT", true), ("no request\r\n\r\n", false)] {
        let before = scene.gateway.access_log()?.len();
        let mut client = not_taken(&scene, next, before)?;
        if sends_no_more {
            client.shutdown(Shutdown::Write)?;
        }
        let lines = scene.gateway.wait_access_log(before + 2).with_context(|| next.to_owned())?;
        ensure!(lines[before + 1]["close_reason"] == "idle_timeout", "{lines:?}");
        let error = client.read_to_end(&mut Vec::new()).err().context("it looks like the end")?;
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    scene.serves_others()
}

#[test]
fn an_answer_that_takes_too_long_is_cut_so_that_its_client_sees_it() -> Result<()> {
    let scene = Scene::new("", "request_timeout = '1s'")?;
    let _server = Silent::start(&scene, ODD, |stream| {
        asked(stream)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello")
    })?;
    for version in VERSIONS {
        let got = scene.ask(version, "/odd/x", &[])?;
        ensure!(!got.is_whole && got.body == b"hello", "{got:?}");
    }
    Ok(())
}

#[test]
fn a_connection_of_http2_to_a_server_is_closed_when_it_is_idle() -> Result<()> {
    let scene = Scene::new("", "")?;
    let (end, ended) = channel();
    let end = Mutex::new(end);
    let _server = Backend::start(&scene.world.net.server, ODD_HTTP2, move |stream| {
        let mut raw = Raw::accept(stream, &[])?;
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                HEADERS => {
                    raw.frame(HEADERS, END_HEADERS, frame.stream, &[0x88])?;
                    raw.data(frame.stream, WELL, true)?;
                }
                _ => {}
            }
        }
        let _ = end.lock().expect("no thread panics").send(());
        Ok(())
    })?;
    for _ in 0..3 {
        let got = scene.ask("--http1.1", "/odd2/x", &[])?;
        ensure!(got.is_whole && got.body == WELL, "{got:?}");
    }
    // It is kept for half a minute.
    ensure!(ended.try_recv().is_err(), "it was not kept");
    take(&ended, 1, Duration::from_secs(40) + patience())?;
    let got = scene.ask("--http1.1", "/odd2/x", &[])?;
    ensure!(got.is_whole && got.body == WELL, "{got:?}");
    Ok(())
}

#[test]
fn an_upload_goes_on_while_a_connection_of_http2_has_no_room() -> Result<()> {
    // 1 byte at a time.
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let scene = Scene::new("", "")?;
    let odd = Odd2::start(&scene, &[(INITIAL_WINDOW_SIZE, 1)])?;
    odd.does(Some(std::sync::Arc::new(|raw: &mut Raw, stream| {
        let mut received = 0;
        while received < 20 {
            let Some(frame) = raw.next().map_err(io::Error::other)? else { return Ok(()) };
            if frame.kind == SETTINGS && frame.flags & ACK == 0 {
                raw.frame(SETTINGS, ACK, 0, &[])?;
            }
            if frame.kind == DATA && !frame.payload.is_empty() {
                received += frame.payload.len();
                raw.frame(crate::http_hostile::frames::WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes())?;
            }
        }
        super::odd::good(raw, stream)
    })));
    for version in VERSIONS {
        let got = scene.ask(version, "/odd2/x", &["--data", "twenty bytes to send"])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == WELL, "{got:?}");
    }
    Ok(())
}
