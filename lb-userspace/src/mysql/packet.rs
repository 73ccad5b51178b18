//! Packets: three bytes of length, one of sequence, and the payload.

/// Bytes in front of a payload.
pub const HEADER: usize = 4;

/// Bytes of a greeting's payload at most; an error in its place has a message of up to 512.
pub const MAX_GREETING: usize = 1024;

/// A packet that is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the packet is too long")]
pub struct TooLong;

/// A packet of this payload, of less than 16 MiB.
pub fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let [low, middle, high, _] = (payload.len() as u32).to_le_bytes();
    [&[low, middle, high, sequence], payload].concat()
}

/// The sequence and the payload of the packet in front, if it is whole. `most`: bytes of the payload.
pub fn first(bytes: &[u8], most: usize) -> Result<Option<(u8, &[u8])>, TooLong> {
    let &[low, middle, high, ref rest @ ..] = bytes else { return Ok(None) };
    let length = u32::from_le_bytes([low, middle, high, 0]) as usize;
    if length > most {
        return Err(TooLong);
    }
    let Some((sequence, rest)) = rest.split_first() else { return Ok(None) };
    Ok(rest.get(..length).map(|payload| (*sequence, payload)))
}

/// Bytes that are read from the front.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// `None`: there are not as many.
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    /// Up to a zero byte, which is taken too.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.0.iter().position(|&byte| byte == 0)?;
        let text = self.bytes(length)?;
        self.bytes(1)?;
        Some(text)
    }

    /// Up to a zero byte, or the end.
    pub(super) fn last_text(&mut self) -> &'a [u8] {
        self.text().unwrap_or_else(|| std::mem::take(&mut self.0))
    }

    /// A length-encoded integer.
    pub(super) fn number(&mut self) -> Option<usize> {
        let number = match self.byte()? {
            0xfc => u64::from(u16::from_le_bytes(self.array()?)),
            0xfd => {
                let [low, middle, high] = self.array()?;
                u64::from(u32::from_le_bytes([low, middle, high, 0]))
            }
            0xfe => u64::from_le_bytes(self.array()?),
            0xfb | 0xff => return None,
            small => u64::from(small),
        };
        usize::try_from(number).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_is_found_when_it_is_whole() {
        let bytes = [packet(7, b"payload"), packet(8, b"next")].concat();
        for length in 0..HEADER + 7 {
            assert_eq!(first(&bytes[..length], 7), Ok(None));
        }
        assert_eq!(first(&bytes, 7), Ok(Some((7, &b"payload"[..]))));
        assert_eq!(first(&bytes, 6), Err(TooLong));
        assert_eq!(first(&bytes[..3], 6), Err(TooLong), "by its length alone");
        assert_eq!(first(&packet(0, b""), 0), Ok(Some((0, &b""[..]))));
    }

    #[test]
    fn numbers_of_every_length() {
        let number = |bytes| Reader(bytes).number();
        assert_eq!(number(b"\xfa"), Some(250));
        assert_eq!(number(b"\xfc\x01\x02"), Some(0x201));
        assert_eq!(number(b"\xfd\x01\x02\x03"), Some(0x30201));
        assert_eq!(number(b"\xfe\x01\0\0\0\0\0\0\0"), Some(1));
        for broken in [&b""[..], b"\xfb", b"\xff", b"\xfc\x01", b"\xfd\x01\x02", b"\xfe\x01"] {
            assert_eq!(number(broken), None);
        }
    }

    proptest! {
        #[test]
        fn a_reader_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..40), count in 0..50_usize) {
            let _ = first(&bytes, count);
            let mut reader = Reader(&bytes);
            let _ = (reader.number(), reader.text(), reader.bytes(count), reader.last_text());
        }
    }
}
