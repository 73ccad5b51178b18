//! What a route takes in memory. Alone in its process: nothing else allocates meanwhile.

#![cfg(target_env = "gnu")]

use std::fmt::Write as _;
use std::{env, fs, process};

use snisplice::config::File;
use snisplice::serving::Snapshot;

/// Nearly as many as fit into the hash table of their names before it grows.
const ROUTES: usize = 110_000;

/// The bytes that are allocated, with what the allocator takes for itself.
fn allocated() -> usize {
    // SAFETY: takes no pointer.
    let of_all_heaps = unsafe { libc::mallinfo2() };
    of_all_heaps.uordblks + of_all_heaps.hblkhd
}

#[test]
fn a_route_with_a_short_name_takes_at_most_170_bytes() {
    let mut text = "[[listener]]\nname = 'l'\nbind = ['127.0.0.1:443']\n\
                    [[pool]]\nname = 'p'\nservers = [{ address = '127.0.0.1:6379' }]\n"
        .to_owned();
    for number in 0..ROUTES {
        // The text of both names has 24 to 40 bytes, which are 48 of the allocator's.
        writeln!(
            text,
            "[[route]]\nname = 'r{number}'\nlistener = 'l'\nsni = ['r{number}.bench.example']\n\
             idle_timeout = '1h'\nbackends = [{{ pool = 'p' }}]"
        )
        .unwrap();
    }
    let path = env::temp_dir().join(format!("snisplice-route-memory-{}.toml", process::id()));
    fs::write(&path, text).unwrap();
    let before = allocated();
    let (opened, _) = File::open(&path);
    fs::remove_file(&path).unwrap();
    let (file, config, _) = opened.unwrap();
    let snapshot = Snapshot::new(&config, None).unwrap();
    drop((file, config));
    let each = allocated().saturating_sub(before) / ROUTES;
    assert_eq!(snapshot.routes.len(), ROUTES);
    // Less than their names have could not be.
    assert!((24..=170).contains(&each), "{each} bytes");
}
