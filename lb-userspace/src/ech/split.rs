//! Split mode: a server without the key gets the inner ClientHellos (RFC 9849, sections 7.1 and 7.1.1).
//!
//! The server gets what the client sends, but for its ClientHellos: the first one, and the second one if the server asks for
//! that (HelloRetryRequest). Both are replaced by what they carry. Once the server's first message shows that no second one
//! is to come, or once that has come, nothing is changed any more, and the connection needs no machine.

use super::inner::decode;
use super::open::{Context, Opened, Sealed};
use super::wire::Malformed;
use crate::sniff::{self, ClientHello, HANDSHAKE, Records};

/// What stands between such a server and its client. Sans-IO: the caller reads and writes the sockets.
#[derive(Debug)]
pub struct Split {
    state: State,
    context: Context,
    /// What the first inner ClientHello asks for.
    first: ClientHello,
    /// Bytes of records that the second ClientHello may have.
    limit: usize,
    /// Bytes that are still to come of a record that is no handshake.
    left: usize,
}

#[derive(Debug)]
enum State {
    /// The client's first bytes are its ClientHello, for which this body is to be sent.
    Begin(Vec<u8>),
    /// The server has not answered yet.
    Asked(Answer),
    /// The server has asked for a second ClientHello.
    Retry(Records),
    /// All else goes on as it is.
    Done,
}

/// Why a client's second ClientHello was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Its records, or its message, are no whole ClientHello.
    #[error("the second ClientHello is no TLS")]
    NoHello,
    /// It carries nothing encrypted.
    #[error("the second ClientHello has no encrypted one")]
    Missing,
    /// It, or what it carries, contradicts RFC 9849, or asks for something else than the first.
    #[error("the second encrypted ClientHello is malformed")]
    Malformed,
    /// It was not encrypted by who has encrypted the first.
    #[error("the second encrypted ClientHello does not open")]
    Undecryptable,
}

impl Refused {
    /// The alert that RFC 9849, section 7.1.1, has for it, in a record.
    pub fn alert(self) -> &'static [u8] {
        match self {
            // decode_error, illegal_parameter, missing_extension, decrypt_error (RFC 8446, section 6.2).
            Self::NoHello => const { &sniff::fatal(50) },
            Self::Malformed => const { &sniff::fatal(47) },
            Self::Missing => const { &sniff::fatal(109) },
            Self::Undecryptable => const { &sniff::fatal(51) },
        }
    }
}

impl From<Malformed> for Refused {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl Split {
    /// For a client whose first ClientHello this is. `limit`: bytes that the records of the second one may have.
    pub fn new(opened: Opened, limit: usize) -> Result<Self, Malformed> {
        let Opened { hello, inner, context } = opened;
        is_acceptable(&inner)?;
        Ok(Self { state: State::Begin(inner), context, first: hello, limit, left: 0 })
    }

    /// What may go to the server now. `window` has what the client has sent and this has not given yet, at first with the
    /// whole ClientHello; what it gives is taken from its front, and the rest is called with again.
    pub fn client(&mut self, window: &mut Vec<u8>) -> Result<Vec<u8>, Refused> {
        let mut onward = Vec::new();
        if let State::Begin(inner) = &self.state {
            onward = replace(window, self.first.length, inner);
            self.state = State::Asked(Answer::default());
        }
        let mut walked = 0;
        let second: Option<(usize, Vec<u8>)> = loop {
            let unread = window.get(walked..).unwrap_or_default();
            if self.left > 0 && !unread.is_empty() {
                let part = self.left.min(unread.len());
                (self.left, walked) = (self.left - part, walked + part);
                continue;
            }
            match (&mut self.state, unread) {
                (State::Retry(records), [HANDSHAKE, ..]) => {
                    match records.advance(unread).map_err(|_| Refused::NoHello)? {
                        Some(message) => break Some((records.position(), message.into_owned())),
                        None => break None,
                    }
                }
                // A change_cipher_spec, an alert, or early data (RFC 8446, sections 4.2.10 and 5).
                (State::Asked(_) | State::Retry(_), [kind, _, _, high, low, ..]) if *kind != HANDSHAKE => {
                    self.left = 5 + usize::from(u16::from_be_bytes([*high, *low]));
                }
                _ => break None,
            }
        };
        onward.extend(window.drain(..walked));
        if let Some((length, message)) = second {
            let inner = self.second(&message)?;
            onward.extend(replace(window, length, &inner));
            self.state = State::Done;
        }
        Ok(onward)
    }

    /// Takes note of what the server says, all of which goes to the client as it is.
    pub fn server(&mut self, bytes: &[u8]) {
        if let State::Asked(answer) = &mut self.state
            && let Some(is_retry) = answer.advance(bytes)
        {
            self.state = if is_retry { State::Retry(Records::new(self.limit)) } else { State::Done };
        }
    }

    /// Whether all that comes from here on, and what is left in the client's window, goes on as it is.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the server has asked for a second ClientHello that has not come yet.
    pub fn is_retry(&self) -> bool {
        matches!(self.state, State::Retry(_))
    }

    /// Whether more of the client is of use before the server has answered. It is not behind a handshake message: no
    /// client sends one that early, and only the answer tells what it is.
    pub fn wants_client(&self, window: &[u8]) -> bool {
        self.left > 0 || self.is_retry() || window.first() != Some(&HANDSHAKE)
    }

    /// The inner ClientHello's body that the second outer one carries.
    fn second(&mut self, body: &[u8]) -> Result<Vec<u8>, Refused> {
        let sealed = Sealed::find(body)?.ok_or(Refused::Missing)?;
        let Context { suite, config_id, opener } = &mut self.context;
        if (sealed.suite, sealed.config_id) != (*suite, *config_id) || !sealed.encapsulated.is_empty() {
            return Err(Refused::Malformed);
        }
        let encoded = opener.open(&sealed.associated, sealed.payload).map_err(|_| Refused::Undecryptable)?;
        let inner = decode(&encoded, &sealed.outer)?;
        is_acceptable(&inner)?;
        // What has chosen the route may not change now (RFC 8446, section 4.1.2).
        let hello = sniff::inner(&inner, &self.first).map_err(|_| Refused::Malformed)?;
        if hello != self.first {
            return Err(Refused::Malformed);
        }
        Ok(inner)
    }
}

/// RFC 9849, section 7.1, has this checked by who decrypts. (Where the server does, it may be more lenient: OpenSSL 4.0's is.)
fn is_acceptable(inner: &[u8]) -> Result<(), Malformed> {
    if sniff::offers_no_older_than_1_3(inner) { Ok(()) } else { Err(Malformed) }
}

/// Takes `length` bytes of records off the front of `window`, and gives those of this ClientHello instead.
fn replace(window: &mut Vec<u8>, length: usize, body: &[u8]) -> Vec<u8> {
    let version = [window[1], window[2]];
    window.drain(..length);
    sniff::framed(body, version)
}

/// The server's first message, as far as it tells whether a second ClientHello is to come.
#[derive(Debug, Default)]
struct Answer {
    /// Of a record.
    header: Vec<u8>,
    /// Bytes that are still to come of the record.
    left: usize,
    message: Vec<u8>,
}

impl Answer {
    /// Whether it is a HelloRetryRequest; `None`: that is not clear yet.
    fn advance(&mut self, bytes: &[u8]) -> Option<bool> {
        const SERVER_HELLO: u8 = 2;
        /// Message type, length in 24 bits, legacy_version.
        const FRONT: usize = 6;
        /// The random bytes of a HelloRetryRequest (RFC 8446, section 4.1.3).
        const RETRY: [u8; 32] = *b"\xcf\x21\xad\x74\xe5\x9a\x61\x11\xbe\x1d\x8c\x02\x1e\x65\xb8\x91\
                                   \xc2\xa2\x11\x16\x7a\xbb\x8c\x5e\x07\x9e\x09\xe2\xc8\xa8\x33\x9c";
        for &byte in bytes {
            if self.left == 0 {
                self.header.push(byte);
                if self.header[0] != HANDSHAKE {
                    return Some(false);
                }
                if let [_, _, _, high, low] = self.header[..] {
                    self.left = u16::from_be_bytes([high, low]).into();
                    self.header.clear();
                }
            } else {
                self.left -= 1;
                self.message.push(byte);
                if self.message[0] != SERVER_HELLO {
                    return Some(false);
                }
                if self.message.len() == FRONT + RETRY.len() {
                    return Some(self.message[FRONT..] == RETRY);
                }
            }
        }
        None
    }
}
