//! Where servers are: addresses, names and services, as text and parsed.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What an entry of a pool's `servers` stands for. Displayed as it is written in the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// One server.
    Address(Address),
    /// The servers that the SRV records of this name have (RFC 2782): lower case; a trailing dot is kept.
    Service(Box<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Address(address) => address.fmt(f),
            Origin::Service(name) => write!(f, "{SERVICE}{name}"),
        }
    }
}

/// What stands before the name of a service.
pub(super) const SERVICE: &str = "srv:";

/// Where a server listens. Displayed as it is written in the file: `10.0.0.11:6379`, `[::1]:6379`, `name:6379`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// An address, or a name for DNS.
    pub host: Host,
    /// Not 0.
    pub port: u16,
}

/// The host of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Used as it is.
    Ip(IpAddr),
    /// Looked up in DNS; lower case; a trailing dot is kept (it turns the search list off).
    Name(Box<str>),
}

impl Address {
    /// A host by its name, which may come from DNS; `None`: it cannot be one, or the port is 0.
    pub fn of_host(name: &str, port: u16) -> Option<Self> {
        let name = dns_name(name).ok()?;
        (port != 0).then_some(Address { host: Host::Name(name), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl FromStr for Address {
    /// Why it is none, as the end of a sentence.
    type Err = &'static str;

    /// As it is displayed.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains("://") {
            return Err("it is a URL");
        }
        let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => Host::Ip(IpAddr::V6(v6.parse().map_err(|_| "not an IPv6 address")?)),
            None if host.contains(':') => return Err("an IPv6 address stands in brackets"),
            None => match host.parse() {
                Ok(v4) => Host::Ip(v4),
                Err(_) => Host::Name(dns_name(host)?),
            },
        };
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            // Not "+6379", which would parse.
            Ok(port @ 1..) if digits => Ok(Address { host, port }),
            _ => Err("the port is a number from 1 to 65535"),
        }
    }
}

/// A name for DNS, in lower case.
pub(super) fn dns_name(text: &str) -> Result<Box<str>, &'static str> {
    let name = text.to_ascii_lowercase();
    let bare = name.strip_suffix('.').unwrap_or(&name);
    host_name(bare)?;
    // No top-level domain is a number: this is a broken IPv4 address.
    match bare.rsplit('.').next().is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit())) {
        true => Err("not an IPv4 address"),
        false => Ok(name.into()),
    }
}

/// RFC 1035, without the trailing dot.
pub(super) const MAX_HOST_NAME: usize = 253;

/// Checks a lower-case name without its trailing dot. Underscores are let through: they are no part of RFC 1123,
/// but of many names in use (Compose services, Istio's `outbound_.80_._.host`).
pub(super) fn host_name(name: &str) -> Result<(), &'static str> {
    if name.len() > MAX_HOST_NAME {
        return Err("it is longer than 253 bytes");
    }
    for label in name.split('.') {
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        match label.len() {
            0 => return Err("a label is empty"),
            1..=63 => {}
            _ => return Err("a label is longer than 63 bytes"),
        }
        if !label.bytes().all(inside) {
            return Err("labels are made of letters, digits and `-`");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err("a label starts or ends with `-`");
        }
    }
    Ok(())
}
