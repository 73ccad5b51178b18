//! What the running kernel can do for this process: by trying it, not by its version.
//!
//! Each probe undoes what it tried; none touches a device or a socket of somebody else.

use std::{
    ffi::c_int,
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::AsRawFd as _,
};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{SyscallError, is_map_supported, is_program_supported},
};

/// The answer to one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Yes,
    /// The kernel does not have it.
    No,
    /// The kernel may have it; this process may not use it.
    NotPermitted,
    /// The question failed in another way, which the text says.
    Unknown(String),
}

impl Answer {
    /// From a call that fails with one of `missing` where the kernel does not have the thing asked for.
    fn from_io(result: io::Result<()>, missing: &[c_int]) -> Self {
        let Err(error) = result else { return Self::Yes };
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            Some(code) if missing.contains(&code) => Self::No,
            _ => Self::Unknown(error.to_string()),
        }
    }

    fn from_aya(result: Result<bool, SyscallError>) -> Self {
        match result {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            // ENOSYS: a kernel without the bpf system call.
            Err(error) => Self::from_io(Err(error.io_error), &[libc::ENOSYS]),
        }
    }
}

/// Whether programs of the tc hook can be loaded.
pub fn tc_program() -> Answer {
    program(ProgramType::SchedClassifier)
}

/// Whether the verdict programs of a sockmap can be loaded.
pub fn sk_skb_program() -> Answer {
    program(ProgramType::SkSkb)
}

/// Whether a map of sockets, keyed by a hash, can be made.
pub fn sock_hash() -> Answer {
    Answer::from_aya(is_map_supported(MapType::SockHash))
}

/// Whether tc programs attach by links that can be pinned and replaced (tcx): asks the loopback device.
pub fn tcx() -> Answer {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Answer::Yes,
        // EINVAL: an attach type that this kernel does not know.
        Err(error) => program_error(error, &[libc::EINVAL, libc::ENOSYS]),
    }
}

/// Whether the kernel can encrypt TLS records on a socket (the `tls` upper-layer protocol).
///
/// Asking loads the module where there is one and the process may.
pub fn ktls() -> Answer {
    let result = on_tcp_socket(libc::TCP_ULP, b"tls");
    match &result {
        // Found, and turned away only because the socket is not connected.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Answer::Yes,
        _ => Answer::from_io(result, &[libc::ENOENT, libc::ENOPROTOOPT]),
    }
}

/// Whether sequence numbers of a connection can be read and set.
pub fn tcp_repair() -> Answer {
    Answer::from_io(
        on_tcp_socket(libc::TCP_REPAIR, &1_i32.to_ne_bytes()),
        &[libc::ENOPROTOOPT],
    )
}

fn program(kind: ProgramType) -> Answer {
    match is_program_supported(kind) {
        Ok(true) => Answer::Yes,
        Ok(false) => Answer::No,
        Err(error) => program_error(error, &[libc::ENOSYS]),
    }
}

fn program_error(error: ProgramError, missing: &[c_int]) -> Answer {
    match error {
        ProgramError::SyscallError(error) => Answer::from_io(Err(error.io_error), missing),
        error => Answer::Unknown(error.to_string()),
    }
}

/// Sets an option of a TCP socket that is bound to loopback and closed at once.
fn on_tcp_socket(option: c_int, value: &[u8]) -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `socket` is open for the whole call, and `value` is readable for `length` bytes; the kernel
    // copies them and keeps no pointer.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            value.as_ptr().cast(),
            length,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether this process can listen at all: all that the copy tier asks of a kernel.
pub fn tcp() -> Answer {
    Answer::from_io(
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop),
        &[libc::EAFNOSUPPORT],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed_with(code: c_int) -> Answer {
        Answer::from_io(Err(io::Error::from_raw_os_error(code)), &[libc::ENOENT])
    }

    #[test]
    fn missing_in_the_kernel_and_forbidden_to_the_user_are_told_apart() {
        assert_eq!(failed_with(libc::ENOENT), Answer::No);
        assert_eq!(failed_with(libc::EPERM), Answer::NotPermitted);
        assert!(matches!(failed_with(libc::ENOMEM), Answer::Unknown(_)));
        assert_eq!(Answer::from_io(Ok(()), &[]), Answer::Yes);
    }

    #[test]
    fn a_tcp_socket_can_be_had_wherever_the_tests_run() {
        assert_eq!(tcp(), Answer::Yes);
    }
}
