//! Where the values of a draft stand.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::Range;
use std::sync::Arc;

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the text of the configuration file, in bytes.
    File(Range<usize>),
    /// In an object of another source.
    Object {
        /// Its kind and name: `TLSRoute databases/redis-1`.
        object: Arc<str>,
        /// The path of the field: `spec.rules[0]`.
        field: Box<str>,
    },
}

impl Place {
    /// In the configuration file.
    pub fn span(&self) -> Option<&Range<usize>> {
        match self {
            Place::File(span) => Some(span),
            Place::Object { .. } => None,
        }
    }

    /// The object, if it is in one.
    pub fn object(&self) -> Option<&Arc<str>> {
        match self {
            Place::File(_) => None,
            Place::Object { object, .. } => Some(object),
        }
    }
}

impl From<Range<usize>> for Place {
    fn from(span: Range<usize>) -> Self {
        Place::File(span)
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Placed<T> {
    pub(super) fn new(place: impl Into<Place>, value: T) -> Self {
        Self { value, place: place.into() }
    }
}
