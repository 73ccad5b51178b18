//! The pinned maps of the packet tier, and the directory of its pins.

use crate::kernel::pins::Shape;
use aya::maps::MapType;
use lb_common::packet::{
    CONNECTIONS, COUNTS, EVENTS, FLOWS, Flow, HANDOVERS, Handover, NAMES, Name, PATHS, PORTS,
    Path as DevicePath, Record, SIGHTINGS, Sighting, TRACKS, Tuple,
    odd::{FRAGMENTS, Fragments, ODD},
    track::Track,
};

/// All maps, with what a pinned one must be like to be adopted.
pub(super) const SHAPES: [Shape; 12] = [
    shape::<Tuple, Flow>(FLOWS, MapType::Hash),
    shape::<u32, Track>(TRACKS, MapType::Array),
    shape::<DevicePath, u32>(PATHS, MapType::Hash),
    shape::<Tuple, Sighting>(SIGHTINGS, MapType::LruHash),
    shape::<u64, Handover>(HANDOVERS, MapType::Hash),
    shape::<u64, Record>(CONNECTIONS, MapType::Hash),
    shape::<u64, Name>(NAMES, MapType::Hash),
    shape::<u32, u64>(PORTS, MapType::Array),
    shape::<u32, u64>(COUNTS, MapType::PerCpuArray),
    Shape { name: EVENTS, kind: MapType::RingBuf, key: 0, value: 0 },
    shape::<u32, u32>(ODD, MapType::PerfEventArray),
    shape::<Fragments, u32>(FRAGMENTS, MapType::LruHash),
];

const fn shape<K, V>(name: &'static str, kind: MapType) -> Shape {
    Shape { name, kind, key: size_of::<K>() as u32, value: size_of::<V>() as u32 }
}

/// The tier's directory among the pins.
pub(in crate::kernel) const TIER: &str = "packet";
