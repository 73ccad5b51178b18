//! Encrypted ClientHello: keys, and the two ends of a connection, by Go's TLS.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::process::checked_output;
use crate::{Authority, NetNs, Process, TempDir, gateway};

/// The public name of every key here.
pub const PUBLIC: &str = "gateway.example.com";

/// Why a test that needs [`ends`] does not run.
pub const NO_ENDS: &str = "there is no Go from 1.24 on, whose servers know ECH";

/// The program of `ends.go`, built once; `None`: there is no Go that knows ECH.
pub fn ends() -> Option<&'static Path> {
    static ENDS: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let build = || {
        let files = TempDir::new().ok()?;
        let program = files.join("ends");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("support/ech/ends.go");
        let built = Command::new("go").arg("build").arg("-o").arg(&program).arg(source).output().ok()?;
        if !built.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&built.stderr));
        }
        built.status.success().then_some((files, program))
    };
    ENDS.get_or_init(build).as_ref().map(|(_, program)| &**program)
}

/// A key, made by `snisplice ech-key`.
pub struct EchKey {
    /// Its file.
    pub file: PathBuf,
    /// What clients are told: an ECHConfigList in base64.
    pub config: String,
}

impl EchKey {
    /// A new one, in a file of this name.
    pub fn new(files: &TempDir, name: &str) -> Result<Self> {
        let file = files.join(name);
        let mut command = Command::new(gateway::binary()?);
        command.args(["ech-key", "--public-name", PUBLIC, "-o"]).arg(&file);
        let said = checked_output(&mut command)?;
        let config = said.lines().find_map(|line| line.strip_prefix("ech=")).context("no `ech=`")?;
        Ok(Self { file, config: config.to_owned() })
    }
}

/// Starts [`ends`] as a server with a certificate for this name, which tells each client the name that it has asked for, and
/// then echoes. `key`: what it opens ClientHellos with; without, it knows the inner ones. `retry`: it asks for another key
/// share first (HelloRetryRequest).
pub fn server(
    ns: &NetNs,
    authority: &Authority,
    name: &str,
    address: SocketAddr,
    key: Option<&EchKey>,
    retry: bool,
) -> Result<Process> {
    let leaf = authority.leaf(&[name])?;
    let mut command = ns.command(ends().context(NO_ENDS)?);
    command.arg("server").arg(address.to_string()).args([&leaf.chain, &leaf.key]);
    command.arg(key.map_or(Path::new("-"), |key| &key.file));
    command.args(retry.then_some("retry"));
    let mut process = Process::spawn(name, command)?;
    process.wait_listening(&[address.port()])?;
    Ok(process)
}
