//! HTTP: requests of a connection whose route has rules for them, forwarded one by one.
//!
//! Each request is judged by the configuration of its time. A connection goes on over reloads, until its listener or its route
//! is gone, or the gateway stops: then it ends as soon as nothing is under way (HTTP/1.1: `Connection: close`; HTTP/2: GOAWAY).

mod account;
mod answer;
mod body;
mod exec;
pub mod filter;
mod forward;
mod framing;
mod head;
mod hop;
mod host;
mod kept;
mod leg;
mod link;
mod mirror;
mod reach;
mod request;
mod sent;
mod serve;
mod upstream;
mod watch;

pub(crate) use leg::Leg;
pub(crate) use link::Link;
pub(crate) use serve::serve;
