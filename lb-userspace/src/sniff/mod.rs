//! Sniff: from a client's first bytes to its ClientHello, or to the reason there is none.
//!
//! Sans-IO: the caller owns the socket, the clock and the buffer (the *window*), and [`Sniffer::handle`] tells it what to
//! do next. `LIFECYCLE.md`, beside this file, has the states, who owns what, and a row for each reason.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod alert;
mod hello;
mod ja4;
mod mysql;
mod name;
mod postgres;
mod records;
mod refusal;
mod sslv2;
mod starttls;
#[cfg(test)]
mod tests;

use crate::mysql::{Asked, Offer};
use crate::reason::RejectReason;
use starttls::{Dialogue, Next};
use std::borrow::Cow;

pub use alert::alert;
pub(crate) use alert::fatal;
pub use hello::{Alpn, ClientHello, TlsRequest, TlsVersion, body, inner, offer, offers_no_older_than_1_3};
pub use ja4::{Ja4, ja4};
pub use name::ServerName;
pub use postgres::{ALPN as POSTGRES_ALPN, Cancel, Opening, opening};
pub(crate) use records::{HANDSHAKE, Records};
pub use records::{MAX_HELLO, MAX_WINDOW, framed};
pub use refusal::{cleartext_error, encrypted_error};
pub use starttls::Starttls;
pub(crate) use starttls::ldap;

/// What a listener's clients send before TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// Nothing: the first byte belongs to a TLS record; or, if it is 0, what `Postgres` has.
    Tls,
    /// GSSENCRequest and SSLRequest, each at most once, or none of them (PostgreSQL 17).
    Postgres,
    /// A dialogue of this protocol.
    Starttls(Starttls),
}

/// What happened on the connection.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// The window: every byte received and not consumed, also those that an earlier call had.
    Bytes(&'a [u8]),
    /// `hello_timeout` passed.
    Timeout,
    /// The client closed or reset the connection.
    Closed,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Read on.
    NeedMore,
    /// Drop `consumed` bytes from the front of the window, write `reply` (which may be empty), then hand over the rest, or read
    /// on.
    Answer {
        /// The bytes the client waits for, if any.
        reply: Cow<'static, [u8]>,
        /// How many bytes of the window they answer, or are done with.
        consumed: usize,
    },
    /// The client asks for this. Final.
    Hello(Box<ClientHello>),
    /// A PostgreSQL client wants no TLS and no session, only that this session stops what it does. Final.
    Cancel(Cancel),
    /// Turn the client away; [`alert()`] and [`cleartext_error`] have the last words to say to it. Final.
    Reject(RejectReason),
}

/// The sniffer of one connection. A final verdict is given again by every later call.
#[derive(Debug)]
pub struct Sniffer {
    state: SniffState,
    /// The client has sent something.
    started: bool,
    /// Bytes of records that a ClientHello may have.
    limit: usize,
    /// How the client has asked for TLS, and was promised it.
    request: Option<TlsRequest>,
}

#[derive(Debug)]
enum SniffState {
    /// Before the first byte on a TLS listener. May be entered from: the start.
    Start,
    /// Before a PostgreSQL client's TLS. May be entered from: the start, `Start`, itself (after `N`). `certain`: it speaks
    /// PostgreSQL, as far as the listener tells, or what it has asked already.
    Startup { gss_refused: bool, certain: bool },
    /// Before TLS in another protocol. May be entered from: the start.
    Asking(Dialogue),
    /// Before the greeting on a MySQL listener. May be entered from: the start.
    MysqlGreeting { greeting: Vec<u8>, offer: Offer },
    /// Before the request for TLS on a MySQL listener. May be entered from: `MysqlGreeting`.
    MysqlRequest { offer: Offer },
    /// In the ClientHello. May be entered from: all of these but `MysqlGreeting`. `direct`: a PostgreSQL client's, without SSLRequest.
    Hello { records: Records, direct: bool },
    /// Decided. May be entered from: every state.
    Done(Output),
}

impl Sniffer {
    /// A sniffer for a connection on which nothing was received yet.
    pub fn new(preamble: Preamble) -> Self {
        Self::limited(preamble, MAX_WINDOW)
    }

    /// The same, with a bound of its own on the bytes of a ClientHello with its framing; [`MAX_WINDOW`] holds anyway.
    pub fn limited(preamble: Preamble, limit: usize) -> Self {
        let state = match preamble {
            Preamble::Tls => SniffState::Start,
            Preamble::Postgres => SniffState::Startup { gss_refused: false, certain: true },
            Preamble::Starttls(protocol) => SniffState::Asking(Dialogue::new(protocol)),
        };
        Self { state, started: false, limit, request: None }
    }

    /// How the client has asked for TLS, if it was promised it.
    pub fn request(&self) -> Option<TlsRequest> {
        self.request
    }

    /// A sniffer for a MySQL client, whom the gateway greets first.
    pub fn mysql(greeting: Vec<u8>, offer: Offer, limit: usize) -> Self {
        let state = SniffState::MysqlGreeting { greeting, offer };
        Self { state, started: false, limit, request: None }
    }

    /// The next step. The work of all calls is linear in the bytes that the client sends, however they are segmented.
    pub fn handle(&mut self, input: Input<'_>) -> Output {
        if let SniffState::Done(verdict) = &self.state {
            return verdict.clone();
        }
        let output = match input {
            Input::Bytes(window) => {
                self.started |= !window.is_empty();
                self.read(window).unwrap_or_else(Output::Reject)
            }
            Input::Timeout => Output::Reject(RejectReason::HelloTimeout),
            Input::Closed if self.started => Output::Reject(RejectReason::ClosedBeforeHello),
            Input::Closed => Output::Reject(RejectReason::ClosedBeforeData),
        };
        if matches!(output, Output::Hello(_) | Output::Cancel(_) | Output::Reject(_)) {
            self.state = SniffState::Done(output.clone());
        }
        output
    }

    fn read(&mut self, window: &[u8]) -> Result<Output, RejectReason> {
        if let SniffState::MysqlGreeting { greeting, offer } = &mut self.state {
            let reply = std::mem::take(greeting).into();
            self.state = SniffState::MysqlRequest { offer: *offer };
            return Ok(Output::Answer { reply, consumed: 0 });
        }
        if let SniffState::MysqlRequest { offer } = self.state {
            let Some(request) = mysql::request(window)? else { return Ok(Output::NeedMore) };
            let asked = Asked { offer, request: request.masked(offer) };
            self.request = Some(TlsRequest::Mysql(asked));
            self.state = self.hello(false);
            return Ok(Output::Answer { reply: Cow::Borrowed(&[]), consumed: mysql::WITH_HEADER });
        }
        if let (SniffState::Start, Some(&first)) = (&self.state, window.first()) {
            self.state = match first {
                postgres::FIRST => SniffState::Startup { gss_refused: false, certain: false },
                _ => self.hello(false),
            };
        }
        if let SniffState::Startup { gss_refused, certain } = self.state {
            let request = postgres::request(window, gss_refused).map_err(|reason| match reason {
                RejectReason::PostgresMalformed if !certain => RejectReason::NotTls,
                reason => reason,
            });
            match request? {
                None => return Ok(Output::NeedMore),
                Some(postgres::Request::Gss) => {
                    return Ok(self.answer(b"N", SniffState::Startup { gss_refused: true, certain: true }));
                }
                Some(postgres::Request::Ssl) => {
                    self.request = Some(TlsRequest::Postgres);
                    return Ok(self.answer(b"S", self.hello(false)));
                }
                Some(postgres::Request::Cancel(cancel)) => return Ok(Output::Cancel(cancel)),
                Some(postgres::Request::DirectTls) => self.state = self.hello(true),
            }
        }
        if let SniffState::Asking(dialogue) = &mut self.state {
            let Some(((next, reply), consumed)) = dialogue.step(window)? else { return Ok(Output::NeedMore) };
            match next {
                Next::More => {}
                Next::Tls => {
                    self.request = Some(TlsRequest::Starttls(dialogue.protocol));
                    self.state = self.hello(false);
                }
                Next::Bye => self.state = SniffState::Done(Output::Reject(RejectReason::StarttlsCleartext)),
            }
            return Ok(Output::Answer { reply, consumed });
        }
        let SniffState::Hello { records, direct } = &mut self.state else {
            return Ok(Output::NeedMore);
        };
        let request = self.request;
        if sslv2::begins(window) {
            return Ok(match sslv2::read(window, request, self.limit)? {
                None => Output::NeedMore,
                Some(hello) => Output::Hello(Box::new(hello)),
            });
        }
        let Some(message) = records.advance(window)? else {
            return Ok(Output::NeedMore);
        };
        let hello = hello::read(&message, records.position(), request)?;
        // "When using SSL connections in this style the client is required to use the ALPN extension […] to
        // protect against protocol confusion attacks" (PostgreSQL 17, "SSL Session Encryption"). The server
        // closes the connection without it, and so do we: else a terminated route would accept more than the server.
        if *direct && !hello.alpn.offers(postgres::ALPN) {
            return Err(RejectReason::AlpnMismatch);
        }
        Ok(Output::Hello(Box::new(hello)))
    }

    fn answer(&mut self, reply: &'static [u8], next: SniffState) -> Output {
        self.state = next;
        Output::Answer { reply: reply.into(), consumed: postgres::REQUEST_LENGTH }
    }

    fn hello(&self, direct: bool) -> SniffState {
        SniffState::Hello { records: Records::new(self.limit), direct }
    }
}
