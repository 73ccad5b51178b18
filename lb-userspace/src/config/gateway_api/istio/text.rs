//! How Istio's objects say which texts are meant.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde::Deserialize;

use crate::config::gateway_api::requests::Expressions;
use crate::config::http::ValueMatch;

/// A text; empty: any.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Text {
    exact: Option<Box<str>>,
    prefix: Option<Box<str>>,
    regex: Option<Box<str>>,
}

/// The one thing that a text asks for.
pub(super) enum Only {
    Any,
    Exact(Box<str>),
    Begin(Box<str>),
    Regex(Box<str>),
}

impl Text {
    /// Whether it asks for more than one text.
    pub(super) fn is_pattern(&self) -> bool {
        self.prefix.is_some() || self.regex.is_some()
    }

    pub(super) fn only(self) -> Result<Only, String> {
        match (self.exact, self.prefix, self.regex) {
            (None, None, None) => Ok(Only::Any),
            (Some(exact), None, None) => Ok(Only::Exact(exact)),
            (None, Some(begin), None) => Ok(Only::Begin(begin)),
            (None, None, Some(regex)) => Ok(Only::Regex(regex)),
            _ => Err("of `exact`, `prefix` and `regex` there can be one".to_owned()),
        }
    }

    /// As the value of a header or a parameter.
    pub(super) fn value(self, expressions: &mut Expressions) -> Result<ValueMatch, String> {
        Ok(match self.only()? {
            Only::Any => ValueMatch::Regex(expressions.make("(?s).*")?),
            Only::Exact(exact) => ValueMatch::Exact(exact),
            Only::Begin(begin) => {
                ValueMatch::Regex(expressions.make(&format!("(?s){}.*", regex_syntax::escape(&begin)))?)
            }
            Only::Regex(regex) => ValueMatch::Regex(expressions.read(&regex)?),
        })
    }
}
