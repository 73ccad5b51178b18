//! A ClientHello's body in its parts (RFC 8446, section 4.1.2), to be put together anew.

use super::wire::Reader;

/// A ClientHello's body.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// legacy_version and random.
    pub(super) front: &'a [u8],
    pub(super) session_id: &'a [u8],
    /// cipher_suites and legacy_compression_methods, each with its length.
    pub(super) middle: &'a [u8],
    pub(super) extensions: Vec<Extension<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Extension<'a> {
    pub(super) kind: u16,
    pub(super) data: &'a [u8],
    /// Where `data` begins in the body.
    pub(super) offset: usize,
}

const FRONT: usize = 2 + 32;

impl<'a> Parts<'a> {
    /// Reads it from the front of `body`, and gives what follows it; `None`: a length in it lies.
    pub(super) fn read(body: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let mut reader = Reader(body);
        let front = reader.take(FRONT)?;
        let session_id = reader.vector8()?;
        let at = reader.0;
        reader.vector16()?;
        reader.vector8()?;
        let middle = &at[..at.len() - reader.0.len()];
        let mut block = Reader(reader.vector16()?);
        let rest = reader.0;
        let end = body.len() - rest.len();
        let mut extensions = Vec::new();
        while !block.is_empty() {
            let (kind, data) = (block.u16()?, block.vector16()?);
            extensions.push(Extension { kind, data, offset: end - block.0.len() - data.len() });
        }
        Some((Self { front, session_id, middle, extensions }, rest))
    }
}
