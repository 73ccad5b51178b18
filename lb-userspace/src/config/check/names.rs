//! The names of listeners, routes and pools, and references to them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::config::diagnostic::{Diagnostic, Report, quote};
use crate::config::draft::Field;
use crate::config::place::Placed;

/// The names of all things of one kind.
pub(super) struct Names {
    /// "listener", "route" or "pool".
    kind: &'static str,
    /// In the order of the file. Unique, or the duplicate was reported.
    pub(super) list: Vec<Arc<str>>,
    /// Into `list`.
    index: HashMap<Arc<str>, usize>,
    /// A name could not be read: a reference that leads nowhere may be to that one.
    incomplete: bool,
}

impl Names {
    /// Each thing's name or, for those without, what to call it if that is free.
    pub(super) fn new<'r>(
        kind: &'static str,
        things: impl ExactSizeIterator<Item = (&'r Field<Box<str>>, Option<String>)>,
        report: &mut Report,
    ) -> Self {
        let (list, index) = (Vec::with_capacity(things.len()), HashMap::with_capacity(things.len()));
        let mut names = Self { kind, list, index, incomplete: false };
        // Of those in `list`.
        let mut places = Vec::with_capacity(things.len());
        let mut unnamed = Vec::new();
        for (index, (field, default)) in things.enumerate() {
            names.incomplete |= field.is_invalid();
            places.push(field.place());
            let Some(given) = field.given() else {
                names.list.push(Arc::from(""));
                unnamed.push((index, default));
                continue;
            };
            let name: Arc<str> = Arc::from(&*given.value);
            names.list.push(name.clone());
            match names.index.entry(name) {
                Entry::Vacant(entry) => _ = entry.insert(index),
                Entry::Occupied(first) => {
                    let message = format!("two {kind}s are named {}", quote(&given.value));
                    let error = Diagnostic::error(&given.place, message);
                    let error = places[*first.get()]
                        .into_iter()
                        .fold(error, |error, first| error.related(first, "first here"));
                    report.push(error.help("rename one of them"));
                }
            }
        }
        // Only now: a name given further down goes before a default.
        for (index, default) in unnamed {
            let numbered = format!("{kind}-{}", index + 1);
            let further = (2..).map(|n| format!("{numbered}-{n}"));
            let mut candidates = default.into_iter().chain([numbered.clone()]).chain(further);
            let free = candidates.find(|name| !names.index.contains_key(name.as_str()));
            let name: Arc<str> = free.unwrap_or(numbered).into();
            names.list[index] = name.clone();
            names.index.insert(name, index);
        }
        names
    }

    /// The index of the thing with this name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The index of the thing a field names.
    pub(super) fn resolve(&self, reference: &Field<String>, report: &mut Report) -> Option<usize> {
        let name = reference.given()?;
        let found = self.find(&name.value);
        if found.is_none() && !self.incomplete {
            self.report_unknown(name, report);
        }
        found
    }

    fn report_unknown(&self, name: &Placed<String>, report: &mut Report) {
        let kind = self.kind;
        let help = report.similar(&name.value, self.list.iter().map(|name| &**name)).unwrap_or_else(|| {
            let mut known: Vec<_> = self.list.iter().take(5).map(|name| quote(name)).collect();
            if self.list.len() > known.len() {
                known.push("…".to_owned());
            }
            match known.as_slice() {
                [] => format!("add a `[[{kind}]]` with this name"),
                _ => format!("known are {}", known.join(", ")),
            }
        });
        let message = format!("no {kind} is named {}", quote(&name.value));
        report.push_absence(Diagnostic::error(&name.place, message).help(help));
    }
}
