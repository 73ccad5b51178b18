//! A client of HTTP/2 that sends whatever it is told, frame by frame (RFC 9113, section 4).

use std::io::{self, Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};

use super::HOST;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection on which the preface is said.
pub(crate) struct Raw {
    stream: TcpStream,
}

/// A frame that has come.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Of GOAWAY or RST_STREAM.
    pub(crate) fn error(&self) -> Option<u32> {
        let at = match self.kind {
            GOAWAY => 4,
            RST_STREAM => 0,
            _ => return None,
        };
        Some(u32::from_be_bytes(self.payload.get(at..at + 4)?.try_into().ok()?))
    }
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        Self::with_settings(stream, &[])
    }

    pub(crate) fn with_settings(stream: TcpStream, settings: &[(u16, u32)]) -> Result<Self> {
        let mut raw = Self { stream };
        raw.write(PREFACE)?;
        raw.settings(settings)?;
        Ok(raw)
    }

    /// The server's side.
    pub(crate) fn accept(mut stream: TcpStream, settings: &[(u16, u32)]) -> io::Result<Self> {
        stream.read_exact(&mut [0; PREFACE.len()])?;
        Self::started(stream, settings)
    }

    /// The same, behind the preface.
    pub(super) fn started(stream: TcpStream, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut raw = Self { stream };
        raw.settings(settings)?;
        Ok(raw)
    }

    fn settings(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        self.frame(SETTINGS, 0, 0, &payload)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.write(&frame(kind, flags, stream, payload))
    }

    pub(crate) fn data(&mut self, stream: u32, payload: &[u8], ends: bool) -> io::Result<()> {
        self.frame(DATA, if ends { END_STREAM } else { 0 }, stream, payload)
    }

    /// The head of a request of the usual kind.
    pub(crate) fn request(&mut self, stream: u32, method: &str, path: &str, ends: bool) -> io::Result<()> {
        self.headers(stream, &usual(method, path), ends)
    }

    pub(crate) fn headers(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) -> io::Result<()> {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.frame(HEADERS, flags, stream, &block(fields))
    }

    /// The next frame; `None`: the connection has ended.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        match self.stream.read_exact(&mut head) {
            Ok(()) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                ) =>
            {
                return Ok(None);
            }
            Err(error) => bail!("no frame: {error}"),
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if self.stream.read_exact(&mut payload).is_err() {
            return Ok(None);
        }
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Ok(Some(Frame { kind: head[3], flags: head[4], stream, payload }))
    }

    /// All frames until the end of the connection. Settings and pings are not acknowledged.
    pub(crate) fn until_end(&mut self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    /// All frames up to one that says what becomes of a stream: the end of its answer, a reset, or the end of the connection.
    pub(crate) fn until_answered(&mut self, stream: u32) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        while let Some(frame) = self.next()? {
            let ends = frame.stream == stream
                && (frame.kind == RST_STREAM
                    || matches!(frame.kind, DATA | HEADERS) && frame.flags & END_STREAM != 0);
            let is_over = ends || frame.kind == GOAWAY && frame.error() != Some(0);
            frames.push(frame);
            if is_over {
                break;
            }
        }
        Ok(frames)
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

/// A frame as it is sent.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// The head of a request that the gateway serves.
pub(crate) fn usual<'f>(method: &'f str, path: &'f str) -> Vec<(&'f str, &'f str)> {
    vec![(":method", method), (":scheme", "http"), (":authority", HOST), (":path", path)]
}

/// Fields as literals that no table remembers (RFC 7541, section 6.2.2), without Huffman's code.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name.as_bytes());
        text(&mut block, value.as_bytes());
    }
    block
}

/// The same of one field that the table remembers (section 6.2.1).
pub(crate) fn remembered(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    text(&mut block, name.as_bytes());
    text(&mut block, value.as_bytes());
    block
}

fn text(block: &mut Vec<u8>, text: &[u8]) {
    // A number with a prefix of seven bits (section 5.1).
    match text.len() {
        length @ 0..127 => block.push(length as u8),
        length => {
            block.push(127);
            let mut left = length - 127;
            while left >= 128 {
                block.push((left % 128) as u8 | 128);
                left /= 128;
            }
            block.push(left as u8);
        }
    }
    block.extend_from_slice(text);
}
