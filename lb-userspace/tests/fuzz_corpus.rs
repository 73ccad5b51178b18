//! The stored fuzz corpus, replayed: what a fuzzer once found stays found.

use std::path::Path;

#[path = "../fuzz/properties.rs"]
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
fn what_clients_send_keeps_the_properties_of_the_sniffer() {
    assert!(replay("fuzz/corpus/sniff", properties::sniff) > 0);
    assert!(replay("../tests/data/client-hellos", properties::sniff) > 0);
}

#[test]
fn what_both_ends_say_with_an_encrypted_clienthello_keeps_its_properties() {
    assert!(replay("fuzz/corpus/ech", properties::ech) > 0);
}

#[test]
fn what_mysqls_clients_and_servers_send_keeps_its_properties() {
    assert!(replay("fuzz/corpus/mysql", properties::mysql) > 0);
}

#[test]
fn a_body_in_sound_framing_is_decided_at_once() {
    assert!(replay("fuzz/corpus/hello", properties::hello) > 0);
}
