//! The maps that userspace shares; [`lb_common::packet`] says what is in them and who writes it.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use lb_common::packet::{self, Count, Flow, Handover, Name, Path, Record, Sighting, Tuple, track::Track};

/// linux/bpf.h: elements are allocated when they are inserted.
const BPF_F_NO_PREALLOC: u32 = 1;
/// linux/bpf.h: userspace reads and writes the elements as memory.
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[map]
pub(super) static PACKET_FLOWS: HashMap<Tuple, Flow> =
    HashMap::with_max_entries(packet::DEFAULT_FLOWS, BPF_F_NO_PREALLOC);
#[map]
pub(super) static PACKET_TRACKS: Array<Track> =
    Array::with_max_entries(packet::DEFAULT_FLOWS / 2, BPF_F_MMAPABLE);
#[map]
pub(super) static PACKET_PATHS: HashMap<Path, u32> =
    HashMap::with_max_entries(packet::MAX_PATHS, BPF_F_NO_PREALLOC);
#[map]
pub(super) static PACKET_SIGHTINGS: LruHashMap<Tuple, Sighting> =
    LruHashMap::with_max_entries(packet::MAX_SIGHTINGS, 0);
#[map]
pub(super) static PACKET_HANDOVERS: HashMap<u64, Handover> =
    HashMap::with_max_entries(packet::MAX_HANDOVERS, BPF_F_NO_PREALLOC);
#[map]
static PACKET_CONNECTIONS: HashMap<u64, Record> =
    HashMap::with_max_entries(packet::DEFAULT_FLOWS / 2, BPF_F_NO_PREALLOC);
#[map]
static PACKET_NAMES: HashMap<u64, Name> = HashMap::with_max_entries(packet::MAX_NAMES, BPF_F_NO_PREALLOC);
#[map]
pub(super) static PACKET_PORTS: Array<u64> = Array::with_max_entries(2 * packet::PORT_WORDS, 0);
#[map]
static PACKET_COUNTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Count::Number as u32, 0);
#[map]
pub(super) static PACKET_EVENTS: RingBuf = RingBuf::with_byte_size(packet::EVENTS_BYTES, 0);

#[inline(always)]
pub(super) fn count(what: Count) {
    if let Some(count) = PACKET_COUNTS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's own counter.
        unsafe { *count += 1 };
    }
}
