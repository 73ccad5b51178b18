//! The lines on the admin socket: one JSON request per line, one JSON reply per line, in order.

use super::view::ConnectionFilter;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Bytes of a request line, the newline included. The longest request names one route and one server name.
pub(super) const MAX_REQUEST: u64 = 16 * 1024;

/// The version of the conversation by which one process takes over from another.
pub(crate) const TAKE_OVER_VERSION: u32 = 1;

/// Where the socket is.
pub(crate) fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("admin.sock")
}

/// A command's request. A field that this version does not know is an error: to ignore a filter, for example, would answer
/// another question.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    Status {},
    Objects {},
    Connections {
        #[serde(default)]
        filter: ConnectionFilter,
    },
    Reload {},
    Drain {
        /// `POOL` or `POOL/SERVER`.
        target: String,
    },
    Undrain {
        target: String,
    },
    Kill {
        connection: u64,
    },
    /// The first line of another conversation, in this version of it.
    TakeOver {
        version: u32,
    },
}

/// `{"ok": …}` or `{"error": "…"}`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply<T> {
    Ok(T),
    Error(String),
}

impl<T> From<Result<T, String>> for Reply<T> {
    fn from(result: Result<T, String>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(reason) => Self::Error(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_written_as_documented() {
        let filter = ConnectionFilter { route: Some("redis-1".into()), sni: None };
        for (request, line) in [
            (Request::Status {}, r#"{"command":"status"}"#),
            (Request::Objects {}, r#"{"command":"objects"}"#),
            (Request::Connections { filter }, r#"{"command":"connections","filter":{"route":"redis-1"}}"#),
            (Request::Reload {}, r#"{"command":"reload"}"#),
            (Request::Drain { target: "a/b:1".into() }, r#"{"command":"drain","target":"a/b:1"}"#),
            (Request::Undrain { target: "a/b:1".into() }, r#"{"command":"undrain","target":"a/b:1"}"#),
            (Request::Kill { connection: 7 }, r#"{"command":"kill","connection":7}"#),
            (Request::TakeOver { version: 1 }, r#"{"command":"take_over","version":1}"#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
            assert_eq!(serde_json::from_str::<Request>(line).unwrap(), request);
        }
    }

    #[test]
    fn requests_of_the_documentation_are_understood() {
        let doc = include_str!("../../../docs/admin.md");
        let requests: Vec<_> = doc.lines().filter(|line| line.starts_with("{\"command\"")).collect();
        assert!(requests.len() > 5);
        for line in requests {
            let understood = serde_json::from_str::<Request>(line);
            assert!(understood.is_ok(), "{line}: {understood:?}");
        }
    }

    #[test]
    fn an_absent_filter_lists_all_and_an_unknown_field_is_refused() {
        let all = Request::Connections { filter: ConnectionFilter::default() };
        assert_eq!(serde_json::from_str::<Request>(r#"{"command":"connections"}"#).unwrap(), all);
        for line in [
            r#"{"command":"connections","filter":{"client":"10.0.0.1"}}"#,
            r#"{"command":"connections","route":"a"}"#,
            r#"{"command":"status","verbose":true}"#,
            r#"{"command":"shutdown"}"#,
            r#"{"command":"kill"}"#,
            "[]",
            "",
        ] {
            assert!(serde_json::from_str::<Request>(line).is_err(), "{line}");
        }
    }
}
