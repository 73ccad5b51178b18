//! `snisplice ech-key`: a new key for Encrypted ClientHello.

use crate::ech;
use crate::sniff::ServerName;
use anyhow::{Context, anyhow, bail};
use base64ct::{Base64, Encoding as _};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(super) struct EchKey {
    /// The name in clear that clients show everybody: one that a route of the listener has, whose server also has the key
    /// and a certificate for this name.
    #[arg(long, value_name = "NAME")]
    public_name: String,
    /// The file to write; it must not be there yet.
    #[arg(short, long, value_name = "FILE", default_value = "ech.pem")]
    output: PathBuf,
    /// The number by which clients say which key they have used, 0 to 255; no two keys of a listener may have the same
    /// [default: a random one].
    #[arg(long, value_name = "NUMBER")]
    config_id: Option<u8>,
}

impl EchKey {
    /// Writes the file, which only its owner can read; gives what is to be said.
    pub(super) fn run(self) -> anyhow::Result<String> {
        let name = ServerName::parse(self.public_name.as_bytes())
            .map_err(|_| anyhow!("`{}` is no host name", self.public_name.escape_debug()))?;
        let (text, config) =
            ech::generate(self.config_id, name.as_str()).context("the key could not be made")?;
        let file = self.output.display();
        let mut options = OpenOptions::new();
        match options.write(true).create_new(true).mode(0o600).open(&self.output) {
            Ok(mut written) => {
                written.write_all(text.as_bytes()).with_context(|| format!("cannot write {file}"))?
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                bail!("{file} is there already: clients may know its key. Name another with `-o FILE`")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot write {file}")),
        }
        Ok(format!(
            "{file}: key number {} for {name}\n\
             \n\
             1. Name it in the listener, before any older key:  ech = {{ keys = [\"{file}\"] }}\n\
             2. Give it to the servers behind that listener.\n\
             3. Tell clients, in the HTTPS record of each name that is to be hidden:\n\
             \n\
             ech={}\n",
            config.config_id,
            Base64::encode_string(&config.list()),
        ))
    }
}
