//! Records: the outer framing of a ClientHello, walked as it streams in.
//!
//! Only what both lengths say is waited for, the record's and the handshake message's. Everything inside the
//! message is looked at when it is whole, so an inner length that lies is never "need more".
//!
//! A record's version is ignored, as RFC 8446, section 5.1, wants it, and a record may be empty: OpenSSL takes that.

use std::borrow::Cow;

use crate::reason::RejectReason;

/// The longest ClientHello, in bytes of handshake message body. Real ones have 200 to 2000; this is the most that
/// OpenSSL takes.
pub const MAX_HELLO: usize = 131_396;

/// The longest run of records that may carry a ClientHello: one split into records of a few bytes must be shorter
/// than [`MAX_HELLO`]. A caller needs no larger window.
pub const MAX_WINDOW: usize = 160 * 1024;

/// Content type, legacy version, length.
const RECORD_HEADER: usize = 5;
/// Message type, length in 24 bits.
const MESSAGE_HEADER: usize = 4;
/// TLSPlaintext.length (RFC 8446, section 5.1).
const MAX_RECORD: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// How far the window has been walked.
#[derive(Debug)]
pub(super) struct Records {
    /// The longest run of records, [`MAX_WINDOW`] at the most.
    limit: usize,
    /// Bytes of the window walked; a record header comes next when `left` is 0.
    position: usize,
    /// Payload bytes of the current record that are not walked yet.
    left: usize,
    /// Bytes of the message walked, its header included.
    gathered: usize,
    /// The message's header, valid up to `gathered`.
    header: [u8; MESSAGE_HEADER],
    /// Turns of the loop in [`Self::advance`]: what the tests hold against the number of segments.
    #[cfg(test)]
    pub(super) turns: usize,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            limit: MAX_WINDOW,
            position: 0,
            left: 0,
            gathered: 0,
            header: [0; MESSAGE_HEADER],
            #[cfg(test)]
            turns: 0,
        }
    }
}

impl Records {
    /// Nothing is walked yet; the records of a ClientHello may have so many bytes, and no more than [`MAX_WINDOW`].
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.min(MAX_WINDOW), ..Self::default() }
    }

    /// Walks what is new in the window; gives the body of the ClientHello once it is whole.
    pub(super) fn advance<'a>(&mut self, window: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, RejectReason> {
        loop {
            #[cfg(test)]
            {
                self.turns += 1;
            }
            if self.length().is_some_and(|length| self.gathered == length) {
                return Ok(Some(body(window.get(..self.position).unwrap_or_default())));
            }
            let due = if self.left == 0 { RECORD_HEADER } else { self.left };
            if self.position + due > self.limit {
                return Err(RejectReason::HelloTooLarge);
            }
            let unread = window.get(self.position..).unwrap_or_default();
            let walked = if self.left == 0 { self.record(unread)? } else { self.payload(unread)? };
            if walked == 0 {
                return Ok(None);
            }
            self.position += walked;
            // A server may not be sent a second message yet, so a ClientHello ends where its record ends.
            if self.length().is_some_and(|length| self.gathered + self.left > length) {
                return Err(RejectReason::HelloMalformed);
            }
        }
    }

    /// Bytes of the window that have been walked: when the message is whole, where its last record ends.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The message's length with its header, once that is there.
    fn length(&self) -> Option<usize> {
        let [_, high, middle, low] = self.header;
        (self.gathered >= MESSAGE_HEADER)
            .then(|| MESSAGE_HEADER + u32::from_be_bytes([0, high, middle, low]) as usize)
    }

    /// A record header: its length, or 0 while it is not whole. What is there is judged at once.
    fn record(&mut self, unread: &[u8]) -> Result<usize, RejectReason> {
        if unread.first().is_some_and(|&content_type| content_type != HANDSHAKE) {
            let first = self.position == 0;
            return Err(if first { RejectReason::NotTls } else { RejectReason::HelloMalformed });
        }
        let Some(length) = record_length(unread) else {
            return Ok(0);
        };
        if length > MAX_RECORD {
            return Err(RejectReason::HelloMalformed);
        }
        self.left = length;
        Ok(RECORD_HEADER)
    }

    /// Payload: as much of it as is there, but a message header on its own.
    fn payload(&mut self, unread: &[u8]) -> Result<usize, RejectReason> {
        let mut walked = self.left.min(unread.len());
        if self.gathered < MESSAGE_HEADER {
            walked = walked.min(MESSAGE_HEADER - self.gathered);
            self.header[self.gathered..self.gathered + walked].copy_from_slice(&unread[..walked]);
        }
        self.gathered += walked;
        self.left -= walked;
        if self.gathered > 0 && self.header[0] != CLIENT_HELLO {
            return Err(RejectReason::HelloMalformed);
        }
        if self.length().is_some_and(|length| length > MESSAGE_HEADER + MAX_HELLO.min(self.limit)) {
            return Err(RejectReason::HelloTooLarge);
        }
        Ok(walked)
    }
}

fn record_length(record: &[u8]) -> Option<usize> {
    let length = record.get(3..RECORD_HEADER)?;
    Some(usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// The message body in whole records, copied only if there are several.
fn body(mut records: &[u8]) -> Cow<'_, [u8]> {
    let mut payloads = std::iter::from_fn(|| {
        let (payload, rest) = records.get(RECORD_HEADER..)?.split_at_checked(record_length(records)?)?;
        records = rest;
        Some(payload)
    });
    let mut message = Cow::Borrowed(payloads.next().unwrap_or_default());
    for payload in payloads {
        message.to_mut().extend_from_slice(payload);
    }
    match message {
        Cow::Borrowed(message) => Cow::Borrowed(message.get(MESSAGE_HEADER..).unwrap_or_default()),
        Cow::Owned(mut message) => {
            message.drain(..MESSAGE_HEADER.min(message.len()));
            Cow::Owned(message)
        }
    }
}
