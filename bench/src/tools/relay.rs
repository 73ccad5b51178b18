//! A minimal userspace splice(2) relay: the least that a userspace proxy can do for a connection.
//!
//! A thread per core, each with its own listening sockets (SO_REUSEPORT) and its own edge-triggered epoll. Bytes go
//! socket -> pipe -> socket by splice(2) and never enter the process. A pipe is held only while it holds bytes.
//! It does not look at what it forwards: no SNI, no limits, no timeouts, no log.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;
use std::thread;

use anyhow::{Context, Result};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes that a pipe may hold: four times the default, as for the peers' buffers.
const PIPE: usize = 256 * 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Threads.
    #[arg(long)]
    threads: usize,
    /// Connections to the first address are forwarded to the second.
    #[arg(long, value_name = "ADDRESS=TARGET", required = true)]
    forward: Vec<Forward>,
}

#[derive(Clone, Copy)]
struct Forward {
    bind: SocketAddr,
    target: SocketAddr,
}

impl FromStr for Forward {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (bind, target) = text.split_once('=').context("not ADDRESS=TARGET")?;
        Ok(Self { bind: bind.parse()?, target: target.parse()? })
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(|| relay(&args.forward))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("the relay does not panic"))
    })
}

/// Two sockets, and what is on its way between them.
struct Pair {
    sockets: [TcpStream; 2],
    /// By direction: 0 is from socket 0 to socket 1.
    directions: [Direction; 2],
}

#[derive(Default)]
struct Direction {
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    held: usize,
    /// The sender has finished.
    ended: bool,
    /// And the receiver has been told.
    done: bool,
}

struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

fn relay(forwards: &[Forward]) -> Result<()> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let listeners: Vec<TcpListener> =
        forwards.iter().map(|forward| listen(forward.bind)).collect::<Result<_>>()?;
    for (index, listener) in listeners.iter().enumerate() {
        epoll::add(&epoll, listener, EventData::new_u64(index as u64), EventFlags::IN)?;
    }
    // Listeners have the numbers below; a pair's number is never used again.
    let mut next = listeners.len() as u64;
    let mut pairs: HashMap<u64, Pair> = HashMap::new();
    let mut spare: Vec<Pipe> = Vec::new();
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        for event in &events {
            let number = event.data.u64();
            if let Some(listener) = listeners.get(number as usize) {
                let target = forwards[number as usize].target;
                // A client that is gone already, or a server that cannot be reached, ends this connection only.
                if let Ok(pair) = accept(listener, target) {
                    for socket in &pair.sockets {
                        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
                        epoll::add(&epoll, socket, EventData::new_u64(next), interest)?;
                    }
                    pairs.insert(next, pair);
                    next += 1;
                }
            } else if let Some(pair) = pairs.get_mut(&number)
                && pair.pump(&mut spare).is_none_or(|finished| finished)
            {
                pairs.remove(&number);
            }
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(8192)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, target: SocketAddr) -> io::Result<Pair> {
    let (client, _) = listener.accept()?;
    client.set_nonblocking(true)?;
    let server = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    match server.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => return Err(error),
        _ => {}
    }
    let server = TcpStream::from(server);
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    Ok(Pair { sockets: [client, server], directions: Default::default() })
}

impl Pair {
    /// Moves what can be moved. `Some(true)`: both directions are through; `None`: the connection failed.
    fn pump(&mut self, spare: &mut Vec<Pipe>) -> Option<bool> {
        let [a, b] = &self.sockets;
        let [there, back] = &mut self.directions;
        there.pump(a, b, spare).ok()?;
        back.pump(b, a, spare).ok()?;
        Some(there.done && back.done)
    }
}

impl Direction {
    fn pump(&mut self, from: &TcpStream, to: &TcpStream, spare: &mut Vec<Pipe>) -> io::Result<()> {
        let pipe = match self.pipe.take().or_else(|| spare.pop()) {
            Some(pipe) => pipe,
            None => Pipe::new()?,
        };
        loop {
            let mut moved = 0;
            if !self.ended && self.held < PIPE {
                match step(from, &pipe.write, PIPE - self.held)? {
                    Some(0) => self.ended = true,
                    Some(read) => {
                        self.held += read;
                        moved += read;
                    }
                    None => {}
                }
            }
            if self.held > 0 {
                let written = step(&pipe.read, to, self.held)?.unwrap_or(0);
                self.held -= written;
                moved += written;
            }
            if moved == 0 {
                break;
            }
        }
        if self.held > 0 {
            self.pipe = Some(pipe);
        } else {
            spare.push(pipe);
        }
        if self.ended && self.held == 0 && !self.done {
            self.done = true;
            to.shutdown(std::net::Shutdown::Write)?;
        }
        Ok(())
    }
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setpipe_size(&write, PIPE)?;
        Ok(Self { read, write })
    }
}

/// One splice: how many bytes, `None` if it would have to wait.
fn step(from: impl AsFd, to: impl AsFd, length: usize) -> io::Result<Option<usize>> {
    match splice(from, None, to, None, length, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
        Ok(moved) => Ok(Some(moved)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    #[test]
    fn bytes_arrive_both_ways_and_each_end_is_passed_on() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let bind = probe.local_addr().unwrap();
        drop(probe);
        let forward = Forward { bind, target: server.local_addr().unwrap() };
        thread::spawn(move || relay(&[forward]));
        let mut client = snisplice_tests::eventually("the relay", || TcpStream::connect(bind).ok()).unwrap();

        // More than a pipe and both socket buffers hold, so that the relay has to wait for the reader.
        let sent: Vec<u8> = (0..16 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut server, _) = server.accept().unwrap();
                let mut received = Vec::new();
                server.read_to_end(&mut received).unwrap();
                server.write_all(&received).unwrap();
            });
            client.write_all(&sent).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut received = Vec::new();
            client.read_to_end(&mut received).unwrap();
            assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
        });
    }
}
