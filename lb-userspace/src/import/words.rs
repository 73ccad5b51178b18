//! Lines of words, as HAProxy and its maps have them.

use super::model::{At, Note};
use crate::config::quote;

/// A line that is not empty.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) at: At,
    pub(super) words: Vec<String>,
}

impl Line {
    pub(super) fn said(&self) -> String {
        said(&self.words)
    }

    pub(super) fn quoted(&self) -> String {
        quote(&self.said())
    }

    pub(super) fn unknown(&self) -> Note {
        Note::lost(self.at, format!("{}: not taken over", self.quoted()))
    }

    pub(super) fn aside(&self) -> Note {
        Note::left_out(self.at, format!("{}: says nothing about who reaches what", self.quoted()))
    }
}

/// The first words, as far as a message shows them: a line may have a million.
pub(super) fn said(words: &[String]) -> String {
    const LONGEST: usize = 400;
    let mut said = String::new();
    for word in words {
        if !said.is_empty() {
            said.push(' ');
        }
        said.extend(word.chars().take(LONGEST));
        if said.len() > LONGEST {
            break;
        }
    }
    said
}

/// Splits a text as HAProxy does (configuration manual, section 2.2): comments, quotes and backslashes.
pub(super) fn lines(text: &str, file: usize) -> Vec<Line> {
    let mut all = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut words: Vec<String> = Vec::new();
        // In a word, and what it is quoted with.
        let (mut inside, mut quote) = (false, None);
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            let c = match (c, quote) {
                ('\\', None | Some('"')) => match chars.next() {
                    Some('r') => '\r',
                    Some('n') => '\n',
                    Some('t') => '\t',
                    c => c.unwrap_or('\\'),
                },
                (c, Some(open)) if c == open => {
                    quote = None;
                    continue;
                }
                ('"' | '\'', None) => {
                    quote = Some(c);
                    if !inside {
                        words.push(String::new());
                        inside = true;
                    }
                    continue;
                }
                ('#', None) => break,
                (c, None) if c.is_whitespace() => {
                    inside = false;
                    continue;
                }
                (c, _) => c,
            };
            if !inside {
                words.push(String::new());
                inside = true;
            }
            if let Some(word) = words.last_mut() {
                word.push(c);
            }
        }
        if !words.is_empty() {
            all.push(Line { at: At { file, line: index + 1 }, words });
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_haproxy_splits_them() {
        let text = "a b\\ c # d\n\n  'e # f' g\"h i\"'' # j\nk\\r\\nl:\\ m \"\\t\" '\\n'\n";
        let words: Vec<_> = lines(text, 0).into_iter().map(|line| (line.at.line, line.words)).collect();
        let expected =
            [(1, vec!["a", "b c"]), (3, vec!["e # f", "gh i"]), (4, vec!["k\r\nl: m", "\t", "\\n"])];
        assert_eq!(words, expected.map(|(n, words)| (n, words.into_iter().map(str::to_owned).collect())));
    }
}
