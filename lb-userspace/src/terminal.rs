//! Whether output may be coloured.

use std::io::IsTerminal;

/// Whether text for this stream may be coloured: it is a terminal, and `NO_COLOR` is absent or empty
/// (<https://no-color.org>).
pub(crate) fn in_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
