//! STARTTLS: protocols that begin in clear text, until the client asks for TLS and is promised it.
//!
//! To the client the gateway is a server that has no more to offer than TLS. Whatever else it is asked for it declines, in
//! the protocol's own words. Nothing of this goes to the server: that is asked for TLS by the gateway.

mod imap;
pub(crate) mod ldap;
mod pop3;
mod reply;
mod smtp;
mod xmpp;

use crate::reason::RejectReason;
use reply::{MAX_LENGTH, Reply, reply};

pub(super) use reply::Next;
pub use reply::Starttls;

/// How many of them a client may say: two or three are what it takes.
const MAX_TURNS: u8 = 16;

/// A dialogue before TLS.
#[derive(Debug)]
pub(super) struct Dialogue {
    pub(super) protocol: Starttls,
    /// Turns of the client that were answered; `None`: the greeting, which is the server's, is still to come.
    turns: Option<u8>,
}

impl Dialogue {
    pub(super) fn new(protocol: Starttls) -> Self {
        Self { protocol, turns: None }
    }

    /// The next reply, what follows it, and how many bytes of the window it answers; `None`: more is needed.
    pub(super) fn step(&mut self, window: &[u8]) -> Result<Option<(Reply, usize)>, RejectReason> {
        let Some(turns) = self.turns else {
            self.turns = Some(0);
            let greeting = match self.protocol {
                Starttls::Smtp => smtp::GREETING,
                Starttls::Imap => imap::GREETING,
                Starttls::Pop3 => pop3::GREETING,
                Starttls::Ldap | Starttls::Xmpp | Starttls::XmppServer => return self.step(window),
            };
            return Ok(Some((reply(Next::More, greeting), 0)));
        };
        if turns == MAX_TURNS {
            return Err(RejectReason::StarttlsCleartext);
        }
        let said = match self.protocol {
            Starttls::Smtp => line(window).map(|(line, length)| (smtp::answer(line), length)),
            Starttls::Imap => line(window).map(|(line, length)| (imap::answer(line), length)),
            Starttls::Pop3 => line(window).map(|(line, length)| (pop3::answer(line), length)),
            Starttls::Ldap => ldap::read(window)?.map(|(message, length)| (ldap::answer(&message), length)),
            Starttls::Xmpp | Starttls::XmppServer => xmpp::answer(&mut self.protocol, window)?,
        };
        match &said {
            None if window.len() > MAX_LENGTH => return Err(RejectReason::StarttlsMalformed),
            Some((_, length)) if *length > MAX_LENGTH => return Err(RejectReason::StarttlsMalformed),
            // What comes behind it was not encrypted, but would be taken as if it were (CVE-2011-0411).
            Some(((Next::Tls, _), length)) if window.len() > *length => {
                return Err(RejectReason::StarttlsStuffed);
            }
            None => {}
            Some(_) => self.turns = Some(turns + 1),
        }
        Ok(said)
    }
}

/// The first line without its end, and its length with it.
fn line(window: &[u8]) -> Option<(&[u8], usize)> {
    let end = window.iter().position(|&byte| byte == b'\n')?;
    let line = &window[..end];
    Some((line.strip_suffix(b"\r").unwrap_or(line), end + 1))
}
