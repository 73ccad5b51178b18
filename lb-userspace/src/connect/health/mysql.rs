//! MySQL's and MariaDB's side of a health check ("Connection Phase" in MySQL's manual).
//!
//! A server counts each connection that ends before its login is answered, a bare TCP connection too, and after
//! `max_connect_errors` of them in a row (100) takes none from that address any more. A login that is refused does not count.
//! So a check always logs in, if need be as somebody who does not exist, and waits for the answer.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::probe::{Failure, Probe, Step};
use crate::config::Login;
use crate::mysql::capability::{CONNECT_ATTRS, PLUGIN_AUTH, PROTOCOL_41, SECURE_CONNECTION, SSL};
use crate::mysql::{
    Greeted, HEADER, MAX_GREETING, REQUEST_LENGTH, ServerError, ServerGreeting, SslRequest, first, packet,
    read_greeting,
};
use crate::reason::DownReason;
use bytes::{Buf as _, BytesMut};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// Who logs in where nobody is to, with no password, and a plugin that no account has.
const NOBODY: &str = "snisplice";

/// COM_QUIT.
const QUIT: &[u8] = &[1];

/// ER_CON_COUNT_ERROR: too many connections.
const TOO_MANY: u16 = 1040;
/// ER_SERVER_SHUTDOWN.
const SHUTDOWN: u16 = 1053;
/// ER_ACCESS_DENIED_ERROR.
const ACCESS_DENIED: u16 = 1045;

/// The greeting, SSLRequest, and a login.
pub(super) struct Mysql {
    state: State,
    tls: bool,
    login: Option<Login>,
    greeting: Option<ServerGreeting>,
    /// What the server has asked to log in with last, and its salt.
    plugin: Vec<u8>,
    salt: Vec<u8>,
}

enum State {
    /// The server speaks first.
    Begin,
    /// SSLRequest is sent.
    SslRequested,
    /// The login is next, with this sequence number.
    Login(u8),
    /// It is sent.
    LoggingIn,
}

impl Mysql {
    pub(super) fn new(tls: bool, login: Option<Login>) -> Self {
        let (plugin, salt) = (Vec::new(), Vec::new());
        Mysql { state: State::Begin, tls, login, greeting: None, plugin, salt }
    }

    /// The front part of the login, which is also what asks for TLS.
    fn request(&self) -> SslRequest {
        let tls = if self.tls { SSL } else { 0 };
        let capabilities = PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH | CONNECT_ATTRS | tls;
        let mut payload = [0; REQUEST_LENGTH];
        payload[..4].copy_from_slice(&capabilities.to_le_bytes());
        // The longest packet, 16 MiB, and the collation: utf8mb4_general_ci.
        payload[4..9].copy_from_slice(&[0, 0, 0, 1, 45]);
        SslRequest(payload)
    }

    fn logs_in(&self, sequence: u8) -> Step {
        let user = self.login.as_ref().and_then(|login| login.user.as_deref()).unwrap_or(NOBODY);
        const ATTRIBUTES: &[u8] = b"\x0cprogram_name\x16snisplice health check";
        let attributes = [&[ATTRIBUTES.len() as u8], ATTRIBUTES].concat();
        let front = self.request().0;
        let payload = [&front[..], user.as_bytes(), &[0, 0], NOBODY.as_bytes(), &[0], &attributes];
        written(sequence, &payload.concat())
    }

    fn greeted(&mut self, payload: &[u8]) -> Result<Step, Failure> {
        match read_greeting(payload) {
            None => Err(Failure::said(DownReason::BadAnswer, payload)),
            Some(Greeted::Refused(error)) => self.refused(&error),
            Some(Greeted::Welcome(greeting, _)) => {
                let has_tls = greeting.capabilities & SSL != 0;
                self.greeting = Some(greeting);
                match self.tls {
                    true if !has_tls => Err(DownReason::TlsRefused.into()),
                    true => {
                        self.state = State::SslRequested;
                        Ok(Step::Write(BytesMut::from(&self.request().packet()[..])))
                    }
                    false => {
                        self.state = State::LoggingIn;
                        Ok(self.logs_in(1))
                    }
                }
            }
        }
    }

    /// What follows from an answer to the login; `None`: another one comes.
    fn answered(&mut self, sequence: u8, payload: &[u8]) -> Result<Option<Step>, Failure> {
        let sequence = sequence.wrapping_add(1);
        match payload {
            [0, ..] => Ok(Some(Step::Done {
                verdict: Ok(()),
                // One says so before one goes: it is no connection that was aborted.
                farewell: BytesMut::from(&packet(0, QUIT)[..]),
            })),
            [0xff, ..] => match ServerError::read(payload) {
                Some(error) => self.refused(&error).map(Some),
                None => Err(Failure::said(DownReason::BadAnswer, payload)),
            },
            // AuthSwitchRequest: a plugin, and its salt.
            [0xfe, rest @ ..] => {
                let plugin = rest.split(|&byte| byte == 0).next().unwrap_or_default();
                self.plugin = plugin.to_vec();
                let salt = rest.get(plugin.len() + 1..).unwrap_or_default();
                self.salt = salt.strip_suffix(b"\0").unwrap_or(salt).to_vec();
                self.proof().map(|proof| Some(written(sequence, &proof)))
            }
            // AuthMoreData of caching_sha2_password: it knows the password by heart, or wants it whole.
            [1, 3] => Ok(None),
            [1, 4] => self.whole_password().map(|password| Some(written(sequence, &password))),
            other => Err(Failure::said(DownReason::BadAnswer, other)),
        }
    }

    fn password(&self) -> &[u8] {
        let password = self.login.as_ref().and_then(|login| login.password.as_ref());
        password.map_or(b"", |password| password.bytes())
    }

    /// What the plugin expects of who knows the password.
    fn proof(&self) -> Result<Vec<u8>, Failure> {
        if self.password().is_empty() {
            return Ok(Vec::new());
        }
        match &self.plugin[..] {
            b"mysql_native_password" => Ok(native(self.password(), &self.salt)),
            b"caching_sha2_password" => Ok(caching_sha2(self.password(), &self.salt)),
            b"mysql_clear_password" | b"sha256_password" => self.whole_password(),
            plugin => Err(Failure::said(
                DownReason::LoginFailed,
                &[b"the user's plugin is not supported: ", plugin].concat(),
            )),
        }
    }

    fn whole_password(&self) -> Result<Vec<u8>, Failure> {
        if self.tls || self.password().is_empty() {
            return Ok([self.password(), &[0]].concat());
        }
        let words = b"the server asks for the password in clear text, and there is no TLS";
        Err(Failure::said(DownReason::LoginFailed, words))
    }

    fn refused(&self, error: &ServerError) -> Result<Step, Failure> {
        let reason = match error.code {
            SHUTDOWN => DownReason::Loading,
            // It works, and takes others again when some have gone.
            TOO_MANY if self.login.is_none() => return Ok(Step::done(Ok::<_, Failure>(()))),
            // Nobody's login is refused as it should be.
            _ if self.login.is_none() && matches!(self.state, State::LoggingIn) => {
                return Ok(Step::done(Ok::<_, Failure>(())));
            }
            ACCESS_DENIED => DownReason::LoginFailed,
            _ => DownReason::ServerError,
        };
        let words = [error.code.to_string().as_bytes(), b" ", &error.message].concat();
        Err(Failure::said(reason, &words))
    }

    fn try_step(&mut self, received: &mut BytesMut) -> Result<Step, Failure> {
        loop {
            match self.state {
                State::SslRequested => {
                    // It says nothing before the handshake.
                    if !received.is_empty() {
                        return Err(Failure::said(DownReason::BadAnswer, received));
                    }
                    self.state = State::Login(2);
                    return Ok(Step::StartTls);
                }
                State::Login(sequence) => {
                    self.state = State::LoggingIn;
                    return Ok(self.logs_in(sequence));
                }
                State::Begin | State::LoggingIn => {
                    let found = first(received, MAX_GREETING);
                    let found = found.map_err(|_| Failure::said(DownReason::BadAnswer, received))?;
                    let Some((sequence, payload)) = found else { return Ok(Step::Read) };
                    let payload = payload.to_vec();
                    received.advance(HEADER + payload.len());
                    let step = match self.state {
                        State::Begin => Some(self.greeted(&payload)?),
                        _ => self.answered(sequence, &payload)?,
                    };
                    if let Some(step) = step {
                        return Ok(step);
                    }
                }
            }
        }
    }
}

impl Probe for Mysql {
    fn step(&mut self, received: &mut BytesMut) -> Step {
        self.try_step(received).unwrap_or_else(|failure| Step::done(Err(failure)))
    }

    fn greeting(&mut self) -> Option<ServerGreeting> {
        self.greeting.take()
    }
}

fn written(sequence: u8, payload: &[u8]) -> Step {
    Step::Write(BytesMut::from(&packet(sequence, payload)[..]))
}

/// SHA1(password) XOR SHA1(salt, SHA1(SHA1(password))).
fn native(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let once = Sha1::digest(password);
    let salted = Sha1::new().chain_update(salt).chain_update(Sha1::digest(once)).finalize();
    once.iter().zip(salted).map(|(a, b)| a ^ b).collect()
}

/// SHA256(password) XOR SHA256(SHA256(SHA256(password)), salt).
fn caching_sha2(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let once = Sha256::digest(password);
    let twice = Sha256::digest(once);
    let salted = Sha256::new().chain_update(Sha256::digest(twice)).chain_update(salt).finalize();
    once.iter().zip(salted).map(|(a, b)| a ^ b).collect()
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::{converse, holds_for_every_prefix};
    use super::*;
    use crate::config::Secret;
    use crate::mysql::{Announcement, SALT};
    use proptest::prelude::*;

    fn server() -> ServerGreeting {
        ServerGreeting { version: (*b"9.7.4").into(), capabilities: 0xdfff_ffff, extended: 0, collation: 45 }
    }

    fn greeting() -> Vec<u8> {
        Announcement::of([server()].iter()).unwrap().packet(7, &[9; SALT])
    }

    fn app() -> Option<Login> {
        Some(Login { user: Some("app".into()), password: Some(Secret::new(b"secret")) })
    }

    fn switch(sequence: u8, plugin: &str) -> Vec<u8> {
        packet(sequence, &[b"\xfe", plugin.as_bytes(), b"\0", &[9; SALT], b"\0"].concat())
    }

    const DENIED: &[u8] = b"\xff\x15\x04#28000Access denied";
    const OK: &[u8] = b"\0\0\0\x02\0\0\0";

    #[test]
    fn nobody_logs_in_and_any_answer_will_do() {
        for answers in [
            packet(2, DENIED),
            [switch(2, "caching_sha2_password"), packet(4, DENIED)].concat(),
            packet(2, OK),
            packet(2, b"\xff\x69\x10other"),
        ] {
            let said =
                holds_for_every_prefix(|| Mysql::new(false, None), &[greeting(), answers].concat(), Ok(()));
            let (1, login) = first(&said, 200).unwrap().unwrap() else { panic!() };
            assert_eq!(&login[REQUEST_LENGTH..REQUEST_LENGTH + 21], b"snisplice\0\0snisplice\0");
        }
        let said =
            holds_for_every_prefix(|| Mysql::new(false, None), &[greeting(), packet(2, OK)].concat(), Ok(()));
        assert!(said.ends_with(b"\x01\0\0\0\x01"), "COM_QUIT");
    }

    #[test]
    fn what_is_said_in_place_of_the_greeting() {
        let error = |code: u16| packet(0, &[b"\xff", &code.to_le_bytes()[..], b"words"].concat());
        for (code, expected) in
            [(1040, Ok(())), (1129, Err(DownReason::ServerError)), (1053, Err(DownReason::Loading))]
        {
            holds_for_every_prefix(|| Mysql::new(false, None), &error(code), expected);
        }
        holds_for_every_prefix(
            || Mysql::new(false, None),
            b"SSH-2.0-OpenSSH_9\r\n",
            Err(DownReason::BadAnswer),
        );
        holds_for_every_prefix(|| Mysql::new(false, None), &packet(0, b"\x09"), Err(DownReason::BadAnswer));
        let mut plain = greeting();
        // Of the lower half of the capabilities, the byte with SSL.
        plain[HEADER + 1 + 6 + 4 + 9 + 1] &= !8;
        holds_for_every_prefix(|| Mysql::new(true, None), &plain, Err(DownReason::TlsRefused));
    }

    #[test]
    fn tls_is_asked_for_before_the_login() {
        let denied = [greeting(), packet(3, DENIED)].concat();
        // Only after the handshake does the server go on.
        let (said, verdict) = converse(Mysql::new(true, None), &denied, [greeting().len()].into_iter());
        assert_eq!(verdict.map(|v| v.is_ok()), Some(true));
        let request = Mysql::new(true, None).request().packet();
        assert!(said.starts_with(&[&request[..], b"<TLS>"].concat()));
        assert_eq!(said[request.len() + 5 + 3], 2, "the sequence goes on");
        let stuffed = [greeting(), packet(3, DENIED)].concat();
        let (_, verdict) = converse(Mysql::new(true, None), &stuffed, std::iter::empty());
        assert!(verdict.unwrap().is_err());
    }

    #[test]
    fn a_login_proves_that_it_knows_the_password() {
        let native = native(b"secret", &[9; SALT]);
        let sha2 = caching_sha2(b"secret", &[9; SALT]);
        for (plugin, proof, more) in [
            ("mysql_native_password", &native, &b""[..]),
            ("caching_sha2_password", &sha2, b"\x02\0\0\x04\x01\x03"),
        ] {
            let sequence = if more.is_empty() { 4 } else { 5 };
            let answers = [greeting(), switch(2, plugin), more.to_vec(), packet(sequence, OK)].concat();
            let said = holds_for_every_prefix(|| Mysql::new(false, app()), &answers, Ok(()));
            assert!(said.windows(proof.len()).any(|part| part == proof));
        }
        let refused = Err(DownReason::LoginFailed);
        holds_for_every_prefix(
            || Mysql::new(false, app()),
            &[greeting(), packet(2, DENIED)].concat(),
            refused,
        );
        for plugin in ["mysql_clear_password", "client_ed25519", "sha256_password"] {
            let answers = [greeting(), switch(2, plugin)].concat();
            holds_for_every_prefix(|| Mysql::new(false, app()), &answers, refused);
        }
        let full = [greeting(), switch(2, "caching_sha2_password"), packet(4, b"\x01\x04")].concat();
        holds_for_every_prefix(|| Mysql::new(false, app()), &full, refused);
        let cuts = [greeting().len(), usize::MAX].into_iter();
        let (said, _) = converse(Mysql::new(true, app()), &full, cuts);
        assert!(said.ends_with(b"\x07\0\0\x05secret\0"), "{}", said.escape_ascii());
    }

    #[test]
    fn what_it_has_heard_is_told() {
        let mut probe = Mysql::new(false, None);
        assert_eq!(probe.greeting(), None);
        probe.step(&mut BytesMut::from(&greeting()[..]));
        assert_eq!(probe.greeting(), Some(server()));
    }

    proptest! {
        #[test]
        fn whatever_the_server_sends_the_check_ends(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            greets: bool,
            tls: bool,
            logs_in: bool,
            cuts in prop::collection::vec(1..50_usize, 0..20),
        ) {
            let sent = if greets { [greeting(), bytes].concat() } else { bytes };
            let login = if logs_in { app() } else { None };
            let _ = converse(Mysql::new(tls, login), &sent, cuts.into_iter());
        }
    }
}
