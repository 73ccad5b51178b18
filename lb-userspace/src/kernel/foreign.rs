//! Flow tables of other gateways on this host: pinned in another directory, or of another version of the ABI.
//!
//! Their connections have no sockets, so only these tables show that their ports are taken. Of another version's table only
//! the keys can be read.

use super::batch::for_each_batch;
use super::bpf::{address, bpf};
use super::packet::TIER;
use super::pins;
use aya::maps::{Array, Map, MapData, MapInfo, MapType};
use lb_common::packet::{FLOWS, PORT_WORDS, PORTS, Tuple};
use rustix::process::geteuid;
use std::fs::{self, DirEntry};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// linux/bpf.h `enum bpf_cmd`.
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;

/// The largest value of another version's table that is accepted, in bytes. Ours has a tenth of it.
const MOST_VALUE: usize = 1024;

/// How many levels of directories are searched.
const MOST_DEPTH: usize = 8;

/// linux/bpf.h `union bpf_attr`, the part of a map's single element.
#[repr(C)]
struct Attributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The flow table of another gateway.
#[derive(Debug)]
pub struct FlowTable {
    /// Where it is pinned, with the other maps of its gateway.
    dir: PathBuf,
    /// The map's id, unique in this kernel.
    id: u32,
    map: MapData,
}

/// The flow tables that are pinned on the file system of `bpffs`, except for this version's own in there. In a fixed order.
/// Left out is what cannot be opened, and what another user than us or root owns: another user must not decide which ports
/// we use.
pub fn flow_tables(bpffs: &Path) -> Vec<FlowTable> {
    let Some(root) = pins::root(bpffs) else { return Vec::new() };
    let own = MapInfo::from_pin(pins::directory(bpffs, TIER).join(FLOWS)).map(|info| info.id()).ok();
    let (mut tables, mut directories) = (Vec::new(), vec![(root, 0)]);
    while let Some((dir, depth)) = directories.pop() {
        // An error: it was removed meanwhile, or may not be read.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < MOST_DEPTH && is_trusted(&entry) {
                    directories.push((entry.path(), depth + 1));
                }
            } else if entry.file_name() == FLOWS && is_trusted(&entry) {
                tables.extend(FlowTable::open(&dir));
            }
        }
    }
    tables.retain(|table| own != Some(table.id));
    tables.sort_by_key(|table| table.id);
    tables.dedup_by_key(|table| table.id);
    tables
}

fn is_trusted(entry: &DirEntry) -> bool {
    entry.metadata().is_ok_and(|metadata| [0, geteuid().as_raw()].contains(&metadata.uid()))
}

impl FlowTable {
    /// `None`: it is no flow table, or was removed.
    fn open(dir: &Path) -> Option<Self> {
        let map = MapData::from_pin(dir.join(FLOWS)).ok()?;
        let info = map.info().ok()?;
        let is_table = info.map_type().is_ok_and(|kind| kind == MapType::Hash)
            && info.key_size() as usize == size_of::<Tuple>()
            && info.value_size() as usize <= MOST_VALUE;
        is_table.then(|| Self { dir: dir.to_owned(), id: info.id(), map })
    }

    /// Where it is pinned.
    pub fn directory(&self) -> &Path {
        &self.dir
    }

    /// The map's id, unique in this kernel.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether packets with this tuple belong to a connection of that gateway.
    pub fn contains(&self, tuple: &Tuple) -> bool {
        let mut value = [0_u8; MOST_VALUE];
        let mut attributes = Attributes {
            map_fd: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            padding: 0,
            key: address(tuple),
            value: address(value.as_mut_ptr()),
            flags: 0,
        };
        // SAFETY: `open` has checked that a key, which the kernel reads, is as long as a `Tuple`, and a value, which it
        // writes, not longer than `value`. Neither is accessed meanwhile.
        unsafe { bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) }.is_ok()
    }

    /// The range of that gateway's source ports, if it overlaps `ours`. `None` for a table in `bpffs` itself: its
    /// connections are of an earlier version of this gateway, and share our range until they end.
    pub fn overlapping(&self, bpffs: &Path, ours: &RangeInclusive<u16>) -> Option<RangeInclusive<u16>> {
        // <bpffs>/v<ABI>/<tier>
        let theirs = self.source_ports().filter(|_| self.dir.ancestors().nth(2) != Some(bpffs))?;
        (theirs.start() <= ours.end() && ours.start() <= theirs.end()).then_some(theirs)
    }

    /// The range of its gateway's source ports; `None`: the map of ports cannot be read.
    fn source_ports(&self) -> Option<RangeInclusive<u16>> {
        let map = MapData::from_pin(self.dir.join(PORTS)).ok()?;
        if map.info().ok()?.max_entries() != 2 * PORT_WORDS {
            return None;
        }
        let map: Array<MapData, u64> = Map::from_map_data(map).and_then(Array::try_from).ok()?;
        let mut words = Vec::new();
        // A batch larger than the array ends with the first call.
        for_each_batch(&map, 2 * PORT_WORDS + 1, |_, some| words.extend_from_slice(some)).ok()?;
        ends(words.get(PORT_WORDS as usize..)?)
    }
}

/// The first and the last bit that is set.
fn ends(words: &[u64]) -> Option<RangeInclusive<u16>> {
    let first = words.iter().position(|word| *word != 0)?;
    let last = words.iter().rposition(|word| *word != 0)?;
    let bit = |word: usize, bit: u32| u16::try_from(word * 64 + bit as usize).ok();
    Some(bit(first, words[first].trailing_zeros())?..=bit(last, words[last].ilog2())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_told_by_its_first_and_its_last_bit() {
        let mut words = vec![0; 1024];
        assert_eq!(ends(&words), None);
        words[1023] = 1 << 63;
        assert_eq!(ends(&words), Some(65_535..=65_535));
        words[160] = 0b110;
        assert_eq!(ends(&words), Some(10_241..=65_535));
        assert_eq!(ends(&[1]), Some(0..=0));
    }
}
