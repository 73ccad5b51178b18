//! Reading and writing vectors in the presentation language of TLS (RFC 8446, section 3).

use crate::reason::RejectReason;

/// The extension's number (RFC 9849, section 5).
pub(super) const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// It contradicts itself or RFC 9849: whoever sent it has to be told `illegal_parameter` (section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the encrypted ClientHello is malformed")]
pub struct Malformed;

impl From<Malformed> for RejectReason {
    fn from(_: Malformed) -> Self {
        Self::EchMalformed
    }
}

/// What is left to be read. Each method takes its part off the front, or gives `None` where that is not whole.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector whose length has one byte.
    pub(super) fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    /// A vector whose length has two bytes.
    pub(super) fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a vector whose length has two bytes; `None`: it is too long for that.
pub(super) fn put_vector16(into: &mut Vec<u8>, vector: &[u8]) -> Option<()> {
    into.extend(u16::try_from(vector.len()).ok()?.to_be_bytes());
    into.extend_from_slice(vector);
    Some(())
}
