//! Clients that do not read what servers send them on a connection that others' requests are on as well.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use anyhow::{Context as _, Result, ensure};
use snisplice_tests::backend::Backend;
use snisplice_tests::wait::patience;

use super::frames::{ACK, Frame, HEADERS, PING, Raw, SETTINGS, WINDOW_UPDATE};
use super::{HOST, Scene};
use crate::config::pool;

const PORT: u16 = 81;
const INITIAL_WINDOW_SIZE: u16 = 4;
const OK: &[(&str, &str)] = &[(":status", "200")];
const WELL: &[u8] = b"well";

/// The gateway, and a server of HTTP/2 that does this with each connection. The other end hears of the requests that it has dealt with.
fn shared(
    serve: impl Fn(Raw, &Sender<()>) -> io::Result<()> + Send + Sync + 'static,
) -> Result<(Scene, Backend, Receiver<()>)> {
    let rule = "[[route.rule]]\nmatch = [{ path_prefix = '/shared' }]\nbackends = ['shared']\n";
    let scene = Scene::with("", rule, &pool("shared", &[PORT], "http2 = true"))?;
    let (tell, told) = channel();
    let tell = Mutex::new(tell);
    let serve = move |stream: TcpStream| {
        let tell = tell.lock().expect("no thread panics").clone();
        serve(Raw::accept(stream, &[])?, &tell)
    };
    let backend = Backend::start(&scene.world.net.server, PORT, serve)?;
    Ok((scene, backend, told))
}

/// A client that asks so many times, and takes no byte of an answer's body.
fn unreading(scene: &Scene, requests: usize, told: &Receiver<()>) -> Result<Raw> {
    let mut raw = Raw::with_settings(scene.connect()?, &[(INITIAL_WINDOW_SIZE, 0)])?;
    for turn in 0..requests {
        raw.request(2 * turn as u32 + 1, "GET", "/shared/x", true)?;
        told.recv_timeout(patience()).with_context(|| format!("request {turn} does not come"))?;
    }
    Ok(raw)
}

/// Another client gets the whole answer.
fn is_served(scene: &Scene) -> Result<()> {
    let answer = scene.exchange(format!("GET /shared/x HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    let text = String::from_utf8_lossy(&answer);
    ensure!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\nwell\r\n0\r\n\r\n"), "{text}");
    Ok(())
}

/// An answer that a server has begun.
struct Answer {
    window: i64,
    left: usize,
}

/// Answers so many requests with more than their windows hold, and the others well, all within the windows.
fn send_much(mut raw: Raw, much: usize, tell: &Sender<()>) -> io::Result<()> {
    const DEFAULT: i64 = 65_535;
    let body = [b'x'; 16 * 1024];
    let (mut window, mut of_each) = (DEFAULT, DEFAULT);
    let (mut answers, mut requests) = (BTreeMap::<u32, Answer>::new(), 0);
    while let Some(frame) = raw.next().map_err(io::Error::other)? {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => {
                of_each = setting(&frame, INITIAL_WINDOW_SIZE).unwrap_or(of_each);
                raw.frame(SETTINGS, ACK, 0, &[])?;
            }
            WINDOW_UPDATE => {
                let more = i64::from(number(&frame.payload));
                match frame.stream {
                    0 => window += more,
                    stream => _ = answers.get_mut(&stream).map(|answer| answer.window += more),
                }
            }
            HEADERS => {
                requests += 1;
                let left = if requests > much { WELL.len() } else { 1 << 20 };
                answers.insert(frame.stream, Answer { window: of_each, left });
                raw.headers(frame.stream, OK, false)?;
            }
            _ => {}
        }
        for (stream, answer) in &mut answers {
            let whole = if answer.left > WELL.len() { &body[..] } else { WELL };
            while answer.left > 0 {
                let length = answer.left.min(whole.len()).min(answer.window.min(window).max(0) as usize);
                if length == 0 {
                    break;
                }
                answer.left -= length;
                answer.window -= length as i64;
                window -= length as i64;
                raw.data(*stream, &whole[..length], answer.left == 0)?;
            }
        }
        if frame.kind == HEADERS {
            let _ = tell.send(());
        }
    }
    Ok(())
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn setting(frame: &Frame, name: u16) -> Option<i64> {
    let found = frame.payload.chunks_exact(6).find(|setting| number(&setting[..2]) == u32::from(name));
    found.map(|setting| i64::from(number(&setting[2..])))
}

#[test]
fn answers_that_are_not_read_do_not_stop_others_on_the_connection() -> Result<()> {
    // One less than are on one connection.
    const UNREAD: usize = 99;
    let (scene, _server, told) = shared(|raw, tell| send_much(raw, UNREAD, tell))?;
    let _unread = unreading(&scene, UNREAD, &told)?;
    is_served(&scene)
}

#[test]
fn small_messages_that_are_not_read_do_not_end_the_connection_of_others() -> Result<()> {
    // h2 would have 2100 of them.
    const MESSAGES: usize = 5000;
    let (scene, _server, told) = shared(|mut raw, tell| {
        let mut first = None;
        while let Some(frame) = raw.next().map_err(io::Error::other)? {
            match (frame.kind, first) {
                (SETTINGS, _) if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                (HEADERS, None) => {
                    first = Some(frame.stream);
                    raw.headers(frame.stream, OK, false)?;
                    let _ = tell.send(());
                }
                (HEADERS, Some(first)) => {
                    raw.headers(frame.stream, OK, false)?;
                    (0..MESSAGES).try_for_each(|_| raw.data(first, b"ten bytes.", false))?;
                    raw.frame(PING, 0, 0, &[0; 8])?;
                    // The gateway has seen all of them.
                    while raw.next().map_err(io::Error::other)?.is_some_and(|frame| frame.kind != PING) {}
                    raw.data(frame.stream, WELL, true)?;
                }
                _ => {}
            }
        }
        Ok(())
    })?;
    let _unread = unreading(&scene, 1, &told)?;
    is_served(&scene)
}
