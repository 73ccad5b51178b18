//! Files that other files name: HAProxy's maps and lists, what nginx includes in a map.

use std::collections::HashMap;

/// Those of the given files that are no configuration of their own, by the last part of their path: a configuration
/// names them as they are called on its machine.
#[derive(Default)]
pub(super) struct Auxiliary<'a> {
    named: HashMap<&'a str, Named<'a>>,
    /// Bytes that were given out.
    read: usize,
}

/// A file may be named again and again.
const MOST_READ: usize = 16 << 20;

struct Named<'a> {
    file: usize,
    text: &'a str,
    taken: bool,
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl<'a> Auxiliary<'a> {
    pub(super) fn add(&mut self, file: usize, path: &'a str, text: &'a str) {
        self.named.insert(last_part(path), Named { file, text, taken: false });
    }

    /// The index and text of the file of this path.
    pub(super) fn take(&mut self, path: &str) -> Option<(usize, &'a str)> {
        let named = self.named.get_mut(last_part(path))?;
        named.taken = true;
        self.read = self.read.saturating_add(named.text.len());
        (self.read <= MOST_READ).then_some((named.file, named.text))
    }

    /// Whether files were asked for more than can be.
    pub(super) fn is_exhausted(&self) -> bool {
        self.read > MOST_READ
    }

    /// The files that nothing has named.
    pub(super) fn left(&self) -> Vec<usize> {
        let mut left: Vec<usize> =
            self.named.values().filter(|named| !named.taken).map(|named| named.file).collect();
        left.sort_unstable();
        left
    }
}
