//! Which client addresses may connect to a listener. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use ipnet::IpNet;
use std::net::IpAddr;

/// `allow` and `deny` of a listener; deny wins, an empty `allow` allows everyone.
#[derive(Debug, Default)]
pub struct Acl {
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
}

impl Acl {
    /// From the configured networks.
    pub fn new(allow: &[IpNet], deny: &[IpNet]) -> Self {
        Acl { allow: allow.to_vec(), deny: deny.to_vec() }
    }

    /// Whether the client may connect. An IPv4 client of a dual-stack socket is judged as IPv4.
    pub fn permits(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        let covers = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&client));
        !covers(&self.deny) && (self.allow.is_empty() || covers(&self.allow))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permits(allow: &[&str], deny: &[&str], client: &str) -> bool {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        Acl::new(&nets(allow), &nets(deny)).permits(client.parse().unwrap())
    }

    #[test]
    fn deny_wins() {
        assert!(permits(&["10.0.0.0/8"], &["10.9.0.0/16"], "10.8.0.1"));
        assert!(!permits(&["10.0.0.0/8"], &["10.9.0.0/16"], "10.9.0.1"));
    }

    #[test]
    fn an_allow_list_excludes_the_rest() {
        assert!(permits(&[], &[], "203.0.113.1"));
        assert!(!permits(&["10.0.0.0/8"], &[], "203.0.113.1"));
        assert!(!permits(&["0.0.0.0/0"], &[], "2001:db8::1"));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert!(permits(&["10.0.0.0/8"], &[], "::ffff:10.0.0.1"));
        assert!(!permits(&[], &["10.0.0.0/8"], "::ffff:10.0.0.1"));
    }
}
