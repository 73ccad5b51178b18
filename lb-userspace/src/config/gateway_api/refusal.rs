//! Why an object is not taken.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Why an object is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", if path.is_empty() { String::new() } else { format!("{path}: ") })]
pub struct Refusal {
    /// Where in the object: `spec.listeners[0].port`; empty: the whole.
    pub path: String,
    /// What is wrong there. Says nothing of a Secret's content.
    pub message: String,
}

impl Refusal {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}
