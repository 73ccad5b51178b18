//! A real name server.

use std::fs;
use std::net::Ipv4Addr;

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
