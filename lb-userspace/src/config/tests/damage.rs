//! No text makes it panic.

use super::*;
use proptest::prelude::*;

/// Pieces of configurations, for what a grammar would never put together.
const PIECES: [&str; 32] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "#",
    "\"",
    "'",
    "\"\"\"",
    " ",
    "\\",
    "\r",
    "\0",
    "é",
    "1",
    "-1",
    "true",
    "gateway",
    "listener",
    "route",
    "pool",
    "name",
    "sni",
    "backends",
    "\"*.x\"",
    "\"5s\"",
    "\"0.0.0.0:1\"",
];

proptest! {
    #[test]
    fn no_sequence_of_pieces_makes_it_panic(pieces in prop::collection::vec(prop::sample::select(&PIECES[..]), 0..60)) {
        let text = pieces.concat();
        let (Ok((_, diagnostics)) | Err(diagnostics)) = checked(&text);
        diagnostics.render(false);
        prop_assert!(diagnostics.iter().all(|diagnostic| diagnostics.position(diagnostic).is_some()));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*|[\\[\\]{}=\"',.#a-z0-9 \r\n\t]{0,200}") {
        let (Ok((_, diagnostics)) | Err(diagnostics)) = checked(&text);
        diagnostics.render(true);
        prop_assert!(diagnostics.iter().all(|diagnostic| diagnostics.position(diagnostic).is_some()));
    }

    /// A good file with a few bytes cut out and others put in: deeper than random text gets.
    #[test]
    fn no_damage_to_a_good_file_makes_it_panic(
        damage in prop::collection::vec((0usize..1500, 0usize..40, "[\\[\\]{}=\"',.#*a-z0-9é \r\n]{0,3}"), 1..4),
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, length, insert) in damage {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, &insert);
            }
        }
        let (Ok((_, diagnostics)) | Err(diagnostics)) = checked(&text);
        prop_assert!(checked(&text).is_ok() || diagnostics.count(Severity::Error) > 0);
        diagnostics.render(false);
    }
}
