//! One bulk transfer over TLS, of a length agreed on at its start: the rate is that of bytes that arrived.

use std::io::{Read, Write};
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::tls;

/// Bytes read or written at once: four TLS records.
pub(super) const BUFFER: usize = 64 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: tls::Server,
    #[arg(long, value_enum)]
    direction: Direction,
    /// How many bytes.
    #[arg(long)]
    bytes: u64,
}

/// Which way the bytes flow, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Transfer {
    /// From the first byte after the handshake until the receiver has all.
    pub(crate) seconds: f64,
}

/// What a client says first: direction and length.
pub(super) struct Header {
    pub(super) direction: Direction,
    pub(super) length: u64,
}

impl Header {
    pub(super) const LENGTH: usize = 9;

    pub(super) fn bytes(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[0] = (self.direction == Direction::Up).into();
        bytes[1..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    pub(super) fn parse(bytes: [u8; Self::LENGTH]) -> Option<Self> {
        let direction = match bytes[0] {
            0 => Direction::Down,
            1 => Direction::Up,
            _ => return None,
        };
        let [_, length @ ..] = bytes;
        Some(Self { direction, length: u64::from_be_bytes(length) })
    }
}

pub(super) fn run(args: &Args) -> Result<Transfer> {
    let config = tls::config(&args.server.authority, false)?;
    let mut stream = tls::connect(&config, args.server.target, &args.server.sni)?;
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let start = Instant::now();
    stream.write_all(&Header { direction: args.direction, length: args.bytes }.bytes())?;
    match args.direction {
        Direction::Up => {
            give(&mut stream, args.bytes, &[0; BUFFER])?;
            confirmed(&mut stream)?;
        }
        Direction::Down => take(&mut stream, args.bytes)?,
    }
    let seconds = start.elapsed().as_secs_f64();
    tls::close(stream);
    Ok(Transfer { seconds })
}

/// Waits until the server has everything that one header announced.
pub(super) fn confirmed(stream: &mut (impl Read + ?Sized)) -> Result<()> {
    let mut confirmed = [0];
    stream.read_exact(&mut confirmed)?;
    ensure!(confirmed == [1], "the server said {confirmed:?}");
    Ok(())
}

/// Writes so many bytes.
pub(super) fn give(stream: &mut (impl Write + ?Sized), length: u64, chunk: &[u8]) -> Result<()> {
    let mut left = length;
    while left > 0 {
        let now = left.min(chunk.len() as u64);
        stream.write_all(&chunk[..now as usize])?;
        left -= now;
    }
    Ok(stream.flush()?)
}

/// Reads so many bytes; an early end is an error.
pub(super) fn take(stream: &mut (impl Read + ?Sized), length: u64) -> Result<()> {
    let mut buffer = [0; BUFFER];
    let mut left = length;
    while left > 0 {
        let room = left.min(BUFFER as u64) as usize;
        let read = stream.read(&mut buffer[..room])?;
        ensure!(read > 0, "the stream ended {left} bytes early");
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header::parse(Header { direction: Direction::Up, length: 1 << 40 }.bytes()).unwrap();
        assert_eq!((header.direction, header.length), (Direction::Up, 1 << 40));
        assert!(Header::parse([9; Header::LENGTH]).is_none());
    }

    #[test]
    fn a_stream_that_ends_early_is_an_error() {
        assert!(take(&mut [0; 70_000].as_slice(), 70_000).is_ok());
        assert!(take(&mut [0; 69_999].as_slice(), 70_000).is_err());
    }
}
