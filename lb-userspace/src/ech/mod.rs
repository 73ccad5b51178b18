//! Encrypted ClientHello (RFC 9849): the name a client asks for, where only the holder of a key can read it.
//!
//! The outer ClientHello names a public server, and carries the inner one, encrypted. Whoever has the key reads the
//! inner name, chooses the route by it, and passes the outer ClientHello on as it came: a server with the same key
//! accepts it as if nothing stood between. Pure; no I/O, no clock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod config;
mod inner;
mod key;
mod parts;
mod wire;

pub use config::{EchConfig, Unusable};
pub use key::{Key, KeyError, Keys, generate};
pub use wire::Malformed;

use crate::sniff::{self, ClientHello};
use inner::decode;
use parts::Parts;
use wire::{ENCRYPTED_CLIENT_HELLO, Reader};

/// What the inner ClientHello asks for that the one at the front of `window` carries, `outer`; `None`: it carries none that
/// one of the keys opens. [`Malformed`] also for an inner one that could not be routed if it stood in the clear.
pub fn read(keys: &Keys, window: &[u8], outer: &ClientHello) -> Result<Option<ClientHello>, Malformed> {
    let body = sniff::body(window).ok_or(Malformed)?;
    let Some(sealed) = Sealed::find(&body)? else { return Ok(None) };
    let Some(inner) = sealed.open(keys)? else { return Ok(None) };
    sniff::inner(&inner, outer).map(Some).map_err(|_| Malformed)
}

/// An encrypted ClientHello as the outer one carries it.
#[derive(Debug)]
struct Sealed<'a> {
    outer: Parts<'a>,
    /// The outer ClientHello's body, its payload replaced by zeros: what the encryption also vouches for (section 5.2).
    associated: Vec<u8>,
    kdf: u16,
    aead: u16,
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
            let (kdf, aead, config_id) = (reader.u16()?, reader.u16()?, reader.u8()?);
            let encapsulated = reader.vector16()?;
            let payload = reader.vector16().filter(|payload| !payload.is_empty())?;
            reader.is_empty().then_some((kdf, aead, config_id, encapsulated, payload))
        };
        let (kdf, aead, config_id, encapsulated, payload) = read().ok_or(Malformed)?;
        // It is the extension's last field.
        let end = extension.offset + extension.data.len();
        let mut associated = body.to_vec();
        associated.get_mut(end - payload.len()..end).ok_or(Malformed)?.fill(0);
        Ok(Some(Self { outer, associated, kdf, aead, config_id, encapsulated, payload }))
    }

    /// The body of the inner ClientHello, as the client's handshake is computed with; `None`: it does not open, so it is
    /// GREASE, or its key is not ours. An attempt takes some 70 µs for each key of its number.
    fn open(&self, keys: &Keys) -> Result<Option<Vec<u8>>, Malformed> {
        let open =
            |key: &Key| key.open(self.kdf, self.aead, self.encapsulated, &self.associated, self.payload);
        match self.candidates(keys).find_map(open) {
            Some(encoded) => decode(&encoded, &self.outer).map(Some),
            None => Ok(None),
        }
    }

    fn candidates<'k>(&self, keys: &'k Keys) -> impl Iterator<Item = &'k Key> {
        let (id, suite) = (self.config_id, (self.kdf, self.aead));
        keys.iter()
            .map(|key| &**key)
            .filter(move |key| key.config().config_id == id && key.config().suites.contains(&suite))
    }
}

#[cfg(test)]
mod tests;
