//! The names that a route goes by.

use crate::config::SniPattern;
use std::fmt::Write as _;

/// The name of a route and its patterns of server names, as one text: there may be very many routes, and every allocation
/// takes some 16 bytes besides.
///
/// It is the patterns, with spaces between them. The name and a line feed precede them, unless it is the first of them. A
/// configuration's names have no white space.
#[derive(Debug)]
pub(super) struct Label(Box<str>);

/// Where the name of a pattern is in a [`Label`]: its start, and its bytes, which are no more than a host name may have (253).
pub(super) type Place = (u32, u8);

impl Label {
    pub(super) fn new(name: &str, patterns: &[SniPattern]) -> Self {
        let mut text = String::new();
        if !patterns.first().is_some_and(|first| is(name, first)) {
            text.extend([name, "\n"]);
        }
        for (index, pattern) in patterns.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            // A String takes all that is written.
            let _ = write!(text, "{space}{pattern}");
        }
        // Not the string's own memory: shrunk, it would leave a gap that is too small for anything.
        Label(text.as_str().into())
    }

    pub(super) fn name(&self) -> &str {
        &self.0[..self.name_length()]
    }

    /// As they are written in a configuration, and in its order.
    pub(super) fn patterns(&self) -> impl Iterator<Item = &str> {
        self.0[self.begin()..].split_terminator(' ')
    }

    /// Whether it would be made the same of these.
    pub(super) fn is_of(&self, name: &str, patterns: &[SniPattern]) -> bool {
        let mut own = self.patterns();
        self.name() == name
            && patterns.iter().all(|pattern| own.next().is_some_and(|own| is(own, pattern)))
            && own.next().is_none()
    }

    /// Where the name of each pattern is: see [`SniPattern::name`].
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.patterns().scan(self.begin(), |begin, pattern| {
            let end = *begin + pattern.len();
            let name = pattern.strip_prefix("*.").unwrap_or(pattern);
            *begin = end + 1;
            Some(((end - name.len()) as u32, name.len() as u8))
        })
    }

    /// What is there.
    pub(super) fn at(&self, (begin, length): Place) -> &str {
        &self.0[begin as usize..][..length.into()]
    }

    fn name_length(&self) -> usize {
        self.0.find([' ', '\n']).unwrap_or(self.0.len())
    }

    /// Where the patterns begin: with the name, if that is the first of them.
    fn begin(&self) -> usize {
        let name = self.name_length();
        if self.0[name..].starts_with('\n') { name + 1 } else { 0 }
    }
}

/// Whether the pattern is written so.
fn is(text: &str, pattern: &SniPattern) -> bool {
    match pattern {
        SniPattern::Exact(name) => *text == **name,
        SniPattern::Wildcard(suffix) => text.strip_prefix("*.") == Some(suffix),
        SniPattern::Any => text == "*",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(of: &[&str]) -> Vec<SniPattern> {
        let pattern = |text: &&str| match text.strip_prefix("*.") {
            Some(suffix) => SniPattern::Wildcard(suffix.into()),
            None if *text == "*" => SniPattern::Any,
            None => SniPattern::Exact((*text).into()),
        };
        of.iter().map(pattern).collect()
    }

    /// A name, patterns, the text, and the names in the patterns.
    const LABELS: [(&str, &[&str], &str, &[&str]); 7] = [
        ("tcp", &[], "tcp\n", &[]),
        ("a.test", &["a.test"], "a.test", &["a.test"]),
        ("*", &["*"], "*", &["*"]),
        ("*.b.test", &["*.b.test", "a.test"], "*.b.test a.test", &["b.test", "a.test"]),
        ("r", &["a.test"], "r\na.test", &["a.test"]),
        ("a.test", &["*.a.test", "a.test"], "a.test\n*.a.test a.test", &["a.test", "a.test"]),
        ("ns/é", &["*", "*.c"], "ns/é\n* *.c", &["*", "c"]),
    ];

    #[test]
    fn it_says_what_it_was_made_of() {
        for (name, list, text, names) in LABELS {
            let label = Label::new(name, &patterns(list));
            assert_eq!(&*label.0, text);
            assert_eq!(label.name(), name);
            assert_eq!(label.patterns().collect::<Vec<_>>(), list);
            let found: Vec<_> = label.places().map(|place| label.at(place)).collect();
            assert_eq!(found, names, "{text:?}");
        }
    }

    #[test]
    fn it_is_of_nothing_else() {
        for (one, (name, list, ..)) in LABELS.iter().enumerate() {
            for (other, (_, _, text, _)) in LABELS.iter().enumerate() {
                let label = Label(Box::from(*text));
                assert_eq!(label.is_of(name, &patterns(list)), one == other, "{name} {list:?}, {text:?}");
            }
        }
        let label = Label::new("r", &patterns(&["a.test", "*.b.test"]));
        for list in [&["a.test"][..], &["a.test", "b.test"], &["*.b.test", "a.test"], &[]] {
            assert!(!label.is_of("r", &patterns(list)), "{list:?}");
        }
    }
}
