//! Pseudo-random byte streams in both directions at once, checked byte by byte at the other end.
//!
//! Both ends know the seed of each direction, so the first wrong byte is reported with its position.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
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

/// When an end sends what comes behind its greeting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At once.
    #[default]
    AtOnce,
    /// After a while.
    Later(Duration),
    /// When it has received this many bytes.
    AfterBytes(u64),
    /// When the other end has ended its direction.
    AfterEnd,
}

/// How an end ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum End {
    /// It ends its direction when it has sent all, and expects the other end to do the same.
    #[default]
    Finish,
    /// It resets the connection when it has sent and received all.
    Reset,
    /// It does nothing and expects a reset when it has sent and received all.
    MeetReset,
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
    /// Pause behind each write.
    pub pace: Duration,
    /// How many bytes of these to send first, at once.
    pub greeting: u64,
    /// When to send the rest, and to end.
    pub start: Start,
    /// How to end.
    pub end: End,
    /// Stop reading after this many bytes, for this long.
    pub stall: Option<(u64, Duration)>,
}

impl Plan {
    /// The same number of bytes each way, in writes of 64 KiB, both ends finishing as soon as they have sent all.
    pub const fn both_ways(bytes: u64) -> Self {
        Self {
            send_seed: 1,
            receive_seed: 2,
            send: bytes,
            receive: bytes,
            chunk: 64 * 1024,
            pace: Duration::ZERO,
            greeting: 0,
            start: Start::AtOnce,
            end: End::Finish,
            stall: None,
        }
    }

    /// What the other end does in the same exchange: it starts at once, finishes, or meets this end's reset.
    pub fn mirrored(&self) -> Self {
        Self {
            send_seed: self.receive_seed,
            receive_seed: self.send_seed,
            send: self.receive,
            receive: self.send,
            greeting: 0,
            start: Start::AtOnce,
            end: match self.end {
                End::Finish => End::Finish,
                End::Reset => End::MeetReset,
                End::MeetReset => End::Reset,
            },
            stall: None,
            ..*self
        }
    }
}

/// Carries a plan out: sends on one thread, receives and checks on another, until both directions have ended.
pub fn exchange(duplex: Duplex, plan: &Plan) -> Result<()> {
    let Duplex { mut reader, mut writer, socket } = duplex;
    let (go, starting) = mpsc::channel();
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(&mut *writer, plan, starting));
        let received = receive(&mut *reader, plan, go);
        if received.is_err() {
            // The sender may wait for an end that no longer reads.
            let _ = socket.shutdown(Shutdown::Both);
        }
        let sent = sender.join().expect("the sender does not panic");
        received.and(sent)
    })?;
    if plan.end == End::Reset {
        reset_on_close(&socket)?;
    }
    Ok(())
}

/// Makes the coming close of a socket a reset.
pub fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger)?)
}

/// Sends the greeting, then, once it may, the rest, and ends the direction.
fn send(writer: &mut dyn HalfClose, plan: &Plan, starting: Receiver<()>) -> Result<()> {
    let mut stream = Stream::new(plan.send_seed);
    let greeting = plan.greeting.min(plan.send);
    send_some(writer, &mut stream, greeting, plan)?;
    match plan.start {
        Start::AtOnce => {}
        Start::Later(pause) => thread::sleep(pause),
        // An error means that receiving has failed, which says more than anything this thread could.
        Start::AfterBytes(_) | Start::AfterEnd => {
            if starting.recv().is_err() {
                return Ok(());
            }
        }
    }
    send_some(writer, &mut stream, plan.send - greeting, plan)?;
    if plan.end == End::Finish {
        writer.finish().context("ending the direction")?;
    }
    Ok(())
}

fn send_some(writer: &mut dyn HalfClose, stream: &mut Stream, bytes: u64, plan: &Plan) -> Result<()> {
    let mut chunk = vec![0; plan.chunk];
    let mut left = bytes;
    while left > 0 {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        stream.fill(&mut chunk[..n]);
        writer.write_all(&chunk[..n]).with_context(|| format!("sending, {left} of {bytes} bytes left"))?;
        left -= n as u64;
        if !plan.pace.is_zero() {
            thread::sleep(plan.pace);
        }
    }
    Ok(())
}

/// Receives until the other end has ended its direction, or as far as this end's part in a reset goes; says when
/// to start sending.
fn receive(reader: &mut dyn Read, plan: &Plan, go: Sender<()>) -> Result<()> {
    let mut stream = Stream::new(plan.receive_seed);
    let mut got = vec![0; 64 * 1024];
    let mut expected = vec![0; 64 * 1024];
    let mut total = 0;
    let mut stall = plan.stall;
    let mut start = Some(plan.start);
    loop {
        if start.take_if(|s| matches!(s, Start::AfterBytes(bytes) if total >= *bytes)).is_some() {
            go.send(()).expect("the sender waits");
        }
        if plan.end == End::Reset && total == plan.receive {
            return Ok(());
        }
        let n = match reader.read(&mut got) {
            Ok(n) => n,
            Err(e) if plan.end == End::MeetReset && e.kind() == io::ErrorKind::ConnectionReset => {
                ensure!(total == plan.receive, "a reset after {total} of {} bytes", plan.receive);
                return Ok(());
            }
            Err(e) => return Err(e).with_context(|| format!("receiving, after {total} bytes")),
        };
        if n == 0 {
            ensure!(total == plan.receive, "the stream ended after {total} of {} bytes", plan.receive);
            ensure!(plan.end == End::Finish, "the stream ended without a reset");
            if plan.start == Start::AfterEnd {
                go.send(()).expect("the sender waits");
            }
            return Ok(());
        }
        stream.fill(&mut expected[..n]);
        if got[..n] != expected[..n] {
            let wrong = (0..n).find(|&i| got[i] != expected[i]).expect("the slices differ");
            bail!("byte {} differs", total + wrong as u64);
        }
        total += n as u64;
        if let Some((_, pause)) = stall.take_if(|(after, _)| total >= *after) {
            thread::sleep(pause);
        }
    }
}

/// SplitMix64: a pseudo-random sequence that depends on its seed alone.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A pseudo-random byte stream: the same bytes however they are cut into pieces.
struct Stream {
    random: Random,
    word: [u8; 8],
    /// Bytes of `word` already given out, <= 8.
    used: usize,
}

impl Stream {
    fn new(seed: u64) -> Self {
        Self { random: Random(seed), word: [0; 8], used: 8 }
    }

    fn fill(&mut self, buffer: &mut [u8]) {
        let (rest, buffer) = buffer.split_at_mut(buffer.len().min(8 - self.used));
        rest.copy_from_slice(&self.word[self.used..self.used + rest.len()]);
        self.used += rest.len();

        let mut words = buffer.chunks_exact_mut(8);
        for word in &mut words {
            word.copy_from_slice(&self.random.next().to_le_bytes());
        }
        let tail = words.into_remainder();
        if !tail.is_empty() {
            self.word = self.random.next().to_le_bytes();
            self.used = tail.len();
            tail.copy_from_slice(&self.word[..tail.len()]);
        }
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
        let (here, there) =
            exchange_between(plan.clone(), Plan { start: Start::AfterEnd, ..plan.mirrored() });
        here.unwrap();
        there.unwrap();
    }

    #[test]
    fn who_waits_for_bytes_starts_when_they_are_there() {
        let plan = Plan { greeting: 3, start: Start::AfterBytes(7), ..Plan::both_ways(10) };
        for start in [Start::Later(Duration::from_millis(10)), Start::AfterBytes(3)] {
            let (here, there) =
                exchange_between(plan.clone(), Plan { greeting: 7, start, ..plan.mirrored() });
            here.unwrap();
            there.unwrap();
        }
    }

    #[test]
    fn a_reset_is_met_where_it_is_due_and_an_error_elsewhere() {
        let plan = Plan { end: End::Reset, ..Plan::both_ways(100_000) };
        let answering = Plan { start: Start::AfterBytes(100_000), ..plan.mirrored() };
        let (here, there) = exchange_between(plan.clone(), answering.clone());
        here.unwrap();
        there.unwrap();
        let (_, there) = exchange_between(plan, Plan { end: End::Finish, ..answering.clone() });
        assert_eq!(there.unwrap_err().to_string(), "receiving, after 100000 bytes");
        let finishing = Plan::both_ways(100_000);
        let (_, there) = exchange_between(finishing, answering);
        assert_eq!(there.unwrap_err().to_string(), "the stream ended without a reset");
    }

    #[test]
    fn a_missing_byte_is_reported() {
        let plan = Plan::both_ways(10);
        let (here, _) = exchange_between(plan.clone(), Plan { send: 9, ..plan.mirrored() });
        assert_eq!(here.unwrap_err().to_string(), "the stream ended after 9 of 10 bytes");
    }
}
