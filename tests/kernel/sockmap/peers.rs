//! The programs at both ends.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub(crate) const MIB: usize = 1 << 20;

/// A connection through the gateway: the program at each end, and the gateway's two sockets.
pub(crate) struct Legs {
    pub(crate) client: Peer,
    pub(crate) server: Peer,
    pub(crate) gateway: Vec<tokio::net::TcpStream>,
}

pub(crate) struct Peer(pub(crate) TcpStream);

impl Legs {
    pub(crate) fn new() -> Self {
        let (client, client_leg) = connection();
        let (server_leg, server) = connection();
        let gateway = [client_leg, server_leg].map(|leg| {
            leg.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(leg).unwrap()
        });
        Self { client: Peer(client), server: Peer(server), gateway: gateway.into() }
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    for socket in [&connected, &accepted] {
        socket.set_nodelay(true).unwrap();
        // A test that fails ends.
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    (connected, accepted)
}

impl Peer {
    /// Sends all of one stream and a FIN, and meanwhile expects the other and a FIN.
    pub(crate) fn exchange(self, sends: Stream, expects: Stream) -> JoinHandle<()> {
        let sender = self.0.try_clone().unwrap();
        let sender = thread::spawn(move || {
            sends.send_all(&sender);
            sender.shutdown(Shutdown::Write).unwrap();
        });
        thread::spawn(move || {
            expects.expect_all(&self.0);
            sender.join().unwrap();
        })
    }
}

/// Bytes that depend on their position and on the seed.
#[derive(Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) seed: u64,
    pub(crate) length: usize,
}

impl Stream {
    pub(crate) const EMPTY: Self = Self { seed: 0, length: 0 };
    pub(crate) const BLOCK: usize = 64 << 10;

    pub(crate) fn bytes(&self, from: usize, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 16);
        let mut word = from / 8;
        while bytes.len() < length + from % 8 {
            let mixed = (word as u64 ^ self.seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bytes.extend((mixed ^ (mixed >> 29)).to_ne_bytes());
            word += 1;
        }
        bytes.drain(..from % 8);
        bytes.truncate(length);
        bytes
    }

    pub(crate) fn for_each_block(&self, mut work: impl FnMut(&[u8])) {
        let mut at = 0;
        while at < self.length {
            let block = self.bytes(at, Self::BLOCK.min(self.length - at));
            work(&block);
            at += block.len();
        }
    }

    pub(crate) fn send_all(&self, mut to: &TcpStream) {
        self.for_each_block(|block| to.write_all(block).unwrap());
    }

    /// Sends it and a FIN, and counts what is sent.
    pub(crate) fn send_counted(self, to: &TcpStream, sent: &Arc<AtomicU64>) -> JoinHandle<()> {
        let (mut to, sent) = (to.try_clone().unwrap(), sent.clone());
        thread::spawn(move || {
            self.for_each_block(|block| {
                to.write_all(block).unwrap();
                sent.fetch_add(block.len() as u64, Relaxed);
            });
            to.shutdown(Shutdown::Write).unwrap();
        })
    }

    /// Reads to the end and compares.
    pub(crate) fn expect_all(&self, mut from: &TcpStream) {
        let mut received = 0;
        self.for_each_block(|block| {
            let mut got = vec![0; block.len()];
            from.read_exact(&mut got)
                .unwrap_or_else(|error| panic!("{error} after {received} of {}", self.length));
            assert!(got == block, "wrong byte in the block at {received}");
            received += block.len();
        });
        assert_eq!(from.read(&mut [0]).unwrap(), 0, "more than {} bytes", self.length);
    }
}

/// Waits until the counter has stood still for so long; returns where.
pub(crate) fn halt(counter: &AtomicU64, quiet: Duration) -> u64 {
    let mut last = counter.load(Relaxed);
    let mut since = Instant::now();
    while last == 0 || since.elapsed() < quiet {
        thread::sleep(Duration::from_millis(1));
        let now = counter.load(Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}
