//! A real name server, and one before it that fails.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::netns::NetNs;
use crate::process::Process;
use crate::tempdir::TempDir;

/// NSD with the zone `test`. Its negative TTL is a day.
#[derive(Debug)]
pub struct NameServer {
    process: Process,
    files: TempDir,
}

impl NameServer {
    /// Serves the records, written as in a zone file, with a TTL of one second where they have none of their own.
    pub fn start(ns: &NetNs, address: impl Into<Ipv4Addr>, records: &str) -> Result<Self> {
        let (files, address) = (TempDir::new()?, address.into());
        let directory = files.path().display();
        let config = format!(
            "server:\n ip-address: {address}\n username: ''\n server-count: 1\n pidfile: ''\n database: ''\n \
             xfrdfile: ''\n xfrdir: '{directory}'\n zonesdir: '{directory}'\n zonelistfile: '{directory}/zones'\n\
             remote-control:\n control-enable: no\n\
             zone:\n name: 'test'\n zonefile: '{ZONE}'\n"
        );
        fs::write(files.join("nsd.conf"), config.replace('\'', "\""))?;
        fs::write(files.join(ZONE), zone(records))?;
        let mut nsd = ns.command("nsd");
        nsd.arg("-d").arg("-c").arg(files.join("nsd.conf"));
        let mut process = Process::spawn("nsd", nsd)?;
        process.wait_listening(&[53])?;
        Ok(Self { process, files })
    }

    /// Replaces the records.
    pub fn change(&self, records: &str) -> Result<()> {
        fs::write(self.files.join(ZONE), zone(records))?;
        self.process.signal(Signal::SIGHUP)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // SIGKILL would leave its children running for a while.
        let _ = self.process.stop();
    }
}

const ZONE: &str = "test.zone";

fn zone(records: &str) -> String {
    format!(
        "$ORIGIN test.\n$TTL 1\n@ 86400 SOA ns root 1 3600 600 86400 86400\n@ NS ns\nns A 192.0.2.53\n{records}\n"
    )
}

/// Passes queries on to another name server, by UDP; those of one type it answers with SERVFAIL if it is told so.
#[derive(Debug)]
pub struct FailingNameServer {
    failing: Arc<Failing>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Failing {
    /// 0: none.
    query_type: AtomicU16,
    failed: AtomicU64,
    stopped: AtomicBool,
}

impl FailingNameServer {
    /// The type of queries for IPv4 addresses.
    pub const A: u16 = 1;

    /// Fails nothing yet.
    pub fn start(ns: &NetNs, address: impl Into<Ipv4Addr>, behind: impl Into<Ipv4Addr>) -> Result<Self> {
        let (address, behind) = (address.into(), behind.into());
        let socket = ns.run(|| UdpSocket::bind((address, 53)))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let failing = Arc::new(Failing::default());
        let told = Arc::clone(&failing);
        let thread = ns.spawn(move || {
            while !told.stopped.load(SeqCst) {
                // An error: there was no query, or no answer to it. Who asked asks again.
                let _ = told.answer_one(&socket, behind);
            }
        });
        Ok(Self { failing, thread: Some(thread) })
    }

    /// Fails queries of this type from now on; 0: none.
    pub fn fail(&self, query_type: u16) {
        self.failing.query_type.store(query_type, SeqCst);
    }

    /// How many queries it has failed.
    pub fn failed(&self) -> u64 {
        self.failing.failed.load(SeqCst)
    }
}

impl Drop for FailingNameServer {
    fn drop(&mut self) {
        self.failing.stopped.store(true, SeqCst);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Failing {
    fn answer_one(&self, socket: &UdpSocket, behind: Ipv4Addr) -> io::Result<()> {
        let mut message = [0; 4096];
        let (mut length, client) = socket.recv_from(&mut message)?;
        if query_type(&message[..length]) == Some(self.query_type.load(SeqCst)) {
            // A response with the code SERVFAIL.
            message[2] |= 0x80;
            message[3] = 2;
            self.failed.fetch_add(1, SeqCst);
        } else {
            let upstream = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            upstream.set_read_timeout(Some(Duration::from_secs(1)))?;
            upstream.connect((behind, 53))?;
            upstream.send(&message[..length])?;
            length = upstream.recv(&mut message)?;
        }
        socket.send_to(&message[..length], client).map(drop)
    }
}

/// The type that a query's question asks for: behind the header of twelve bytes and the labels of the name.
fn query_type(query: &[u8]) -> Option<u16> {
    let mut at = 12;
    while let length @ 1.. = *query.get(at)? {
        at += 1 + usize::from(length);
    }
    Some(u16::from_be_bytes([*query.get(at + 1)?, *query.get(at + 2)?]))
}
