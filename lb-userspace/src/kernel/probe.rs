//! What the running kernel can do for this process: found out by trying, not by the kernel's version.
//!
//! Each probe undoes what it has tried, and none changes a device or another process's socket.

use std::{
    ffi::c_int,
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::{
    maps::{HashMap, MapData, MapError, MapType},
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{SyscallError, is_map_supported, is_program_supported},
};

use super::bpf::{address, bpf};
use super::object::uninterrupted;
use super::raw::Injector;
use super::tcp::set_bytes;

/// The answer to one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Yes,
    /// The kernel does not have it.
    No,
    /// The kernel may have it; this process may not use it.
    NotPermitted,
    /// The probe failed for another reason, which the text says.
    Unknown(String),
}

impl Answer {
    /// From the result of a call that fails with one of `missing` if the kernel does not have the feature.
    pub(super) fn from_io(result: io::Result<()>, missing: &[c_int]) -> Self {
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

/// Whether the verifier lets programs compute with pointers, as every program does that reads packets. Without CAP_PERFMON
/// it does not.
pub fn pointers() -> Answer {
    /// r0 = r1
    const MOV64_REGISTER: u8 = 0xbf;
    const FROM_1_TO_0: u8 = 1 << 4;
    let program = [
        // Returning a pointer takes the same permission, and only two instructions.
        Instruction { code: MOV64_REGISTER, registers: FROM_1_TO_0, offset: 0, value: 0 },
        Instruction { code: EXIT, registers: 0, offset: 0, value: 0 },
    ];
    Answer::from_io(load(&program).map(drop), &[libc::ENOSYS])
}

/// Whether the verdict programs of a sockmap can be loaded.
pub fn sk_skb_program() -> Answer {
    program(ProgramType::SkSkb)
}

/// Whether a map of sockets, keyed by a hash, can be made.
pub fn sock_hash() -> Answer {
    Answer::from_aya(is_map_supported(MapType::SockHash))
}

/// Whether tc programs can be attached by links, which can be pinned and replaced (tcx). Queries the loopback device.
pub fn tcx() -> Answer {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Answer::Yes,
        // EINVAL: an attach type that this kernel does not know.
        Err(error) => program_error(error, &[libc::EINVAL, libc::ENOSYS]),
    }
}

/// Whether hash maps can allocate memory as they fill, instead of in advance.
pub fn growing_hash() -> Answer {
    const BPF_F_NO_PREALLOC: u32 = 1;
    match HashMap::<MapData, u32, u32>::create(1, BPF_F_NO_PREALLOC) {
        Ok(_) => Answer::Yes,
        Err(MapError::CreateError { io_error, .. }) => {
            Answer::from_io(Err(io_error), &[libc::EINVAL, libc::ENOSYS])
        }
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

/// Whether programs can send events through a ring buffer.
pub fn ring_buffer() -> Answer {
    Answer::from_aya(is_map_supported(MapType::RingBuf))
}

/// Whether this process can read a perf buffer of each CPU, into which programs write.
pub fn perf_buffer() -> Answer {
    const PERF_TYPE_SOFTWARE: u32 = 1;
    const PERF_COUNT_SW_BPF_OUTPUT: u64 = 10;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    const EVERY_PROCESS: libc::pid_t = -1;
    const FIRST_CPU: c_int = 0;
    const NO_GROUP: c_int = -1;
    /// linux/perf_event.h `struct perf_event_attr`, PERF_ATTR_SIZE_VER0.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        rest: [u64; 6],
    }
    let attributes = Attributes {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: PERF_COUNT_SW_BPF_OUTPUT,
        ..Attributes::default()
    };
    // SAFETY: the kernel reads as many bytes of the attributes as they say they have, and keeps no pointer.
    let fd = unsafe {
        let attributes = &raw const attributes;
        let flags = PERF_FLAG_FD_CLOEXEC;
        libc::syscall(libc::SYS_perf_event_open, attributes, EVERY_PROCESS, FIRST_CPU, NO_GROUP, flags)
    };
    if fd < 0 {
        return Answer::from_io(Err(io::Error::last_os_error()), &[libc::ENOSYS, libc::ENOENT]);
    }
    // SAFETY: the call's result is a new descriptor, of which nobody else knows.
    drop(unsafe { OwnedFd::from_raw_fd(fd as c_int) });
    Answer::Yes
}

/// Whether a process can wait for a grace period: until every CPU has finished the packet that it was working on.
pub fn membarrier() -> Answer {
    const MEMBARRIER_CMD_QUERY: c_int = 0;
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: the command takes no pointer and changes nothing.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) } {
        -1 => Answer::from_io(Err(io::Error::last_os_error()), &[libc::ENOSYS]),
        commands if commands & MEMBARRIER_CMD_GLOBAL != 0 => Answer::Yes,
        // The kernel has nohz_full CPUs, for which it cannot wait.
        _ => Answer::No,
    }
}

/// Whether packets can be sent for connections that have no socket.
pub fn raw_sockets() -> Answer {
    Answer::from_io(Injector::open().map(drop), &[libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT])
}

/// Whether the helper that updates TCP checksums knows BPF_F_IPV6. Without it, the helper makes the checksum of an IPv6
/// packet wrong that a network card has summed up (CHECKSUM_COMPLETE).
///
/// Runs a program of a few instructions on a packet of zeros.
pub fn ipv6_checksum() -> Answer {
    const BPF_F_PSEUDO_HDR: i32 = 1 << 4;
    const BPF_F_IPV6: i32 = 1 << 7;
    const L4_CSUM_REPLACE: i32 = 11;
    const CHECKSUM_AT: i32 = 14 + 40 + 16;
    let set =
        |register: u8, value: i32| Instruction { code: MOV64_IMM, registers: register, offset: 0, value };
    // r1 holds the packet at the start; r0 is the result.
    let program = [
        set(2, CHECKSUM_AT),
        set(3, 0),
        set(4, 1),
        set(5, BPF_F_PSEUDO_HDR | BPF_F_IPV6),
        Instruction { code: CALL, registers: 0, offset: 0, value: L4_CSUM_REPLACE },
        Instruction { code: EXIT, registers: 0, offset: 0, value: 0 },
    ];
    match load(&program).and_then(|program| run(&program, &[0; 14 + 40 + 20])) {
        // The helper returns EINVAL for unknown flags.
        Ok(result) if result.cast_signed() == -libc::EINVAL => Answer::No,
        Ok(_) => Answer::Yes,
        Err(error) => Answer::from_io(Err(error), &[libc::ENOSYS]),
    }
}

const MOV64_IMM: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// linux/bpf.h `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination in the lower half.
    registers: u8,
    offset: i16,
    value: i32,
}

/// Loads a program of the tc hook. aya loads programs from object files only.
fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    /// linux/bpf.h `union bpf_attr`, the beginning for this command.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        kernel_version: u32,
        flags: u32,
    }
    let mut attributes = Attributes {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        instruction_count: program.len() as u32,
        instructions: address(program.as_ptr()),
        license: address(c"GPL".as_ptr()),
        log: [0; 2],
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads the instructions, as many as are said, and the license, and keeps no pointer.
    let fd = uninterrupted(|| unsafe { bpf(BPF_PROG_LOAD, &mut attributes) })?;
    // SAFETY: the command's result is a new descriptor, of which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program once, on this packet, which is sent nowhere.
fn run(program: &OwnedFd, packet: &[u8]) -> io::Result<u32> {
    const BPF_PROG_TEST_RUN: c_int = 10;
    /// linux/bpf.h `union bpf_attr`, the beginning for this command.
    #[repr(C)]
    struct Attributes {
        program: u32,
        result: u32,
        packet_length: u32,
        out_length: u32,
        packet: u64,
        out: u64,
        repeat: u32,
        duration: u32,
    }
    let mut attributes = Attributes {
        program: program.as_raw_fd().cast_unsigned(),
        result: 0,
        packet_length: packet.len() as u32,
        out_length: 0,
        packet: address(packet.as_ptr()),
        out: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the kernel reads as many bytes of the packet as it has; it writes to the attributes alone.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
    Ok(attributes.result)
}

/// Whether the kernel can encrypt TLS records on a socket (the `tls` upper-layer protocol).
///
/// The probe loads the kernel module, if there is one and the process may.
pub fn ktls() -> Answer {
    let result = on_tcp_socket(libc::TCP_ULP, b"tls");
    match &result {
        // The kernel has it, and refuses only because the socket is not connected.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Answer::Yes,
        _ => Answer::from_io(result, &[libc::ENOENT, libc::ENOPROTOOPT]),
    }
}

/// Whether sequence numbers of a connection can be read and set.
pub fn tcp_repair() -> Answer {
    Answer::from_io(on_tcp_socket(libc::TCP_REPAIR, &1_i32.to_ne_bytes()), &[libc::ENOPROTOOPT])
}

fn program(kind: ProgramType) -> Answer {
    match uninterrupted(|| is_program_supported(kind)) {
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
    set_bytes(socket.as_fd(), libc::IPPROTO_TCP, option, value)
}

/// Whether this process can listen, which is all that the copy tier requires.
pub fn tcp() -> Answer {
    Answer::from_io(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map(drop), &[libc::EAFNOSUPPORT])
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
