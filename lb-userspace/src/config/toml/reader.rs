//! How tables and values of TOML are read: every mistake is reported where it stands, and reading goes on.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Display;
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key::{Key, Table};
use super::keys::{ROOT, SECTIONS};
use super::value;
use crate::config::diagnostic::{Diagnostic, Problem, Report, quote};
use crate::config::draft::{Field, reject_repeated};
use crate::config::place::Placed;

/// Parses `text`, past errors.
pub(super) fn parse<'t>(text: &'t str, report: &mut Report) -> DeTable<'t> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let whole = |error: &toml::de::Error| error.span().unwrap_or(text.len()..text.len());
    let mut errors: Vec<_> = errors.iter().map(|error| (whole(error), error.message())).collect();
    errors.sort_by_key(|(span, _)| span.start);
    errors.dedup();
    let swallowed = errors.iter().any(|(_, message)| message.starts_with("unclosed array,"));
    for (span, message) in errors {
        let at = span.start;
        report.push_syntax(syntax_error(span, message));
        // An array without its end swallows the rest of the file, with errors at every turn: only the first of
        // them is a mistake of the user's.
        if swallowed && INSIDE_ARRAY.iter().any(|start| message.starts_with(start)) {
            report.give_up_from(at);
            break;
        }
    }
    root.into_inner()
}

/// What the parser says of text that it takes for items of an array.
const INSIDE_ARRAY: [&str; 3] =
    ["missing comma between array elements", "unexpected `=` in array", "unclosed array,"];

/// What the parser says of text without quotes, by what it starts like.
const UNQUOTED: [&str; 6] = [
    "string values must be quoted",
    "invalid integer",
    "invalid float",
    "invalid boolean",
    "invalid date",
    "unexpected leading zero",
];

fn syntax_error(span: Range<usize>, message: &str) -> Diagnostic {
    let help = if INSIDE_ARRAY.iter().any(|start| message.starts_with(start)) {
        Some("if the list ends before this, close it with `]`".to_owned())
    } else if UNQUOTED.iter().any(|start| message.starts_with(start)) {
        Some("text, also an address or a duration, stands in quotes".to_owned())
    } else if message == "duplicate key" {
        Some("take one of them out".to_owned())
    } else {
        None
    };
    Diagnostic { help, ..Diagnostic::error(span, message.replace('\n', " ")) }
}

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// A table being read: every key of it that is not declared has been reported.
pub(super) struct Section<'a, 'i> {
    pub(super) report: &'a mut Report,
    keys: &'static Table,
    table: &'a DeTable<'i>,
    /// Of the header, or of the whole table where it is written inline.
    pub(super) span: Range<usize>,
    /// Where the text that was parsed begins in the file.
    offset: usize,
    /// The number of the key that is likely to be read next.
    next: usize,
}

impl<'a, 'i> Section<'a, 'i> {
    pub(super) fn open(
        report: &'a mut Report,
        keys: &'static Table,
        table: &'a DeTable<'i>,
        span: Range<usize>,
        offset: usize,
    ) -> Self {
        for key in table.keys() {
            if !keys.names().any(|known| known == key.get_ref()) {
                report_unknown_key(report, keys, key.get_ref(), moved(key.span(), offset));
            }
        }
        Self { report, keys, table, span, offset, next: 0 }
    }

    /// The top level of a file, or of the piece of one that begins at `offset`.
    pub(super) fn root(report: &'a mut Report, table: &'a DeTable<'i>, offset: usize) -> Self {
        Self::open(report, &ROOT, table, 0..0, offset)
    }

    /// The value of a key, as `value` reads it. A required key that is not there is as bad as one that makes no sense.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        value: impl FnOnce(&mut Reader<'_>, &Value<'i>) -> Option<T>,
    ) -> Field<T> {
        let (number, key) = self.keys.key(key, self.next);
        self.next = number + 1;
        let Some(given) = self.table.get(key.name) else {
            if key.default.is_some() {
                return Field::Absent;
            }
            let message = format!("{} without `{}`", self.keys.header, key.name);
            self.report.push_absence(Diagnostic::error(self.span.clone(), message).help(key.hint()));
            return Field::Invalid;
        };
        let mut reader = Reader { report: self.report, key, in_list: false, offset: self.offset };
        match value(&mut reader, given) {
            Some(value) => Field::Given(Placed::new(reader.span(given), value)),
            None => Field::Invalid,
        }
    }

    /// Reads each table of `[[key]]`.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        keys: &'static Table,
        table: impl Fn(Section<'_, '_>) -> T,
    ) -> Vec<T> {
        let field = self.read(key, |reader, value| match value.get_ref() {
            DeValue::Array(list) => {
                let tables = list.iter().filter_map(|item| reader.section(item, keys).map(&table));
                Some(tables.collect())
            }
            DeValue::Table(_) => {
                let message = format!("`{key}` is a list of tables");
                reader.error::<()>(value, message, format!("write `{}`", keys.header));
                // It is read even so, or references to its name would lead nowhere.
                reader.section(value, keys).map(|section| vec![table(section)])
            }
            _ => reader.wrong_type(value, "a list of tables"),
        });
        field.into_value().unwrap_or_default()
    }
}

/// What stands at one key, or in a list at one key.
pub(super) struct Reader<'a> {
    pub(super) report: &'a mut Report,
    key: &'static Key,
    /// Reading an item of a list at `key`, not the list.
    in_list: bool,
    /// As of a [`Section`].
    offset: usize,
}

impl Reader<'_> {
    /// Where a value stands in the file.
    pub(super) fn span(&self, value: &Value<'_>) -> Range<usize> {
        moved(value.span(), self.offset)
    }

    pub(super) fn string<'v>(&mut self, value: &'v Value<'_>) -> Option<&'v str> {
        match value.get_ref() {
            DeValue::String(text) => Some(text),
            _ => self.wrong_type(value, "a string"),
        }
    }

    pub(super) fn parse<T>(
        &mut self,
        value: &Value<'_>,
        meaning: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Option<T> {
        match meaning(self.string(value)?) {
            Ok(meaning) => Some(meaning),
            Err(problem) => {
                let at = self.span(value);
                self.report.push(problem.at(at));
                None
            }
        }
    }

    /// A duration that is not zero.
    pub(super) fn timeout(&mut self, value: &Value<'_>) -> Option<Duration> {
        let duration = self.parse(value, value::duration)?;
        if duration.is_zero() {
            let message = format!("`{}` must not be zero", self.key.name);
            let help = match self.key.name {
                "idle_timeout" | "max_age" => "leave it out for no timeout".to_owned(),
                _ => self.key.hint(),
            };
            return self.error(value, message, help);
        }
        Some(duration)
    }

    /// A duration of whole seconds, from 1 to `most`.
    pub(super) fn seconds(&mut self, value: &Value<'_>, most: u16) -> Option<u16> {
        let duration = self.parse(value, value::duration)?;
        match u16::try_from(duration.as_secs()) {
            Ok(seconds) if duration.subsec_nanos() == 0 && (1..=most).contains(&seconds) => Some(seconds),
            _ => {
                let message =
                    format!("`{}` must be from 1 to {most} seconds, without a fraction", self.key.name);
                self.error(value, message, self.key.hint())
            }
        }
    }

    pub(super) fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        match value.get_ref() {
            DeValue::Boolean(boolean) => Some(*boolean),
            _ => self.wrong_type(value, "`true` or `false`"),
        }
    }

    /// `range` lies within `T`.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        value: &Value<'_>,
        range: RangeInclusive<i64>,
    ) -> Option<T> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.wrong_type(value, "an integer");
        };
        match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if range.contains(&number) => T::try_from(number).ok(),
            _ => {
                let message =
                    format!("`{}` must be from {} to {}", self.key.name, range.start(), range.end());
                self.error(value, message, self.key.hint())
            }
        }
    }

    /// One of a closed set of words.
    pub(super) fn choice<T: Copy>(&mut self, value: &Value<'_>, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.string(value)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*choice);
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let help = self.report.similar(text, names());
        let help = help.unwrap_or_else(|| {
            let names: Vec<_> = names().map(|name| format!("`{name:?}`")).collect();
            format!("one of {}", names.join(", "))
        });
        self.error(value, format!("`{}` cannot be {}", self.key.name, quote(text)), help)
    }

    /// A list with something in it.
    pub(super) fn list<T>(
        &mut self,
        value: &Value<'_>,
        item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<Placed<T>>> {
        match value.get_ref() {
            DeValue::Array(list) if list.is_empty() => {
                let message = format!("`{}` must not be empty", self.key.name);
                self.error(value, message, self.key.hint())
            }
            _ => self.items(value, item),
        }
    }

    /// The items that make sense: the others have been reported.
    pub(super) fn items<T>(
        &mut self,
        value: &Value<'_>,
        mut item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<Placed<T>>> {
        let DeValue::Array(list) = value.get_ref() else {
            return self.wrong_type(value, "a list");
        };
        let mut items = Vec::with_capacity(list.len());
        self.in_list = true;
        for value in list {
            items.extend(item(self, value).map(|item| Placed::new(self.span(value), item)));
        }
        self.in_list = false;
        Some(items)
    }

    /// The entries of a table whose keys are names of the user's; those that make sense. No name is twice.
    pub(super) fn pairs<K: Display + Eq + Hash, T>(
        &mut self,
        value: &Value<'_>,
        name: impl Fn(&str) -> Result<K, Problem>,
        mut item: impl FnMut(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Option<Vec<Placed<(K, T)>>> {
        let DeValue::Table(table) = value.get_ref() else {
            return self.wrong_type(value, "a table");
        };
        let (mut names, mut items) = (Vec::new(), Vec::new());
        self.in_list = true;
        for (key, value) in table {
            let at = moved(key.span(), self.offset);
            let (name, item) = (name(key.get_ref()), item(self, value));
            match name {
                Ok(name) => {
                    names.push(Placed::new(at, name));
                    items.push(item);
                }
                Err(problem) => self.report.push(problem.at(at)),
            }
        }
        self.in_list = false;
        self.reject_duplicates(&names, |name| quote(&name.to_string()));
        let pairs = names.into_iter().zip(items);
        Some(
            pairs
                .filter_map(|(name, item)| Some(Placed { place: name.place, value: (name.value, item?) }))
                .collect(),
        )
    }

    pub(super) fn reject_duplicates<T: Eq + Hash>(
        &mut self,
        items: &[Placed<T>],
        show: impl Fn(&T) -> String,
    ) {
        let message = |item: &T| format!("{} is twice in `{}`", show(item), self.key.name);
        reject_repeated(items, message, self.report);
    }

    pub(super) fn section<'s, 'i>(
        &'s mut self,
        value: &'s Value<'i>,
        keys: &'static Table,
    ) -> Option<Section<'s, 'i>> {
        match value.get_ref() {
            DeValue::Table(table) => {
                let span = self.span(value);
                Some(Section::open(self.report, keys, table, span, self.offset))
            }
            _ => self.wrong_type(value, "a table"),
        }
    }

    /// Reports an error; `None` for the caller to hand on.
    pub(super) fn error<T>(
        &mut self,
        value: &Value<'_>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Option<T> {
        let at = self.span(value);
        self.report.push(Diagnostic::error(at, message).help(help));
        None
    }

    fn wrong_type<T>(&mut self, value: &Value<'_>, expected: &str) -> Option<T> {
        let what = if self.in_list { "an item of " } else { "" };
        let message = format!("{what}`{}` must be {expected}, not {}", self.key.name, type_name(value));
        let help = match value.get_ref() {
            DeValue::String(text) if expected == "a list" => format!("`{} = [{text:?}]`", self.key.name),
            _ => self.key.hint(),
        };
        self.error(value, message, help)
    }
}

/// The place in the file of what has this place in a piece of it.
fn moved(span: Range<usize>, offset: usize) -> Range<usize> {
    span.start + offset..span.end + offset
}

fn report_unknown_key(report: &mut Report, keys: &Table, name: &str, span: Range<usize>) {
    let error = Diagnostic::error(span, format!("unknown key {} in {}", quote(name), keys.header));
    if let Some(section) = SECTIONS.iter().find(|section| section.names().any(|known| known == name)) {
        // The header above it may just have been lost.
        report.push_absence(error.help(format!("it belongs in `{}`", section.header)));
        return;
    }
    let help = report.similar(name, keys.names()).unwrap_or_else(|| {
        let known: Vec<_> = keys.names().map(quote).collect();
        format!("known are {}", known.join(", "))
    });
    report.push(error.help(help));
}

fn type_name(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
