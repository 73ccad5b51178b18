//! What is declared of a key: how it is read, what is said when it is wrong, and its line in the documentation.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A table of the file.
pub(super) struct Table {
    /// As users write it.
    pub(super) header: &'static str,
    pub(super) keys: &'static [Key],
}

/// A key of a table.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// A value as users write it, for hints and the documentation; of a table with a header, the header.
    pub(super) example: &'static str,
    /// What it does. This text and the next two are Markdown, for the documentation.
    pub(super) meaning: &'static str,
    /// The values that it takes.
    pub(super) values: Text,
    /// What holds without it; `None`: it is required.
    pub(super) default: Option<Text>,
}

/// Text of the documentation.
pub(super) enum Text {
    Is(&'static str),
    /// Made from what the code uses.
    Of(fn() -> String),
}

impl Table {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|key| key.name)
    }

    /// The key of this name, and its number. It is looked for from a number on: most are read in the order in which they are
    /// declared. What is read without being declared is a mistake in the program.
    pub(super) fn key(&self, name: &str, from: usize) -> (usize, &'static Key) {
        let declared = (from..self.keys.len()).chain(0..from).find(|number| self.keys[*number].name == name);
        let number = declared.unwrap_or_else(|| panic!("the key {name} of {} is not declared", self.header));
        (number, &self.keys[number])
    }

    /// As a table in Markdown. An example that is the default is left out.
    pub(super) fn documentation(&self) -> String {
        let mut table = "| key | meaning | type | default | example |\n|---|---|---|---|---|\n".to_owned();
        for key in self.keys {
            let Key { name, example, meaning, .. } = key;
            let default = key.default.as_ref().map_or("**required**".to_owned(), Text::show);
            let values = key.values.show();
            let example = Some(code(example)).filter(|example| *example != default).unwrap_or_default();
            table += &format!("| `{name}` | {meaning} | {values} | {default} | {example} |\n");
        }
        table
    }
}

impl Key {
    /// What a table that lacks it, or has something else there, might have.
    pub(super) fn hint(&self) -> String {
        let Key { name, example, .. } = self;
        match self.is_header() {
            true => format!("write `{example}`"),
            false => format!("for example `{name} = {example}`"),
        }
    }

    /// Whether its example is the header of a table: `[gateway]`, `[[route.rule]]`.
    pub(super) fn is_header(&self) -> bool {
        let inner = self.example.trim_matches(['[', ']']);
        inner.len() < self.example.len() && inner.rsplit('.').next() == Some(self.name)
    }
}

impl Text {
    pub(super) fn show(&self) -> String {
        match self {
            Text::Is(text) => (*text).to_owned(),
            Text::Of(text) => text(),
        }
    }
}

/// A value as it stands in the file.
pub(super) fn code(value: impl Display) -> String {
    format!("`{value}`")
}

/// The same, of a string.
pub(super) fn quoted(value: impl Display) -> String {
    format!("`\"{value}\"`")
}

/// The same, of a duration.
pub(super) fn duration(value: Duration) -> String {
    quoted(humantime::format_duration(value))
}

/// The words of a closed set.
pub(super) fn one_of<T>(choices: &[(&'static str, T)]) -> String {
    let words: Vec<_> = choices.iter().map(|(word, _)| quoted(word)).collect();
    words.join(", ")
}

/// The word of a closed set for a value of it.
pub(super) fn word<T: PartialEq>(choices: &[(&'static str, T)], value: &T) -> String {
    let found = choices.iter().find(|(_, choice)| choice == value);
    quoted(found.map_or("", |(word, _)| word))
}

/// Integers from the first to the last.
pub(super) fn integers(range: &RangeInclusive<i64>) -> String {
    format!("{} to {}", grouped(*range.start()), grouped(*range.end()))
}

/// 1 000 000, for readers; up to 9999 as it is.
fn grouped(number: i64) -> String {
    let digits = number.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let groups = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy);
    groups.collect::<Vec<_>>().join(" ")
}
