//! Encrypted ClientHello (RFC 9849): the name a client asks for, where only the holder of a key can read it.
//!
//! The outer ClientHello names a public server, and carries the inner one, encrypted. Whoever has the key reads the
//! inner name and chooses the route by it. What the server gets is a matter of the [`Mode`]. Pure; no I/O, no clock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod config;
mod inner;
mod key;
mod open;
mod parts;
mod split;
mod wire;

pub use config::{EchConfig, Unusable};
pub use key::{Key, KeyError, Keys, generate};
pub use open::{Opened, open};
pub use split::{Refused, Split};
pub use wire::Malformed;

/// What the servers of a listener get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The outer ClientHello as it came: they have the same keys, and accept it as if nothing stood between.
    #[default]
    Shared,
    /// The inner ClientHello: they have no key, but know what such a one is ("split mode" in RFC 9849, section 3.1).
    Split,
}

#[cfg(test)]
mod tests;
