//! Redis' side of a health check (RESP2, "Redis serialization protocol specification").

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::probe::{Failure, Probe, Step};
use crate::config::{Login, Role};
use crate::reason::DownReason;
use bytes::{BufMut as _, BytesMut};
use std::collections::VecDeque;

/// Bytes of a line: Redis' errors and the heads of its answers are far shorter.
const MAX_LINE: usize = 1024;

/// AUTH, PING and ROLE in one write, and their answers.
pub(super) struct Redis {
    /// `None`: sent.
    commands: Option<BytesMut>,
    awaited: VecDeque<Awaited>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// `+OK`.
    Auth,
    /// `+PONG`.
    Ping,
    /// The head of an array, whose first element is the name of the role.
    Role(Role),
    /// The head of that element.
    RoleLength(Role),
    /// The element.
    RoleName(Role),
}

impl Redis {
    pub(super) fn new(role: Option<Role>, login: Option<&Login>) -> Self {
        let (mut commands, mut awaited) = (BytesMut::new(), VecDeque::new());
        if let Some(Login { user, password: Some(password) }) = login {
            let user = user.as_deref().map(str::as_bytes);
            let words: Vec<&[u8]> =
                [Some(&b"AUTH"[..]), user, Some(password.bytes())].into_iter().flatten().collect();
            command(&mut commands, &words);
            awaited.push_back(Awaited::Auth);
        }
        command(&mut commands, &[b"PING"]);
        awaited.push_back(Awaited::Ping);
        if let Some(role) = role {
            command(&mut commands, &[b"ROLE"]);
            awaited.push_back(Awaited::Role(role));
        }
        Redis { commands: Some(commands), awaited }
    }
}

fn command(into: &mut BytesMut, words: &[&[u8]]) {
    into.put_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        into.put_slice(format!("${}\r\n", word.len()).as_bytes());
        into.put_slice(word);
        into.put_slice(b"\r\n");
    }
}

impl Probe for Redis {
    fn step(&mut self, received: &mut BytesMut) -> Step {
        if let Some(commands) = self.commands.take() {
            return Step::Write(commands);
        }
        while let Some(awaited) = self.awaited.front().copied() {
            let Some(end) = received.windows(2).position(|pair| pair == b"\r\n") else {
                return match received.len() > MAX_LINE {
                    true => Step::done(Err(Failure::said(DownReason::BadAnswer, received))),
                    false => Step::Read,
                };
            };
            let line = received.split_to(end + 2);
            match judge(awaited, &line[..end]) {
                Ok(None) => _ = self.awaited.pop_front(),
                Ok(Some(next)) => self.awaited[0] = next,
                Err(failure) => return Step::done(Err(failure)),
            }
        }
        Step::done(Ok::<_, Failure>(()))
    }
}

/// What is awaited instead, if anything.
fn judge(awaited: Awaited, line: &[u8]) -> Result<Option<Awaited>, Failure> {
    let bad = || Failure::said(DownReason::BadAnswer, line);
    if let Some(error) = line.strip_prefix(b"-") {
        return Err(Failure::said(reason_of(awaited, error), error));
    }
    match awaited {
        Awaited::Auth if line == b"+OK" => Ok(None),
        Awaited::Ping if line == b"+PONG" => Ok(None),
        Awaited::Role(role) if line.starts_with(b"*") => Ok(Some(Awaited::RoleLength(role))),
        Awaited::RoleLength(role) if line.starts_with(b"$") => Ok(Some(Awaited::RoleName(role))),
        Awaited::RoleName(role) => match (role, line) {
            (Role::Master, b"master") | (Role::Replica, b"slave") => Ok(None),
            (_, b"master" | b"slave" | b"sentinel") => Err(Failure::said(DownReason::WrongRole, line)),
            _ => Err(bad()),
        },
        _ => Err(bad()),
    }
}

fn reason_of(awaited: Awaited, error: &[u8]) -> DownReason {
    let code = error.split(|byte| *byte == b' ').next().unwrap_or_default();
    match code {
        b"LOADING" => DownReason::Loading,
        b"NOAUTH" | b"WRONGPASS" | b"NOPERM" => DownReason::LoginFailed,
        _ if awaited == Awaited::Auth => DownReason::LoginFailed,
        _ => DownReason::ServerError,
    }
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::holds_for_every_prefix;
    use super::*;
    use crate::config::Secret;
    use DownReason as D;

    const MASTER: &[u8] = b"+PONG\r\n*3\r\n$6\r\nmaster\r\n:3129659\r\n*0\r\n";
    const REPLICA: &[u8] =
        b"+PONG\r\n*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:9000\r\n$9\r\nconnected\r\n:3\r\n";
    const SENTINEL: &[u8] = b"+PONG\r\n*2\r\n$8\r\nsentinel\r\n*0\r\n";

    fn login(user: Option<&str>) -> Login {
        Login { user: user.map(Into::into), password: Some(Secret::new(b"se cret")) }
    }

    #[test]
    fn a_ping_is_asked_and_answered() {
        let said = holds_for_every_prefix(|| Redis::new(None, None), b"+PONG\r\n", Ok(()));
        assert_eq!(said, b"*1\r\n$4\r\nPING\r\n");
    }

    #[test]
    fn login_ping_and_role_go_in_one_write() {
        let (user, password) = (login(Some("health")), login(None));
        let all = || Redis::new(Some(Role::Master), Some(&user));
        let said = holds_for_every_prefix(all, &[b"+OK\r\n", MASTER].concat(), Ok(()));
        let auth = b"*3\r\n$4\r\nAUTH\r\n$6\r\nhealth\r\n$7\r\nse cret\r\n";
        assert_eq!(said, [&auth[..], b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nROLE\r\n"].concat());
        let said = holds_for_every_prefix(|| Redis::new(None, Some(&password)), b"+OK\r\n+PONG\r\n", Ok(()));
        assert!(said.starts_with(b"*2\r\n$4\r\nAUTH\r\n$7\r\nse cret\r\n"));
    }

    #[test]
    fn a_role_is_as_asked_or_it_is_wrong() {
        for (role, answer, expected) in [
            (Role::Master, MASTER, Ok(())),
            (Role::Master, REPLICA, Err(D::WrongRole)),
            (Role::Master, SENTINEL, Err(D::WrongRole)),
            (Role::Replica, REPLICA, Ok(())),
            (Role::Replica, MASTER, Err(D::WrongRole)),
        ] {
            holds_for_every_prefix(|| Redis::new(Some(role), None), answer, expected);
        }
    }

    #[test]
    fn errors_have_reasons() {
        for (answer, expected) in [
            (&b"-LOADING Redis is loading the dataset in memory\r\n"[..], D::Loading),
            (b"-NOAUTH Authentication required.\r\n", D::LoginFailed),
            (b"-BUSY Redis is busy running a script.\r\n", D::ServerError),
            (b"-ERR max number of clients reached\r\n", D::ServerError),
            (b"HTTP/1.1 400 Bad Request\r\n", D::BadAnswer),
            (b"\r\n", D::BadAnswer),
            (b"+PONG\r\n-NOPERM this user has no permissions to run the 'role' command\r\n", D::LoginFailed),
            (b"+PONG\r\n:1\r\n", D::BadAnswer),
            (b"+PONG\r\n*1\r\n:1\r\n", D::BadAnswer),
            (b"+PONG\r\n*1\r\n$4\r\nking\r\n", D::BadAnswer),
        ] {
            holds_for_every_prefix(|| Redis::new(Some(Role::Master), None), answer, Err(expected));
        }
        for answer in [
            &b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"[..],
            b"-ERR AUTH <password> called without any password configured for the default user.\r\n",
        ] {
            let login = login(None);
            holds_for_every_prefix(|| Redis::new(None, Some(&login)), answer, Err(D::LoginFailed));
        }
    }

    #[test]
    fn an_endless_line_is_no_answer() {
        holds_for_every_prefix(|| Redis::new(None, None), &[b'+'; MAX_LINE + 1], Err(D::BadAnswer));
    }
}
