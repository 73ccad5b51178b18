//! Errors of loading and pinning the kernel programs: those of aya, the verifier and the file system, in one type.

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use std::io;
use std::path::PathBuf;

/// Why the kernel programs cannot be used.
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
        /// The user of this process.
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
    /// Another gateway uses them.
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
        /// Those of the map that is pinned there.
        found: String,
    },
    /// A program stays attached to a device.
    #[error("cannot detach the program of {what}")]
    Detach {
        /// The pin of its link, or its device.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The verifier rejects a program.
    #[error("the kernel's verifier rejects the program {program}:\n{log}")]
    Rejected {
        /// Which.
        program: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// Anything else.
    #[error("cannot load the kernel programs")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
}

pub(super) fn pin_error(path: PathBuf, source: io::Error) -> KernelError {
    KernelError::Pin { path, source }
}

pub(super) fn from_ebpf(error: EbpfError) -> KernelError {
    permission(&error).unwrap_or_else(|| KernelError::Load(Box::new(error)))
}

pub(super) fn from_map(error: MapError) -> KernelError {
    permission(&error).unwrap_or_else(|| KernelError::Load(Box::new(error)))
}

pub(super) fn from_program(program: &'static str, error: ProgramError) -> KernelError {
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
