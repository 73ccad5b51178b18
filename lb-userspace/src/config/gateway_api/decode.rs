//! Parts of objects, as the API writes them, to what is read of them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::refusal::Refusal;

/// Reads a part of an object, which stands at `path`.
pub(super) fn decode<T: DeserializeOwned>(path: &str, value: Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let path = match (path, inner.as_str()) {
            (path, ".") => path.to_owned(),
            ("", inner) => inner.to_owned(),
            (path, inner) => format!("{path}.{inner}"),
        };
        // It may repeat a value of the object.
        let message: String = error.into_inner().to_string().escape_debug().take(200).collect();
        Refusal::new(path, message)
    })
}

/// Whether a field says anything, whose value is not read: it is there, and neither `false` nor empty.
#[derive(Clone, Copy, Default)]
pub(super) struct Given(pub(super) bool);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Given(match Value::deserialize(deserializer)? {
            Value::Null => false,
            Value::Bool(value) => value,
            Value::Number(_) => true,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
        }))
    }
}
