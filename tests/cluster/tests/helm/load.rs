//! Clients of a Redis that speaks TLS: some that stay, and new ones all the time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use snisplice_tests::NetNs;
use snisplice_tests::pump::Duplex;
use snisplice_tests::tls::Client;

/// How long an answer may take before the client counts as cut: far longer than a handover.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two new clients of an address.
const NEXT: Duration = Duration::from_millis(80);
/// Between two commands of a client that stays.
const PING: Duration = Duration::from_millis(500);

/// Clients at work until [`Load::end`].
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<usize>>>,
}

impl Load {
    /// Starts clients in a namespace: at each address `stay` that stay, and new ones all the time.
    pub(crate) fn start(
        ns: &NetNs,
        addresses: &[SocketAddr],
        name: &'static str,
        authority: &Path,
        stay: usize,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &address in addresses {
            let client = Client::new(authority, rustls::ALL_VERSIONS, None)?;
            let staying = ns.run(|| {
                let staying = (0..stay).map(|_| connect(&client, address, name));
                staying.collect::<Result<Vec<_>>>()
            })?;
            let stopped = stop.clone();
            threads.push(std::thread::spawn(move || keep(staying, &stopped)));
            let stopped = stop.clone();
            threads.push(ns.spawn(move || renew(&client, address, name, &stopped)));
        }
        Ok(Self { stop, threads })
    }

    /// Ends the clients; how many commands were answered. An error if one was not, or if a client was refused.
    pub(crate) fn end(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().expect("no client panics")).sum()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn connect(client: &Client, address: SocketAddr, name: &str) -> Result<Duplex> {
    let socket = TcpStream::connect(address).context("connecting")?;
    socket.set_read_timeout(Some(ANSWER))?;
    client.connect(socket, name)
}

fn ping(connection: &mut Duplex) -> Result<()> {
    const PONG: &[u8; 7] = b"+PONG\r\n";
    connection.writer.write_all(b"PING\r\n")?;
    let mut answer = [0; PONG.len()];
    connection.reader.read_exact(&mut answer)?;
    ensure!(answer == *PONG, "Redis answered {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn keep(mut staying: Vec<Duplex>, stop: &AtomicBool) -> Result<usize> {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        for (number, connection) in staying.iter_mut().enumerate() {
            ping(connection).with_context(|| format!("client {number}, after {answered} answers to all"))?;
            answered += 1;
        }
        sleep(PING);
    }
    Ok(answered)
}

fn renew(client: &Client, address: SocketAddr, name: &str, stop: &AtomicBool) -> Result<usize> {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        let pinged = connect(client, address, name).and_then(|mut connection| ping(&mut connection));
        pinged.with_context(|| format!("a new client of {address}, after {answered}"))?;
        answered += 1;
        sleep(NEXT);
    }
    Ok(answered)
}
