//! `snisplice cleanup`: what a gateway that will not come back has left on this machine.

use crate::admin::socket;
use crate::config::FixedGateway;
use crate::kernel::{self, addresses, listeners};
use crate::words::counted;
use crate::{gateway, kubernetes};
use anyhow::{Context, bail};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

/// What is there.
struct Left<'g> {
    gateway: &'g FixedGateway,
    addresses: Vec<(String, IpAddr)>,
    /// Connections that the kernel forwards; `None`: nothing is pinned.
    connections: Option<usize>,
    files: Vec<PathBuf>,
    /// No gateway starts meanwhile.
    _lock: Option<File>,
}

/// Lists it, and removes it if `remove`; gives what is to be said. An error if a gateway runs.
pub(super) fn run(gateway: &FixedGateway, remove: bool) -> anyhow::Result<String> {
    let left = Left::find(gateway)?;
    let list = left.list();
    match (list.is_empty(), remove) {
        (true, _) => Ok("nothing is left\n".to_owned()),
        (false, false) => Ok(list + "nothing was removed; `--yes` removes all of it\n"),
        (false, true) => {
            left.remove()?;
            Ok(list + "removed\n")
        }
    }
}

impl<'g> Left<'g> {
    fn find(gateway: &'g FixedGateway) -> anyhow::Result<Self> {
        let lock = socket::no_gateway(&gateway.state_dir)?;
        let addresses = addresses::ours().context("cannot list the addresses of this machine")?;
        for (device, address) in &addresses {
            // Of a gateway with another state directory; all of them mark addresses alike.
            if listeners::is_used(*address)? {
                bail!("a socket listens on {address} (on {device}): stop the gateway that it is of");
            }
        }
        let bpffs = &gateway.bpffs;
        let connections =
            kernel::is_loaded(bpffs)?.then(|| kernel::packet::connections(bpffs)).transpose()?;
        let files = [kubernetes::keep_file, gateway::drained_file, gateway::attached_file];
        // Each of them is written beside itself first.
        let files = files.map(|file| file(&gateway.state_dir)).into_iter();
        let files = files.flat_map(|file| [file.with_extension("new"), file]);
        let files = files.filter(|file| file.exists()).collect();
        Ok(Self { gateway, addresses, connections, files, _lock: lock })
    }

    fn list(&self) -> String {
        let addresses = self.addresses.iter().map(|(device, ip)| format!("address  {ip} on {device}\n"));
        let pinned = self.connections.map(|connections| {
            let bpffs = self.gateway.bpffs.display();
            let cut = match connections {
                0 => String::new(),
                some => format!("; {} would be cut", counted(some, "live connection")),
            };
            format!("kernel   programs and maps below {bpffs}{cut}\n")
        });
        let files = self.files.iter().map(|file| format!("file     {}\n", file.display()));
        addresses.chain(pinned).chain(files).collect()
    }

    fn remove(&self) -> anyhow::Result<()> {
        // The programs first: without their addresses connections would hang, and not end.
        if self.connections.is_some() {
            kernel::unload(&self.gateway.bpffs)?;
        }
        for (device, address) in &self.addresses {
            addresses::remove(device, *address).with_context(|| format!("{device} keeps {address}"))?;
        }
        for file in &self.files {
            match fs::remove_file(file) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
