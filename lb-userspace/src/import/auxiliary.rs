//! Files that other files name: HAProxy's maps and lists, what nginx includes in a map.

use std::collections::HashMap;

/// Those of the given files that are no configuration of their own, by the last part of their path: a configuration
/// names them as they are called on its machine.
#[derive(Default)]
pub(super) struct Auxiliary<'a> {
    named: HashMap<&'a str, Vec<Named<'a>>>,
    /// Bytes that were given out.
    read: usize,
}

/// A file may be named again and again.
const MOST_READ: usize = 16 << 20;

struct Named<'a> {
    file: usize,
    path: &'a str,
    text: &'a str,
    taken: bool,
}

/// A file that nothing has named.
pub(super) struct Left {
    pub(super) file: usize,
    /// Another has the same last part.
    pub(super) shares_name: bool,
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

impl<'a> Auxiliary<'a> {
    pub(super) fn add(&mut self, file: usize, path: &'a str, text: &'a str) {
        self.named.entry(last_part(path)).or_default().push(Named { file, path, text, taken: false });
    }

    /// The index and text of the file of this path: of several with its last part the one that has most of the parts
    /// before it, too.
    pub(super) fn take(&mut self, path: &str) -> Option<(usize, &'a str)> {
        let common = |named: &Named<'_>| {
            let parts = named.path.rsplit('/').zip(path.rsplit('/'));
            parts.take_while(|(own, wanted)| own == wanted).count()
        };
        let candidates = self.named.get_mut(last_part(path))?;
        let most = candidates.iter().map(common).max()?;
        let mut best = candidates.iter_mut().filter(|named| common(named) == most);
        let (Some(named), None) = (best.next(), best.next()) else { return None };
        named.taken = true;
        self.read = self.read.saturating_add(named.text.len());
        (self.read <= MOST_READ).then_some((named.file, named.text))
    }

    /// Whether files were asked for more than can be.
    pub(super) fn is_exhausted(&self) -> bool {
        self.read > MOST_READ
    }

    /// The files that nothing has named.
    pub(super) fn left(&self) -> Vec<Left> {
        let of_name = |named: &Vec<Named<'_>>| {
            let shares_name = named.len() > 1;
            let left = named.iter().filter(|named| !named.taken);
            left.map(|named| Left { file: named.file, shares_name }).collect::<Vec<_>>()
        };
        let mut left: Vec<Left> = self.named.values().flat_map(of_name).collect();
        left.sort_unstable_by_key(|left| left.file);
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_files_with_one_name_the_one_whose_path_fits_is_taken() {
        let mut files = Auxiliary::default();
        files.add(1, "a/names.map", "a");
        files.add(2, "b/names.map", "b");
        files.add(3, "other.map", "o");
        assert_eq!(files.take("/etc/haproxy/b/names.map"), Some((2, "b")));
        assert_eq!(files.take("/etc/haproxy/other.map"), Some((3, "o")));
        // Neither is meant more than the other.
        assert_eq!(files.take("/etc/haproxy/names.map"), None);
        let left: Vec<_> = files.left().iter().map(|left| (left.file, left.shares_name)).collect();
        assert_eq!(left, [(1, true)]);
    }
}
