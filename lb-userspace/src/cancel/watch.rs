//! What a PostgreSQL server says at the begin of a session, until the key for its CancelRequest ("Start-up" and
//! "BackendKeyData" in PostgreSQL's manual). Pure.
//!
//! The gateway puts a key of its own in the place of the server's, byte by byte as they pass. It is as long, so that no
//! message changes its length and none is held back.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::ops::RangeInclusive;

/// Kind and length, which counts itself but not the kind.
const HEADER: usize = 5;
const LENGTH: usize = 4;

const BACKEND_KEY_DATA: u8 = b'K';
/// Authentication, NegotiateProtocolVersion, ParameterStatus, NoticeResponse, ErrorResponse.
const BEFORE: &[u8] = b"RvSNE";

/// Process id and secret: of protocol 3.0, and at most of protocol 3.2.
const KEY: RangeInclusive<usize> = 8..=260;
/// Bytes of a message before the key at the most: with more it is no startup of PostgreSQL.
const MAX_MESSAGE: usize = 1 << 20;
const PROCESS_ID: usize = 4;
/// A secret of so many bytes is long enough to leave the server's process id in front of it.
const LONG_SECRET: usize = 16;

/// A key as the server has given it, and as the client gets it.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) server: Vec<u8>,
    pub(super) client: Vec<u8>,
}

impl Keys {
    /// The next byte of the server's key gives way to that of the client's.
    fn pass(&mut self, byte: &mut u8) {
        let at = self.server.len();
        self.server.push(*byte);
        if at < start(self.client.len()) {
            self.client[at] = *byte;
        }
        *byte = self.client[at];
    }
}

/// The place of the gateway's number in a key of this length; what follows it is random.
fn start(length: usize) -> usize {
    if length >= PROCESS_ID + LONG_SECRET { PROCESS_ID } else { 0 }
}

/// The number of the gateway that has made this key.
pub(super) fn gateway_of(key: &[u8]) -> Option<u16> {
    key.get(start(key.len())..)?.first_chunk().map(|number| u16::from_be_bytes(*number))
}

/// What a server has said so far.
pub(super) struct Watch {
    /// The number of this gateway.
    gateway: u16,
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    read: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    keys: Keys,
    done: bool,
}

impl Watch {
    /// Before the first byte.
    pub(super) fn new(gateway: u16) -> Self {
        Self { gateway, header: [0; HEADER], read: 0, left: 0, keys: Keys::default(), done: false }
    }

    /// Whether the key has passed, or none is to come.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Reads what comes next, and changes what is of the key. `random` fills a key. Returns the keys once they are whole,
    /// which is before the client has the last byte of its own.
    pub(super) fn pass(&mut self, mut bytes: &mut [u8], mut random: impl FnMut(&mut [u8])) -> Option<Keys> {
        while !self.done && !bytes.is_empty() {
            if self.read < HEADER {
                self.header[self.read] = bytes[0];
                self.read += 1;
                bytes = &mut bytes[1..];
                if self.read == HEADER {
                    self.begin(&mut random);
                }
            } else {
                let (part, rest) = bytes.split_at_mut(self.left.min(bytes.len()));
                self.left -= part.len();
                if self.header[0] == BACKEND_KEY_DATA {
                    part.iter_mut().for_each(|byte| self.keys.pass(byte));
                }
                bytes = rest;
            }
            if self.read == HEADER && self.left == 0 && !self.done {
                self.read = 0;
                if self.header[0] == BACKEND_KEY_DATA {
                    self.done = true;
                    return Some(std::mem::take(&mut self.keys));
                }
            }
        }
        None
    }

    /// The header of a message is there.
    fn begin(&mut self, random: &mut impl FnMut(&mut [u8])) {
        let [kind, length @ ..] = self.header;
        let length = u32::from_be_bytes(length) as usize;
        self.left = length.saturating_sub(LENGTH);
        self.done = match kind {
            BACKEND_KEY_DATA => !KEY.contains(&self.left),
            _ => !(LENGTH..=MAX_MESSAGE).contains(&length) || !BEFORE.contains(&kind),
        };
        if kind == BACKEND_KEY_DATA && !self.done {
            let mut key = vec![0; self.left];
            let number = start(key.len());
            random(&mut key[number..]);
            key[number..number + 2].copy_from_slice(&self.gateway.to_be_bytes());
            self.keys.client = key;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind][..], &(content.len() as u32 + 4).to_be_bytes(), content].concat()
    }

    /// What a server says to a client that is let in, with a key of so many bytes; and the key.
    fn startup(length: usize) -> (Vec<u8>, Vec<u8>) {
        let key: Vec<u8> = (1..=length).map(|number| number as u8).collect();
        let said = [
            message(b'v', b"\0\0\0\0\0\0\0\x01_pq_.other\0"),
            message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
            message(b'R', b"\0\0\0\0"),
            message(b'S', b"server_version\x0018.6\0"),
            message(b'N', b""),
            message(BACKEND_KEY_DATA, &key),
            message(b'Z', b"I"),
            message(BACKEND_KEY_DATA, &key),
        ];
        (said.concat(), key)
    }

    /// What the client gets of what comes in pieces of this size, and the keys.
    fn pass(said: &[u8], size: usize) -> (Vec<u8>, Vec<Keys>) {
        let mut watch = Watch::new(0x0102);
        let (mut got, mut keys) = (said.to_vec(), Vec::new());
        for piece in got.chunks_mut(size) {
            keys.extend(watch.pass(piece, |key| key.fill(0xee)));
        }
        (got, keys)
    }

    #[test]
    fn a_short_key_is_replaced_whole_and_a_long_secret_leaves_the_process_id() {
        for (length, expected) in [
            (8, [&[1, 2][..], &[0xee; 6]].concat()),
            (12, [&[1, 2][..], &[0xee; 10]].concat()),
            (36, [&[1, 2, 3, 4, 1, 2][..], &[0xee; 30]].concat()),
            (260, [&[1, 2, 3, 4, 1, 2][..], &[0xee; 254]].concat()),
        ] {
            let (said, key) = startup(length);
            let first = said.windows(5).position(|window| window[0] == BACKEND_KEY_DATA).unwrap() + 5;
            let mut expected_bytes = said.clone();
            expected_bytes[first..first + length].copy_from_slice(&expected);
            for size in 1..=said.len() {
                let (got, keys) = pass(&said, size);
                assert!(got == expected_bytes, "{length} in pieces of {size}");
                assert!(keys.len() == 1 && keys[0].server == key && keys[0].client == expected);
            }
            assert_eq!(gateway_of(&expected), Some(0x0102));
        }
        assert_eq!(gateway_of(b"1"), None);
    }

    #[test]
    fn what_is_no_startup_passes_as_it_is() {
        let (startup, _) = startup(8);
        for first in [
            message(b'Z', b"I"),
            message(b'D', b""),
            message(BACKEND_KEY_DATA, &[0; 7]),
            message(BACKEND_KEY_DATA, &[0; 261]),
            b"R\0\0\0\x03".to_vec(),
            b"R\xff\xff\xff\xff".to_vec(),
        ] {
            let said = [first, startup.clone()].concat();
            let (got, keys) = pass(&said, 3);
            assert!(got == said && keys.is_empty());
        }
    }

    proptest! {
        #[test]
        fn whatever_a_server_says_nothing_but_a_key_is_changed(
            said in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                (0..startup(36).0.len(), prop::collection::vec(any::<u8>(), 0..200))
                    .prop_map(|(end, rest)| [&startup(36).0[..end], &rest].concat()),
            ],
            size in 1usize..50,
        ) {
            let (got, keys) = pass(&said, size);
            prop_assert!(keys.len() <= 1);
            let differ: Vec<_> = (0..said.len()).filter(|&at| said[at] != got[at]).collect();
            prop_assert!(differ.first().zip(differ.last()).is_none_or(|(first, last)| last - first < 260));
            prop_assert!(pass(&said, usize::MAX).0 == got);
        }
    }
}
