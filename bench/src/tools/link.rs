//! An open connection to Redis over TLS that never blocks.

use std::collections::VecDeque;
use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConfig;

use super::exchange::Exchange;
use super::tls;

/// How long an answer may be late before its request counts as failed, and a new connection as refused.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// The connection and the times of the requests under way.
pub(super) struct Link {
    stream: tls::Stream,
    exchange: Arc<Exchange>,
    /// When each request that has no answer yet was due.
    pub(super) due: VecDeque<Instant>,
    /// Bytes of the answer that is arriving.
    partial: usize,
}

impl Link {
    /// Connects, shakes hands, stores the value that is to be read, asks once, and leaves the socket non-blocking.
    pub(super) fn open(
        config: &Arc<ClientConfig>,
        target: SocketAddr,
        sni: &str,
        exchange: &Arc<Exchange>,
    ) -> Result<Link> {
        let mut stream = tls::connect(config, target, sni)?;
        stream.sock.socket().set_read_timeout(Some(PATIENCE))?;
        stream.conn.set_buffer_limit(None);
        exchange.prepare(&mut stream)?;
        exchange.once(&mut stream)?;
        stream.sock.socket().set_nonblocking(true)?;
        Ok(Link { stream, exchange: Arc::clone(exchange), due: VecDeque::new(), partial: 0 })
    }

    /// Puts a request into rustls's buffer, which has no limit.
    pub(super) fn ask(&mut self, due: Instant) -> io::Result<()> {
        self.stream.conn.writer().write_all(&self.exchange.question)?;
        self.due.push_back(due);
        Ok(())
    }

    /// Writes what rustls holds, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.stream.conn.wants_write() {
            match self.stream.conn.write_tls(&mut self.stream.sock) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                other => other?,
            };
        }
        Ok(())
    }

    /// Reads what is there; how many answers are complete now.
    pub(super) fn answers(&mut self) -> io::Result<usize> {
        self.flush()?;
        let mut complete = 0;
        // rustls takes 4 KiB at a time.
        loop {
            match self.stream.conn.read_tls(&mut self.stream.sock) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(complete),
                Err(error) => return Err(error),
            }
            self.stream.conn.process_new_packets().map_err(io::Error::other)?;
            complete += self.compare()?;
            // All that was asked for has come: to look for more would be a call in vain.
            if complete == self.due.len() && self.partial == 0 {
                return Ok(complete);
            }
        }
    }

    /// Compares what was decrypted with the answer that is due; how many are complete.
    fn compare(&mut self) -> io::Result<usize> {
        let mut complete = 0;
        let answer = &self.exchange.answer[..];
        let mut reader = self.stream.conn.reader();
        loop {
            let mut rest = match reader.fill_buf() {
                Ok([]) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(plaintext) => plaintext,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(complete),
                Err(error) => return Err(error),
            };
            let read = rest.len();
            while !rest.is_empty() {
                let expected = &answer[self.partial..];
                let expected = &expected[..expected.len().min(rest.len())];
                if !rest.starts_with(expected) {
                    return Err(io::Error::other("Redis answered something else"));
                }
                rest = &rest[expected.len()..];
                self.partial = (self.partial + expected.len()) % answer.len();
                complete += usize::from(self.partial == 0);
            }
            reader.consume(read);
        }
    }

    /// Takes the ended connection back, to say goodbye.
    pub(super) fn into_stream(self) -> tls::Stream {
        self.stream
    }
}

/// Waits until one of these connections has something to read or room for what waits, at most so long. The numbers of
/// those that have.
pub(super) fn ready<'l>(
    links: impl Iterator<Item = (usize, &'l Link)> + Clone,
    wait: Duration,
) -> Result<Vec<usize>> {
    let mut fds: Vec<PollFd<'_>> = links
        .clone()
        .map(|(_, link)| {
            let write = if link.stream.conn.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(link.stream.sock.socket(), PollFlags::IN | write)
        })
        .collect();
    let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
    match poll(&mut fds, Some(&wait)) {
        Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
        other => other.context("poll")?,
    };
    Ok(links.zip(&fds).filter(|(_, fd)| !fd.revents().is_empty()).map(|((number, _), _)| number).collect())
}
