//! What strangers send to a listener of HTTP; a server of the tests' own keeps every byte that reaches it.

pub(crate) mod floods;
pub(crate) mod frames;
mod h2spec;
mod http2;
mod slow;
mod smuggling;
mod unread;
mod uploads;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use snisplice_tests::Gateway;
use snisplice_tests::backend::Backend;

use crate::config::pool;
use crate::tolerance::answers;
use crate::world::World;

pub(crate) const HOST: &str = "a.example.com";

/// The gateway without TLS, and a server behind it.
pub(super) struct Scene {
    pub(super) gateway: Gateway,
    pub(super) server: Recorder,
    _backend: Backend,
    pub(super) world: World,
}

impl Scene {
    /// `extra`: of the listener and of the route.
    pub(super) fn new(of_listener: &str, of_route: &str) -> Result<Self> {
        Self::with(of_listener, of_route, "")
    }

    /// `more`: pools.
    pub(super) fn with(of_listener: &str, of_route: &str, more: &str) -> Result<Self> {
        let world = World::new()?;
        let server = Recorder::default();
        let recorder = server.clone();
        let backend = Backend::start(&world.net.server, 80, move |stream| recorder.serve(stream))?;
        let config = format!(
            "[gateway]\nworkers = 1\nadmin = '127.0.0.1:9900'\n[[listener]]\nname = 'web'\nbind = ['0.0.0.0:80']\nprotocol = 'http'\n{of_listener}\n\
             [[route]]\nname = 'app'\nlistener = 'web'\nsni = ['{HOST}']\n{of_route}\n[[route.rule]]\nbackends = ['app']\n\
             {}{more}",
            pool("app", &[80], "")
        );
        let gateway = world.gateway(&config)?;
        Ok(Self { gateway, server, _backend: backend, world })
    }

    pub(super) fn connect(&self) -> Result<TcpStream> {
        self.world.connect(80)
    }

    /// Sends this and nothing more; all that comes back until the end.
    pub(super) fn exchange(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut stream = self.connect()?;
        // A refusal may come before all is sent.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(answer)
    }

    /// Somebody else is served.
    pub(super) fn serves_others(&self) -> Result<()> {
        let answer = self.exchange(format!("GET /other HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(text.starts_with("HTTP/1.1 200 "), "{text}");
        Ok(())
    }

    /// How many requests had this answer of the gateway's own.
    pub(super) fn answers(&self, reason: &str) -> Result<u64> {
        answers(&self.world.net.gateway, reason)
    }
}

/// A request as a server that is strict has read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// The values of a header.
    pub(super) fn all(&self, name: &str) -> Vec<&str> {
        let found = self.headers.iter().filter(|(given, _)| given.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str()).collect()
    }
}

/// What has reached the server.
#[derive(Clone, Default)]
pub(super) struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    /// What was no request as RFC 9112 wants it, to the letter.
    odd: Arc<Mutex<Vec<String>>>,
}

impl Recorder {
    /// What has come since the last time.
    pub(super) fn take(&self) -> Result<Vec<Seen>> {
        let odd = std::mem::take(&mut *self.odd.lock().expect("no thread panics"));
        ensure!(odd.is_empty(), "the server got what is no request: {odd:?}");
        Ok(std::mem::take(&mut *self.seen.lock().expect("no thread panics")))
    }

    /// Answers each request, and looks for the next where it ends.
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut received = Vec::new();
        loop {
            match parse(&received) {
                Ok(Some((seen, length))) => {
                    received.drain(..length);
                    let is_head = seen.line.starts_with("HEAD ");
                    self.seen.lock().expect("no thread panics").push(seen);
                    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(&answer.as_bytes()[..answer.len() - if is_head { 2 } else { 0 }])?;
                    continue;
                }
                Ok(None) => {}
                Err(why) => {
                    let text = format!("{why}: {}", received.escape_ascii());
                    self.odd.lock().expect("no thread panics").push(text);
                    return Ok(());
                }
            }
            let mut buffer = [0; 16 * 1024];
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => received.extend_from_slice(&buffer[..n]),
            }
        }
    }
}

/// The first request, and how long it is; `None`: it is not whole yet.
fn parse(bytes: &[u8]) -> Result<Option<(Seen, usize)>, &'static str> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "no text")?;
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    if line.split(' ').count() != 3
        || !line.ends_with(" HTTP/1.1")
        || head.replace("\r\n", "").contains(['\r', '\n', '\0'])
    {
        return Err("a bad line");
    }
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or("no header")?;
        let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err("a bad name of a header");
        }
        headers.push((name.to_owned(), value.to_owned()));
    }
    let seen = Seen { line: line.to_owned(), headers, body: Vec::new() };
    let (lengths, codings) = (seen.all("content-length"), seen.all("transfer-encoding"));
    if seen.all("host").len() != 1 {
        return Err("not one host");
    }
    let rest = &bytes[end + 4..];
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => Some((Vec::new(), 0)),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| "a bad length")?;
            rest.get(..length).map(|body| (body.to_vec(), length))
        }
        ([], ["chunked"]) => chunks(rest)?,
        _ => return Err("it is not clear where the body ends"),
    };
    let head = end + 4;
    Ok(body.map(|(body, length)| (Seen { body, ..seen }, head + length)))
}

/// A body of chunks, without trailers.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes[at..].windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| "a bad size of a chunk")?;
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err("a bad size of a chunk");
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| "a bad size of a chunk")?;
        at += end + 2;
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk that does not end");
        }
        body.extend_from_slice(&chunk[..size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}
