//! Links of tcx, by which a program is attached to a device as long as the link is pinned or open.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::kernel::bpf::{address, bpf};

/// linux/bpf.h `enum bpf_cmd`.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Detaches the program of a pinned link from its device: when this returns, no packet meets it any more. To remove the pin is not
/// enough: the kernel then detaches later, in a worker, and not while another process has the link open. Nothing is done if there
/// is no such pin (any more).
pub(super) fn detach(pin: &Path) -> io::Result<()> {
    /// linux/bpf.h `union bpf_attr`, the beginning for this command.
    #[repr(C)]
    struct Attributes {
        link: u32,
    }
    let link = match open(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        link => link?,
    };
    let mut attributes = Attributes { link: link.as_raw_fd().cast_unsigned() };
    // SAFETY: the attributes hold no pointer.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes) }.map(drop)
}

fn open(pin: &Path) -> io::Result<OwnedFd> {
    /// linux/bpf.h `union bpf_attr`, the beginning for this command.
    #[repr(C)]
    struct Attributes {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attributes = Attributes { path: address(path.as_ptr()), descriptor: 0, flags: 0 };
    // SAFETY: the kernel reads the path, which ends with a zero.
    let link = unsafe { bpf(BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the command's result is a new descriptor, of which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}
