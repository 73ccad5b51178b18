//! The request for TLS: the front part of a login, sent in clear text.

use super::capability::{
    CONNECT_ATTRS, CONNECT_WITH_DB, LENENC_AUTH, MYSQL, PLUGIN_AUTH, REMEMBER_OPTIONS, SECURE_CONNECTION,
    SSL, SSL_VERIFY_SERVER_CERT,
};
use super::greeting::{Offer, ServerGreeting};
use super::packet::packet;

/// Bytes of an SSLRequest's payload: capabilities, longest packet, collation, and a filler, whose end has MariaDB's own
/// capabilities.
pub const REQUEST_LENGTH: usize = 32;

/// Where MariaDB's own capabilities begin.
const EXTENDED: usize = 28;

/// They say how the login is to be read, so they stay as the client has them.
const STEERING: u32 = SSL | CONNECT_WITH_DB | SECURE_CONNECTION | PLUGIN_AUTH | CONNECT_ATTRS | LENENC_AUTH;

/// To which a server need not have agreed.
const NOT_AGREED: u32 = MYSQL | STEERING | SSL_VERIFY_SERVER_CERT | REMEMBER_OPTIONS;

/// An SSLRequest's payload, or the same part of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SslRequest(pub [u8; REQUEST_LENGTH]);

impl SslRequest {
    /// The client's capabilities.
    pub fn capabilities(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }

    fn extended(&self) -> u32 {
        let [.., a, b, c, d] = self.0;
        u32::from_le_bytes([a, b, c, d])
    }

    /// With these capabilities as well.
    pub(super) fn with(mut self, capabilities: u32) -> Self {
        let capabilities = self.capabilities() | capabilities;
        self.0[..4].copy_from_slice(&capabilities.to_le_bytes());
        self
    }

    /// Without the capabilities that nobody has offered. Some clients ask for such (mysql 9.7, npm's mysql2), as if they did
    /// not: servers that have them would take them at their word.
    pub fn masked(mut self, offer: Offer) -> Self {
        let capabilities = self.capabilities() & (offer.capabilities | STEERING | MYSQL);
        let extended = self.extended() & offer.extended;
        self.0[..4].copy_from_slice(&capabilities.to_le_bytes());
        self.0[EXTENDED..].copy_from_slice(&extended.to_le_bytes());
        self
    }

    /// Whether this server has what the client was offered and has taken. It may have changed since it was last heard.
    pub fn suits(&self, server: &ServerGreeting) -> bool {
        let wanted = self.capabilities() & !NOT_AGREED;
        wanted & !server.capabilities == 0 && self.extended() & !server.extended == 0
    }

    /// As it is sent in answer to a greeting.
    pub fn packet(&self) -> Vec<u8> {
        packet(1, &self.0)
    }
}

/// How a MySQL client has asked for TLS, and after which greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it was greeted with.
    pub offer: Offer,
    /// Its request, masked.
    pub request: SslRequest,
}

#[cfg(test)]
mod tests {
    use super::super::greeting::tests::{mariadb, mysql};
    use super::super::{Announcement, capability};
    use super::*;

    fn request(capabilities: u32, extended: u32) -> SslRequest {
        let mut payload = [0; REQUEST_LENGTH];
        payload[..4].copy_from_slice(&capabilities.to_le_bytes());
        payload[EXTENDED..].copy_from_slice(&extended.to_le_bytes());
        SslRequest(payload)
    }

    fn offer(servers: &[ServerGreeting]) -> Offer {
        Announcement::of(servers.iter()).unwrap().offer(1)
    }

    #[test]
    fn what_nobody_has_offered_is_taken_out_but_what_steers_parsing_stays() {
        let masked = request(u32::MAX, u32::MAX).masked(offer(&[mariadb()]));
        assert_eq!(masked.capabilities(), 0x81ff_ffff);
        assert_eq!(masked.extended(), 0x1d);
        let mixed = request(u32::MAX, u32::MAX).masked(offer(&[mysql(), mariadb()]));
        assert_eq!((mixed.capabilities(), mixed.extended()), (0x81ff_ffff, 0));
        let nothing = Offer { id: 1, capabilities: 0, extended: 0 };
        assert_eq!(request(u32::MAX, 0).masked(nothing).capabilities(), STEERING | MYSQL);
        assert_eq!(request(SSL, 0).masked(nothing).capabilities(), SSL);
    }

    #[test]
    fn a_server_without_what_was_offered_does_not_suit() {
        let all = request(u32::MAX, 0).masked(offer(&[mysql()]));
        assert!(all.suits(&mysql()));
        assert!(!all.suits(&mariadb()));
        let common = request(u32::MAX, u32::MAX).masked(offer(&[mysql(), mariadb()]));
        assert!(common.suits(&mysql()) && common.suits(&mariadb()));
        let own = request(!capability::MYSQL, 0x1d).masked(offer(&[mariadb()]));
        assert!(own.suits(&mariadb()));
        assert!(!own.suits(&ServerGreeting { extended: 0x1, ..mariadb() }));
    }
}
