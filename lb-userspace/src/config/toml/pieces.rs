//! Large files, piece by piece: the tree of a whole document takes some fifty times the memory of its text.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Of a piece, at least, in bytes. Small pieces stay in the caches of the processor: of 2 KiB they are parsed in half of the
/// time that they take of 64 KiB.
pub(super) const SIZE: usize = 2 << 10;

/// Calls `read` with each piece of `text` and the place where it begins; a piece has at least `size` bytes. `None`: what was
/// read is worth nothing, and `text` has to be parsed as a whole, because something in it is not TOML or does not stand in
/// one piece with what it belongs to. Otherwise the pieces together mean what the whole means: each is a document of its own
/// which ends with its line, and they have nothing in common but lists of tables that go on in the next piece.
pub(super) fn each(text: &str, size: usize, read: impl FnMut(&DeTable<'_>, usize)) -> Option<()> {
    each_of(text, 0..text.len(), size, read).map(drop)
}

/// The same of a share of `text`, one of [`ranges`]. Returns the tables in it that may stand in one piece of the text only,
/// for whoever reads the other shares.
pub(super) fn each_of(
    text: &str,
    share: Range<usize>,
    size: usize,
    mut read: impl FnMut(&DeTable<'_>, usize),
) -> Option<HashSet<String>> {
    let mut single = HashSet::new();
    for range in ranges(&text[share.clone()], size) {
        let range = share.start + range.start..share.start + range.end;
        let piece = &text[range.clone()];
        let table = DeTable::parse(piece).ok()?.into_inner();
        for (key, value) in &table {
            match &**key.get_ref() {
                name @ ("gateway" | "gateway_api") => {
                    if !single.insert(name.to_owned()) {
                        return None;
                    }
                }
                "listener" | "route" | "pool" if goes_on(piece, value) => {}
                _ => return None,
            }
        }
        read(&table, range.start);
    }
    Some(single)
}

/// Whether this is a list of tables with headers, the first of which stands in this piece.
fn goes_on(piece: &str, value: &Spanned<DeValue<'_>>) -> bool {
    let has_header = |item: &Spanned<DeValue<'_>>| {
        matches!(item.get_ref(), DeValue::Table(_)) && piece[item.span().start..].starts_with("[[")
    };
    matches!(value.get_ref(), DeValue::Array(list) if list.first().is_some_and(has_header))
}

/// Parts of at least `size` bytes. Each but the first begins with a line that looks like the header of a list's table.
pub(super) fn ranges(text: &str, size: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == text.len() {
            return None;
        }
        let range = start..next_header(text, start.saturating_add(size)).unwrap_or(text.len());
        start = range.end;
        Some(range)
    })
}

/// The first such line that begins at `from` or after it.
fn next_header(text: &str, from: usize) -> Option<usize> {
    let rest = text.as_bytes().get(from.checked_sub(1)?..)?;
    let after_lines = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| from + at);
    // A table within a list's table (`[[route.rule]]`) goes with it.
    let begins = |at: &usize| {
        let header = text[*at..].trim_start_matches([' ', '\t']).strip_prefix("[[");
        header
            .is_some_and(|header| !header.chars().take_while(|c| !matches!(c, ']' | '\n')).any(|c| c == '.'))
    };
    let mut after_lines = after_lines.filter(begins);
    after_lines.next()
}
