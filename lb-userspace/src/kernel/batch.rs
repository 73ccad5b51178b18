//! What a map can do with one system call and aya does not offer: reading many entries (Linux 5.6), and taking one out (Linux
//! 5.14).

use std::borrow::Borrow;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd};

use super::bpf::{address, bpf};
use aya::Pod;
use aya::maps::{Array, HashMap, IterableMap, MapData};

/// linux/bpf.h `enum bpf_cmd`.
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// linux/bpf.h `union bpf_attr`, the part `batch`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    /// In: entries that there is room for. Out: entries that were written.
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// linux/bpf.h `union bpf_attr`, the part for single elements.
#[repr(C)]
struct Element {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const _: () = assert!(offset_of!(Element, key) == 8 && size_of::<Element>() == 32, "linux/bpf.h");
const _: () = assert!(offset_of!(Attributes, flags) == 48 && size_of::<Attributes>() == 56, "linux/bpf.h");

/// A map that [`for_each_batch`] can walk.
///
/// # Safety
///
/// The kernel's position in the map takes four bytes (the number of a hash table's bucket, or an array's index), and its
/// keys and values are as long as `K` and `V`.
pub unsafe trait Batched<K: Pod, V: Pod>: IterableMap<K, V> {}

// SAFETY: a position is a bucket's number; aya has compared the sizes when it made the map from its file.
unsafe impl<T: Borrow<MapData>, K: Pod, V: Pod> Batched<K, V> for HashMap<T, K, V> {}
// SAFETY: a position is an index; aya has compared the sizes.
unsafe impl<T: Borrow<MapData>, V: Pod> Batched<u32, V> for Array<T, V> {}

/// Calls `each` with the map's entries, about `batch` (at least 1) at a time: keys and values, in the same order. An entry
/// that is in the map during the whole call is given exactly once; one that is inserted or removed meanwhile, at most once.
pub fn for_each_batch<K: Pod, V: Pod>(
    map: &impl Batched<K, V>,
    batch: u32,
    mut each: impl FnMut(&[K], &[V]),
) -> io::Result<()> {
    let (mut room, mut position) = (batch.max(1), None::<u32>);
    let (mut keys, mut values) = (Vec::<K>::new(), Vec::<V>::new());
    loop {
        keys.clear();
        values.clear();
        keys.reserve(room as usize);
        values.reserve(room as usize);
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: position.as_ref().map_or(0, |position| address(position)),
            out_batch: address(&raw mut next),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: room,
            map_fd: map.map().fd().as_fd().as_raw_fd().cast_unsigned(),
            ..Attributes::default()
        };
        // SAFETY: `Batched` promises that the kernel reads the four bytes of `position` and writes the four of `next`. It
        // writes at most `room` keys and values of these sizes into the vectors, which have that capacity and are not
        // accessed meanwhile.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        let is_end = match result {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // The next bucket of the hash table does not fit; nothing was written.
                Some(libc::ENOSPC) => {
                    room = room.checked_mul(2).ok_or(error)?;
                    continue;
                }
                _ => return Err(error),
            },
        };
        let count = attributes.count.min(room) as usize;
        // SAFETY: the kernel has written `count` keys and values, which `K` and `V` stand for as in every map.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        if count > 0 {
            each(&keys, &values);
        }
        if is_end {
            return Ok(());
        }
        position = Some(next);
    }
}

/// Removes an entry and returns what it was; `None`: there is none.
pub fn take<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, key: &K) -> Option<V> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut element = Element {
        map_fd: map.map().fd().as_fd().as_raw_fd().cast_unsigned(),
        key: address(key),
        value: address(value.as_mut_ptr()),
        flags: 0,
    };
    // SAFETY: aya has compared the sizes of keys and values with the map's; the kernel reads a key and writes a value.
    unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut element) }.ok()?;
    // SAFETY: the kernel has written the value, which `V` stands for as in every map.
    Some(unsafe { value.assume_init() })
}
