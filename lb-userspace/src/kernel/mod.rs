//! The kernel: what it can do, and the programs that snisplice gives it. The only user of aya.
//!
//! Pinned programs and maps lie in `<bpffs>/v<ABI>/`, one file each, named as in [`lb_common`].

pub mod batch;
pub mod conntrack;
pub mod devices;
pub mod foreign;
pub mod frames;
pub mod ipsec;
#[cfg(feature = "kernel-log")]
pub mod log;
mod netlink;
pub mod odd;
pub mod packet;
pub mod pairs;
mod pins;
pub mod probe;
pub mod raw;
pub mod routes;
pub mod sockmap;
pub(crate) mod tcp;
mod tracks;
pub mod version;

pub use packet::Packet;
pub use sockmap::Sockmap;

use aya::maps::MapError;
use aya::programs::{ProgramError, SkSkb};
use aya::{Ebpf, EbpfError, EbpfLoader};
use pins::Pins;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// IPv4 as IPv4: a socket that is bound to `::` sees such addresses as `::ffff:192.0.2.1`. An address that is no IPv4
/// stays as it is, with its scope.
pub(crate) fn canonical(mut address: SocketAddr) -> SocketAddr {
    if address.ip().to_canonical().is_ipv4() {
        address.set_ip(address.ip().to_canonical());
    }
    address
}

/// The compiled kernel programs, an ELF object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplice.bpf.o"));

/// Why the kernel programs are not there.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not root, or a container without the capabilities.
    #[error("loading kernel programs takes root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    NotPermitted(#[source] io::Error),
    /// There is no bpf file system, and mounting one failed.
    #[error("{} is not on a bpf file system, and mounting one failed; try: mount -t bpf bpf /sys/fs/bpf", .path.display())]
    NoBpffs {
        /// The configured directory.
        path: PathBuf,
        /// Why mounting failed.
        source: io::Error,
    },
    /// A file of the pin directory.
    #[error("{}", .path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A directory of pins belongs to another user, who can change what lies in it.
    #[error("{} belongs to user {owner}, and this is user {us}: remove it, or run as its owner, or set `bpffs` to another directory", .path.display())]
    ForeignDirectory {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// As whom this process runs.
        us: u32,
    },
    /// Other users can change what lies in a directory of pins.
    #[error("others may write to {} (mode {mode:04o}): see that nothing in it is theirs and `chmod 0700` it, or set `bpffs` to a directory of its own in it", .path.display())]
    OpenDirectory {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another process serves with them.
    #[error("another gateway uses the kernel programs below {}", .path.display())]
    InUse {
        /// The configured directory.
        path: PathBuf,
    },
    /// Something else than our map lies at a pin's path.
    #[error("{} is not the map of this version ({expected}, but {found}); `snisplice unload` removes it", .path.display())]
    ForeignPin {
        /// Which.
        path: PathBuf,
        /// Type, key size and value size of our map.
        expected: String,
        /// Those of the map there.
        found: String,
    },
    /// The verifier's answer, with its last lines.
    #[error("the kernel's verifier rejects the program {program}:\n{log}")]
    Rejected {
        /// Which.
        program: &'static str,
        /// What it says.
        log: String,
    },
    /// Anything else.
    #[error("loading the kernel programs: {0}")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The kernel programs, loaded.
///
/// Those of `run` live as long as this value, unless `snisplice load` has pinned maps: then these are adopted, and
/// this build's program takes the place of the one attached to them.
pub struct Kernel {
    sockmap: Arc<Sockmap>,
    /// Owns the programs. `None`: the pinned maps own them.
    _programs: Option<Ebpf>,
    /// Held while pinned maps are used: a ring buffer has one reader.
    _pins: Option<Pins>,
}

impl Kernel {
    /// For a gateway: adopts what is pinned, unless another gateway uses it; else loads programs of its own.
    ///
    /// `sockets` is how many the sockmap has room for, two per connection; adopted maps keep their size.
    pub fn open(bpffs: &Path, sockets: u32) -> Result<Self, KernelError> {
        match Pins::existing(bpffs, "sockmap")?.filter(Pins::lock) {
            Some(pins) => {
                let mut programs = load(Some(&pins), sockets)?;
                let sockmap = Arc::new(Sockmap::new(&mut programs).map_err(from_map)?);
                Ok(Self { sockmap, _programs: None, _pins: Some(pins) })
            }
            None => {
                let mut programs = load(None, sockets)?;
                let sockmap = Arc::new(Sockmap::new(&mut programs).map_err(from_map)?);
                Ok(Self { sockmap, _programs: Some(programs), _pins: None })
            }
        }
    }

    /// The maps of the sockmap tier.
    pub fn sockmap(&self) -> &Arc<Sockmap> {
        &self.sockmap
    }
}

/// `snisplice load` for the sockmap tier: loads, attaches and pins the programs; mounts the bpf file system where it is missing. What is
/// pinned already stays, with this build's program.
pub fn load_and_pin(bpffs: &Path, sockets: u32) -> Result<(), KernelError> {
    let pins = Pins::create(bpffs, "sockmap")?;
    load(Some(&pins), sockets).map(drop)
}

/// `snisplice unload`: detaches the packet tier's programs and removes all pins. `false`: nothing was pinned. What a
/// running gateway carries in the sockmap tier goes on until it ends.
pub fn unload(bpffs: &Path) -> Result<bool, KernelError> {
    // The pins say which programs are meant.
    packet::detach(bpffs)?;
    pins::remove_all(bpffs)
}

/// Whether something is pinned.
pub fn is_loaded(bpffs: &Path) -> Result<bool, KernelError> {
    pins::are_there(bpffs)
}

/// Loads the programs and attaches them: to new maps, or to those pinned, which are then checked and, where
/// missing, made.
fn load(pins: Option<&Pins>, sockets: u32) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    let sized = [sockmap::SOURCES, sockmap::TARGETS, sockmap::FLOWS];
    for name in sized {
        loader.map_max_entries(name, sockets.max(2));
    }
    packet::shrink(&mut loader);
    if let Some(pins) = pins {
        for shape in &sockmap::SHAPES {
            pins.check(shape)?;
            loader.map_pin_path(shape.name, pins.path(shape.name));
        }
    }
    let mut programs = loader.load(OBJECT).map_err(from_ebpf)?;

    let of_verdict = |error| from_program(sockmap::VERDICT, error);
    let sources = sockmap::sources(&mut programs).map_err(from_map)?;
    let verdict: &mut SkSkb = programs
        .program_mut(sockmap::VERDICT)
        .expect("the object has the program")
        .try_into()
        .map_err(of_verdict)?;
    verdict.load().map_err(of_verdict)?;
    let link = verdict.attach(&sources).map_err(of_verdict)?;
    if let Some(pins) = pins {
        let path = pins.path(sockmap::VERDICT);
        pins.clear(sockmap::VERDICT)?;
        verdict.pin(&path).map_err(|error| pin_error(path, io::Error::other(error)))?;
        // Dropping the link would detach the program. The map holds it; there is nothing else to keep.
        std::mem::forget(verdict.take_link(link).map_err(of_verdict)?);
    }
    Ok(programs)
}

fn pin_error(path: PathBuf, source: io::Error) -> KernelError {
    KernelError::Pin { path, source }
}

fn from_ebpf(error: EbpfError) -> KernelError {
    permission(&error).unwrap_or_else(|| KernelError::Load(Box::new(error)))
}

fn from_map(error: MapError) -> KernelError {
    permission(&error).unwrap_or_else(|| KernelError::Load(Box::new(error)))
}

fn from_program(program: &'static str, error: ProgramError) -> KernelError {
    if let Some(error) = permission(&error) {
        return error;
    }
    match error {
        ProgramError::LoadError { verifier_log, .. } => {
            KernelError::Rejected { program, log: tail(&verifier_log.to_string()) }
        }
        error => KernelError::Load(Box::new(error)),
    }
}

/// EPERM anywhere in the chain of causes.
fn permission(error: &(dyn std::error::Error + 'static)) -> Option<KernelError> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let codes = causes.filter_map(|error| error.downcast_ref::<io::Error>()?.raw_os_error());
    codes
        .into_iter()
        .find(|&code| code == libc::EPERM)
        .map(|code| KernelError::NotPermitted(io::Error::from_raw_os_error(code)))
}

/// The end of a verifier log, which says why.
fn tail(log: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_want_of_a_capability_is_told_from_other_errors() {
        let error = |code| MapError::CreateError {
            name: "FLOWS".into(),
            io_error: io::Error::from_raw_os_error(code),
        };
        assert!(matches!(from_map(error(libc::EPERM)), KernelError::NotPermitted(_)));
        assert!(matches!(from_map(error(libc::ENOMEM)), KernelError::Load(_)));
    }

    #[test]
    fn of_a_verifier_log_the_end_is_shown() {
        let log = (0..100).map(|i| format!("{i}\n")).collect::<String>();
        assert!(tail(&log).starts_with("80\n") && tail(&log).ends_with("\n99"));
        assert_eq!(tail("short"), "short");
    }
}
