//! IPsec policies (XFRM).
//!
//! A packet that a program redirects bypasses them: what should be encrypted would leave in clear text, and clear text that
//! should be dropped would come in. So a connection that a policy concerns is not spliced.

use crate::socket::canonical;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use netlink_packet_core::DecodeError;
use netlink_packet_xfrm::constants::{
    XFRM_POLICY_ALLOW, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_USERPOLICY_BLOCK, XFRMNLGRP_POLICY,
};
use netlink_packet_xfrm::policy::{DefaultMessage, DelGetMessage, ModifyMessage};
use netlink_packet_xfrm::{Address, UserPolicyDefault, XfrmAttrs, XfrmMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_XFRM;

use super::netlink::{self, Netlink};

/// The most policies that a connection is compared with; if there are more, no connection is spliced.
const POLICIES: usize = 4096;

/// The policies of one network namespace.
///
/// Without those of single sockets (IP_XFRM_POLICY), which the gateway does not set, and without those of xfrm interfaces
/// (`if_id`): such a device itself encrypts what is sent by it.
pub struct Policies {
    known: ArcSwap<KnownPolicies>,
    source: Mutex<Source>,
    news: Socket,
}

/// `None`: there are more than [`POLICIES`], or one was not understood. Then every connection counts as concerned.
type KnownPolicies = Option<Vec<Policy>>;

struct Source {
    netlink: Netlink,
    /// The policies have changed and are to be read again.
    stale: bool,
}

/// A policy that changes or refuses what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    /// For packets that leave this host; else for those that arrive.
    is_out: bool,
    source: IpNet,
    destination: IpNet,
    /// 0: any.
    protocol: u8,
    source_port: Masked,
    destination_port: Masked,
}

/// A port, compared in the bits of the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Masked {
    value: u16,
    mask: u16,
}

impl Policies {
    /// For the network namespace in which the calling thread is. `None`: the kernel has no IPsec.
    ///
    /// Needs CAP_NET_ADMIN, here and later.
    pub fn open() -> io::Result<Option<Self>> {
        // First: a change while the policies are read is notified.
        let news = match netlink::listen(NETLINK_XFRM, &[XFRMNLGRP_POLICY]) {
            Err(error) if is_absent(&error) => return Ok(None),
            news => news?,
        };
        let mut source = Source { netlink: Netlink::open(NETLINK_XFRM)?, stale: false };
        let known = match source.read() {
            Err(error) if is_absent(&error) => return Ok(None),
            known => known?,
        };
        Ok(Some(Self { known: ArcSwap::from_pointee(known), source: Mutex::new(source), news }))
    }

    /// Whether a policy changes or refuses a TCP connection's packets, in either direction.
    ///
    /// Marks, devices and the order of policies are ignored: if a policy that changes nothing comes first for the same
    /// packets, the answer is still yes.
    pub fn concern(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let (local, peer) = (canonical(local), canonical(peer));
        let known = self.known.load();
        known.as_ref().as_ref().is_none_or(|policies| policies.iter().any(|policy| policy.meets(local, peer)))
    }

    /// Reads all notifications and, if there were any, the policies; whether answers may have changed. After an error every
    /// connection counts as concerned, until a later call succeeds.
    pub fn changed(&self) -> io::Result<bool> {
        // `stale` is cleared only after all policies were read.
        let source = &mut *self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = netlink::drain(&self.news, |_| source.stale = true);
        if heard.is_ok() && !source.stale {
            return Ok(false);
        }
        let known = heard.and_then(|()| source.read());
        source.stale = known.is_err();
        let (known, outcome) = match known {
            Ok(known) => (known, Ok(true)),
            Err(error) => (None, Err(error)),
        };
        self.known.store(Arc::new(known));
        outcome
    }
}

impl AsFd for Policies {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

/// Whether the error is that of a kernel without XFRM or its netlink interface.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP))
}

impl Source {
    fn read(&mut self) -> io::Result<KnownPolicies> {
        let (mut policies, mut understood) = (Vec::new(), !self.refuses_by_default()?);
        self.netlink.list(XfrmMessage::GetPolicy(DelGetMessage::default()), |entry| {
            match read_entry(entry) {
                Ok(Some(policy)) if policies.len() < POLICIES => policies.push(policy),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => understood = false,
            }
            None::<()>
        })?;
        Ok(understood.then_some(policies))
    }

    /// Whether packets that no policy matches are refused (`ip xfrm policy setdefault`, Linux 5.14).
    fn refuses_by_default(&mut self) -> io::Result<bool> {
        let request = DefaultMessage { user_policy: UserPolicyDefault::default() };
        match self.netlink.ask(XfrmMessage::GetPolicyDefault(request)) {
            Ok(XfrmMessage::GetPolicyDefault(DefaultMessage { user_policy })) => {
                Ok([user_policy.input, user_policy.output].contains(&XFRM_USERPOLICY_BLOCK))
            }
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            // A kernel before 5.14.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// `None`: the policy changes nothing, or none of our packets.
fn read_entry(entry: Result<XfrmMessage, DecodeError>) -> Result<Option<Policy>, DecodeError> {
    match entry? {
        XfrmMessage::AddPolicy(policy) | XfrmMessage::UpdatePolicy(policy) => read_policy(&policy),
        other => Err(format!("message {} in a list of policies", other.message_type()).into()),
    }
}

fn read_policy(policy: &ModifyMessage) -> Result<Option<Policy>, DecodeError> {
    let info = &policy.user_policy_info;
    let changes = |attribute: &XfrmAttrs| matches!(attribute, XfrmAttrs::Template(all) if !all.is_empty());
    let is_harmless = info.action == XFRM_POLICY_ALLOW && !policy.nlas.iter().any(changes);
    let of_interface = policy.nlas.iter().any(|attribute| matches!(attribute, XfrmAttrs::IfId(1..)));
    // Forwarded packets are not those of this host's sockets.
    let is_of_hosts = matches!(info.direction, XFRM_POLICY_IN | XFRM_POLICY_OUT);
    if is_harmless || of_interface || !is_of_hosts {
        return Ok(None);
    }
    let selector = &info.selector;
    let net = |address: &Address, length| {
        let address: IpAddr = match i32::from(selector.family) {
            libc::AF_INET => address.to_ipv4().into(),
            libc::AF_INET6 => address.to_ipv6().into(),
            other => return Err(DecodeError::from(format!("a policy for address family {other}"))),
        };
        IpNet::new(address, length).map_err(|error| error.to_string().into())
    };
    Ok(Some(Policy {
        is_out: info.direction == XFRM_POLICY_OUT,
        source: net(&selector.saddr, selector.prefixlen_s)?,
        destination: net(&selector.daddr, selector.prefixlen_d)?,
        protocol: selector.proto,
        source_port: Masked { value: selector.sport, mask: selector.sport_mask },
        destination_port: Masked { value: selector.dport, mask: selector.dport_mask },
    }))
}

impl Policy {
    /// Whether the connection's packets in the policy's direction match it.
    fn meets(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let (source, destination) = if self.is_out { (local, peer) } else { (peer, local) };
        (self.protocol == 0 || i32::from(self.protocol) == libc::IPPROTO_TCP)
            && self.source.contains(&source.ip())
            && self.destination.contains(&destination.ip())
            && self.source_port.meets(source.port())
            && self.destination_port.meets(destination.port())
    }
}

impl Masked {
    fn meets(self, port: u16) -> bool {
        (port ^ self.value) & self.mask == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_xfrm::UserTemplate;
    use netlink_packet_xfrm::constants::{XFRM_POLICY_BLOCK, XFRM_POLICY_FWD};

    /// To a server's port, from anywhere.
    fn message(direction: u8, action: u8, attributes: Vec<XfrmAttrs>) -> ModifyMessage {
        let mut message = ModifyMessage::default();
        let info = &mut message.user_policy_info;
        (info.direction, info.action) = (direction, action);
        info.selector.family = libc::AF_INET as u16;
        info.selector.daddr = Address::from_ip(&[10, 0, 2, 0].into());
        info.selector.prefixlen_d = 24;
        (info.selector.dport, info.selector.dport_mask) = (6379, 0xffff);
        message.nlas = attributes;
        message
    }

    fn policy(direction: u8, action: u8, attributes: Vec<XfrmAttrs>) -> Option<Policy> {
        read_policy(&message(direction, action, attributes)).unwrap()
    }

    #[test]
    fn a_policy_that_changes_nothing_or_nothing_of_ours_is_left_out() {
        let template = || XfrmAttrs::Template(vec![UserTemplate::default()]);
        assert!(policy(XFRM_POLICY_OUT, XFRM_POLICY_ALLOW, vec![]).is_none());
        assert!(policy(XFRM_POLICY_OUT, XFRM_POLICY_ALLOW, vec![XfrmAttrs::Template(vec![])]).is_none());
        assert!(policy(XFRM_POLICY_FWD, XFRM_POLICY_BLOCK, vec![]).is_none());
        assert!(policy(XFRM_POLICY_OUT, XFRM_POLICY_BLOCK, vec![XfrmAttrs::IfId(7)]).is_none());

        assert!(policy(XFRM_POLICY_OUT, XFRM_POLICY_ALLOW, vec![template()]).is_some());
        assert!(policy(XFRM_POLICY_IN, XFRM_POLICY_ALLOW, vec![template()]).is_some());
        assert!(policy(XFRM_POLICY_OUT, XFRM_POLICY_BLOCK, vec![XfrmAttrs::IfId(0)]).is_some());
    }

    #[test]
    fn a_policy_meets_what_its_selector_says_in_its_own_direction() {
        let [ours, other]: [SocketAddr; 2] =
            ["10.0.2.1:6379", "192.0.2.1:40000"].map(|address| address.parse().unwrap());
        let out = policy(XFRM_POLICY_OUT, XFRM_POLICY_BLOCK, vec![]).unwrap();
        let into = policy(XFRM_POLICY_IN, XFRM_POLICY_BLOCK, vec![]).unwrap();
        assert!(out.meets(other, ours) && !out.meets(ours, other));
        assert!(into.meets(ours, other) && !into.meets(other, ours));
        let elsewhere = "10.0.3.1:6379".parse().unwrap();
        let by_port = "10.0.2.1:6380".parse().unwrap();
        let v6 = "[fd00::1]:6379".parse().unwrap();
        assert!(!out.meets(other, elsewhere) && !out.meets(other, by_port) && !out.meets(v6, v6));

        let of = |protocol: u8| Policy { protocol, ..out.clone() }.meets(other, ours);
        assert!(of(libc::IPPROTO_TCP as u8) && !of(libc::IPPROTO_UDP as u8));
        // Bits outside the mask play no part.
        assert!(Masked { value: 0x1234, mask: 0xff00 }.meets(0x1256));
        assert!(!Masked { value: 0x1234, mask: 0xff00 }.meets(0x1334));
    }

    #[test]
    fn a_policy_that_is_not_understood_is_an_error_and_not_none() {
        let of_family = |family: i32, length| {
            let mut message = message(XFRM_POLICY_OUT, XFRM_POLICY_BLOCK, vec![]);
            message.user_policy_info.selector.family = family as u16;
            message.user_policy_info.selector.prefixlen_d = length;
            read_policy(&message)
        };
        assert!(of_family(libc::AF_INET6, 128).is_ok());
        assert!(of_family(libc::AF_INET, 33).is_err());
        assert!(of_family(libc::AF_UNSPEC, 0).is_err());
    }
}
