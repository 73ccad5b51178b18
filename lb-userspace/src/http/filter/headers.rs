//! Changes of headers.

use http::HeaderMap;

use crate::config::{HeaderChanges, is_changeable};

/// Makes the changes: what is set first, what is taken out last.
pub fn change(headers: &mut HeaderMap, by: &HeaderChanges) {
    for (name, value) in by.set.iter().filter(|(name, _)| is_changeable(name)) {
        headers.insert(name, value.clone());
    }
    for (name, value) in by.add.iter().filter(|(name, _)| is_changeable(name)) {
        headers.append(name, value.clone());
    }
    for name in by.remove.iter().filter(|name| is_changeable(name)) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    #[test]
    fn set_replaces_add_appends_remove_takes_out_all() {
        let pair = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut headers: HeaderMap = [
            pair("set", "1"),
            pair("set", "2"),
            pair("add", "1"),
            pair("gone", "1"),
            pair("gone", "2"),
            pair("stays", "1"),
        ]
        .into_iter()
        .fold(HeaderMap::new(), |mut all, (name, value)| {
            all.append(name, value);
            all
        });
        change(
            &mut headers,
            &HeaderChanges {
                set: vec![pair("set", "3"), pair("new", "1"), pair("host", "evil")],
                add: vec![
                    pair("add", "2"),
                    pair("content-length", "5"),
                    pair("transfer-encoding", "chunked"),
                ],
                remove: vec![HeaderName::from_static("gone"), HeaderName::from_static("absent")],
            },
        );
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        assert_eq!(lines, ["add: 1", "add: 2", "new: 1", "set: 3", "stays: 1"]);
    }
}
