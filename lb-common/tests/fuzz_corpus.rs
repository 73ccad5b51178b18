//! The stored fuzz corpus, replayed: what a fuzzer once found stays found.

use std::path::Path;

#[path = "../fuzz/properties.rs"]
#[allow(dead_code, reason = "of the property tests")]
mod properties;

/// Applies a property to every file of a folder below this package; gives their number.
fn replay(folder: &str, property: fn(&[u8])) -> usize {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        property(&std::fs::read(path).unwrap());
        files += 1;
    }
    files
}

#[test]
fn segments_leave_as_the_model_says() {
    assert!(replay("fuzz/corpus/segment", properties::segment) > 0);
}

#[test]
fn a_syn_says_what_the_model_reads() {
    assert!(replay("fuzz/corpus/syn", properties::syn) > 0);
}
