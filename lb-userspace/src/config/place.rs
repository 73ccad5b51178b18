//! Where the values of a draft stand.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::Range;
use std::sync::Arc;

/// Where a value stands. A configuration has one for each of its values: it is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the text of the configuration file.
    File(Span),
    /// In an object of another source.
    Object(Box<ObjectField>),
}

/// A part of the configuration file, in bytes. Files are bounded far below what these hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

/// A field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectField {
    /// Kind and name of the object: `TLSRoute databases/redis-1`.
    pub object: Arc<str>,
    /// Its path: `spec.rules[0]`.
    pub path: Box<str>,
}

impl Span {
    /// In the text.
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl Place {
    /// In the configuration file.
    pub fn span(&self) -> Option<Range<usize>> {
        match self {
            Place::File(span) => Some(span.range()),
            Place::Object(_) => None,
        }
    }

    /// The object, if it is in one.
    pub fn object(&self) -> Option<&Arc<str>> {
        match self {
            Place::File(_) => None,
            Place::Object(field) => Some(&field.object),
        }
    }
}

impl From<Range<usize>> for Place {
    fn from(span: Range<usize>) -> Self {
        let [start, end] = [span.start, span.end].map(|at| u32::try_from(at).unwrap_or(u32::MAX));
        Place::File(Span { start, end })
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
