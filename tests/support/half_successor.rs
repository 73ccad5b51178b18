//! A process that takes over from a gateway, step by step, as far as a test wants.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::wait::patience;

/// One that has been offered the sockets. It takes none of them: it reads without a place for descriptors, so that the kernel
/// closes them.
#[derive(Debug)]
pub struct HalfSuccessor(BufReader<UnixStream>);

impl HalfSuccessor {
    /// Asks the gateway of this state directory.
    pub fn ask(state_dir: &Path) -> Result<Self> {
        let stream = UnixStream::connect(state_dir.join("admin.sock"))?;
        stream.set_read_timeout(Some(patience()))?;
        let mut asking = Self(BufReader::new(stream));
        asking.say("{\"command\":\"take_over\",\"version\":1}", "{\"offered\"")?;
        Ok(asking)
    }

    /// Makes the gateway accept no more and leave the packet tier alone.
    pub fn freeze(&mut self) -> Result<()> {
        self.say("{\"freeze\":{}}", "{\"frozen\"")
    }

    /// Says a line, and hears others until one that begins like this.
    pub fn say(&mut self, line: &str, until: &str) -> Result<()> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())?;
        loop {
            let answer = self.hear()?;
            ensure!(!answer.starts_with("{\"error\"") && !answer.starts_with("{\"refused\""), "{answer}");
            if answer.starts_with(until) {
                return Ok(());
            }
        }
    }

    /// The next line.
    pub fn hear(&mut self) -> Result<String> {
        let mut answer = String::new();
        let length = self.0.read_line(&mut answer).context("the gateway's answer")?;
        ensure!(length > 0, "the gateway has closed the connection");
        Ok(answer)
    }
}
