//! The TOML source: text to a draft.

mod keys;
mod mend;
mod read;
mod reader;
mod value;

pub(super) use read::{read, read_gateway};
