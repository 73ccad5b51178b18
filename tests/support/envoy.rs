//! Envoy: as a sidecar of clients and servers, and as a proxy to compare with.

use std::fs;

use anyhow::Result;

use crate::netns::NetNs;
use crate::process::Process;
use crate::skip::has_program;
use crate::tempdir::TempDir;

/// A running Envoy; killed on drop.
#[derive(Debug)]
pub struct Envoy {
    /// For its output.
    pub process: Process,
    _files: TempDir,
}

/// Whether it is installed.
pub fn is_there() -> bool {
    has_program("envoy")
}

impl Envoy {
    /// Starts one with this configuration, and waits until it listens on these ports.
    pub fn start(ns: &NetNs, config: &str, ports: &[u16]) -> Result<Self> {
        let files = TempDir::new()?;
        let path = files.join("envoy.yaml");
        fs::write(&path, config)?;
        let mut command = ns.command("envoy");
        // Several of them share the machine's memory, each under another number.
        command
            .args(["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "-c"])
            .arg(&path);
        let mut process = Process::spawn("envoy", command)?;
        process.wait_listening(ports)?;
        Ok(Self { process, _files: files })
    }
}
