//! Helpers for the text of messages.

use std::error::Error;
use std::fmt::Write as _;

/// "1 listener", "2 listeners".
pub(crate) fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `text` as printable ASCII of at most `max` characters: anything else is escaped, as Rust writes it, and `…`
/// stands for what does not fit. (A name in another script is thus escaped too; its characters may be wide, run
/// from right to left, or look like others.)
pub(crate) fn printable(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let shown = match c {
            '\\' => r"\\".into(),
            ' '..='~' => String::from(c),
            _ => c.escape_default().to_string(),
        };
        if out.len() + shown.len() > max {
            // Room for the ellipsis: every character so far is one byte.
            out.truncate(max.saturating_sub(1));
            return out + "…";
        }
        out += &shown;
    }
    out
}

/// An error and its causes on one line. A cause with which the text so far ends, as with the errors of many libraries, is
/// not repeated.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            let _ = write!(text, ": {cause}");
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "route")), ["0 routes", "1 route", "2 routes"]);
    }

    #[test]
    fn no_cause_is_said_twice() {
        let repeated = anyhow!("read-only").context("mount: read-only").context("cannot start");
        assert_eq!(with_causes(repeated.as_ref()), "cannot start: mount: read-only");
        let told_once = anyhow!("read-only").context("cannot start");
        assert_eq!(with_causes(told_once.as_ref()), "cannot start: read-only");
    }
}
