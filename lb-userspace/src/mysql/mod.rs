//! What a gateway needs of the protocol of MySQL and MariaDB ("Client/Server Protocol" in the manuals of both): the greeting,
//! the request for TLS, the login, errors, and KILL. Pure.
//!
//! The server speaks first, so a gateway that routes by SNI must greet the client itself: with what the servers behind it have
//! in common. The client's answer to that greeting's salt is worth nothing to any of them. Each asks again, inside TLS: with
//! AuthSwitchRequest, or by the full authentication of `caching_sha2_password`.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod error;
mod greeting;
mod kill;
mod login;
mod packet;
mod request;

pub use error::{ServerError, closed_error, old_client_error, rejected_error};
pub use greeting::{Announcement, Family, Greeted, Offer, SALT, ServerGreeting, read_greeting, salt};
pub use kill::Kills;
pub use login::{Login, LoginError, MAX_LOGIN};
pub use packet::{HEADER, MAX_GREETING, TooLong, first, packet};
pub use request::{Asked, REQUEST_LENGTH, SslRequest};

/// Bits of the capabilities of both sides (`CLIENT_…` in the manuals).
pub mod capability {
    /// CLIENT_LONG_PASSWORD, which every MySQL has. MariaDB calls it CLIENT_MYSQL: without it, capabilities of its own follow.
    pub const MYSQL: u32 = 1;
    /// The login names a database.
    pub const CONNECT_WITH_DB: u32 = 1 << 3;
    /// Packets are compressed after the login.
    pub const COMPRESS: u32 = 1 << 5;
    /// The protocol since 4.1.
    pub const PROTOCOL_41: u32 = 1 << 9;
    /// TLS.
    pub const SSL: u32 = 1 << 11;
    /// The login's authentication data has a length byte.
    pub const SECURE_CONNECTION: u32 = 1 << 15;
    /// Accounts have authentication plugins.
    pub const PLUGIN_AUTH: u32 = 1 << 19;
    /// The login has attributes.
    pub const CONNECT_ATTRS: u32 = 1 << 20;
    /// The length of the login's authentication data is encoded.
    pub const LENENC_AUTH: u32 = 1 << 21;
    /// As `COMPRESS`, by zstd.
    pub const ZSTD: u32 = 1 << 26;
    /// Statements may have attributes.
    pub const QUERY_ATTRIBUTES: u32 = 1 << 27;
    /// The client's own: it looks at the server's certificate.
    pub const SSL_VERIFY_SERVER_CERT: u32 = 1 << 30;
    /// The client's own.
    pub const REMEMBER_OPTIONS: u32 = 1 << 31;
}
