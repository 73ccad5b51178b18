//! The compiled kernel programs.

/// An ELF object with the programs and maps of both tiers.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/snisplice.bpf.o"));
