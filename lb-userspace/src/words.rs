//! Helpers for the text of messages.

use std::error::Error;
use std::fmt::Write as _;

/// "1 listener", "2 listeners".
pub(crate) fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
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
