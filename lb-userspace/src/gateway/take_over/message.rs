//! What the two processes say to each other: lines of JSON, some of them with descriptors. Pure.
//!
//! ```text
//! successor                                             predecessor
//!   take_over, version           ---------------------->
//!         <-- {"ok": offer}, {"descriptors": […]} …, {"offered": {}}
//!   (builds everything that can fail)                    (serves)
//!   {"freeze": {}}               ---------------------->
//!                    <-- {"carried": …} …, {"frozen": …} (accepts no more, touches no connection of the packet tier)
//!   (adopts the packet tier's connections)
//!   {"serve": {}}                ---------------------->
//!                                     <-- {"over": {}}   (leaves those connections; from here on it only drains)
//!   (accepts)
//!                                 <-- {"carried": …} …   (until its last connection has ended)
//! ```
//!
//! Until `over` each of the two may die or give up: the predecessor then goes on as before.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Bytes of a line.
pub(in crate::gateway) const MAX_LINE: usize = 1 << 20;

/// Descriptors that go with one line. The kernel allows 253 (SCM_MAX_FD).
pub(in crate::gateway) const MAX_DESCRIPTORS: usize = 200;

/// Connections in one line.
const MAX_OPENED: usize = 200;

/// Connections that ended in one line.
const MAX_CLOSED: usize = 10_000;

/// The first answer of the predecessor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::gateway) struct Offer {
    /// Its version, for the log.
    pub program: String,
    /// Its process id, in its own namespace.
    pub process: u32,
    /// When it has started ([`crate::clock::now_ms`]).
    pub started_ms: u64,
}

/// What the predecessor says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::gateway) enum Word {
    /// The descriptors that come with this line.
    Descriptors(Vec<Descriptor>),
    /// These were all.
    Offered {},
    /// Connections that it carries itself.
    Carried(Report),
    /// It accepts no more. The connections whose handover to the packet tier goes on, and their slots.
    Frozen {
        /// By id.
        kept: Vec<(u64, Option<u32>)>,
    },
    /// It is no longer the gateway.
    Over {},
    /// It does not go on with this, and why.
    Refused(String),
}

/// What the successor says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::gateway) enum Step {
    /// Nothing is missing any more: let go.
    Freeze {},
    /// The connections are adopted.
    Serve {},
}

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::gateway) enum Descriptor {
    /// The listening socket of the commands.
    AdminSocket,
    /// The locked file beside it.
    AdminLock,
    /// The locked directory of the packet tier's pins.
    Pins,
    /// A listening socket.
    Listening {
        /// Where.
        address: SocketAddr,
        /// It is the service manager's.
        is_managers: bool,
    },
}

/// A connection, whichever process has accepted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::gateway) struct Id {
    /// The process that carries it, in its own namespace.
    pub process: u32,
    /// When that has started, by which equal numbers of several namespaces differ ([`crate::clock::now_ms`]).
    pub started_ms: u64,
    /// Its number in there.
    pub number: u64,
}

/// A connection that a process carries, by what it counts for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::gateway) struct Carried {
    pub id: Id,
    pub listener: String,
    pub route: String,
    /// Pool and server, once it has them.
    pub upstream: Option<(String, String)>,
    pub client: IpAddr,
}

/// What has changed since the last report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::gateway) struct Report {
    /// New ones, and those that have a server now.
    pub opened: Vec<Carried>,
    pub closed: Vec<Id>,
    /// By listener, how many clients have no route yet.
    pub waiting: BTreeMap<String, usize>,
}

impl Report {
    /// The same in lines that are short enough.
    pub(in crate::gateway) fn in_lines(self) -> impl Iterator<Item = Word> {
        let Report { opened, closed, waiting } = self;
        let opened = chunks(opened, MAX_OPENED);
        let closed = chunks(closed, MAX_CLOSED);
        let opened = opened.map(|opened| (opened, Vec::new()));
        let parts = opened.chain(closed.map(|closed| (Vec::new(), closed)));
        let all = parts.chain([(Vec::new(), Vec::new())]);
        all.map(move |(opened, closed)| Word::Carried(Report { opened, closed, waiting: waiting.clone() }))
    }
}

fn chunks<T>(all: Vec<T>, most: usize) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.into_iter();
    std::iter::from_fn(move || {
        let chunk: Vec<_> = all.by_ref().take(most).collect();
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// What was received and is not yet a whole line.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Lines(Vec<u8>);

impl Lines {
    pub(in crate::gateway) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next line without its end. `Err`: it is too long.
    pub(in crate::gateway) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        match self.0.iter().position(|byte| *byte == b'\n') {
            Some(end) if end < MAX_LINE => {
                let rest = self.0.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.0, rest);
                line.pop();
                Ok(Some(line))
            }
            None if self.0.len() < MAX_LINE => Ok(None),
            _ => Err(TooLong),
        }
    }
}

/// A line is too long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line has more than {MAX_LINE} bytes")]
pub(in crate::gateway) struct TooLong;

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(number: u64) -> Carried {
        Carried {
            id: Id { process: 1, started_ms: 7, number },
            listener: "l".repeat(700),
            route: "r".repeat(700),
            upstream: Some(("p".repeat(700), "s".repeat(700))),
            client: "2001:db8::1".parse().unwrap(),
        }
    }

    #[test]
    fn words_are_read_as_they_were_written() {
        let address = "[::]:443".parse().unwrap();
        for (word, line) in [
            (Word::Offered {}, r#"{"offered":{}}"#),
            (Word::Refused("no".into()), r#"{"refused":"no"}"#),
            (Word::Frozen { kept: vec![(7, Some(1)), (8, None)] }, r#"{"frozen":{"kept":[[7,1],[8,null]]}}"#),
            (
                Word::Descriptors(vec![
                    Descriptor::Pins,
                    Descriptor::Listening { address, is_managers: false },
                ]),
                r#"{"descriptors":["pins",{"listening":{"address":"[::]:443","is_managers":false}}]}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&word).unwrap(), line);
            assert_eq!(serde_json::from_str::<Word>(line).unwrap(), word);
        }
        assert_eq!(serde_json::to_string(&Step::Freeze {}).unwrap(), r#"{"freeze":{}}"#);
    }

    #[test]
    fn a_report_of_any_length_fits_into_lines() {
        let opened: Vec<_> = (0..1001).map(carried).collect();
        let closed: Vec<_> = (0..25_000).map(|number| carried(number).id).collect();
        let waiting = BTreeMap::from([("l".to_owned(), 3)]);
        let report = Report { opened: opened.clone(), closed: closed.clone(), waiting: waiting.clone() };
        let mut whole = Report::default();
        for word in report.in_lines() {
            assert!(serde_json::to_vec(&word).unwrap().len() < MAX_LINE);
            let Word::Carried(part) = word else { panic!("{word:?}") };
            whole.opened.extend(part.opened);
            whole.closed.extend(part.closed);
            whole.waiting = part.waiting;
        }
        assert_eq!(whole, Report { opened, closed, waiting });
        assert_eq!(Report::default().in_lines().count(), 1);
    }

    #[test]
    fn lines_are_found_however_they_arrive_and_have_a_bound() {
        let mut lines = Lines::default();
        assert_eq!(lines.next(), Ok(None));
        for byte in b"ab\n\nc" {
            lines.push(&[*byte]);
        }
        assert_eq!(lines.next(), Ok(Some(b"ab".to_vec())));
        assert_eq!(lines.next(), Ok(Some(Vec::new())));
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"d\n");
        assert_eq!(lines.next(), Ok(Some(b"cd".to_vec())));
        lines.push(&vec![b'x'; MAX_LINE - 1]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"x");
        assert_eq!(lines.next(), Err(TooLong));
        lines.push(b"\n");
        assert_eq!(lines.next(), Err(TooLong));
    }
}
