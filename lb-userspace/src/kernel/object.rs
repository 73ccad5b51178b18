//! The compiled kernel programs.

use super::error::{KernelError, from_ebpf};
use aya::{Ebpf, EbpfLoader};
use lb_common::{packet, sockmap};
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// An ELF object with the programs and maps of both tiers.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplice.bpf.o"));

/// Reads the object and makes its maps. No program is loaded yet, but aya finds out what the kernel can do, by loading some of its
/// own.
pub(super) fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, KernelError> {
    uninterrupted(|| loader.load(OBJECT)).map_err(from_ebpf)
}

/// Loads programs while signals are held back from this thread. The verifier gives up with EAGAIN as soon as a signal waits for
/// the thread, and every further attempt may meet another. What cannot be held back (SIGSTOP, a debugger, a freezer) interrupts
/// one attempt, and aya makes two.
pub(super) fn uninterrupted<T>(load: impl FnOnce() -> T) -> T {
    let _held = HeldSignals::new();
    load()
}

/// This thread gets no signals while it is there. They wait, or go to other threads.
struct HeldSignals {
    before: libc::sigset_t,
}

impl HeldSignals {
    fn new() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the first call initializes the set that the second reads, and the second its result: it fails only if its first
        // argument is none of three constants.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self { before: before.assume_init() }
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // SAFETY: it reads a set that is there; the second may be missing.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, null_mut()) };
    }
}

/// Makes the packet tier's maps as small as possible, when the object is loaded for the sockmap tier.
pub(super) fn shrink_packet(loader: &mut EbpfLoader<'_>) {
    use packet::odd::FRAGMENTS;
    use packet::{CONNECTIONS, FLOWS, HANDOVERS, NAMES, PATHS, SIGHTINGS, TRACKS};
    for name in [FLOWS, TRACKS, PATHS, SIGHTINGS, HANDOVERS, CONNECTIONS, NAMES, FRAGMENTS] {
        loader.map_max_entries(name, 1);
    }
}

/// Makes the sockmap tier's maps as small as possible, when the object is loaded for the packet tier.
pub(super) fn shrink_sockmap(loader: &mut EbpfLoader<'_>) {
    for name in [sockmap::SOURCES, sockmap::TARGETS, sockmap::FLOWS] {
        loader.map_max_entries(name, 1);
    }
}
