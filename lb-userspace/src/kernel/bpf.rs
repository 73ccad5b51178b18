//! bpf(2), where aya has no call for a command.

use std::io;
use std::mem::size_of;

/// A pointer as `union bpf_attr` has it.
pub(super) fn address<T>(value: *const T) -> u64 {
    value.expose_provenance() as u64
}

/// Calls bpf(2). Gives the command's result: a descriptor, or 0.
///
/// # Safety
///
/// `attributes` is the command's part of `union bpf_attr`, and the command may read and write the memory that it points to.
pub(super) unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: `attributes` is readable and writable for its size; the caller answers for what it points to.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
