//! What is wrong with a configuration, and how it is shown.
//!
//! Drawn by annotate-snippets, the compiler's own renderer: `error: …` with `--> file:line:column` is what people
//! and editors already read, it shows a second place beside the first, and stays ASCII in a log.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::ops::Range;
use std::string::FromUtf8Error;
use std::sync::Arc;

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::place::Place;

/// The diagnostics of a configuration that is in order: an error among them is that of an object, which was left out.
pub type Warnings = Diagnostics;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably does not do what was meant.
    Warning,
}

/// One thing wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// Where; absent where there is nothing to show.
    pub place: Option<Place>,
    /// A second place that has to do with it, and what it is.
    pub related: Option<(Place, &'static str)>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    pub(super) fn error(place: impl Into<Place>, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            message: message.into(),
            place: Some(place.into()),
            related: None,
            help: None,
        }
    }

    pub(super) fn warning(place: impl Into<Place>, message: impl Into<String>) -> Self {
        Self::error(place, message).into_warning()
    }

    /// Where in the file.
    fn span(&self) -> Option<Range<usize>> {
        self.place.as_ref().and_then(Place::span)
    }

    /// The object that an error is in.
    fn faulty_object(&self) -> Option<&Arc<str>> {
        self.place.as_ref().and_then(Place::object).filter(|_| self.severity == Severity::Error)
    }

    pub(super) fn into_warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }

    pub(super) fn related(mut self, place: impl Into<Place>, what: &'static str) -> Self {
        self.related = Some((place.into(), what));
        self
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Why a value is not accepted, and what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(super) fn at(self, place: impl Into<Place>) -> Diagnostic {
        Diagnostic { help: self.help, ..Diagnostic::error(place, self.message) }
    }
}

/// A file that is no configuration at all can be wrong in millions of places.
const MAX_DRAWN: usize = 1000;

/// In bytes. A longer line is no help to the reader, and drawing it many times over takes long.
const MAX_DRAWN_LINE: usize = 4096;

/// What is underlined, how, and what is written beside it.
type Mark = (Range<usize>, AnnotationKind, Option<&'static str>);

/// The same, of any source.
type Site<'a> = (&'a Place, AnnotationKind, Option<&'static str>);

/// Everything wrong with one configuration, in the order of the file.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    file_name: String,
    /// The text the spans point into.
    source: String,
    /// Offset of the first byte of each line of `source`.
    line_starts: Vec<usize>,
    /// Sorted by the start of the span.
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// `list` in any order, with spans into `source`.
    pub(super) fn new(file_name: &str, source: String, list: Vec<Diagnostic>) -> Self {
        let newlines = source.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let line_starts = std::iter::once(0).chain(newlines.map(|(at, _)| at + 1)).collect();
        let mut all = Self { file_name: file_name.to_owned(), source, line_starts, list };
        all.sort();
        all
    }

    /// The file could not be read at all.
    pub(super) fn unreadable(file_name: &str, error: &io::Error) -> Self {
        let message = format!("cannot read {}: {error}", quote(file_name));
        let diagnostic = Diagnostic { place: None, ..Diagnostic::error(0..0, message) };
        Self::new(file_name, String::new(), vec![diagnostic])
    }

    /// The file is not text.
    pub(super) fn not_utf8(file_name: &str, error: &FromUtf8Error) -> Self {
        let source = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let at = error.utf8_error().valid_up_to();
        // Everything before `at` is as in the file; at `at` there is now U+FFFD.
        let span = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
        let diagnostic = Diagnostic::error(span, "not UTF-8 text").help("TOML files are UTF-8");
        Self::new(file_name, source, vec![diagnostic])
    }

    /// In the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// Nothing to say.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many there are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|diagnostic| diagnostic.severity == severity).count()
    }

    /// Line and column, both from 1, columns in characters.
    pub fn position(&self, diagnostic: &Diagnostic) -> Option<(usize, usize)> {
        diagnostic.span().map(|span| self.line_and_column(&span))
    }

    /// Each with its excerpt and hint; of very many only the first thousand.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for diagnostic in self.list.iter().take(MAX_DRAWN) {
            out.push_str(&renderer.render(&[self.group(diagnostic)]));
            out.push_str("\n\n");
        }
        if let Some(left @ 1..) = self.list.len().checked_sub(MAX_DRAWN) {
            out.push_str(&format!("… and {left} more\n"));
        }
        out
    }

    fn group<'a>(&'a self, diagnostic: &'a Diagnostic) -> Group<'a> {
        let level = match diagnostic.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(diagnostic.message.as_str()));
        let primary = diagnostic.place.iter().map(|place| (place, AnnotationKind::Primary, None));
        let related = diagnostic.related.iter();
        let related = related.map(|(place, what)| (place, AnnotationKind::Context, Some(*what)));
        let sites: Vec<Site<'_>> = primary.chain(related).collect();
        // Those on one line of the file share its excerpt.
        let line = |(place, ..): &Site<'_>| place.span().map(|span| self.line_of(&span));
        for sites in sites.chunk_by(|one, other| line(one).is_some() && line(one) == line(other)) {
            let in_file =
                sites.iter().filter_map(|(place, kind, label)| Some((place.span()?, *kind, *label)));
            let marks: Vec<Mark> = in_file.collect();
            group = match (sites[0].0, self.excerpt(&marks)) {
                (_, Some(excerpt)) => group.element(excerpt),
                (Place::File(span), None) => group.element(self.origin(&span.range())),
                (Place::Object(field), None) => {
                    group.element(Origin::path(format!("{} {}", field.object, field.path)))
                }
            };
        }
        match &diagnostic.help {
            Some(help) => group.element(Level::HELP.message(help.as_str())),
            None => group,
        }
    }

    /// The line that `marks` are on, underlined there; none if it is no line that someone wrote. The renderer gets
    /// no more than this line, so that the cost of a diagnostic does not grow with the file.
    fn excerpt(&self, marks: &[Mark]) -> Option<Snippet<'_, Annotation<'_>>> {
        let line = self.line_of(&marks.first()?.0);
        let start = self.line_starts[line];
        let text = self.source[start..].lines().next().unwrap_or_default();
        if text.len() > MAX_DRAWN_LINE {
            return None;
        }
        let annotations = marks.iter().map(|(span, kind, label)| {
            let span = self.clip(span);
            // A value over several lines is shown by its first.
            let end = span.end.min(start + text.len()).max(span.start);
            kind.span(span.start - start..end - start).label(*label)
        });
        let excerpt = Snippet::source(text).line_start(line + 1).path(self.file_name.as_str());
        Some(excerpt.annotations(annotations))
    }

    fn origin(&self, span: &Range<usize>) -> Origin<'_> {
        let (line, column) = self.line_and_column(span);
        Origin::path(self.file_name.as_str()).line(line).char_column(column)
    }

    fn line_and_column(&self, span: &Range<usize>) -> (usize, usize) {
        let line = self.line_of(span);
        let before = &self.source[self.line_starts[line]..self.clip(span).start];
        (line + 1, before.chars().count() + 1)
    }

    /// By position in the file. What has no place comes first, what is in objects last.
    fn sort(&mut self) {
        self.list.sort_by_key(|diagnostic| match &diagnostic.place {
            None => (0, 0),
            Some(place) => place.span().map_or((2, 0), |span| (1, span.start)),
        });
    }

    /// Index into `line_starts`.
    fn line_of(&self, span: &Range<usize>) -> usize {
        let start = self.clip(span).start;
        self.line_starts.partition_point(|line| *line <= start) - 1
    }

    /// The parser's spans may end, or even start, behind the text or inside a character.
    fn clip(&self, span: &Range<usize>) -> Range<usize> {
        let start = self.source.floor_char_boundary(span.start);
        let end = self.source.ceil_char_boundary(span.end.min(self.source.len()));
        start..end.max(start)
    }
}

impl fmt::Display for Diagnostics {
    /// Without colour.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}

/// Collects diagnostics while a configuration is read.
#[derive(Default)]
pub(super) struct Report {
    list: Vec<Diagnostic>,
    /// Of objects that were left out.
    refused: Vec<Diagnostic>,
    /// Where the text is not TOML. Keys and whole tables may be missing from what the parser then recovers.
    syntax: Vec<Diagnostic>,
    /// What stands from here on is not what the user meant it to be.
    given_up_from: Option<usize>,
    /// Comparisons made for "did you mean", see [`Report::similar`].
    comparisons: usize,
}

impl Report {
    /// Upper bound on `comparisons`: a file in which every reference is wrong must not take quadratic time.
    const MAX_COMPARISONS: usize = 100_000;

    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.list.push(diagnostic);
    }

    pub(super) fn push_syntax(&mut self, diagnostic: Diagnostic) {
        self.syntax.push(diagnostic);
    }

    /// What was said of the text behind.
    pub(super) fn append(&mut self, mut next: Self) {
        self.list.append(&mut next.list);
        self.refused.append(&mut next.refused);
        self.syntax.append(&mut next.syntax);
        self.given_up_from = self.given_up_from.or(next.given_up_from);
        self.comparisons += next.comparisons;
    }

    /// Nothing that starts behind `at` is to be judged.
    pub(super) fn give_up_from(&mut self, at: usize) {
        self.given_up_from = Some(at);
    }

    /// Something is missing; of no interest if it may merely have been lost behind a syntax error.
    pub(super) fn push_absence(&mut self, diagnostic: Diagnostic) {
        if self.syntax.is_empty() {
            self.push(diagnostic);
        }
    }

    pub(super) fn has_errors(&self) -> bool {
        !self.syntax.is_empty() || self.list.iter().any(|d| d.severity == Severity::Error)
    }

    /// The objects in which there are errors.
    pub(super) fn faulty_objects(&self) -> HashSet<Arc<str>> {
        self.list.iter().filter_map(Diagnostic::faulty_object).cloned().collect()
    }

    /// The same without those that only clash with another of them: without that, they may be good.
    pub(super) fn objects_to_blame(&self) -> HashSet<Arc<str>> {
        let faulty = self.faulty_objects();
        let clashes = |diagnostic: &Diagnostic| {
            let other = diagnostic.related.as_ref().and_then(|(place, _)| place.object());
            other.is_some_and(|other| faulty.contains(other) && diagnostic.faulty_object() != Some(other))
        };
        let to_blame = self.list.iter().filter(|diagnostic| !clashes(diagnostic));
        let to_blame: HashSet<_> = to_blame.filter_map(Diagnostic::faulty_object).cloned().collect();
        if to_blame.is_empty() { faulty } else { to_blame }
    }

    /// These objects are left out: what was reported of them is no error of the whole any more. What was reported of
    /// everything else since `mark` is forgotten, for it is checked again without them.
    pub(super) fn refuse(&mut self, objects: &HashSet<Arc<str>>, mark: usize) {
        let is_refused = |diagnostic: &Diagnostic| {
            diagnostic.place.as_ref().and_then(Place::object).is_some_and(|object| objects.contains(object))
        };
        let since = self.list.split_off(mark);
        self.refused.extend(since.into_iter().filter(is_refused));
        self.refused.extend(self.list.extract_if(.., |diagnostic| is_refused(diagnostic)));
    }

    /// Why objects were left out, of each the first reason.
    pub(super) fn refusals(&self) -> HashMap<Arc<str>, String> {
        let mut refusals = HashMap::new();
        for diagnostic in &self.refused {
            if let Some(object) = diagnostic.faulty_object() {
                refusals.entry(object.clone()).or_insert_with(|| diagnostic.message.clone());
            }
        }
        refusals
    }

    /// For [`Report::refuse`]: what is reported from now on.
    pub(super) fn mark(&self) -> usize {
        self.list.len()
    }

    /// "did you mean `x`?" for the candidate most like `word`, if one is.
    pub(super) fn similar<'c>(
        &mut self,
        word: &str,
        candidates: impl IntoIterator<Item = &'c str>,
    ) -> Option<String> {
        /// Lets a slip of the finger through, and a changed ending; not a different word.
        const SIMILAR: f64 = 0.8;
        /// Of a name that can be; a comparison takes time in the square of its length.
        const LONGEST: usize = 253;
        if word.len() > LONGEST {
            return None;
        }
        let left = Self::MAX_COMPARISONS.saturating_sub(self.comparisons);
        let (mut best, mut best_score) = (None, SIMILAR);
        for candidate in candidates.into_iter().take(left) {
            self.comparisons += 1;
            let score = strsim::jaro_winkler(word, candidate);
            if score > best_score {
                (best, best_score) = (Some(candidate), score);
            }
        }
        best.map(|candidate| format!("did you mean {}?", quote(candidate)))
    }

    /// A line that does not parse is left at that: what the parser made of it is not worth judging.
    pub(super) fn finish(self, file_name: &str, source: &str) -> Diagnostics {
        // The text is only there to be shown, and may be long.
        let is_silent = self.syntax.is_empty() && self.list.is_empty() && self.refused.is_empty();
        let source = if is_silent { "" } else { source };
        let mut all = Diagnostics::new(file_name, source.to_owned(), self.syntax);
        let line = |span: Range<usize>| all.line_of(&span);
        let broken: HashSet<_> = all.list.iter().filter_map(Diagnostic::span).map(line).collect();
        let given_up_from = self.given_up_from.unwrap_or(usize::MAX);
        let is_kept = |span: Range<usize>| span.start < given_up_from && !broken.contains(&line(span));
        let list = self.refused.into_iter().chain(self.list);
        let kept: Vec<_> = list.filter(|diagnostic| diagnostic.span().is_none_or(is_kept)).collect();
        all.list.extend(kept);
        all.sort();
        all
    }
}

/// Text of the file inside a message: in backquotes, control characters escaped, cut where it is long.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut quoted = String::from("`");
    for c in text.chars().take(LONGEST) {
        match c {
            // Nothing special between backquotes.
            '"' | '\'' | '\\' => quoted.push(c),
            _ => quoted.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        quoted.push('…');
    }
    quoted.push('`');
    quoted
}
