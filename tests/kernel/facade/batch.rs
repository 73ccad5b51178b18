//! Batches of map entries, on real maps.

use std::collections::BTreeMap;

use anyhow::Result;
use aya::maps::{Array, HashMap, MapData};
use snisplice::kernel::batch::{for_each_batch, take};

const BPF_F_NO_PREALLOC: u32 = 1;

fn filled(max_entries: u32, entries: u64) -> Result<HashMap<MapData, u64, [u8; 12]>> {
    let mut map = HashMap::create(max_entries, BPF_F_NO_PREALLOC)?;
    for key in 0..entries {
        map.insert(key, value(key), 0)?;
    }
    Ok(map)
}

/// A value that is no multiple of eight bytes long.
fn value(key: u64) -> [u8; 12] {
    let mut value = [0xa5; 12];
    value[..8].copy_from_slice(&(!key).to_be_bytes());
    value
}

#[test]
fn every_entry_is_shown_once_whatever_the_batch() -> Result<()> {
    let map = filled(10_000, 3_333)?;
    for batch in [0, 1, 100, 3_333, 50_000] {
        let (mut seen, mut calls) = (BTreeMap::new(), 0);
        for_each_batch(&map, batch, |keys, values| {
            calls += 1;
            assert_eq!(keys.len(), values.len());
            for (key, value) in keys.iter().zip(values) {
                assert_eq!(seen.insert(*key, *value), None, "{key} is shown twice");
            }
        })?;
        assert_eq!(seen.len(), 3_333);
        assert!(seen.iter().all(|(key, shown)| *shown == value(*key)));
        assert_eq!(calls == 1, batch >= 3_333, "{calls} calls for a batch of {batch}");
    }
    Ok(())
}

/// One entry a batch: two entries in one bucket of the table do not fit.
#[test]
fn a_bucket_that_is_larger_than_the_batch_makes_it_larger() -> Result<()> {
    // 1024 buckets, 1000 entries: some bucket has two.
    let map = filled(1_000, 1_000)?;
    let (mut entries, mut largest) = (0, 0);
    for_each_batch(&map, 1, |keys, _| {
        entries += keys.len();
        largest = largest.max(keys.len());
    })?;
    assert_eq!(entries, 1_000);
    assert!(largest > 1);
    Ok(())
}

#[test]
fn an_empty_map_shows_nothing() -> Result<()> {
    for_each_batch(&filled(100, 0)?, 10, |_, _| panic!("an entry in an empty map"))?;
    Ok(())
}

#[test]
fn an_array_is_shown_in_its_order() -> Result<()> {
    let mut map = Array::<MapData, u64>::create(100, 0)?;
    map.set(3, 7, 0)?;
    map.set(99, u64::MAX, 0)?;
    for batch in [1, 33, 100, 1_000] {
        let (mut indices, mut words) = (Vec::new(), Vec::new());
        for_each_batch(&map, batch, |keys: &[u32], values| {
            indices.extend_from_slice(keys);
            words.extend_from_slice(values);
        })?;
        assert_eq!(indices, (0..100).collect::<Vec<_>>());
        assert_eq!((words[3], words[99], words.iter().filter(|word| **word == 0).count()), (7, u64::MAX, 98));
    }
    Ok(())
}

#[test]
fn what_is_taken_out_of_a_map_is_whole_and_gone() -> Result<()> {
    let map = filled(100, 3)?;
    assert_eq!(take(&map, &1), Some(value(1)));
    assert_eq!(take(&map, &1), None);
    assert_eq!(take(&map, &7), None);
    let mut left = Vec::new();
    for_each_batch(&map, 10, |keys, _| left.extend_from_slice(keys))?;
    left.sort_unstable();
    assert_eq!(left, [0, 2]);
    Ok(())
}
