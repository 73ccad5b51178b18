//! What a server says when nobody has asked it, or nobody listens any more: it is never the answer to somebody else's request.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::backend::Backend;
use snisplice_tests::eventually;
use snisplice_tests::process::checked_output;
use snisplice_tests::wait::patience;

use super::echo::{next_request, own};
use super::odd::{CASE, Odd, Then};
use super::scene::{ODD, Scene, VERSIONS, each};
use crate::http_hostile::HOST;

const STOLEN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen";

#[test]
fn bytes_behind_the_answer() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let well = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let behind = [STOLEN, "x", "\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 200 OK\r\nX-A: "];
    let cases = [well, chunks].into_iter().flat_map(|answer| behind.map(|more| format!("{answer}{more}")));
    each(&cases.collect::<Vec<_>>(), |version, text| {
        odd.answers(text.as_bytes(), Then::GoesOn);
        let got = scene.ask(version, CASE, &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == b"hello", "{got:?}");
        scene.own(version, "/odd/next")?;
        scene.own(version, "/odd/next2")
    })?;
    scene.serves_others()
}

/// A server that is told by a test when to go on.
struct Stepped {
    go_on: Sender<()>,
    _backend: Backend,
}

impl Stepped {
    /// `odd`: answers a request for the path of a case, and waits in between.
    fn start(
        scene: &Scene,
        odd: impl Fn(&mut TcpStream, &Receiver<()>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (go_on, steps) = channel();
        let steps = Mutex::new(steps);
        let backend = Backend::start(&scene.world.net.server, ODD, move |mut stream| {
            let mut requests = BufReader::new(stream.try_clone()?);
            while let Some((method, path)) = next_request(&mut requests)? {
                match path == CASE {
                    true => odd(&mut stream, &steps.lock().expect("no thread panics"))?,
                    false => own(&mut stream, &method, &path)?,
                }
            }
            Ok(())
        })?;
        Ok(Stepped { go_on, _backend: backend })
    }
}

fn step(steps: &Receiver<()>) -> io::Result<()> {
    steps.recv_timeout(patience()).map_err(io::Error::other)
}

/// Waits until what the server has sent lies at the gateway's socket, or the gateway has closed that.
fn wait_for_bytes(scene: &Scene) -> Result<()> {
    eventually("the server's bytes", || {
        let mut ss = scene.world.net.gateway.command("ss");
        let sockets = checked_output(ss.args(["-Htn", "dst", &format!("10.0.2.1:{ODD}")])).ok()?;
        sockets.lines().all(|line| line.split_whitespace().nth(1) != Some("0")).then_some(())
    })
}

#[test]
fn an_answer_that_comes_before_its_request() -> Result<()> {
    for late in [STOLEN, "x", "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"] {
        let scene = Scene::new("", "")?;
        let server = Stepped::start(&scene, |stream, steps| {
            own(stream, "GET", CASE)?;
            step(steps)?;
            stream.write_all(late.as_bytes())
        })?;
        for version in VERSIONS {
            scene.own(version, CASE)?;
            server.go_on.send(())?;
            wait_for_bytes(&scene)?;
            scene.own(version, "/odd/next")?;
        }
    }
    Ok(())
}

#[test]
fn an_answer_that_comes_before_any_request() -> Result<()> {
    let scene = Scene::new("", "")?;
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = accepted.clone();
    let _server = Backend::start(&scene.world.net.server, ODD, move |mut stream| {
        count.fetch_add(1, Relaxed);
        stream.write_all(STOLEN.as_bytes())?;
        let mut requests = BufReader::new(stream.try_clone()?);
        while let Some((method, path)) = next_request(&mut requests)? {
            own(&mut stream, &method, &path)?;
        }
        Ok(())
    })?;
    for turn in 0..20 {
        // The first request of a connection may meet it: nothing tells it from an answer to that. No other one may.
        let got = scene.ask(VERSIONS[turn % 2], "/odd/any", &[])?;
        ensure!(got.is_whole && (got.status() == "502" || got.body == b"stolen"), "{got:?}");
    }
    ensure!(accepted.load(Relaxed) == 20, "a connection was used again");
    Ok(())
}

#[test]
fn the_rest_of_an_answer_whose_client_has_left() -> Result<()> {
    let scene = Scene::new("", "")?;
    let server = Stepped::start(&scene, |stream, steps| {
        let rest = STOLEN.repeat(20_000);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\nhello", rest.len() + 5)?;
        step(steps)?;
        stream.write_all(rest.as_bytes())
    })?;
    for version in VERSIONS {
        let mut client = scene.connect()?;
        write!(client, "GET {CASE} HTTP/1.1\r\nHost: {HOST}\r\n\r\n")?;
        client.read_exact(&mut [0; 17])?;
        drop(client);
        server.go_on.send(())?;
        for _ in 0..5 {
            scene.own(version, "/odd/next")?;
        }
    }
    Ok(())
}

#[test]
fn an_answer_that_comes_too_late() -> Result<()> {
    let scene = Scene::new("", "backend_timeout = '300ms'")?;
    let server = Stepped::start(&scene, |stream, steps| {
        step(steps)?;
        stream.write_all(STOLEN.as_bytes())
    })?;
    for version in VERSIONS {
        let got = scene.ask(version, CASE, &[])?;
        ensure!(got.status() == "504" && got.is_whole, "{got:?}");
        server.go_on.send(())?;
        for _ in 0..5 {
            scene.own(version, "/odd/next")?;
        }
    }
    Ok(())
}

#[test]
fn many_clients_at_once_get_each_their_own() -> Result<()> {
    let scene = Scene::new("", "")?;
    let odd = Odd::start(&scene)?;
    let texts = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello{STOLEN}"),
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello".to_owned(),
        format!("HTTP/1.1 204 No Content\r\n\r\n{STOLEN}"),
        "SSH-2.0-x\r\n".to_owned(),
    ];
    for text in texts {
        odd.answers(text.as_bytes(), Then::Ends);
        std::thread::scope(|scope| -> Result<()> {
            let asking: Vec<_> = (0..4)
                .map(|number| {
                    let scene = &scene;
                    scope.spawn(move || -> Result<()> {
                        for turn in 0..30 {
                            let path = format!("/odd/own-{number}-{turn}");
                            let answer = scene.raw(&format!(
                                "GET {CASE} HTTP/1.1\r\nHost: {HOST}\r\n\r\nGET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
                            ))?;
                            ensure!(!answer.contains("stolen"), "{answer}");
                            let mine = scene.raw(&format!(
                                "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
                            ))?;
                            ensure!(mine.ends_with(&format!("\r\n\r\n{path}")), "{mine}");
                        }
                        Ok(())
                    })
                })
                .collect();
            asking.into_iter().try_for_each(|asked| asked.join().expect("no panic").context(text.clone()))
        })?;
    }
    Ok(())
}
