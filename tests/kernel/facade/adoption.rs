//! What a process makes of the maps that another has left.

use anyhow::Result;
use aya::maps::{Array, Map, MapData};
use lb_common::packet::{PORT_WORDS, PORTS};
use snisplice::kernel::packet::Packet;
use snisplice_tests::bpffs::BpfFs;
use snisplice_tests::{TempDir, eventually};

/// Every port whose bit is set: of the listeners, and of the sources behind 65 535.
fn sighted(bpffs: &std::path::Path) -> Result<Vec<u32>> {
    let pin = bpffs.join(format!("v{}/packet/{PORTS}", lb_common::ABI_VERSION));
    let words: Array<MapData, u64> = Map::Array(MapData::from_pin(pin)?).try_into()?;
    let mut found = Vec::new();
    for index in 0..2 * PORT_WORDS {
        let word = words.get(&index, 0)?;
        found.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| index * 64 + bit));
    }
    Ok(found)
}

#[test]
fn the_ports_of_the_last_process_are_forgotten_and_those_of_the_next_are_set() -> Result<()> {
    let dir = TempDir::new()?;
    let bpffs = BpfFs::mount_in(dir.path())?;
    let path = dir.path().join(BpfFs::NAME);
    let first = Packet::open(&path, 64)?;
    first.sight([443, 5432, 5433], 20_000..=20_001)?;
    assert_eq!(sighted(&path)?, [443, 5432, 5433, 65_536 + 20_000, 65_536 + 20_001]);
    drop(first);
    // A process that another test is starting has the lock's file open until it executes its program.
    let next = eventually("the first one's lock to be free", || Packet::open(&path, 64).ok())?;
    assert_eq!(sighted(&path)?.len(), 5, "nothing is lost before it is said anew");
    next.sight([443, 6379], 20_001..=20_002)?;
    assert_eq!(sighted(&path)?, [443, 6379, 65_536 + 20_001, 65_536 + 20_002]);
    next.sight([6379], 20_001..=20_002)?;
    assert_eq!(sighted(&path)?, [6379, 65_536 + 20_001, 65_536 + 20_002]);
    drop((next, bpffs));
    Ok(())
}
