//! The tracks of spliced connections, as memory that is shared with the kernel programs; and which of their slots are free.

use super::error::{KernelError, from_map};
use aya::maps::MapData;
use lb_common::packet::track::{Half, Track, closing};
use lb_common::packet::{Side, before};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd as _;
use std::ptr::{NonNull, read_volatile, write_volatile};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Slots that are mapped at once. Only chunks that are used are mapped.
const CHUNK: usize = 1024;
const CHUNK_BYTES: usize = CHUNK * size_of::<Track>();

/// The array [`TRACKS`](lb_common::packet::TRACKS).
pub(super) struct Tracks {
    map: MapData,
    capacity: usize,
    chunks: Box<[OnceLock<Chunk>]>,
    slots: Arc<Mutex<Slots>>,
}

/// Memory shared with the kernel: [`CHUNK`] tracks, or as many as are left.
struct Chunk {
    base: NonNull<Track>,
    bytes: usize,
}

// SAFETY: plain memory that belongs to no thread. The kernel changes it at any time, so it is accessed by volatile loads
// and stores of aligned numbers alone.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl Drop for Chunk {
    fn drop(&mut self) {
        // SAFETY: mapped by `Tracks::chunk` with this size; nobody has a pointer into it for longer than a call.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Which slots are free. The lowest are taken first, so that few chunks are mapped.
#[derive(Debug, Default)]
struct Slots {
    /// Every slot below this one is in use or in `free`; every other is free.
    next: u32,
    free: Vec<u32>,
}

impl Slots {
    /// Exactly these are in use.
    fn without(used: Vec<u32>, capacity: usize) -> Self {
        let mut taken = Vec::new();
        // Each is there twice, and in no order.
        for slot in used.into_iter().map(|slot| slot as usize).filter(|slot| *slot < capacity) {
            if slot >= taken.len() {
                taken.resize(slot + 1, false);
            }
            taken[slot] = true;
        }
        let next = taken.len() as u32;
        let free = (0..next).rev().filter(|slot| !taken[*slot as usize]).collect();
        Self { next, free }
    }
}

/// Whether an end's FIN came before the other end's. The values are those of [`closing::FIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FinOrder {
    /// The other end had sent none.
    First = closing::FIRST,
    /// The other end had sent its FIN.
    Second = closing::SECOND,
}

impl Tracks {
    /// All slots are free.
    pub(super) fn new(map: MapData) -> Result<Self, KernelError> {
        let capacity = map.info().map_err(from_map)?.max_entries() as usize;
        Ok(Self {
            map,
            capacity,
            chunks: (0..capacity.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect(),
            slots: Arc::default(),
        })
    }

    /// Exactly these slots are in use: those of connections that an earlier process has left.
    pub(super) fn adopt(&self, used: Vec<u32>) {
        *lock(&self.slots) = Slots::without(used, self.capacity);
    }

    /// A slot that no flow names; `None`: there is none.
    pub(super) fn take(&self) -> Option<u32> {
        let mut slots = lock(&self.slots);
        if let Some(slot) = slots.free.pop() {
            return Some(slot);
        }
        let slot = slots.next;
        if slot as usize == self.capacity {
            return None;
        }
        slots.next += 1;
        Some(slot)
    }

    /// Returns a function that frees these slots. It must be called after a grace period: a program may still be working on
    /// a packet whose flow named one of them.
    pub(super) fn release(&self, released: Vec<u32>) -> impl FnOnce() + Send + 'static {
        let slots = self.slots.clone();
        move || lock(&slots).free.extend(released)
    }

    /// A copy of a track. Its fields are read one after the other, while the programs write.
    pub(super) fn load(&self, slot: u32) -> io::Result<Track> {
        let track = self.at(slot)?;
        // SAFETY: points to a track that is mapped for as long as `self` lives; see `Chunk`.
        let halves = unsafe { [&raw const (*track).halves.client, &raw const (*track).halves.server] };
        // SAFETY: the same.
        Ok(Track { halves: halves.map(|half| unsafe { Half::read_volatile(half) }).into() })
    }

    /// Writes the first track of a connection. No flow may name the slot yet.
    pub(super) fn begin(&self, slot: u32, track: &Track) -> io::Result<()> {
        let to = self.at(slot)?;
        // SAFETY: as in `load`; nobody else accesses the slot before its flows are there.
        unsafe { write_volatile(to, *track) };
        Ok(())
    }

    /// Notes that the end at this side has sent its bytes up to `end`, a sequence number, and then maybe a FIN: its socket
    /// has received them. The programs may have noted as much, or more, already.
    pub(super) fn advance(&self, slot: u32, side: Side, end: u32, fin: Option<FinOrder>) -> io::Result<()> {
        let half = self.half(slot, side)?;
        // SAFETY: as in `load`, and aligned; in this process the position is only ever stored by an atomic instruction.
        let position = unsafe { AtomicU64::from_ptr(&raw mut (*half).position) };
        let advanced =
            |known: u64| before(known as u32, end).then(|| known + u64::from(end.wrapping_sub(known as u32)));
        // The programs store it too. A later value of theirs must stay: if the end sends nothing more, nobody would correct
        // it. `Err`: theirs is later.
        let _ = position.fetch_update(Relaxed, Relaxed, advanced);
        let Some(fin) = fin else { return Ok(()) };
        // SAFETY: as in `load`. After its FIN, an end changes this only by a reset.
        unsafe {
            let closing = read_volatile(&raw const (*half).closing);
            if closing & closing::FIN == 0 {
                write_volatile(&raw mut (*half).closing, closing | fin as u8);
            }
        }
        Ok(())
    }

    /// Notes that what was sent in the name of the end at this side had this TSval, if the programs have seen no later one.
    pub(super) fn raise_tsval(&self, slot: u32, side: Side, tsval: u32) -> io::Result<()> {
        let half = self.half(slot, side)?;
        // SAFETY: as in `advance`.
        let known = unsafe { AtomicU32::from_ptr(&raw mut (*half).tsval) };
        // If a program stores an earlier one at the same time, the end is not silent, and will send more.
        let _ = known.fetch_update(Relaxed, Relaxed, |known| before(known, tsval).then_some(tsval));
        Ok(())
    }

    /// Clears a bit of [`Half::asked`]: the programs may ask again.
    pub(super) fn was_asked(&self, slot: u32, side: Side, what: u8) -> io::Result<()> {
        let half = self.half(slot, side)?;
        // SAFETY: as in `load`. If a program sets the other bit at the same time, that is lost, and the program asks once
        // more.
        unsafe {
            let asked = read_volatile(&raw const (*half).asked);
            write_volatile(&raw mut (*half).asked, asked & !what);
        }
        Ok(())
    }

    fn half(&self, slot: u32, side: Side) -> io::Result<*mut Half> {
        let track = self.at(slot)?;
        // SAFETY: as in `load`.
        Ok(unsafe {
            match side {
                Side::Client => &raw mut (*track).halves.client,
                Side::Server => &raw mut (*track).halves.server,
            }
        })
    }

    fn at(&self, slot: u32) -> io::Result<*mut Track> {
        let slot = slot as usize;
        if slot >= self.capacity {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let chunk = self.chunk(slot / CHUNK)?;
        // SAFETY: below the capacity, and so within the chunk.
        Ok(unsafe { chunk.base.as_ptr().add(slot % CHUNK) })
    }

    fn chunk(&self, index: usize) -> io::Result<&Chunk> {
        let cell = &self.chunks[index];
        if let Some(chunk) = cell.get() {
            return Ok(chunk);
        }
        let bytes = (self.capacity - index * CHUNK).min(CHUNK) * size_of::<Track>();
        let bytes = bytes.next_multiple_of(rustix::param::page_size());
        let offset = (index * CHUNK_BYTES) as u64;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, wherever the kernel likes.
        let base = unsafe {
            mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, self.map.fd().as_fd(), offset)?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // If another thread was faster, this mapping is removed again.
        Ok(cell.get_or_init(|| Chunk { base, bytes }))
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    // Never left half-changed.
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_what_no_flow_names_is_free() {
        for (used, next, free) in [
            (vec![], 0, vec![]),
            (vec![0, 0], 1, vec![]),
            // The lowest are taken first.
            (vec![6, 2, 6, 3, 2], 7, vec![5, 4, 1, 0]),
            // Another table's.
            (vec![1, 10, u32::MAX], 2, vec![0]),
        ] {
            let slots = Slots::without(used.clone(), 10);
            assert_eq!((slots.next, slots.free), (next, free), "{used:?}");
        }
    }
}
