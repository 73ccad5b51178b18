//! Records: the outer framing of a ClientHello, parsed as it arrives.
//!
//! Only the record's and the handshake message's length decide how many bytes are waited for. What is inside the message is
//! parsed when the message is complete, so a wrong inner length is malformed and never "need more".
//!
//! A record's version is ignored, as RFC 8446, section 5.1, demands, and a record may be empty, as with OpenSSL.

use std::borrow::Cow;

use crate::reason::RejectReason;

/// The longest ClientHello, in bytes of handshake message body: OpenSSL's limit. Real ones have 200 to 2000.
pub const MAX_HELLO: usize = 131_396;

/// The most bytes of records that carry a ClientHello, with their headers: if they are of a few bytes each, the ClientHello
/// must be shorter than [`MAX_HELLO`]. A caller needs no larger window.
pub const MAX_WINDOW: usize = 160 * 1024;

/// Content type, legacy version, length.
const RECORD_HEADER: usize = 5;
/// Message type, length in 24 bits.
const MESSAGE_HEADER: usize = 4;
/// TLSPlaintext.length (RFC 8446, section 5.1).
const MAX_RECORD: usize = 1 << 14;
pub(crate) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// How far the window was parsed.
#[derive(Debug)]
pub(crate) struct Records {
    /// The longest run of records, [`MAX_WINDOW`] at the most.
    limit: usize,
    /// Parsed bytes of the window. If `left` is 0, a record header comes next.
    position: usize,
    /// Payload bytes of the current record that are not parsed yet.
    left: usize,
    /// Parsed bytes of the message, with its header.
    gathered: usize,
    /// The message's header, valid up to `gathered`.
    header: [u8; MESSAGE_HEADER],
    /// Turns of the loop in [`Self::advance`], which tests compare with the number of segments.
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
    /// Nothing is parsed yet. The records of a ClientHello may have `limit` bytes, and no more than [`MAX_WINDOW`].
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit: limit.min(MAX_WINDOW), ..Self::default() }
    }

    /// Parses the new bytes of the window; returns the body of the ClientHello once it is complete.
    pub(crate) fn advance<'a>(&mut self, window: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, RejectReason> {
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
            // A client may not send a second message yet, so a ClientHello ends at the end of a record.
            if self.length().is_some_and(|length| self.gathered + self.left > length) {
                return Err(RejectReason::HelloMalformed);
            }
        }
    }

    /// Parsed bytes of the window. When the message is complete, this is the end of its last record.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The message's length with its header, once that has arrived.
    fn length(&self) -> Option<usize> {
        let [_, high, middle, low] = self.header;
        (self.gathered >= MESSAGE_HEADER)
            .then(|| MESSAGE_HEADER + u32::from_be_bytes([0, high, middle, low]) as usize)
    }

    /// Parses a record header. Returns its length, or 0 if it is not complete. What has arrived of it is checked at once.
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

    /// Parses payload: as much as has arrived, but not beyond the end of a message header.
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

/// The records of a ClientHello of this body, each of this version.
pub fn framed(body: &[u8], version: [u8; 2]) -> Vec<u8> {
    let mut message = (body.len() as u32).to_be_bytes().to_vec();
    message[0] = CLIENT_HELLO;
    message.extend_from_slice(body);
    let mut records = Vec::with_capacity(message.len() + RECORD_HEADER);
    for payload in message.chunks(MAX_RECORD) {
        records.push(HANDSHAKE);
        records.extend(version);
        // MAX_RECORD at the most.
        records.extend((payload.len() as u16).to_be_bytes());
        records.extend_from_slice(payload);
    }
    records
}

fn record_length(record: &[u8]) -> Option<usize> {
    let length = record.get(3..RECORD_HEADER)?;
    Some(usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// The message body of complete records. It is copied only if there are several.
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
