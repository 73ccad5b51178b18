//! The parameters of a request's query.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::value;
use crate::config::ValueMatch;

/// Taken apart once, when the first rule asks.
pub(super) struct Query<'r> {
    text: Option<&'r str>,
    first: OnceCell<HashMap<Cow<'r, str>, Cow<'r, str>>>,
}

impl<'r> Query<'r> {
    pub(super) fn new(text: Option<&'r str>) -> Self {
        Query { text, first: OnceCell::new() }
    }

    /// Whether the parameter is there and has the value. Of several values the first counts.
    pub(super) fn has(&self, name: &str, wanted: &ValueMatch) -> bool {
        let values = self.first.get_or_init(|| {
            let mut values = HashMap::new();
            // Written as forms are (URL standard, section 5.1): `+` is a space.
            for (name, value) in form_urlencoded::parse(self.text.unwrap_or_default().as_bytes()) {
                if let Entry::Vacant(vacant) = values.entry(name) {
                    vacant.insert(value);
                }
            }
            values
        });
        values.get(name).is_some_and(|text| value::is(wanted, text))
    }
}
