//! Servers that do as a test tells them, byte by byte or frame by frame.

use std::io::{self, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};

use anyhow::Result;
use snisplice_tests::backend::Backend;
use snisplice_tests::pump::reset_on_close;

use super::echo::{next_request, own};
use super::scene::{ODD, ODD_HTTP2, Scene};
use crate::http_hostile::frames::{ACK, HEADERS, PING, Raw, SETTINGS};

/// What becomes of a connection behind the bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// The next request is awaited.
    GoesOn,
    Ends,
    IsReset,
}

/// The path whose requests are answered as the test says; all others get the path as their answer.
pub(super) const CASE: &str = "/odd/case";

/// The server of HTTP/1.1.
pub(super) struct Odd {
    script: Arc<Mutex<(Vec<u8>, Then)>>,
    _backend: Backend,
}

impl Odd {
    pub(super) fn start(scene: &Scene) -> Result<Self> {
        let script = Arc::new(Mutex::new((Vec::new(), Then::Ends)));
        let told = script.clone();
        let serve = move |stream| serve(stream, || told.lock().expect("no thread panics").clone());
        Ok(Odd { script, _backend: Backend::start(&scene.world.net.server, ODD, serve)? })
    }

    /// What it answers from now on.
    pub(super) fn answers(&self, bytes: &[u8], then: Then) {
        *self.script.lock().expect("no thread panics") = (bytes.to_vec(), then);
    }
}

fn serve(mut stream: TcpStream, script: impl Fn() -> (Vec<u8>, Then)) -> io::Result<()> {
    let mut requests = BufReader::new(stream.try_clone()?);
    while let Some((method, path)) = next_request(&mut requests)? {
        if path != CASE {
            own(&mut stream, &method, &path)?;
            continue;
        }
        let (bytes, then) = script();
        stream.write_all(&bytes)?;
        match then {
            Then::GoesOn => {}
            Then::Ends => {
                stream.shutdown(Shutdown::Write)?;
                return io::copy(&mut requests, &mut io::sink()).map(drop);
            }
            Then::IsReset => return reset_on_close(&stream).map_err(io::Error::other),
        }
    }
    Ok(())
}

/// What is done when a request has come on a stream.
pub(super) type Act = Arc<dyn Fn(&mut Raw, u32) -> io::Result<()> + Send + Sync>;

/// The server of HTTP/2.
pub(super) struct Odd2 {
    act: Arc<Mutex<Option<Act>>>,
    _backend: Backend,
}

impl Odd2 {
    pub(super) fn start(scene: &Scene, settings: &'static [(u16, u32)]) -> Result<Self> {
        let act = Arc::new(Mutex::new(None::<Act>));
        let told = act.clone();
        let backend = Backend::start(&scene.world.net.server, ODD_HTTP2, move |stream| {
            let mut raw = Raw::accept(stream, settings)?;
            while let Some(frame) = raw.next().map_err(io::Error::other)? {
                match frame.kind {
                    SETTINGS if frame.flags & ACK == 0 => raw.frame(SETTINGS, ACK, 0, &[])?,
                    PING if frame.flags & ACK == 0 => raw.frame(PING, ACK, 0, &frame.payload)?,
                    HEADERS => {
                        let act = told.lock().expect("no thread panics").clone();
                        match act {
                            Some(act) => act(&mut raw, frame.stream)?,
                            None => good(&mut raw, frame.stream)?,
                        }
                    }
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(Odd2 { act, _backend: backend })
    }

    /// What it does with requests from now on; `None`: it is good.
    pub(super) fn does(&self, act: Option<Act>) {
        *self.act.lock().expect("no thread panics") = act;
    }
}

/// What a good server of HTTP/2 answers.
pub(super) const WELL: &[u8] = b"well";

/// A whole answer.
pub(super) fn good(raw: &mut Raw, stream: u32) -> io::Result<()> {
    raw.headers(stream, &[(":status", "200")], false)?;
    raw.data(stream, WELL, true)
}
