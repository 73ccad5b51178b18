//! The client of the admin socket, for the commands. It blocks: a command does nothing else meanwhile.

use super::protocol::{Reply, Request, socket_path};
use super::view::{Connection, ConnectionFilter, Object, Reloaded, Status};
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long to wait for the gateway. A reload that resolves many names takes longest.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most bytes of a reply: 200 000 connections with the longest possible names fit.
const MAX_REPLY: u64 = 512 * 1024 * 1024;

/// A connection to the gateway of one state directory.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "no gateway is running here: cannot connect to {} ({cause}); \
         start one with `snisplice run`, or name its configuration with `-c`",
        path.display()
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        cause: io::Error,
    },
    /// A gateway may be there, but not for this user.
    #[error("cannot connect to {}; run this as root or as the gateway's user", path.display())]
    Forbidden {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The connection broke or the answer did not come in time.
    #[error("the gateway at {} does not answer", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The answer is not what this version expects.
    #[error("the gateway at {} answers in another way than this version expects", path.display())]
    Version {
        /// The socket.
        path: PathBuf,
        /// Where they differ.
        source: serde_json::Error,
    },
    /// The gateway refuses; its reason.
    #[error("{0}")]
    Refused(String),
}

impl Client {
    /// Connects to the gateway that uses `state_dir`.
    pub fn connect(state_dir: &Path) -> Result<Self, ClientError> {
        let path = socket_path(state_dir);
        let connected = UnixStream::connect(&path).and_then(|stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Ok(Self { path, stream: BufReader::new(stream) }),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClientError::Forbidden { path, source })
            }
            Err(source) => Err(ClientError::NotRunning { path, cause: source }),
        }
    }

    /// The gateway's process id.
    pub fn process(&self) -> Result<i32, ClientError> {
        let peer = rustix::net::sockopt::socket_peercred(self.stream.get_ref());
        let of_socket =
            |error| ClientError::Broken { path: self.path.clone(), source: io::Error::from(error) };
        peer.map(|peer| peer.pid.as_raw_nonzero().get()).map_err(of_socket)
    }

    /// What `snisplice status` shows.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(&Request::Status {})
    }

    /// What `snisplice objects` shows.
    pub fn objects(&mut self) -> Result<Vec<Object>, ClientError> {
        self.ask(&Request::Objects {})
    }

    /// What `snisplice connections` shows.
    pub fn connections(&mut self, filter: &ConnectionFilter) -> Result<Vec<Connection>, ClientError> {
        self.ask(&Request::Connections { filter: filter.clone() })
    }

    /// Makes the gateway read its configuration again.
    pub fn reload(&mut self) -> Result<Reloaded, ClientError> {
        self.ask(&Request::Reload {})
    }

    /// Stops (`draining`) or resumes new connections to `target`: a server, written `POOL/SERVER`, or all of a pool, `POOL`.
    pub fn drain(&mut self, target: &str, draining: bool) -> Result<(), ClientError> {
        let target = target.to_owned();
        self.ask(&if draining { Request::Drain { target } } else { Request::Undrain { target } })
    }

    /// Resets one connection.
    pub fn kill(&mut self, connection: u64) -> Result<(), ClientError> {
        self.ask(&Request::Kill { connection })
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let reply = self.exchange(request).map_err(|source| {
            let source = match source.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} s", PATIENCE.as_secs()),
                ),
                io::ErrorKind::UnexpectedEof => io::Error::new(source.kind(), "it closed the connection"),
                _ => source,
            };
            ClientError::Broken { path: self.path.clone(), source }
        })?;
        match serde_json::from_slice(&reply) {
            Ok(Reply::Ok(value)) => Ok(value),
            Ok(Reply::Error(reason)) => Err(ClientError::Refused(reason)),
            Err(source) => Err(ClientError::Version { path: self.path.clone(), source }),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        let mut reply = Vec::new();
        (&mut self.stream).take(MAX_REPLY).read_until(b'\n', &mut reply)?;
        if reply.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;
    use std::os::unix::net::UnixListener;

    #[test]
    fn without_a_gateway_the_error_names_the_socket_and_what_to_do() {
        let dir = TempDir::new();
        let error = Client::connect(dir.path()).unwrap_err().to_string();
        let path = dir.path().join("admin.sock");
        let expected = format!("no gateway is running here: cannot connect to {} (No such", path.display());
        assert!(error.starts_with(&expected), "{error}");
        assert!(error.contains("`snisplice run`"), "{error}");

        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(Client::connect(dir.path()), Err(ClientError::NotRunning { .. })));
    }

    /// What a client makes of a gateway that reads one request and sends `reply`.
    fn status_answered_with(reply: &str) -> ClientError {
        let dir = TempDir::new();
        let listener = UnixListener::bind(socket_path(dir.path())).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                let mut stream = BufReader::new(stream);
                stream.read_until(b'\n', &mut Vec::new()).unwrap();
                stream.get_mut().write_all(reply.as_bytes()).unwrap();
            });
            Client::connect(dir.path()).unwrap().status().unwrap_err()
        })
    }

    #[test]
    fn an_answer_cut_short_and_an_answer_of_another_version_are_told_apart() {
        assert!(matches!(status_answered_with(""), ClientError::Broken { .. }));
        assert!(matches!(status_answered_with(r#"{"ok":{"version":"9"#), ClientError::Broken { .. }));
        assert!(matches!(status_answered_with("{\"ok\":{\"version\":9}}\n"), ClientError::Version { .. }));
        assert!(
            matches!(status_answered_with("{\"error\":\"no\"}\n"), ClientError::Refused(no) if no == "no")
        );
    }
}
