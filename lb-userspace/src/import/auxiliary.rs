//! Files that other files name: HAProxy's maps and lists, what nginx includes in a map.

use std::collections::HashMap;

/// Those of the given files that are no configuration of their own, by the last part of their path: a configuration
/// names them as they are called on its machine.
#[derive(Default)]
pub(super) struct Auxiliary<'a>(HashMap<&'a str, Named<'a>>);

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
        self.0.insert(last_part(path), Named { file, text, taken: false });
    }

    /// The index and text of the file of this path.
    pub(super) fn take(&mut self, path: &str) -> Option<(usize, &'a str)> {
        let named = self.0.get_mut(last_part(path))?;
        named.taken = true;
        Some((named.file, named.text))
    }

    /// The files that nothing has named.
    pub(super) fn left(&self) -> Vec<usize> {
        let mut left: Vec<usize> =
            self.0.values().filter(|named| !named.taken).map(|named| named.file).collect();
        left.sort_unstable();
        left
    }
}
