//! nginx's maps of names.

use crate::import::model::{ANY, At, host};

/// Names and where they lead.
pub(super) struct Map {
    pub(super) source: String,
    pub(super) entries: Vec<(At, Vec<String>, String)>,
}

/// The name in a ClientHello, or in a handshake that nginx ends.
pub(super) fn is_name(variable: &str) -> bool {
    matches!(variable, "$ssl_preread_server_name" | "$ssl_server_name")
}

/// The names of a key of a map: `a.example`, and with `hostnames` also `*.example` and `.example`.
pub(super) fn names_of(key: &str, by_wildcard: bool) -> Option<Vec<String>> {
    if let Some(bare) = key.strip_prefix('.').filter(|_| by_wildcard) {
        let name = host(bare).filter(|name| !name.starts_with(ANY))?;
        return Some(vec![format!("*.{name}"), name]);
    }
    let name = host(key)?;
    (by_wildcard || !name.starts_with(ANY)).then(|| vec![name])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_map_are_names_wildcards_or_both() {
        let read = |key, by_wildcard| names_of(key, by_wildcard).map(|names| names.join(" "));
        assert_eq!(read("A.example", false).as_deref(), Some("a.example"));
        assert_eq!(read("*.example", true).as_deref(), Some("*.example"));
        assert_eq!(read(".example", true).as_deref(), Some("*.example example"));
        for (key, wild) in
            [("*.example", false), (".example", false), ("~^a", true), ("www.*", true), ("", true)]
        {
            assert_eq!(read(key, wild), None, "{key}");
        }
    }
}
