//! Pseudo-random byte streams in both directions at once, checked byte by byte at the other end.
//!
//! Both ends know the seed of each direction, so the first wrong byte is reported with its position.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// A writer whose direction can end while the other goes on.
pub trait HalfClose: Write {
    /// Ends this direction.
    fn finish(&mut self) -> io::Result<()>;
}

impl HalfClose for TcpStream {
    fn finish(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// A connection with its directions apart.
pub struct Duplex {
    /// What the other end sends; 0 bytes at its end.
    pub reader: Box<dyn Read + Send>,
    /// Toward the other end.
    pub writer: Box<dyn HalfClose + Send>,
    /// The TCP socket below, for options and resets.
    pub socket: TcpStream,
}

impl TryFrom<TcpStream> for Duplex {
    type Error = io::Error;

    fn try_from(socket: TcpStream) -> io::Result<Self> {
        Ok(Self { reader: Box::new(socket.try_clone()?), writer: Box::new(socket.try_clone()?), socket })
    }
}

/// One end's share of an exchange.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of what this end sends; the other end expects it.
    pub send_seed: u64,
    /// Seed of what this end expects.
    pub receive_seed: u64,
    /// How many bytes to send.
    pub send: u64,
    /// How many bytes to expect, before the end of the stream.
    pub receive: u64,
    /// Bytes per write.
    pub chunk: usize,
    /// Start to send only when the other end has ended its direction.
    pub answer: bool,
    /// Stop reading for so long after so many bytes.
    pub stall: Option<(u64, Duration)>,
}

impl Plan {
    /// The same number of bytes each way, in writes of 64 KiB, both ends finishing as soon as they have sent all.
    pub fn both_ways(bytes: u64) -> Self {
        Self {
            send_seed: 1,
            receive_seed: 2,
            send: bytes,
            receive: bytes,
            chunk: 64 * 1024,
            answer: false,
            stall: None,
        }
    }

    /// What the other end does in the same exchange.
    pub fn mirrored(&self) -> Self {
        Self {
            send_seed: self.receive_seed,
            receive_seed: self.send_seed,
            send: self.receive,
            receive: self.send,
            answer: false,
            stall: None,
            ..*self
        }
    }
}

/// Carries a plan out: sends on one thread, receives and checks on another, until both directions have ended.
pub fn exchange(duplex: Duplex, plan: &Plan) -> Result<()> {
    let Duplex { mut reader, mut writer, socket } = duplex;
    if plan.answer {
        receive(&mut *reader, plan)?;
        return send(&mut *writer, plan);
    }
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&mut *writer, plan));
        let received = receive(&mut *reader, plan);
        if received.is_err() {
            // The sender may wait for an end that no longer reads.
            let _ = socket.shutdown(Shutdown::Both);
        }
        let sent = sender.join().expect("the sender does not panic");
        received.and(sent)
    })
}

/// Sends all there is to send and ends the direction.
fn send(writer: &mut dyn HalfClose, plan: &Plan) -> Result<()> {
    let mut stream = Stream::new(plan.send_seed);
    let mut chunk = vec![0; plan.chunk];
    let mut left = plan.send;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        stream.fill(&mut chunk[..n]);
        writer.write_all(&chunk[..n]).with_context(|| format!("sending, {left} bytes before the end"))?;
        left -= n as u64;
    }
    writer.finish().context("ending the direction")
}

/// Receives until the other end has ended its direction.
fn receive(reader: &mut dyn Read, plan: &Plan) -> Result<()> {
    let mut stream = Stream::new(plan.receive_seed);
    let mut got = vec![0; 64 * 1024];
    let mut expected = vec![0; 64 * 1024];
    let mut total = 0;
    let mut stall = plan.stall;
    loop {
        let n = reader.read(&mut got).with_context(|| format!("receiving, after {total} bytes"))?;
        if n == 0 {
            ensure!(total == plan.receive, "the stream ended after {total} of {} bytes", plan.receive);
            return Ok(());
        }
        stream.fill(&mut expected[..n]);
        if let Some(i) = (0..n).find(|&i| got[i] != expected[i]) {
            bail!("byte {} differs", total + i as u64);
        }
        total += n as u64;
        if let Some((_, pause)) = stall.take_if(|(after, _)| total >= *after) {
            thread::sleep(pause);
        }
    }
}

/// A pseudo-random byte stream (SplitMix64): the same bytes however they are cut into pieces.
struct Stream {
    state: u64,
    word: [u8; 8],
    /// Bytes of `word` already given out, <= 8.
    used: usize,
}

impl Stream {
    fn new(seed: u64) -> Self {
        Self { state: seed, word: [0; 8], used: 8 }
    }

    fn fill(&mut self, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            if self.used == 8 {
                self.next_word();
            }
            let n = buffer.len().min(8 - self.used);
            let (now, rest) = buffer.split_at_mut(n);
            now.copy_from_slice(&self.word[self.used..self.used + n]);
            self.used += n;
            buffer = rest;
        }
    }

    fn next_word(&mut self) {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.word = (z ^ (z >> 31)).to_le_bytes();
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn loopback() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn exchange_between(here: Plan, there: Plan) -> (Result<()>, Result<()>) {
        let (a, b) = loopback();
        thread::scope(|scope| {
            let far = scope.spawn(move || exchange(b.try_into().unwrap(), &there));
            (exchange(a.try_into().unwrap(), &here), far.join().unwrap())
        })
    }

    #[test]
    fn what_is_sent_arrives_whatever_the_pieces() {
        let plan = Plan { chunk: 7, ..Plan::both_ways(100_003) };
        let (here, there) = exchange_between(plan.clone(), Plan { chunk: 1000, ..plan.mirrored() });
        here.unwrap();
        there.unwrap();
    }

    #[test]
    fn a_wrong_byte_is_reported_with_its_position() {
        let plan = Plan::both_ways(10);
        let (here, _) = exchange_between(plan.clone(), Plan { send_seed: 77, ..plan.mirrored() });
        assert_eq!(here.unwrap_err().to_string(), "byte 0 differs");
    }

    #[test]
    fn an_answer_waits_for_the_end_of_the_question() {
        let plan = Plan::both_ways(10);
        let (here, there) = exchange_between(plan.clone(), Plan { answer: true, ..plan.mirrored() });
        here.unwrap();
        there.unwrap();
    }

    #[test]
    fn a_missing_byte_is_reported() {
        let plan = Plan::both_ways(10);
        let (here, _) = exchange_between(plan.clone(), Plan { send: 9, ..plan.mirrored() });
        assert_eq!(here.unwrap_err().to_string(), "the stream ended after 9 of 10 bytes");
    }
}
