//! The value of a key in a draft.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::place::{Place, Placed};

/// The value of a key, as far as it makes sense.
#[derive(Clone, Debug, Default)]
pub(super) enum Field<T> {
    /// The key is not there.
    #[default]
    Absent,
    /// It is, and what is wrong with it has been reported.
    Invalid,
    /// It is, and this is its value and where that stands.
    Given(Placed<T>),
}

impl<T> Field<T> {
    pub(super) fn given(&self) -> Option<&Placed<T>> {
        match self {
            Field::Given(value) => Some(value),
            Field::Absent | Field::Invalid => None,
        }
    }

    pub(super) fn place(&self) -> Option<&Place> {
        self.given().map(|value| &value.place)
    }

    pub(super) fn into_value(self) -> Option<T> {
        match self {
            Field::Given(value) => Some(value.value),
            Field::Absent | Field::Invalid => None,
        }
    }

    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Field::Absent)
    }

    pub(super) fn is_invalid(&self) -> bool {
        matches!(self, Field::Invalid)
    }
}

impl<T: Clone> Field<T> {
    /// The value; none also if it is invalid, as the configuration is refused then anyway.
    pub(super) fn get(&self) -> Option<T> {
        self.given().map(|value| value.value.clone())
    }

    /// The value, or what holds without one.
    pub(super) fn or(&self, default: T) -> T {
        self.get().unwrap_or(default)
    }
}
