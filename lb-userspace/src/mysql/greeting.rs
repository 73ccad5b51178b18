//! The greeting (HandshakeV10): a server's, and the one that the gateway makes of those of the servers behind it.

use super::capability::{MYSQL, PLUGIN_AUTH, PROTOCOL_41, SECURE_CONNECTION, SSL};
use super::error::ServerError;
use super::packet::{Reader, packet};

/// Bytes of a salt.
pub const SALT: usize = 20;

/// The version of the greeting's format.
const FORMAT: u8 = 10;

/// An ERR packet in its place.
const ERROR: u8 = 0xff;

/// SERVER_STATUS_AUTOCOMMIT.
const AUTOCOMMIT: u16 = 2;

/// What a client is told to log in with. An account that has it misses its fast path, for the salt is not the server's, and asks
/// for the password inside TLS. Every other account is asked to log in with its own plugin instead.
const PLUGIN: &str = "caching_sha2_password";

/// What a server says of itself first, without what is new in each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerGreeting {
    /// Its version, without zero bytes: text it chose.
    pub version: Box<[u8]>,
    /// [`capability`](super::capability).
    pub capabilities: u32,
    /// Those of MariaDB alone; 0 unless [`capability::MYSQL`](super::capability::MYSQL) is missing.
    pub extended: u32,
    /// The number of its default collation.
    pub collation: u8,
}

/// Which of the two a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// MySQL, or one that takes itself for it.
    Mysql,
    /// MariaDB.
    Mariadb,
}

/// What a server has sent first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeted {
    /// Its greeting, and the number of the connection there.
    Welcome(ServerGreeting, u32),
    /// It takes no connection of ours.
    Refused(ServerError),
}

/// Reads the payload of a server's first packet; `None`: it is neither.
pub fn read_greeting(payload: &[u8]) -> Option<Greeted> {
    if payload.first() == Some(&ERROR) {
        return ServerError::read(payload).map(Greeted::Refused);
    }
    let mut rest = Reader(payload);
    if rest.byte()? != FORMAT {
        return None;
    }
    let version = rest.text()?.into();
    let id = u32::from_le_bytes(rest.array()?);
    // The first part of the salt, and a zero byte.
    rest.bytes(8 + 1)?;
    let low = u16::from_le_bytes(rest.array()?);
    let collation = rest.byte()?;
    let _status: [u8; 2] = rest.array()?;
    let high = u16::from_le_bytes(rest.array()?);
    let capabilities = u32::from(high) << 16 | u32::from(low);
    let _salt_length = rest.byte()?;
    rest.bytes(6)?;
    let extended = u32::from_le_bytes(rest.array()?);
    let extended = if capabilities & MYSQL == 0 { extended } else { 0 };
    Some(Greeted::Welcome(ServerGreeting { version, capabilities, extended, collation }, id))
}

impl ServerGreeting {
    /// Which of the two it is.
    pub fn family(&self) -> Family {
        let is_named = self.version.windows(7).any(|part| part.eq_ignore_ascii_case(b"mariadb"));
        if is_named || self.capabilities & MYSQL == 0 { Family::Mariadb } else { Family::Mysql }
    }

    /// The numbers at the front of its version. MariaDB may put `5.5.5-` in front of its own.
    fn numbers(&self) -> Vec<u32> {
        let version = self.version.strip_prefix(b"5.5.5-").unwrap_or(&self.version);
        let end = version.iter().position(|byte| !byte.is_ascii_digit() && *byte != b'.');
        let front = String::from_utf8_lossy(&version[..end.unwrap_or(version.len())]);
        front.split('.').map_while(|number| number.parse().ok()).collect()
    }
}

/// What a client was greeted with, as far as it has to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The number of its connection at the gateway.
    pub id: u32,
    /// [`capability`](super::capability).
    pub capabilities: u32,
    /// Those of MariaDB alone.
    pub extended: u32,
}

/// What clients are greeted with: what the servers behind have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The version, without zero bytes.
    pub version: Box<[u8]>,
    /// What clients are told to log in with.
    pub plugin: Box<str>,
    /// There are servers of both families.
    pub mixed: bool,
    capabilities: u32,
    extended: u32,
    collation: u8,
}

impl Announcement {
    /// Of these servers; `None`: there are none. The version is the lowest of those of the first one's family: clients choose
    /// their statements by it.
    pub fn of<'a>(servers: impl Iterator<Item = &'a ServerGreeting> + Clone) -> Option<Self> {
        let first = servers.clone().next()?;
        let is_first = |server: &&ServerGreeting| server.family() == first.family();
        // A version without numbers is no reason to greet by it while there is another.
        let order = |server: &&ServerGreeting| (server.numbers().is_empty(), server.numbers());
        let lowest = servers.clone().filter(is_first).min_by_key(order)?;
        let mixed = servers.clone().any(|server| !is_first(&server));
        // To MySQL's clients MariaDB's own capabilities mean something else.
        let as_mysql = if mixed { MYSQL } else { 0 };
        let common = servers.clone().fold(u32::MAX, |all, server| all & (server.capabilities | as_mysql));
        let capabilities = common | SSL | PROTOCOL_41 | PLUGIN_AUTH | SECURE_CONNECTION;
        let extended = servers.fold(u32::MAX, |all, server| all & server.extended);
        Some(Self {
            version: lowest.version.clone(),
            plugin: PLUGIN.into(),
            mixed,
            capabilities,
            extended: if capabilities & MYSQL == 0 { extended } else { 0 },
            collation: lowest.collation,
        })
    }

    /// To the client with this number.
    pub fn offer(&self, id: u32) -> Offer {
        Offer { id, capabilities: self.capabilities, extended: self.extended }
    }

    /// The greeting's packet.
    pub fn packet(&self, id: u32, salt: &[u8; SALT]) -> Vec<u8> {
        let [low, high] = [self.capabilities as u16, (self.capabilities >> 16) as u16];
        let (front, back) = salt.split_at(8);
        let payload = [
            &[FORMAT],
            &self.version[..],
            &[0],
            &id.to_le_bytes(),
            front,
            &[0],
            &low.to_le_bytes(),
            &[self.collation],
            &AUTOCOMMIT.to_le_bytes(),
            &high.to_le_bytes(),
            // With the zero byte behind it.
            &[SALT as u8 + 1],
            &[0; 6],
            &self.extended.to_le_bytes(),
            back,
            &[0],
            self.plugin.as_bytes(),
            &[0],
        ];
        packet(0, &payload.concat())
    }
}

/// A salt of random bytes: clients take a zero byte for its end, and some `$` as well.
pub fn salt(random: [u8; SALT]) -> [u8; SALT] {
    random.map(|byte| match byte % 126 + 1 {
        b'$' => 127,
        other => other,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::mysql::{HEADER, MAX_GREETING, first};
    use proptest::prelude::*;

    /// As MySQL 9.7 and MariaDB 10.11 say of themselves.
    pub(in super::super) fn mysql() -> ServerGreeting {
        ServerGreeting {
            version: (*b"9.7.4-2").into(),
            capabilities: 0xdfff_ffff,
            extended: 0,
            collation: 255,
        }
    }

    pub(in super::super) fn mariadb() -> ServerGreeting {
        ServerGreeting {
            version: (*b"10.11.19-MariaDB-0+deb12u1").into(),
            capabilities: 0x81ff_fffe,
            extended: 0x1d,
            collation: 45,
        }
    }

    fn announced(servers: &[ServerGreeting]) -> Announcement {
        Announcement::of(servers.iter()).unwrap()
    }

    /// What a server's greeting would be, if it were this announcement's.
    fn read(packet: &[u8]) -> (ServerGreeting, u32) {
        let (0, payload) = first(packet, MAX_GREETING).unwrap().unwrap() else { panic!() };
        let Some(Greeted::Welcome(greeting, id)) = read_greeting(payload) else { panic!("{payload:?}") };
        (greeting, id)
    }

    #[test]
    fn what_is_announced_of_one_family_is_read_again() {
        for server in [mysql(), mariadb()] {
            let packet = announced(std::slice::from_ref(&server)).packet(0x7f00_0001, &[1; SALT]);
            assert_eq!(read(&packet), (server, 0x7f00_0001));
        }
    }

    #[test]
    fn of_a_mixture_it_is_what_both_have_without_mariadbs_own() {
        for servers in [[mysql(), mariadb()], [mariadb(), mysql()]] {
            let announced = announced(&servers);
            assert!(announced.mixed);
            assert_eq!(announced.version, servers[0].version);
            let offer = announced.offer(5);
            assert_eq!((offer.capabilities, offer.extended), (0x81ff_ffff, 0));
        }
        assert!(!announced(&[mysql(), mysql()]).mixed);
        assert_eq!(Announcement::of([].iter()), None);
    }

    #[test]
    fn the_lowest_version_is_announced() {
        let versions = |list: &[&str]| {
            let server = |version: &&str| ServerGreeting { version: version.as_bytes().into(), ..mysql() };
            let servers: Vec<_> = list.iter().map(server).collect();
            String::from_utf8(announced(&servers).version.into()).unwrap()
        };
        assert_eq!(versions(&["9.7.4", "8.0.15", "10.0"]), "8.0.15");
        assert_eq!(versions(&["8.0.9", "8.0.15"]), "8.0.9");
        let maria = ["11.8.1-MariaDB", "5.5.5-10.11.19-MariaDB", "11.4.2-MariaDB"];
        assert_eq!(versions(&maria), "5.5.5-10.11.19-MariaDB");
        // One without numbers is taken only if there is no other.
        assert_eq!(versions(&["", "1"]), "1");
        assert_eq!(versions(&[""]), "");
    }

    #[test]
    fn a_refusal_is_one_and_anything_else_is_nothing() {
        let refused = read_greeting(b"\xff\x10\x04Too many connections").unwrap();
        let Greeted::Refused(error) = refused else { panic!("{refused:?}") };
        assert_eq!(error.code, 1040);
        for other in [&b""[..], b"\x09old", b"\xff", b"SSH-2.0-OpenSSH", b"\x0a9.7"] {
            assert_eq!(read_greeting(other), None);
        }
    }

    #[test]
    fn every_prefix_of_a_greeting_is_none_or_the_same_without_its_plugin() {
        let packet = announced(&[mariadb()]).packet(7, &[9; SALT]);
        let payload = &packet[HEADER..];
        for length in 0..payload.len() {
            let found = read_greeting(&payload[..length]);
            assert!(found.is_none() || found == read_greeting(payload), "{length}");
        }
    }

    proptest! {
        #[test]
        fn a_salt_has_neither_zeros_nor_dollars(random: [u8; SALT]) {
            prop_assert!(salt(random).iter().all(|byte| ![0, b'$'].contains(byte) && byte.is_ascii()));
        }

        #[test]
        fn arbitrary_greetings_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), number in 0..2_usize) {
            let _ = read_greeting(&[&[[10, 0xff][number]], &bytes[..]].concat());
            let server = ServerGreeting { version: bytes.into(), ..mysql() };
            let _ = announced(&[server, mariadb()]).packet(0, &[1; SALT]);
        }
    }
}
