//! Subject alternative names of certificates (RFC 5280, section 4.2.1.6), as they are asked for.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;
use std::net::IpAddr;

/// A subject alternative name, or several of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum San {
    /// A host name: lower case, without a trailing dot.
    Dns(Box<str>),
    /// Every host name that ends with this one, behind one or more labels, as a wildcard of a route covers them.
    DnsBelow(Box<str>),
    /// An IP address.
    Ip(IpAddr),
    /// This URI.
    Uri(Box<str>),
    /// Every URI that is longer than this, and begins with it.
    UriBelow(Box<str>),
    /// A mailbox. Its domain has no case.
    Email(Box<str>),
}

/// As it is written in the configuration.
impl fmt::Display for San {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            San::Dns(name) => write!(f, "DNS:{name}"),
            San::DnsBelow(parent) => write!(f, "DNS:*.{parent}"),
            San::Ip(address) => write!(f, "IP:{address}"),
            San::Uri(uri) => write!(f, "URI:{uri}"),
            San::UriBelow(begin) => write!(f, "URI:{begin}*"),
            San::Email(mailbox) => write!(f, "email:{mailbox}"),
        }
    }
}
