//! What the programs of the packet tier do to one packet, by BPF_PROG_TEST_RUN: the verdict, every byte that leaves,
//! the counters and the maps.
//!
//! Packets are written by etherparse, with checksums computed anew. Nothing is attached and nothing pinned: programs
//! and maps go away with the test.

mod closing;
mod connection;
mod errors;
#[path = "../../../lb-common/tests/generate/mod.rs"]
mod generate;
mod handover;
mod injected;
mod odd;
#[path = "../../../lb-common/tests/model"]
#[allow(dead_code, reason = "of lb-common's own tests")]
mod model {
    pub(crate) mod ends;
    pub(crate) mod wire;
}
#[allow(dead_code, reason = "of the attack suite")]
mod programs;
#[path = "../../../lb-common/fuzz/properties.rs"]
#[allow(dead_code, reason = "of lb-common's own tests")]
mod properties;
mod segments;
mod sightings;
mod tracker;
