//! What a route takes in memory, and what goes back. Alone in their process, and one after another: nothing else allocates
//! meanwhile.

#![cfg(target_env = "gnu")]

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::{env, fs, process, thread};

use snisplice::config::File;
use snisplice::memory::{give_back, keep_little};
use snisplice::serving::Snapshot;

/// Nearly as many as fit into the hash table of their names before it grows.
const ROUTES: usize = 110_000;

static ALONE: Mutex<()> = Mutex::new(());

/// The bytes that are allocated, with what the allocator takes for itself.
fn allocated() -> usize {
    // SAFETY: takes no pointer.
    let of_all_heaps = unsafe { libc::mallinfo2() };
    of_all_heaps.uordblks + of_all_heaps.hblkhd
}

#[test]
fn a_route_with_a_short_name_takes_at_most_170_bytes() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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

/// KiB in memory of the mappings that have any of these addresses, in ascending order.
fn resident_kib(addresses: &[usize]) -> usize {
    let mut of_these = false;
    let of_line = |line: &str| {
        let (head, rest) = line.split_once(' ')?;
        if let Some((begin, end)) = head.split_once('-') {
            let [begin, end] = [begin, end].map(|bound| usize::from_str_radix(bound, 16));
            let (begin, end) = (begin.ok()?, end.ok()?);
            let above = addresses.partition_point(|address| *address < begin);
            of_these = addresses.get(above).is_some_and(|address| *address < end);
        }
        let size = rest.trim().strip_suffix(" kB").filter(|_| of_these && head == "Rss:");
        size.map(|size| size.parse::<usize>().unwrap())
    };
    fs::read_to_string("/proc/self/smaps").unwrap().lines().filter_map(of_line).sum()
}

#[test]
fn what_one_thread_has_made_of_small_pieces_and_another_frees_goes_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    keep_little();
    let pieces = thread::spawn(|| Vec::from_iter((0..400_000).map(|_| Box::new([7_u8; 64]))));
    let pieces = pieces.join().unwrap();
    let mut addresses = Vec::from_iter(pieces.iter().map(|piece| piece.as_ptr().addr()));
    addresses.sort_unstable();
    let before = resident_kib(&addresses);
    assert!(before > 25_000, "{before}");
    pieces.into_iter().for_each(drop);
    give_back();
    let after = resident_kib(&addresses);
    assert!(after < 5_000, "{before} before, {after} after");
}
