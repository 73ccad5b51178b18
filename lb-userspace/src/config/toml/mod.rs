//! The TOML source: text to a draft.

mod docs;
mod identity;
mod key;
mod keys;
mod mend;
mod pieces;
mod read;
mod reader;
mod rule;
#[cfg(test)]
mod tests;
mod value;

pub use docs::with_tables_of_keys;
pub(super) use keys::{BACKOFF, CHECKS, CLIENT_RATE_EXAMPLE, REDIRECTION};
pub(super) use read::{read, read_gateway};
pub(crate) use value::{is_http_host, is_http_path};
