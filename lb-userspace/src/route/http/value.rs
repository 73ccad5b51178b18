//! The values of headers and of parameters of the query.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue};

use crate::config::ValueMatch;

/// Whether the header is there and has the value. Of several lines of it all count, joined with ", " (RFC 9110, section 5.3);
/// a `Cookie` that HTTP/2 has split, with "; " (RFC 9113, section 8.2.3).
pub(super) fn of_header(wanted: &ValueMatch, name: &HeaderName, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    let more = values.next().is_some();
    let separator: &[u8] = if *name == COOKIE { b"; " } else { b", " };
    let all = || headers.get_all(name).iter().map(HeaderValue::as_bytes);
    match wanted {
        ValueMatch::Exact(text) if !more => first.as_bytes() == text.as_bytes(),
        ValueMatch::Exact(text) => is_joined(text.as_bytes(), all(), separator),
        ValueMatch::Regex(pattern) => {
            let joined: Cow<'_, [u8]> = match more {
                false => first.as_bytes().into(),
                true => all().collect::<Vec<_>>().join(separator).into(),
            };
            // What is no UTF-8 matches no expression.
            std::str::from_utf8(&joined).is_ok_and(|text| pattern.is_match(text))
        }
    }
}

/// Whether the text is these parts with the separator between them.
fn is_joined<'p>(text: &[u8], parts: impl Iterator<Item = &'p [u8]>, separator: &[u8]) -> bool {
    let mut rest = Some(text);
    for (position, part) in parts.enumerate() {
        if position > 0 {
            rest = rest.and_then(|rest| rest.strip_prefix(separator));
        }
        rest = rest.and_then(|rest| rest.strip_prefix(part));
    }
    rest.is_some_and(<[u8]>::is_empty)
}

/// Whether it is the value.
pub(super) fn is(wanted: &ValueMatch, text: &str) -> bool {
    match wanted {
        ValueMatch::Exact(exact) => **exact == *text,
        ValueMatch::Regex(pattern) => pattern.is_match(text),
    }
}
