//! Regular expressions of rules.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use regex_automata::meta;
use regex_automata::nfa::thompson::WhichCaptures;
use regex_syntax::hir::{Hir, Look};

/// A regular expression that must match as a whole. It takes time in proportion to the text, whatever it is.
#[derive(Clone)]
pub struct Pattern {
    /// Shared: a clone of it would begin anew with what each thread remembers.
    whole: Arc<meta::Regex>,
    expression: Box<str>,
}

impl Pattern {
    /// Of this expression. An error is why it is none, or too large.
    pub fn new(expression: &str) -> Result<Self, BadPattern> {
        let parsed = regex_syntax::parse(expression).map_err(|error| match error {
            regex_syntax::Error::Parse(error) => BadPattern::at(error.kind(), error.span()),
            regex_syntax::Error::Translate(error) => BadPattern::at(error.kind(), error.span()),
            other => BadPattern { why: other.to_string(), at: None },
        })?;
        // Anchored in what was parsed, not in the text: a comment at the expression's end would take in what follows it there.
        let whole = Hir::concat(vec![Hir::look(Look::Start), parsed, Hir::look(Look::End)]);
        let config = meta::Config::new()
            .nfa_size_limit(Some(MAX_PATTERN))
            .onepass_size_limit(Some(MAX_PATTERN))
            .hybrid_cache_capacity(MAX_PATTERN)
            .which_captures(WhichCaptures::None);
        match meta::Regex::builder().configure(config).build_from_hir(&whole) {
            Ok(whole) => Ok(Self { whole: whole.into(), expression: expression.into() }),
            Err(_) => Err(BadPattern { why: "it is too large".into(), at: None }),
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.expression
    }

    /// Bytes that it takes without what threads remember.
    pub(in crate::config) fn memory(&self) -> usize {
        self.whole.memory_usage()
    }

    /// Whether all of `text` matches.
    pub fn is_match(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.expression).finish()
    }
}

/// Why an expression is none.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct BadPattern {
    why: String,
    /// The bytes of the expression that it is about.
    pub at: Option<Range<usize>>,
}

impl BadPattern {
    fn at(why: impl fmt::Display, span: &regex_syntax::ast::Span) -> Self {
        Self { why: why.to_string(), at: Some(span.start.offset..span.end.offset) }
    }
}

/// Bytes that a compiled expression may take, and what each thread remembers of where it has been in it.
const MAX_PATTERN: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_texts_whatever_stands_in_it() {
        for (expression, matches, differs) in [
            ("/a|/b", ["/a", "/b"], ["/ab", "x/b"]),
            ("/v[0-9]+/.*", ["/v1/", "/v22/x"], ["/v/", "/v1"]),
            ("(?x) /a # a comment", ["/a", "/a"], ["/ab", " /a"]),
            ("(?m)^a$", ["a", "a"], ["b\na", "a\nb"]),
            ("a??|ab", ["a", "ab"], ["b", "aa"]),
            ("", ["", ""], ["a", "\n"]),
            (r"\d", ["1", "٣"], ["", "11"]),
        ] {
            let pattern = Pattern::new(expression).unwrap();
            for text in matches {
                assert!(pattern.is_match(text), "{expression} {text:?}");
            }
            for text in differs {
                assert!(!pattern.is_match(text), "{expression} {text:?}");
            }
        }
    }

    #[test]
    fn what_is_no_pattern_says_why_and_where() {
        let error = Pattern::new("/a(b").unwrap_err();
        assert_eq!((error.to_string().as_str(), error.at), ("unclosed group", Some(2..3)));
        assert_eq!(Pattern::new("a)|(?:b").unwrap_err().at, Some(1..2));
        for large in ["(?:a{1000}){1000}", r"\w{1000}", "((((a{100}){100}){100}){100}){100}"] {
            assert_eq!(Pattern::new(large).unwrap_err().to_string(), "it is too large", "{large}");
        }
        assert!(Pattern::new(&"(".repeat(10_000)).is_err());
    }
}
