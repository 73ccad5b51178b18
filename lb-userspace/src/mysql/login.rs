//! The login (HandshakeResponse41) of a client whose TLS ends at the gateway, and what a server gets in its place.

use super::capability::{
    COMPRESS, CONNECT_ATTRS, CONNECT_WITH_DB, LENENC_AUTH, PLUGIN_AUTH, PROTOCOL_41, QUERY_ATTRIBUTES,
    SECURE_CONNECTION, ZSTD,
};
use super::greeting::Offer;
use super::packet::{Reader, packet};
use super::request::{Asked, REQUEST_LENGTH, SslRequest};

/// Bytes of a login at most: attributes may have 64 KiB.
pub const MAX_LOGIN: usize = 80 * 1024;

/// A plugin that no account has: the server sends AuthSwitchRequest, with the account's own plugin and its own salt.
const NO_PLUGIN: &[u8] = b"snisplice_asks";

/// Why a login cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// It contradicts the protocol.
    #[error("the login is malformed")]
    Malformed,
    /// The client knows no authentication plugins.
    #[error("the client knows no authentication plugins")]
    Old,
}

/// A client's login, without what it has answered to the gateway's salt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    asked: Asked,
    user: Vec<u8>,
    /// Empty unless `CONNECT_WITH_DB`.
    database: Vec<u8>,
    /// With their length; empty unless `CONNECT_ATTRS`.
    attributes: Vec<u8>,
    /// What is behind them: the level of zstd.
    tail: Vec<u8>,
}

impl Login {
    /// Reads the payload of a login after this greeting.
    pub fn read(payload: &[u8], offer: Offer) -> Result<Self, LoginError> {
        let mut rest = Reader(payload);
        let front = rest.array::<REQUEST_LENGTH>().ok_or(LoginError::Malformed)?;
        let request = SslRequest(front);
        let has = |capability| request.capabilities() & capability != 0;
        if !has(PROTOCOL_41) {
            return Err(LoginError::Malformed);
        }
        if !has(PLUGIN_AUTH) {
            return Err(LoginError::Old);
        }
        let mut parts = || -> Option<(&[u8], &[u8], &[u8])> {
            let user = rest.text()?;
            if has(LENENC_AUTH) {
                let length = rest.number()?;
                rest.bytes(length)?;
            } else if has(SECURE_CONNECTION) {
                let length = rest.byte()?;
                rest.bytes(length.into())?;
            } else {
                rest.text()?;
            }
            let database = if has(CONNECT_WITH_DB) { rest.last_text() } else { b"" };
            let _plugin = rest.last_text();
            let mut attributes: &[u8] = b"";
            if has(CONNECT_ATTRS) && !rest.0.is_empty() {
                let (begin, length) = (rest.0, rest.number()?);
                rest.bytes(length)?;
                attributes = &begin[..begin.len() - rest.0.len()];
            }
            Some((user, database, attributes))
        };
        let (user, database, attributes) = parts().ok_or(LoginError::Malformed)?;
        Ok(Self {
            asked: Asked { offer, request: request.masked(offer) },
            user: user.to_vec(),
            database: database.to_vec(),
            attributes: attributes.to_vec(),
            tail: rest.0.to_vec(),
        })
    }

    /// The request for TLS that comes before it.
    pub fn asked(&self) -> Asked {
        let request = self.asked.request.with(super::capability::SSL | SECURE_CONNECTION);
        Asked { request, ..self.asked }
    }

    /// As it goes to the server, inside TLS.
    pub fn packet(&self) -> Vec<u8> {
        let request = self.asked().request;
        let has = |capability| request.capabilities() & capability != 0;
        // A length of zero bytes is the same in both encodings.
        let mut payload = [&request.0[..], &self.user, &[0], &[0]].concat();
        if has(CONNECT_WITH_DB) {
            payload.extend_from_slice(&self.database);
            payload.push(0);
        }
        payload.extend_from_slice(NO_PLUGIN);
        payload.push(0);
        if has(CONNECT_ATTRS) {
            payload.extend_from_slice(if self.attributes.is_empty() { &[0] } else { &self.attributes });
        }
        payload.extend_from_slice(&self.tail);
        packet(2, &payload)
    }

    /// Whether packets are compressed after it, if the server accepts it.
    pub fn compresses(&self) -> bool {
        self.asked.request.capabilities() & (COMPRESS | ZSTD) != 0
    }

    /// Whether its statements have room for attributes.
    pub fn has_query_attributes(&self) -> bool {
        self.asked.request.capabilities() & QUERY_ATTRIBUTES != 0
    }
}

#[cfg(test)]
mod tests {
    use super::super::greeting::tests::mysql;
    use super::super::{Announcement, HEADER, capability, first};
    use super::*;
    use proptest::prelude::*;

    const ALL: u32 = !(COMPRESS | ZSTD);

    fn offer() -> Offer {
        Announcement::of([mysql()].iter()).unwrap().offer(0x7f00_0001)
    }

    fn login(capabilities: u32, auth: &[u8], behind: &[u8]) -> Vec<u8> {
        let mut payload = capabilities.to_le_bytes().to_vec();
        payload.extend([0, 0, 0, 1, 45]);
        payload.resize(REQUEST_LENGTH, 0);
        [&payload, &b"app\0"[..], &[auth.len() as u8], auth, behind].concat()
    }

    #[test]
    fn a_server_gets_the_login_without_what_answered_our_salt() {
        let behind = b"shop\0caching_sha2_password\0\x07\x02os\x03Lin\x05";
        let read = Login::read(&login(ALL, &[7; 32], behind), offer()).unwrap();
        let sent = read.packet();
        let (2, payload) = first(&sent, MAX_LOGIN).unwrap().unwrap() else { panic!() };
        assert_eq!(&payload[REQUEST_LENGTH..], b"app\0\0shop\0snisplice_asks\0\x07\x02os\x03Lin\x05");
        // Both times the same capabilities, none of which nobody has offered.
        assert_eq!(payload[..REQUEST_LENGTH], read.asked().request.0);
        assert_eq!(read.asked().request.capabilities() & !mysql().capabilities, 0);
        assert!(read.asked().request.suits(&mysql()));
        // Read again, it is the same.
        assert_eq!(Login::read(payload, offer()).unwrap(), read);
    }

    #[test]
    fn what_a_client_does_not_send_the_server_does_not_get() {
        let few = ALL & !(CONNECT_WITH_DB | CONNECT_ATTRS);
        let read = Login::read(&login(few, b"", b"mysql_native_password\0"), offer()).unwrap();
        assert_eq!(&read.packet()[HEADER + REQUEST_LENGTH..], b"app\0\0snisplice_asks\0");
        // Some leave out what they have announced.
        let short = Login::read(&login(ALL, b"", b""), offer()).unwrap();
        assert_eq!(&short.packet()[HEADER + REQUEST_LENGTH..], b"app\0\0\0snisplice_asks\0\0");
    }

    #[test]
    fn old_and_broken_logins_are_refused() {
        let refused = |capabilities| Login::read(&login(capabilities, b"", b""), offer()).unwrap_err();
        assert_eq!(refused(ALL & !PLUGIN_AUTH), LoginError::Old);
        assert_eq!(refused(ALL & !PROTOCOL_41), LoginError::Malformed);
        let whole = login(ALL, &[7; 32], b"shop\0plugin\0\x07\x02os\x03Lin");
        let parts = REQUEST_LENGTH + 4 + 1 + 32;
        for length in 0..parts {
            assert_eq!(Login::read(&whole[..length], offer()), Err(LoginError::Malformed), "{length}");
        }
        let attributes_cut = &whole[..whole.len() - 1];
        assert_eq!(Login::read(attributes_cut, offer()), Err(LoginError::Malformed));
    }

    #[test]
    fn what_was_agreed_on_is_known() {
        let read = |capabilities| Login::read(&login(capabilities, b"", b""), offer()).unwrap();
        assert!(
            read(ALL | COMPRESS).compresses() && read(ALL | ZSTD).compresses() && !read(ALL).compresses()
        );
        assert!(read(ALL).has_query_attributes());
        let without = Offer { capabilities: offer().capabilities & !(QUERY_ATTRIBUTES | ZSTD), ..offer() };
        let login = Login::read(&login(!COMPRESS, b"", b""), without).unwrap();
        assert!(!login.has_query_attributes() && !login.compresses(), "not offered");
    }

    proptest! {
        #[test]
        fn arbitrary_logins_never_panic_and_what_is_sent_can_be_read(
            capabilities: u32,
            rest in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut payload = (capabilities | capability::PROTOCOL_41 | PLUGIN_AUTH).to_le_bytes().to_vec();
            payload.extend(rest);
            if let Ok(read) = Login::read(&payload, offer()) {
                let packet = read.packet();
                let again = Login::read(&packet[HEADER..], offer());
                prop_assert!(again.is_ok());
                prop_assert_eq!(again.unwrap().packet(), packet);
            }
        }
    }
}
