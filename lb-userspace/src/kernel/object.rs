//! The compiled kernel programs.

use aya::EbpfLoader;
use lb_common::{packet, sockmap};

/// An ELF object with the programs and maps of both tiers.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplice.bpf.o"));

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
