//! PostgreSQL's side of a health check ("Frontend/Backend Protocol" in PostgreSQL's manual).

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::probe::{Failure, MAX_RECEIVED, Probe, Step, Verdict};
use crate::config::{Login, Role};
use crate::reason::DownReason;
use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{ErrorResponseBody, Header, Message};
use postgres_protocol::message::frontend;
use std::io;

/// Who a startup message names where nobody logs in.
const NOBODY: &str = "snisplice";

/// Rounds of hashing that a server may ask for; PostgreSQL's default is 4096 (`scram_iterations`).
const MAX_ITERATIONS: u32 = 100_000;

/// cannot_connect_now: it starts, stops or recovers.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// SSLRequest, startup, and, where somebody logs in, the login and the question for the role.
pub(super) struct Postgres {
    state: State,
    tls: bool,
    role: Option<Role>,
    login: Option<Login>,
    database: Box<str>,
}

enum State {
    /// Nothing is sent yet.
    Begin,
    /// SSLRequest is sent.
    SslRequested,
    /// The startup message is next.
    Startup,
    /// It is sent.
    Starting,
    /// A login by SCRAM is under way.
    Scram(Box<ScramSha256>),
    /// The question for the role is sent.
    Asked(Role),
    /// It is answered. What comes behind the answer is read to its end, or the server would see a reset.
    Answered(Verdict),
}

/// What follows from a message: another step, or the next message.
type Next = Result<Option<Step>, Failure>;

impl Postgres {
    pub(super) fn new(tls: bool, role: Option<Role>, login: Option<Login>, database: Box<str>) -> Self {
        Postgres { state: State::Begin, tls, role, login, database }
    }

    fn startup(&self) -> Result<Step, Failure> {
        let user = self.login.as_ref().and_then(|login| login.user.as_deref()).unwrap_or(NOBODY);
        let parameters =
            [("user", user), ("database", &self.database), ("application_name", "snisplice health check")];
        written(|message| frontend::startup_message(parameters, message))
    }

    fn password(&self) -> Result<&[u8], Failure> {
        let password = self.login.as_ref().and_then(|login| login.password.as_ref());
        let none =
            || Failure::said(DownReason::LoginFailed, b"the server asks for a password, and there is none");
        Ok(password.ok_or_else(none)?.bytes())
    }

    fn take(&mut self, message: Message) -> Next {
        if let Message::ErrorResponse(error) = &message {
            return self.refused(error);
        }
        match (&mut self.state, message) {
            // Of who does not log in, it need not know more.
            (
                State::Starting,
                Message::AuthenticationOk
                | Message::AuthenticationCleartextPassword
                | Message::AuthenticationMd5Password(_)
                | Message::AuthenticationSasl(_)
                | Message::AuthenticationGss
                | Message::AuthenticationSspi,
            ) if self.login.is_none() => Ok(Some(Step::done(Ok::<_, Failure>(())))),
            (State::Starting, Message::AuthenticationCleartextPassword) => {
                if !self.tls {
                    let words = b"the server asks for the password in clear text, and there is no TLS";
                    return Err(Failure::said(DownReason::LoginFailed, words));
                }
                let password = self.password()?;
                written(|message| frontend::password_message(password, message)).map(Some)
            }
            (State::Starting, Message::AuthenticationMd5Password(body)) => {
                let user = self.login.as_ref().and_then(|login| login.user.as_deref()).unwrap_or_default();
                let hash = md5_hash(user.as_bytes(), self.password()?, body.salt());
                written(|message| frontend::password_message(hash.as_bytes(), message)).map(Some)
            }
            (State::Starting, Message::AuthenticationSasl(body)) => {
                let offered =
                    body.mechanisms().any(|mechanism| Ok(mechanism == SCRAM_SHA_256)).map_err(broken)?;
                if !offered {
                    let words = b"the server offers no login by SCRAM-SHA-256";
                    return Err(Failure::said(DownReason::LoginFailed, words));
                }
                let scram = ScramSha256::new(self.password()?, ChannelBinding::unsupported());
                let first = written(|message| {
                    frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), message)
                });
                self.state = State::Scram(Box::new(scram));
                first.map(Some)
            }
            (State::Scram(scram), Message::AuthenticationSaslContinue(body)) => {
                if iterations(body.data()).is_none_or(|iterations| iterations > MAX_ITERATIONS) {
                    return Err(Failure::said(DownReason::BadAnswer, body.data()));
                }
                scram.update(body.data()).map_err(broken)?;
                written(|message| frontend::sasl_response(scram.message(), message)).map(Some)
            }
            (State::Scram(scram), Message::AuthenticationSaslFinal(body)) => {
                let unproved =
                    |_| Failure::said(DownReason::LoginFailed, b"the server does not know the password");
                scram.finish(body.data()).map_err(unproved)?;
                self.state = State::Starting;
                Ok(None)
            }
            (State::Starting, Message::ReadyForQuery(_)) => match self.role {
                None => Ok(Some(goodbye(Ok(())))),
                Some(role) => {
                    self.state = State::Asked(role);
                    const QUESTION: &str = "SELECT pg_catalog.pg_is_in_recovery()";
                    written(|message| frontend::query(QUESTION, message)).map(Some)
                }
            },
            (State::Asked(role), Message::DataRow(row)) => {
                let verdict = match (*role, row.buffer()) {
                    // The length of the only value, and a boolean as text.
                    (Role::Master, b"\0\0\0\x01f") | (Role::Replica, b"\0\0\0\x01t") => Ok(()),
                    (Role::Master, b"\0\0\0\x01t") => Err(Failure::said(DownReason::WrongRole, b"standby")),
                    (Role::Replica, b"\0\0\0\x01f") => Err(Failure::said(DownReason::WrongRole, b"primary")),
                    (_, value) => Err(Failure::said(DownReason::BadAnswer, value)),
                };
                self.state = State::Answered(verdict);
                Ok(None)
            }
            (State::Answered(verdict), Message::ReadyForQuery(_)) => Ok(Some(goodbye(verdict.clone()))),
            (State::Answered(_), Message::CommandComplete(_)) => Ok(None),
            // By the documentation, at any time.
            (_, Message::NoticeResponse(_) | Message::ParameterStatus(_)) => Ok(None),
            (State::Starting, Message::AuthenticationOk | Message::BackendKeyData(_)) => Ok(None),
            (State::Asked(_), Message::RowDescription(_)) => Ok(None),
            _ => Err(Failure::said(DownReason::BadAnswer, b"a message out of turn")),
        }
    }

    fn refused(&self, error: &ErrorResponseBody) -> Next {
        let (mut code, mut words) = (String::new(), String::new());
        let mut fields = error.fields();
        while let Some(field) = fields.next().map_err(broken)? {
            match field.type_() {
                b'C' => code = String::from_utf8_lossy(field.value_bytes()).into_owned(),
                b'M' => words = String::from_utf8_lossy(field.value_bytes()).into_owned(),
                _ => {}
            }
        }
        let reason = match &*code {
            CANNOT_CONNECT_NOW => DownReason::Loading,
            // It takes connections, if not this one: what pg_isready calls "accepting".
            _ if self.login.is_none() => return Ok(Some(Step::done(Ok::<_, Failure>(())))),
            // invalid_authorization_specification and its kin.
            code if code.starts_with("28") => DownReason::LoginFailed,
            _ => DownReason::ServerError,
        };
        Err(Failure::said(reason, format!("{code} {words}").as_bytes()))
    }
}

impl Probe for Postgres {
    fn step(&mut self, received: &mut BytesMut) -> Step {
        self.try_step(received).unwrap_or_else(|failure| Step::done(Err(failure)))
    }
}

impl Postgres {
    fn try_step(&mut self, received: &mut BytesMut) -> Result<Step, Failure> {
        loop {
            match self.state {
                State::Begin if self.tls => {
                    self.state = State::SslRequested;
                    return written(|message| {
                        frontend::ssl_request(message);
                        Ok(())
                    });
                }
                State::SslRequested => {
                    return match &received[..] {
                        [] => Ok(Step::Read),
                        // Nothing may be stuffed between it and the handshake (CVE-2021-23222).
                        b"S" => {
                            received.clear();
                            self.state = State::Startup;
                            Ok(Step::StartTls)
                        }
                        b"N" => Err(DownReason::TlsRefused.into()),
                        other => Err(Failure::said(DownReason::BadAnswer, other)),
                    };
                }
                State::Begin | State::Startup => {
                    self.state = State::Starting;
                    return self.startup();
                }
                State::Starting | State::Scram(_) | State::Asked(_) | State::Answered(_) => {
                    // Before the message is parsed, which makes room for all of it.
                    if let Some(header) = Header::parse(received).map_err(broken)?
                        && usize::try_from(header.len()).is_ok_and(|length| length >= MAX_RECEIVED)
                    {
                        return Err(Failure::said(DownReason::BadAnswer, received));
                    }
                    let Some(message) = Message::parse(received).map_err(broken)? else {
                        return Ok(Step::Read);
                    };
                    if let Some(step) = self.take(message)? {
                        return Ok(step);
                    }
                }
            }
        }
    }
}

fn written(write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<Step, Failure> {
    let mut message = BytesMut::new();
    // Only what has a zero byte in it cannot be written.
    write(&mut message).map_err(|_| Failure::from(DownReason::LoginFailed))?;
    Ok(Step::Write(message))
}

/// Logged in, one says so before one goes: the server's log stays clean.
fn goodbye(verdict: Verdict) -> Step {
    let mut farewell = BytesMut::new();
    frontend::terminate(&mut farewell);
    Step::Done { verdict, farewell }
}

fn broken(error: io::Error) -> Failure {
    Failure::said(DownReason::BadAnswer, error.to_string().as_bytes())
}

/// Of a server's first message (RFC 5802, section 7): `r=…,s=…,i=4096`.
fn iterations(message: &[u8]) -> Option<u32> {
    let mut attributes = std::str::from_utf8(message).ok()?.split(',');
    attributes.find_map(|attribute| attribute.strip_prefix("i="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::{converse, holds_for_every_prefix};
    use super::*;
    use crate::config::Secret;
    use DownReason as D;
    use proptest::prelude::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    fn error(code: &str, words: &str) -> Vec<u8> {
        message(b'E', format!("SFATAL\0VFATAL\0C{code}\0M{words}\0\0").as_bytes())
    }

    const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";
    const TERMINATE: &[u8] = b"X\0\0\0\x04";

    fn nobody(tls: bool) -> impl Fn() -> Postgres {
        move || Postgres::new(tls, None, None, "postgres".into())
    }

    fn health(role: Option<Role>, tls: bool) -> impl Fn() -> Postgres {
        move || {
            let login = Login { user: Some("health".into()), password: Some(Secret::new(b"secret")) };
            Postgres::new(tls, role, Some(login), "app".into())
        }
    }

    /// From AuthenticationOk to ReadyForQuery.
    fn logged_in() -> Vec<u8> {
        let parameter = message(b'S', b"server_version\x0017.2\0");
        let notice = message(b'N', b"SNOTICE\0C00000\0Mwelcome\0\0");
        let key = message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]);
        [message(b'R', &[0; 4]), parameter, notice, key, message(b'Z', b"I")].concat()
    }

    fn recovery(value: &[u8]) -> Vec<u8> {
        let description =
            message(b'T', b"\0\x01pg_is_in_recovery\0\0\0\0\0\0\0\0\0\0\x10\0\x01\xff\xff\xff\xff\0\0");
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        let row = message(b'D', &[&[0, 1][..], &length, value].concat());
        [description, row, message(b'C', b"SELECT 1\0"), message(b'Z', b"I")].concat()
    }

    #[test]
    fn without_a_login_any_answer_to_the_startup_message_will_do_but_not_now() {
        let sasl = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let md5 = message(b'R', b"\0\0\0\x05salt");
        let no_entry = error("28000", "no pg_hba.conf entry for host");
        for answer in [message(b'R', &[0; 4]), message(b'R', &[0, 0, 0, 3]), sasl, md5, no_entry] {
            let said = holds_for_every_prefix(nobody(false), &answer, Ok(()));
            let startup = b"\0\x03\0\0user\0snisplice\0database\0postgres\0application_name\0snisplice health check\0\0";
            assert_eq!(said[4..], startup[..], "and no goodbye: it would be an error in the server's log");
        }
        let starting = error("57P03", "the database system is starting up");
        holds_for_every_prefix(nobody(false), &starting, Err(D::Loading));
    }

    /// After `S` alone, as a server that waits for the handshake sends it.
    fn in_tls(probe: Postgres, server: &[u8]) -> (Vec<u8>, Option<Result<(), D>>) {
        let cuts = std::iter::once(1);
        let (said, verdict) = converse(probe, &[b"S", server].concat(), cuts);
        (said, verdict.map(|verdict| verdict.map_err(|failure| failure.reason)))
    }

    #[test]
    fn tls_is_asked_for_and_nothing_is_let_in_before_it() {
        let (said, verdict) = in_tls(nobody(true)(), &message(b'R', &[0; 4]));
        assert!(said.starts_with(&[SSL_REQUEST, b"<TLS>\0\0\0"].concat()));
        assert_eq!(verdict, Some(Ok(())));
        let stuffed = [b"S", &message(b'R', &[0; 4])[..]].concat();
        let (said, verdict) = converse(nobody(true)(), &stuffed, std::iter::empty());
        assert_eq!((&said[..], verdict.unwrap().unwrap_err().reason), (SSL_REQUEST, D::BadAnswer));
        holds_for_every_prefix(nobody(true), b"N", Err(D::TlsRefused));
        holds_for_every_prefix(nobody(true), b"H", Err(D::BadAnswer));
    }

    #[test]
    fn a_login_in_clear_text_needs_tls() {
        let ask = message(b'R', &[0, 0, 0, 3]);
        holds_for_every_prefix(health(None, false), &ask, Err(D::LoginFailed));
        let (said, verdict) = in_tls(health(None, true)(), &[ask, logged_in()].concat());
        let password = message(b'p', b"secret\0");
        assert!(said.ends_with(&[&password[..], TERMINATE].concat()), "{}", said.escape_ascii());
        assert_eq!(verdict, Some(Ok(())));
    }

    #[test]
    fn a_login_by_md5() {
        let answer = [message(b'R', b"\0\0\0\x05salt"), logged_in()].concat();
        let said = holds_for_every_prefix(health(None, false), &answer, Ok(()));
        let hash = message(b'p', format!("{}\0", md5_hash(b"health", b"secret", *b"salt")).as_bytes());
        assert!(said.ends_with(&[&hash[..], TERMINATE].concat()), "{}", said.escape_ascii());
    }

    #[test]
    fn a_server_that_trusts_is_believed_and_one_that_wants_a_password_nobody_has_is_not() {
        let said = holds_for_every_prefix(health(None, false), &logged_in(), Ok(()));
        assert!(said.ends_with(TERMINATE));
        let trusted = Login { user: Some("health".into()), password: None };
        let probe = || Postgres::new(false, None, Some(trusted.clone()), "app".into());
        holds_for_every_prefix(probe, &message(b'R', b"\0\0\0\x05salt"), Err(D::LoginFailed));
        holds_for_every_prefix(probe, &message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), Err(D::LoginFailed));
    }

    #[test]
    fn a_role_is_asked_for_after_the_login() {
        for (role, value, expected) in [
            (Role::Master, &b"f"[..], Ok(())),
            (Role::Master, b"t", Err(D::WrongRole)),
            (Role::Replica, b"t", Ok(())),
            (Role::Replica, b"f", Err(D::WrongRole)),
            (Role::Master, b"maybe", Err(D::BadAnswer)),
        ] {
            let answer = [logged_in(), recovery(value)].concat();
            let said = holds_for_every_prefix(health(Some(role), false), &answer, expected);
            assert!(said.ends_with(&[&b"pg_is_in_recovery()\0"[..], TERMINATE].concat()));
        }
    }

    #[test]
    fn errors_of_a_login_have_reasons() {
        for (code, expected) in [
            ("28P01", D::LoginFailed),
            ("28000", D::LoginFailed),
            ("57P03", D::Loading),
            ("53300", D::ServerError),
            ("3D000", D::ServerError),
        ] {
            holds_for_every_prefix(health(None, false), &error(code, "no"), Err(expected));
        }
        for broken in [
            message(b'R', &[0, 0, 0, 99]),
            message(b'Q', b""),
            message(b'D', b"\0\0"),
            b"E\0\0\0\x03".to_vec(),
            b"E\x7f\0\0\0".to_vec(),
            b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
            b"-ERR unknown command\r\n".to_vec(),
        ] {
            holds_for_every_prefix(health(None, false), &broken, Err(D::BadAnswer));
        }
    }

    #[test]
    fn a_server_may_not_have_the_gateway_hash_for_hours() {
        let ask = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let first =
            |iterations: &str| message(b'R', format!("\0\0\0\x0br=x,s=c2FsdA==,i={iterations}").as_bytes());
        let verdict = |answer: &[u8]| -> Option<Verdict> {
            converse(health(None, false)(), answer, std::iter::empty()).1
        };
        for iterations in ["100001", "4294967296", "-1", "", "x"] {
            let failure = verdict(&[ask.clone(), first(iterations)].concat()).unwrap().unwrap_err();
            assert_eq!(failure.reason, D::BadAnswer, "{iterations}");
        }
        assert_eq!((iterations(b"r=i=9,s=x,i=4096"), iterations(b"r=x")), (Some(4096), None));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic_or_go_on_for_ever(
            tls: bool,
            start in prop::sample::select(vec![
                Vec::new(), message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"), logged_in(),
            ]),
            tags in prop::collection::vec(
                (prop::sample::select(b"RESNKZTDCvG".to_vec()), prop::collection::vec(any::<u8>(), 0..30)), 0..6),
            noise in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let messages = tags.iter().flat_map(|(tag, body)| message(*tag, body));
            let answer: Vec<u8> = start.into_iter().chain(messages).chain(noise).collect();
            match tls {
                true => drop(in_tls(health(Some(Role::Master), true)(), &answer)),
                false => drop(converse(health(Some(Role::Master), false)(), &answer, std::iter::repeat(7))),
            }
        }
    }
}
