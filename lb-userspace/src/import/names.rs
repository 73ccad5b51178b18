//! Names of the result: of allowed characters, short enough, and each only once.

use std::collections::{HashMap, HashSet};

/// The names given so far, each within its kind.
pub(super) struct Names {
    allowed: fn(char) -> bool,
    longest: usize,
    given: HashSet<(String, String)>,
    /// The number behind the last of several that would be the same.
    last: HashMap<(String, String), u64>,
}

impl Names {
    pub(super) fn new(allowed: fn(char) -> bool, longest: usize) -> Self {
        Self { allowed, longest, given: HashSet::new(), last: HashMap::new() }
    }

    /// The wanted name, or one like it.
    pub(super) fn unique(&mut self, kind: &str, wanted: &str) -> String {
        // Every name has room for a number behind it.
        let allowed = |c: char| if (self.allowed)(c) { c } else { '-' };
        let name: String = wanted.chars().map(allowed).take(self.longest - 8).collect();
        let name = match name.trim_matches(['-', '.']) {
            "" => kind.rsplit(' ').next().unwrap_or(kind).to_owned(),
            name => name.to_owned(),
        };
        if self.given.insert((kind.to_owned(), name.clone())) {
            return name;
        }
        let last = self.last.entry((kind.to_owned(), name.clone())).or_insert(1);
        loop {
            *last += 1;
            let numbered = format!("{name}-{last}");
            if self.given.insert((kind.to_owned(), numbered.clone())) {
                return numbered;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_allowed_and_not_given_twice() {
        let mut names = Names::new(|c| c.is_ascii_lowercase(), 12);
        assert_eq!(names.unique("route", "a b"), "a-b");
        assert_eq!(names.unique("route", "a/b"), "a-b-2");
        assert_eq!(names.unique("pool", "a b"), "a-b");
        assert_eq!(names.unique("route", "--"), "route");
        assert_eq!(names.unique("route", "abcdefghij"), "abcd");
    }
}
