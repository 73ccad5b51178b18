//! Servers of HTTP/2 that do not begin: nothing of a request is lost by then, and the next server gets it.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use snisplice_tests::backend::Backend;

use super::odd::{Odd2, WELL};
use super::scene::{ODD_HTTP2, Scene};
use crate::config::pool;
use crate::http_hostile::HOST;
use crate::world::silence;

const MUTE: u16 = 83;

/// Requests that come at once. Half of them are for the first server.
const TOGETHER: usize = 10;

/// A pool of a server that does this with its connections, and a good one.
struct Pair {
    scene: Scene,
    _good: Odd2,
    _mute: Backend,
}

impl Pair {
    fn new(serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Result<Self> {
        let of_pool = "http2 = true\nconnect_timeout = '2s'\neject = { failures = 2, time = '1h' }";
        let scene = Scene::with("", "", &pool("odd", &[MUTE, ODD_HTTP2], of_pool))?;
        let (good, mute) = (Odd2::start(&scene, &[])?, Backend::start(&scene.world.net.server, MUTE, serve)?);
        Ok(Pair { scene, _good: good, _mute: mute })
    }

    /// All of many requests are served.
    fn serves_all(&self) -> Result<()> {
        let mut clients = (0..TOGETHER).map(|_| self.scene.connect()).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            client.write_all(format!("GET /odd/x HTTP/1.0\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
        }
        for mut client in clients {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer)?;
            let text = String::from_utf8_lossy(&answer);
            ensure!(text.starts_with("HTTP/1.0 200 ") && answer.ends_with(WELL), "{text}");
        }
        Ok(())
    }

    fn is_ejected(&self) -> bool {
        self.scene.gateway.process.stderr().contains("ejected: connections to it fail")
    }

    /// All are served, and those who have waited together for the server count as one failure.
    fn fails_once_for_all(&self) -> Result<()> {
        self.serves_all()?;
        ensure!(!self.is_ejected(), "one attempt has counted more than once");
        self.serves_all()?;
        ensure!(self.is_ejected(), "the second attempt has not counted");
        self.serves_all()
    }
}

/// It takes connections, and says nothing.
fn says_nothing(mut stream: TcpStream) -> io::Result<()> {
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

#[test]
fn requests_that_wait_for_a_server_that_cannot_be_reached_get_the_next_one() -> Result<()> {
    let pair = Pair::new(says_nothing)?;
    silence(&pair.scene.world.net.server, &format!("tcp dport {MUTE}"))?;
    pair.fails_once_for_all()
}

#[test]
fn a_server_that_does_not_say_how_many_it_takes_is_passed_over() -> Result<()> {
    Pair::new(says_nothing)?.fails_once_for_all()
}

#[test]
fn a_server_that_says_something_else_is_passed_over() -> Result<()> {
    for words in ["HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-x\r\n", ""] {
        let pair = Pair::new(move |mut stream| {
            // All requests are there by then.
            std::thread::sleep(Duration::from_secs(1));
            stream.write_all(words.as_bytes())?;
            stream.shutdown(Shutdown::Write)?;
            says_nothing(stream)
        })?;
        pair.fails_once_for_all()?;
    }
    Ok(())
}
