//! `openssl s_client`, driven like a person would: type, look, go on.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};

use anyhow::{Context, Result};
use snisplice_tests::{TempDir, eventually};

use crate::world::World;

/// A running `openssl s_client` toward port 443 of the gateway.
pub(crate) struct SClient {
    child: Child,
    /// Dropped first to end the session.
    stdin: Option<ChildStdin>,
    files: TempDir,
}

impl SClient {
    pub(crate) fn start<A: AsRef<OsStr>>(
        world: &World,
        sni: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self> {
        let files = TempDir::new()?;
        let output = File::create(files.join("output"))?;
        let mut command = world.net.client.command("openssl");
        command.args(["s_client", "-connect", "10.0.1.1:443", "-servername", sni, "-CAfile"]);
        command.arg(&world.authority.path).args(args);
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        Ok(Self { child, stdin, files })
    }

    /// Types a text.
    pub(crate) fn type_in(&mut self, text: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("the session is open")?;
        stdin.write_all(text.as_bytes())?;
        Ok(stdin.flush()?)
    }

    /// Everything it printed so far.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.files.join("output")).unwrap_or_default()).into_owned()
    }

    /// Waits for a text in the output.
    pub(crate) fn wait_for(&self, text: &str) -> Result<()> {
        eventually(&format!("{text:?} from openssl"), || self.output().contains(text).then_some(()))
            .with_context(|| self.output())
    }

    /// Waits until it ends by itself; what it printed.
    pub(crate) fn wait_end(mut self) -> Result<String> {
        eventually("openssl to end", || self.child.try_wait().ok().flatten())
            .with_context(|| self.output())?;
        Ok(self.output())
    }

    /// Closes its input, which makes it say goodbye; what it printed.
    pub(crate) fn finish(mut self) -> Result<String> {
        self.stdin = None;
        self.wait_end()
    }
}

impl Drop for SClient {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
