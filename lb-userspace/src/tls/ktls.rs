//! What a session is when the kernel has its records: its keys, and what its peer says beside application data.

use super::cause::cause;
use super::session::{Role, Session};
use crate::kernel::ktls::{Cipher, ContentType, Direction, Keys, NONCE, Suite, Version};
use crate::reason::TlsError;
use rustls::kernel::KernelConnection;
use rustls::{CipherSuite, ConnectionTrafficSecrets, Error, ExtractedSecrets, ProtocolVersion};

/// Blocks of 16 bytes that a key of AES-GCM may protect: 2^24 records of the largest size, what rustls allows too
/// (RFC 8446, section 5.5, has 2^24.5). It is the blocks that wear a key, so that small records do less.
const MOST_BLOCKS: u64 = (1 << 24) * (16 * 1024 / 16 + 2);

/// Alerts that tell nothing, of those that a peer may send. The bounds are rustls' own.
const MOST_WARNINGS: u8 = 4;

/// KeyUpdates without application data between them: each costs far more to follow than to send.
const MOST_UPDATES: u8 = 32;

/// The KeyUpdate that asks for none (RFC 8446, section 4.6.3).
pub(crate) const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// A session whose records the kernel has.
pub(crate) struct KernelSession<R: Role> {
    connection: KernelConnection<R::Data>,
    suite: Suite,
    warnings: u8,
    updates: u8,
}

/// The keys of both directions.
pub(crate) type BothKeys = [(Direction, Keys); 2];

/// What a peer says beside application data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Nothing to act upon.
    Nothing,
    /// close_notify.
    End,
    /// It has new keys for what it sends from here on. `asks`: so is the gateway to have.
    KeyUpdate { asks: bool },
}

/// How the kernel is to protect the records of this session; `None`: it cannot.
pub(crate) fn suite<R: Role>(session: &Session<R>) -> Option<Suite> {
    let connection = session.connection();
    known(connection.protocol_version()?, connection.negotiated_cipher_suite()?.suite())
}

fn known(version: ProtocolVersion, suite: CipherSuite) -> Option<Suite> {
    use CipherSuite as C;
    let version = match version {
        ProtocolVersion::TLSv1_2 => Version::Tls12,
        ProtocolVersion::TLSv1_3 => Version::Tls13,
        _ => return None,
    };
    let cipher = match suite {
        C::TLS13_AES_128_GCM_SHA256
        | C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Cipher::Aes128Gcm,
        C::TLS13_AES_256_GCM_SHA384
        | C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | C::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Cipher::Aes256Gcm,
        C::TLS13_CHACHA20_POLY1305_SHA256
        | C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | C::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Cipher::Chacha20Poly1305,
        _ => return None,
    };
    Some(Suite { version, cipher })
}

impl<R: Role> KernelSession<R> {
    /// What a session that [is at rest](Session::is_at_rest) becomes when the kernel takes its records, and the keys for those
    /// that come next. `suite`: its [`suite`].
    pub(crate) fn new(session: Session<R>, suite: Suite) -> Result<(Self, BothKeys), TlsError> {
        Self::take_apart(session.into_connection(), suite).map_err(|error| cause(&error, &[]))
    }

    fn take_apart(connection: R, suite: Suite) -> Result<(Self, BothKeys), Error> {
        let (secrets, connection) = connection.into_kernel()?;
        let ExtractedSecrets { tx, rx } = secrets;
        let sends = (Direction::Transmit, keys(suite, Direction::Transmit, &tx)?);
        let receives = (Direction::Receive, keys(suite, Direction::Receive, &rx)?);
        let session = Self { connection, suite, warnings: 0, updates: 0 };
        Ok((session, [sends, receives]))
    }

    /// How its records are protected.
    pub(crate) fn suite(&self) -> Suite {
        self.suite
    }

    /// The keys of this direction after a KeyUpdate (RFC 8446, section 7.2).
    pub(crate) fn next_keys(&mut self, direction: Direction) -> Result<Keys, TlsError> {
        let secrets = match direction {
            Direction::Transmit => self.connection.update_tx_secret(),
            Direction::Receive => self.connection.update_rx_secret(),
        };
        secrets.and_then(|secrets| keys(self.suite, direction, &secrets)).map_err(|error| cause(&error, &[]))
    }

    /// Whether a key that has protected this many bytes in this many records has done enough.
    pub(crate) fn is_spent(&self, bytes: u64, records: u64) -> bool {
        match self.suite.cipher {
            // A counter and a part of a block more for each record.
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => bytes / 16 + 2 * records >= MOST_BLOCKS,
            Cipher::Chacha20Poly1305 => false,
        }
    }

    /// Application data has come.
    pub(crate) fn hear_data(&mut self) {
        self.updates = 0;
    }

    /// Takes what came in records of another type than application data.
    pub(crate) fn hear(&mut self, content: ContentType, bytes: &[u8]) -> Result<Said, TlsError> {
        match (content, self.suite.version, bytes) {
            (ContentType::ALERT, _, alerts) => self.alerts(alerts),
            // Whole, and alone: the kernel expects new keys behind any record that begins like one.
            (ContentType::HANDSHAKE, Version::Tls13, [24, 0, 0, 1, asks @ (0 | 1)])
                if self.updates < MOST_UPDATES =>
            {
                self.updates += 1;
                Ok(Said::KeyUpdate { asks: *asks == 1 })
            }
            // Renegotiation is not served, and nothing else is left to be said.
            _ => Err(TlsError::ProtocolViolation),
        }
    }

    fn alerts(&mut self, bytes: &[u8]) -> Result<Said, TlsError> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        const CLOSE_NOTIFY: u8 = 0;
        const USER_CANCELED: u8 = 90;
        let (alerts, rest) = bytes.as_chunks();
        if alerts.is_empty() || !rest.is_empty() {
            return Err(TlsError::ProtocolViolation);
        }
        for [level, description] in alerts {
            match (self.suite.version, *level, *description) {
                (_, WARNING | FATAL, CLOSE_NOTIFY) => return Ok(Said::End),
                (Version::Tls13, WARNING, USER_CANCELED) | (Version::Tls12, WARNING, _)
                    if self.warnings < MOST_WARNINGS =>
                {
                    self.warnings += 1;
                }
                (Version::Tls13, WARNING, description) if description != USER_CANCELED => {
                    return Err(received(description));
                }
                (_, FATAL, description) => return Err(received(description)),
                _ => return Err(TlsError::ProtocolViolation),
            }
        }
        Ok(Said::Nothing)
    }
}

fn received(alert: u8) -> TlsError {
    cause(&Error::AlertReceived(alert.into()), &[])
}

fn keys(
    suite: Suite,
    direction: Direction,
    (sequence, secrets): &(u64, ConnectionTrafficSecrets),
) -> Result<Keys, Error> {
    let (cipher, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Cipher::Chacha20Poly1305, key, iv),
        _ => return Err(Error::General("keys of an unknown kind".into())),
    };
    let nonce = iv.as_ref().try_into().ok().filter(|_| cipher == suite.cipher);
    let nonce = nonce.map(|nonce| match (suite.version, cipher, direction) {
        (Version::Tls12, Cipher::Aes128Gcm | Cipher::Aes256Gcm, Direction::Transmit) => unused(nonce),
        _ => nonce,
    });
    let keys = nonce.and_then(|nonce| Keys::new(suite, key.as_ref(), nonce, *sequence));
    keys.ok_or_else(|| Error::General("keys that do not suit the suite".into()))
}

/// The nonce with which the kernel is to begin in TLS 1.2 with AES-GCM.
///
/// There the sender chooses the eight bytes of the nonce that a record carries, and may not choose any twice for one key
/// (RFC 5288, section 3). rustls takes a number from the key block and combines each record's sequence number with it (XOR);
/// the kernel takes the number that it is given and counts on from it. So that these never meet, the kernel begins in the half
/// of all numbers in which none of rustls' lies: a sequence number never reaches the uppermost bit.
fn unused(nonce: [u8; NONCE]) -> [u8; NONCE] {
    let [s0, s1, s2, s3, first, ..] = nonce;
    [s0, s1, s2, s3, !first & 0x80, 0, 0, 0, 0, 0, 0, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Serving;
    use crate::tls::session::tests::handshaken;

    fn session(version: &'static rustls::SupportedProtocolVersion) -> KernelSession<Serving> {
        let (connection, _client) = handshaken(version);
        let suite = known(version.version, connection.negotiated_cipher_suite().unwrap().suite()).unwrap();
        KernelSession::take_apart(connection, suite).unwrap().0
    }

    #[test]
    fn a_nonce_of_rustls_is_never_used_by_the_kernel() {
        for first in [0x00_u8, 0x7f, 0x80, 0xff] {
            let nonce = [9, 8, 7, 6, first, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
            let begin = unused(nonce);
            assert_eq!(begin[..4], nonce[..4], "the salt");
            let number = |nonce: [u8; NONCE]| u64::from_be_bytes(*nonce.last_chunk().unwrap());
            // Neither can reach the other's half before 2^63 records.
            assert_ne!(number(nonce) >> 63, number(begin) >> 63);
            assert_eq!(number(begin) << 1, 0);
        }
    }

    #[test]
    fn of_what_a_client_says_beside_application_data_all_else_than_tls_allows_is_refused() {
        use ContentType as T;
        let violation = Err(TlsError::ProtocolViolation);
        for (version, content, bytes, expected) in [
            (&rustls::version::TLS13, T::ALERT, &[1, 0][..], Ok(Said::End)),
            (&rustls::version::TLS12, T::ALERT, &[1, 0], Ok(Said::End)),
            (&rustls::version::TLS13, T::ALERT, &[1, 90, 1, 0], Ok(Said::End)),
            (&rustls::version::TLS13, T::ALERT, &[1, 90], Ok(Said::Nothing)),
            (&rustls::version::TLS12, T::ALERT, &[1, 100], Ok(Said::Nothing)),
            (&rustls::version::TLS13, T::ALERT, &[1, 100], Err(TlsError::AlertOther)),
            (&rustls::version::TLS13, T::ALERT, &[2, 48], Err(TlsError::AlertUnknownCa)),
            (&rustls::version::TLS12, T::ALERT, &[2, 48], Err(TlsError::AlertUnknownCa)),
            (&rustls::version::TLS13, T::ALERT, &[2, 90], Err(TlsError::AlertOther)),
            (&rustls::version::TLS13, T::ALERT, &[2, 0], Ok(Said::End)),
            (&rustls::version::TLS13, T::ALERT, &[3, 0], violation),
            (&rustls::version::TLS13, T::ALERT, &[1, 90, 1, 90, 1, 90, 1, 90, 1, 90], violation),
            (&rustls::version::TLS12, T::ALERT, &[1, 90, 1, 90, 1, 90, 1, 90, 1, 90], violation),
            (&rustls::version::TLS13, T::ALERT, &[1], violation),
            (&rustls::version::TLS13, T::ALERT, &[], violation),
            (&rustls::version::TLS13, T::HANDSHAKE, &[24, 0, 0, 1, 0], Ok(Said::KeyUpdate { asks: false })),
            (&rustls::version::TLS13, T::HANDSHAKE, &[24, 0, 0, 1, 1], Ok(Said::KeyUpdate { asks: true })),
            (&rustls::version::TLS13, T::HANDSHAKE, &[24, 0, 0, 1, 2], violation),
            (&rustls::version::TLS13, T::HANDSHAKE, &[24, 0, 0, 1, 0, 24], violation),
            (&rustls::version::TLS13, T::HANDSHAKE, &[24, 0, 0, 2], violation),
            (&rustls::version::TLS13, T::HANDSHAKE, &[24, 0], violation),
            (&rustls::version::TLS13, T::HANDSHAKE, &[1, 0], violation),
            (&rustls::version::TLS13, T::HANDSHAKE, &[], violation),
            (&rustls::version::TLS12, T::HANDSHAKE, &[24, 0, 0, 1, 0], violation),
            (&rustls::version::TLS13, ContentType(20), &[1], violation),
        ] {
            let heard = session(version).hear(content, bytes);
            assert_eq!(heard, expected, "{:?} {content:?} {bytes:?}", version.version);
        }
    }

    #[test]
    fn key_updates_are_bounded_until_application_data_comes() {
        let mut session = session(&rustls::version::TLS13);
        let mut update = || session.hear(ContentType::HANDSHAKE, &KEY_UPDATE);
        for _ in 0..MOST_UPDATES {
            assert_eq!(update(), Ok(Said::KeyUpdate { asks: false }));
        }
        assert_eq!(update(), Err(TlsError::ProtocolViolation));
        session.hear_data();
        assert_eq!(session.hear(ContentType::HANDSHAKE, &KEY_UPDATE), Ok(Said::KeyUpdate { asks: false }));
    }

    #[test]
    fn each_direction_has_new_keys_after_a_key_update_and_none_in_tls_1_2() {
        let mut newer = session(&rustls::version::TLS13);
        for direction in [Direction::Transmit, Direction::Receive] {
            assert!(newer.next_keys(direction).is_ok());
            assert!(session(&rustls::version::TLS12).next_keys(direction).is_err());
        }
    }

    #[test]
    fn a_key_is_spent_by_bytes_and_by_records() {
        let mut session = session(&rustls::version::TLS13);
        session.suite.cipher = Cipher::Aes128Gcm;
        assert!(!session.is_spent(255 << 30, (255 << 30) / (16 * 1024)));
        assert!(session.is_spent(256 << 30, (256 << 30) / (16 * 1024)));
        // A day with a hundred thousand small answers a second, and not two.
        assert!(!session.is_spent(8_000_000_000 * 5, 5_000_000_000));
        assert!(session.is_spent(0, 10_000_000_000));
        session.suite.cipher = Cipher::Chacha20Poly1305;
        assert!(!session.is_spent(u64::MAX / 2, u64::MAX / 2));
    }
}
