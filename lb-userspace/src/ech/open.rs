//! An encrypted ClientHello is opened.

use super::inner::decode;
use super::key::{Key, Keys};
use super::parts::Parts;
use super::wire::{ENCRYPTED_CLIENT_HELLO, Malformed, Reader};
use crate::sniff::{self, ClientHello};
use rustls::crypto::hpke::HpkeOpener;

/// An encrypted ClientHello that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What the inner ClientHello asks for.
    pub hello: ClientHello,
    /// Its body.
    pub(super) inner: Vec<u8>,
    pub(super) context: Context,
}

/// The client's and our end of HPKE, with which a second ClientHello is encrypted too (RFC 9849, section 6.1.5).
#[derive(Debug)]
pub(super) struct Context {
    pub(super) suite: (u16, u16),
    pub(super) config_id: u8,
    pub(super) opener: Box<dyn HpkeOpener>,
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
pub(super) struct Sealed<'a> {
    pub(super) outer: Parts<'a>,
    /// The outer ClientHello's body, its payload replaced by zeros: what the encryption also vouches for (section 5.2).
    pub(super) associated: Vec<u8>,
    /// Key derivation function and AEAD.
    pub(super) suite: (u16, u16),
    pub(super) config_id: u8,
    pub(super) encapsulated: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Finds it in the body of a ClientHello; `None`: there is none, or it is one that only a server in split mode
    /// gets (type `inner`).
    pub(super) fn find(body: &'a [u8]) -> Result<Option<Self>, Malformed> {
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
    pub(super) fn open(&self, keys: &Keys) -> Result<Option<(Vec<u8>, Context)>, Malformed> {
        let open = |key: &Key| key.open(self.suite, self.encapsulated, &self.associated, self.payload);
        let Some((encoded, opener)) = self.candidates(keys).find_map(open) else { return Ok(None) };
        let context = Context { suite: self.suite, config_id: self.config_id, opener };
        Ok(Some((decode(&encoded, &self.outer)?, context)))
    }

    pub(super) fn candidates<'k>(&self, keys: &'k Keys) -> impl Iterator<Item = &'k Key> {
        let (id, suite) = (self.config_id, self.suite);
        keys.iter()
            .map(|key| &**key)
            .filter(move |key| key.config().config_id == id && key.config().suites.contains(&suite))
    }
}
