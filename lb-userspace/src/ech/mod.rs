//! Encrypted ClientHello (RFC 9849): the name a client asks for, where only the holder of a key can read it.
//!
//! The outer ClientHello names a public server, and carries the inner one, encrypted. Whoever has the key reads the
//! inner name and chooses the route by it. What the server gets is a matter of the [`Mode`]. Pure; no I/O, no clock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod config;
mod inner;
mod key;
mod parts;
mod split;
mod wire;

pub use config::{EchConfig, Unusable};
pub use key::{Key, KeyError, Keys, generate};
pub use split::{Refused, Split};
pub use wire::Malformed;

use crate::sniff::{self, ClientHello};
use inner::decode;
use parts::Parts;
use rustls::crypto::hpke::HpkeOpener;
use wire::{ENCRYPTED_CLIENT_HELLO, Reader};

/// What the servers of a listener get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// The outer ClientHello as it came: they have the same keys, and accept it as if nothing stood between.
    #[default]
    Shared,
    /// The inner ClientHello: they have no key, but know what such a one is ("split mode" in RFC 9849, section 3.1).
    Split,
}

/// An encrypted ClientHello that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What the inner ClientHello asks for.
    pub hello: ClientHello,
    /// Its body.
    inner: Vec<u8>,
    context: Context,
}

/// The client's and our end of HPKE, with which a second ClientHello is encrypted too (RFC 9849, section 6.1.5).
#[derive(Debug)]
struct Context {
    suite: (u16, u16),
    config_id: u8,
    opener: Box<dyn HpkeOpener>,
}

/// Opens what the ClientHello at the front of `window`, `outer`, carries; `None`: it carries none that one of the keys opens.
/// [`Malformed`] also for an inner one that could not be routed if it stood in the clear. Trying a key takes some 70 µs,
/// whoever asks for it: `attempt` is asked first whether this client may.
pub fn open<E: From<Malformed>>(
    keys: &Keys,
    window: &[u8],
    outer: &ClientHello,
    attempt: impl FnOnce() -> Result<(), E>,
) -> Result<Option<Opened>, E> {
    let body = sniff::body(window).ok_or(Malformed)?;
    let Some(sealed) = Sealed::find(&body)? else { return Ok(None) };
    if sealed.candidates(keys).next().is_none() {
        return Ok(None);
    }
    attempt()?;
    let Some((inner, context)) = sealed.open(keys)? else { return Ok(None) };
    let hello = sniff::inner(&inner, outer).map_err(|_| Malformed)?;
    Ok(Some(Opened { hello, inner, context }))
}

/// An encrypted ClientHello as the outer one carries it.
#[derive(Debug)]
struct Sealed<'a> {
    outer: Parts<'a>,
    /// The outer ClientHello's body, its payload replaced by zeros: what the encryption also vouches for (section 5.2).
    associated: Vec<u8>,
    /// Key derivation function and AEAD.
    suite: (u16, u16),
    config_id: u8,
    encapsulated: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Finds it in the body of a ClientHello; `None`: there is none, or it is one that only a server in split mode
    /// gets (type `inner`).
    fn find(body: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let Some((outer, [])) = Parts::read(body) else { return Err(Malformed) };
        let mut found = outer.extensions.iter().filter(|extension| extension.kind == ENCRYPTED_CLIENT_HELLO);
        let Some(extension) = found.next() else { return Ok(None) };
        if found.next().is_some() {
            return Err(Malformed);
        }
        const OUTER: u8 = 0;
        const INNER: u8 = 1;
        let mut reader = Reader(extension.data);
        match reader.u8() {
            Some(OUTER) => {}
            Some(INNER) if reader.is_empty() => return Ok(None),
            _ => return Err(Malformed),
        }
        let mut read = || {
            let (suite, config_id) = ((reader.u16()?, reader.u16()?), reader.u8()?);
            let encapsulated = reader.vector16()?;
            let payload = reader.vector16().filter(|payload| !payload.is_empty())?;
            reader.is_empty().then_some((suite, config_id, encapsulated, payload))
        };
        let (suite, config_id, encapsulated, payload) = read().ok_or(Malformed)?;
        // It is the extension's last field.
        let end = extension.offset + extension.data.len();
        let mut associated = body.to_vec();
        associated.get_mut(end - payload.len()..end).ok_or(Malformed)?.fill(0);
        Ok(Some(Self { outer, associated, suite, config_id, encapsulated, payload }))
    }

    /// The body of the inner ClientHello, as the client's handshake is computed with, and what a second one is opened with;
    /// `None`: it does not open, so it is GREASE, or its key is not ours.
    fn open(&self, keys: &Keys) -> Result<Option<(Vec<u8>, Context)>, Malformed> {
        let open = |key: &Key| key.open(self.suite, self.encapsulated, &self.associated, self.payload);
        let Some((encoded, opener)) = self.candidates(keys).find_map(open) else { return Ok(None) };
        let context = Context { suite: self.suite, config_id: self.config_id, opener };
        Ok(Some((decode(&encoded, &self.outer)?, context)))
    }

    fn candidates<'k>(&self, keys: &'k Keys) -> impl Iterator<Item = &'k Key> {
        let (id, suite) = (self.config_id, self.suite);
        keys.iter()
            .map(|key| &**key)
            .filter(move |key| key.config().config_id == id && key.config().suites.contains(&suite))
    }
}

#[cfg(test)]
mod tests;
