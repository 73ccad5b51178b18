//! KILL: a client knows its connections by the numbers that the gateway has greeted them with. What it sends of them is
//! rewritten to the server's numbers.
//!
//! Commands begin with the sequence number 0, and nothing else that a client sends does: neither its part of a login nor the
//! rest of a long packet. Compressed packets cannot be read in this way.

use super::packet::{HEADER, packet};
use std::borrow::Cow;
use std::ops::Range;

const COM_QUERY: u8 = 0x03;
const COM_PROCESS_KILL: u8 = 0x0c;

/// Bytes of a payload that may be a KILL: the statement, with a comment and its numbers.
const MAX_KILL: usize = 256;

/// What a client sends, on its way to the server.
#[derive(Debug)]
pub struct Kills {
    /// Statements begin with the numbers of their attributes.
    attributes: bool,
    /// The front of a packet that may be a KILL and is not whole: less than `HEADER + MAX_KILL` bytes.
    held: Vec<u8>,
    /// Bytes of a packet that are still to come and are none.
    passing: usize,
}

/// What is known of a packet by its front.
enum Front {
    /// Too little.
    Unknown,
    /// It has this many bytes, and is no KILL.
    Other(usize),
    /// It has this many bytes, and may be one.
    Maybe(usize),
}

impl Kills {
    /// Of a connection whose statements have room for attributes, or do not.
    pub fn new(attributes: bool) -> Self {
        Kills { attributes, held: Vec::new(), passing: 0 }
    }

    /// What the server gets of `bytes`, with what was held back before. `number`: the server's number for one of the gateway's.
    pub fn pass<'a>(&mut self, bytes: &'a [u8], number: impl Fn(u32) -> Option<u32>) -> Cow<'a, [u8]> {
        // Most of a large statement.
        if self.held.is_empty() && self.passing >= bytes.len() {
            self.passing -= bytes.len();
            return bytes.into();
        }
        let mut passed = Vec::with_capacity(bytes.len() + self.held.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            let through = rest.split_at(self.passing.min(rest.len()));
            passed.extend_from_slice(through.0);
            (self.passing, rest) = (self.passing - through.0.len(), through.1);
            // One byte more than what is needed to know what it is: then never more than a packet.
            let wanted = match front(&self.held) {
                Front::Unknown => self.held.len() + 1,
                Front::Other(length) | Front::Maybe(length) => length,
            };
            let (taken, left) = rest.split_at((wanted - self.held.len()).min(rest.len()));
            self.held.extend_from_slice(taken);
            rest = left;
            match front(&self.held) {
                Front::Other(length) => {
                    self.passing = length - self.held.len();
                    passed.append(&mut self.held);
                }
                Front::Maybe(length) if length == self.held.len() => {
                    let rewritten = self.rewritten(&number);
                    passed.extend_from_slice(rewritten.as_deref().unwrap_or(&self.held));
                    self.held.clear();
                }
                Front::Maybe(_) | Front::Unknown => {}
            }
        }
        passed.into()
    }

    /// What is held back, once nothing follows.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// The packet that is held, with the server's number in the place of the gateway's; `None`: as it is.
    fn rewritten(&self, number: impl Fn(u32) -> Option<u32>) -> Option<Vec<u8>> {
        let (command, arguments) = self.held.get(HEADER..)?.split_first()?;
        let known = |text: &[u8]| number(std::str::from_utf8(text).ok()?.parse().ok()?);
        let payload = match *command {
            COM_PROCESS_KILL => {
                let theirs = number(u32::from_le_bytes(arguments.try_into().ok()?))?;
                [&[COM_PROCESS_KILL], &theirs.to_le_bytes()[..]].concat()
            }
            _ => {
                // No attributes, in one set.
                let front: &[u8] = if self.attributes { &[0, 1] } else { &[] };
                let statement = arguments.strip_prefix(front)?;
                let digits = target(statement)?;
                let theirs = known(&statement[digits.clone()])?.to_string();
                [&[COM_QUERY], front, &statement[..digits.start], theirs.as_bytes(), &statement[digits.end..]]
                    .concat()
            }
        };
        Some(packet(0, &payload))
    }
}

fn front(held: &[u8]) -> Front {
    let [low, middle, high, sequence, rest @ ..] = held else { return Front::Unknown };
    let payload = u32::from_le_bytes([*low, *middle, *high, 0]) as usize;
    if *sequence != 0 || payload == 0 || payload > MAX_KILL {
        return Front::Other(HEADER + payload);
    }
    match rest.first() {
        None => Front::Unknown,
        Some(&(COM_QUERY | COM_PROCESS_KILL)) => Front::Maybe(HEADER + payload),
        Some(_) => Front::Other(HEADER + payload),
    }
}

/// Where the number is in `KILL [HARD | SOFT] [CONNECTION | QUERY] n`, with comments in front (as drivers put them there).
fn target(statement: &[u8]) -> Option<Range<usize>> {
    let mut rest = blanks(statement);
    while let Some(comment) = rest.strip_prefix(b"/*") {
        // An executable one is a statement.
        if comment.starts_with(b"!") || comment.starts_with(b"M!") {
            return None;
        }
        rest = blanks(&comment[comment.windows(2).position(|end| end == b"*/")? + 2..]);
    }
    rest = word(rest, b"KILL")?;
    rest = word(rest, b"HARD").or(word(rest, b"SOFT")).unwrap_or(rest);
    rest = word(rest, b"CONNECTION").or(word(rest, b"QUERY")).unwrap_or(rest);
    let begin = statement.len() - rest.len();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let behind = blanks(&rest[digits..]);
    let behind = blanks(behind.strip_prefix(b";").unwrap_or(behind));
    (digits > 0 && behind.is_empty()).then_some(begin..begin + digits)
}

/// What follows a keyword and the blanks behind it.
fn word<'a>(statement: &'a [u8], keyword: &[u8]) -> Option<&'a [u8]> {
    let (front, rest) = statement.split_at_checked(keyword.len())?;
    let behind = blanks(rest);
    (front.eq_ignore_ascii_case(keyword) && behind.len() < rest.len()).then_some(behind)
}

fn blanks(text: &[u8]) -> &[u8] {
    text.trim_ascii_start()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: u32 = 0x7f00_0001;

    fn number(ours: u32) -> Option<u32> {
        (ours == OURS).then_some(42)
    }

    fn query(text: &str) -> Vec<u8> {
        packet(0, &[&[COM_QUERY], text.as_bytes()].concat())
    }

    /// What the server gets, if the client's bytes come in pieces of this size.
    fn passed(bytes: &[u8], attributes: bool, size: usize) -> Vec<u8> {
        let mut kills = Kills::new(attributes);
        let mut passed = Vec::new();
        for piece in bytes.chunks(size) {
            passed.extend_from_slice(&kills.pass(piece, number));
            assert!(kills.held.len() < HEADER + MAX_KILL);
        }
        passed.extend(kills.rest());
        passed
    }

    #[test]
    fn the_number_is_rewritten_in_every_form() {
        for (statement, expected) in [
            ("KILL 2130706433", "KILL 42"),
            ("kill query 2130706433;", "kill query 42;"),
            (" KILL\tHARD  CONNECTION\n2130706433 ; ", " KILL\tHARD  CONNECTION\n42 ; "),
            ("/* app */ KILL SOFT QUERY 2130706433", "/* app */ KILL SOFT QUERY 42"),
        ] {
            assert_eq!(passed(&query(statement), false, 1000), query(expected));
            let with = |text: &str| packet(0, &[&[COM_QUERY, 0, 1], text.as_bytes()].concat());
            assert_eq!(passed(&with(statement), true, 1000), with(expected));
        }
        let kill = |number: u32| packet(0, &[&[COM_PROCESS_KILL], &number.to_le_bytes()[..]].concat());
        assert_eq!(passed(&kill(OURS), true, 1), kill(42));
        assert_eq!(passed(&kill(7), true, 1), kill(7));
    }

    #[test]
    fn everything_else_stays_as_it_is() {
        for statement in [
            "KILL 7",
            "KILL QUERY ID 2130706433",
            "KILL USER app",
            "KILLER 2130706433",
            "KILL2130706433",
            "KILL 2130706433 OR 1",
            "KILL 21307064331",
            "KILL 99999999999999999999",
            "SELECT 2130706433",
            "/*! KILL 2130706433 */",
            "/* KILL 2130706433",
            "KILL",
            "KILL ",
            "",
        ] {
            assert_eq!(passed(&query(statement), false, 1000), query(statement), "{statement}");
        }
        // Part of a login, or of a long packet; and a statement whose attributes are not known to be there.
        let later = packet(3, b"\x03KILL 2130706433");
        assert_eq!(passed(&later, false, 1000), later);
        assert_eq!(passed(&query("KILL 2130706433"), true, 1000), query("KILL 2130706433"));
    }

    #[test]
    fn a_kill_is_held_until_it_is_whole_and_no_longer() {
        let kill = query("KILL 2130706433");
        for length in 0..kill.len() {
            let mut kills = Kills::new(false);
            assert_eq!(&*kills.pass(&kill[..length], number), b"", "{length}");
            assert_eq!(&*kills.pass(&kill[length..], number), query("KILL 42"), "{length}");
        }
        let mut kills = Kills::new(false);
        let other = packet(0, b"\x16SELECT 1");
        assert_eq!(&*kills.pass(&other[..5], number), &other[..5]);
        assert_eq!(&*kills.pass(&other[5..7], number), &other[5..7]);
        // An end in the middle: nothing is kept from the server.
        assert_eq!(passed(&kill[..9], false, 2), &kill[..9]);
    }

    fn commands() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let other =
            (any::<u8>(), prop::collection::vec(any::<u8>(), 0..600)).prop_map(|(sequence, payload)| {
                let packet = packet(sequence.max(1), &payload);
                (packet.clone(), packet)
            });
        let kill = Just((query("KILL 2130706433"), query("KILL 42")));
        let command = prop::collection::vec(4..255_u8, 0..600).prop_map(|payload| {
            let payload = packet(0, &payload);
            (payload.clone(), payload)
        });
        prop_oneof![other, kill, command]
    }

    proptest! {
        #[test]
        fn however_it_is_cut_only_kills_change(list in prop::collection::vec(commands(), 0..12), size in 1..700_usize) {
            prop_assume!(list.iter().all(|(sent, _)| sent.get(4) != Some(&COM_PROCESS_KILL)));
            let (sent, expected): (Vec<_>, Vec<_>) = list.into_iter().unzip();
            prop_assert_eq!(passed(&sent.concat(), false, size), expected.concat());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_the_pieces_do_not_matter(
            bytes in prop::collection::vec(any::<u8>(), 0..400),
            size in 1..50_usize,
            attributes: bool,
        ) {
            let whole = passed(&bytes, attributes, usize::MAX);
            prop_assert_eq!(passed(&bytes, attributes, size), whole);
        }
    }
}
