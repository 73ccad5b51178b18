//! Flow tables of other gateways, found by their pins.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use aya::Pod;
use aya::maps::{HashMap, MapData, PerCpuHashMap};
use lb_common::packet::{FLOWS, Tuple};
use snisplice::kernel::Packet;
use snisplice::kernel::foreign::flow_tables;
use snisplice_tests::TempDir;
use snisplice_tests::bpffs::BpfFs;

const TAKEN: Tuple = Tuple::v4(1, 2, 3, 4);
const FREE: Tuple = Tuple::v4(1, 2, 3, 5);

/// A table whose keys and values are none of ours, or may not be.
fn pin_table<K: Pod, V: Pod>(dir: PathBuf, key: K, value: V) -> Result<()> {
    fs::create_dir_all(&dir)?;
    let mut map: HashMap<MapData, K, V> = HashMap::create(8, 0)?;
    map.insert(key, value, 0)?;
    Ok(map.pin(dir.join(FLOWS))?)
}

/// Where tables are found, below the file system's root.
fn found(root: &Path, bpffs: &Path) -> Result<Vec<String>> {
    let tables = flow_tables(bpffs);
    let mut found = Vec::new();
    for table in &tables {
        found.push(table.directory().strip_prefix(root)?.display().to_string());
    }
    found.sort();
    Ok(found)
}

#[test]
fn tables_of_other_directories_and_versions_are_found_and_asked() -> Result<()> {
    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    let root = files.join(BpfFs::NAME);
    let (ours, theirs) = (root.join("ours"), root.join("theirs"));
    ensure!(flow_tables(&ours).is_empty(), "nobody is there");
    let gateway = Packet::open(&ours, 64)?;
    ensure!(flow_tables(&ours).is_empty(), "its own is no other");

    let other = Packet::open(&theirs, 64)?;
    let theirs = format!("theirs/v{}/packet", lb_common::ABI_VERSION);
    ensure!(found(&root, &ours)? == std::slice::from_ref(&theirs));
    // Versions of yesterday and tomorrow.
    pin_table(ours.join("v1/packet"), TAKEN, [0xff_u8; 7])?;
    pin_table(root.join("some/where/v999/packet"), TAKEN, [0xff_u8; 1000])?;
    let mut expected = vec!["ours/v1/packet".to_owned(), "some/where/v999/packet".to_owned(), theirs];
    ensure!(found(&root, &ours)? == expected, "{:?}", found(&root, &ours)?);
    for table in flow_tables(&ours) {
        ensure!(!table.contains(&FREE), "{table:?}");
        let is_ours = table.directory().starts_with(root.join("theirs"));
        ensure!(table.contains(&TAKEN) != is_ours, "{table:?}");
    }
    // It is told who it is by its pins, whoever asks: without a gateway of its own, all are others.
    expected.insert(1, format!("ours/v{}/packet", lb_common::ABI_VERSION));
    expected.sort();
    ensure!(found(&root, &root.join("third"))? == expected);
    drop((gateway, other));
    Ok(())
}

#[test]
fn what_is_no_table_or_anybodys_is_passed_over() -> Result<()> {
    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    let root = files.join(BpfFs::NAME);
    pin_table(root.join("keys"), 1_u64, 1_u64)?;
    pin_table(root.join("values"), TAKEN, [0_u64; 129])?;
    fs::create_dir(root.join("kind"))?;
    PerCpuHashMap::<MapData, Tuple, u64>::create(8, 0)?.pin(root.join("kind").join(FLOWS))?;
    fs::create_dir(root.join("directory"))?;
    fs::create_dir(root.join("directory").join(FLOWS))?;

    const NOBODY: u32 = 65_534;
    pin_table(root.join("file"), TAKEN, 1_u64)?;
    chown(root.join("file").join(FLOWS), Some(NOBODY), None)?;
    pin_table(root.join("above/below"), TAKEN, 1_u64)?;
    chown(root.join("above"), Some(NOBODY), None)?;
    ensure!(found(&root, &root)?.is_empty(), "{:?}", found(&root, &root)?);
    Ok(())
}

#[test]
fn ranges_that_overlap_are_told() -> Result<()> {
    let files = TempDir::new()?;
    let _bpffs = BpfFs::mount_in(files.path())?;
    let root = files.join(BpfFs::NAME);
    let (ours, theirs) = (root.join("ours"), root.join("theirs"));
    let other = Packet::open(&theirs, 64)?;
    let [table] = &flow_tables(&ours)[..] else { anyhow::bail!("not one table") };
    ensure!(table.overlapping(&ours, &(1024..=65_535)).is_none(), "it has not said");
    other.sight([25_000], 20_000..=20_255)?;
    ensure!(table.overlapping(&ours, &(20_255..=30_000)) == Some(20_000..=20_255));
    ensure!(table.overlapping(&ours, &(20_256..=30_000)).is_none());
    ensure!(table.overlapping(&theirs, &(20_000..=20_255)).is_none(), "of another version of ours");
    Ok(())
}
