//! What is at the far end of a veth or netkit pair.
//!
//! A packet that is handed straight to the far device (bpf_redirect_peer) bypasses the bridge, router or virtual
//! server that may be between there and the address it is for. So that is only right where the far device has the
//! address itself and is a part of nothing. What cannot be told is taken for no: the neighbour's way is always right.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR, RTNLGRP_LINK};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::devices::link;
use super::netlink::{self, Netlink};

/// So many pairs are remembered; with more, all are asked for anew.
const PAIRS: usize = 4096;

/// More addresses of one device than this nobody needs: the rest is taken for absent.
const ADDRESSES: usize = 64;

/// The far ends of the pairs of one network namespace.
pub struct PairEnds {
    state: Mutex<State>,
    /// Hears of this and every other namespace that is known here, as the other ends' are once they have been asked
    /// for.
    news: Socket,
}

struct State {
    netlink: Netlink,
    /// By the index of the near device. Always complete, and no older than the last call of [`PairEnds::changed`].
    ends: HashMap<u32, Box<[IpAddr]>>,
}

impl PairEnds {
    /// For the network namespace in which the calling thread is. An error: changes in other namespaces cannot be
    /// followed, which takes CAP_NET_BROADCAST here (and CAP_NET_ADMIN, also later), or questions about them cannot be
    /// asked (before Linux 4.20).
    pub fn open() -> io::Result<Self> {
        // Not before the rest: what changes from here on is heard of.
        let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let news = netlink::listen(NETLINK_ROUTE, &groups)?;
        news.set_listen_all_namespaces(true)?;
        let state = State { netlink: Netlink::open_strict(NETLINK_ROUTE)?, ends: HashMap::new() };
        Ok(Self { state: Mutex::new(state), news })
    }

    /// Whether packets for `address` that are handed to the far end of this device are where they belong: the device is
    /// one of a pair, and its other end is up, in another namespace, a part of no other device, and has the address.
    pub fn holds(&self, device: u32, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let state = &mut *self.lock();
        let known = state.ends.get(&device);
        if let Some(addresses) = known {
            return addresses.contains(&address);
        }
        let addresses = state.far_addresses(device).unwrap_or_else(|error| {
            tracing::debug!(device, %error, "the far end of this device cannot be told");
            Box::default()
        });
        let holds = addresses.contains(&address);
        if state.ends.len() >= PAIRS {
            state.ends.clear();
        }
        state.ends.insert(device, addresses);
        holds
    }

    /// Whether any answer may be another than before; takes all news that there is.
    pub fn changed(&self) -> io::Result<bool> {
        let mut changed = false;
        netlink::drain(&self.news, |_| changed = true)?;
        if changed {
            // Who is asking meanwhile holds the lock until the answer is remembered, and may have asked too early.
            self.lock().ends.clear();
        }
        Ok(changed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is remembered is never half an answer.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for PairEnds {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl State {
    fn far_addresses(&mut self, device: u32) -> io::Result<Box<[IpAddr]>> {
        let netlink = &mut self.netlink;
        let near = link(netlink, device, None)?;
        let Some((namespace, index)) = near.as_ref().and_then(far_end) else { return Ok(Box::default()) };
        let far = link(netlink, index, Some(namespace))?;
        // The number of the namespace may have come to mean another one in between.
        if !far.is_some_and(|far| is_an_end(&far, device)) {
            return Ok(Box::default());
        }
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Unspec;
        request.header.index = index;
        request.attributes.push(AddressAttribute::TargetNetNsId(namespace));
        let mut addresses = netlink.list(RouteNetlinkMessage::GetAddress(request), |entry| match entry {
            Ok(RouteNetlinkMessage::NewAddress(entry)) if entry.header.index == index => address_of(&entry),
            _ => None,
        })?;
        addresses.truncate(ADDRESSES);
        Ok(addresses.into_boxed_slice())
    }
}

/// The other end of a pair: the number of its namespace, and its index there.
fn far_end(near: &LinkMessage) -> Option<(i32, u32)> {
    let (mut is_pair, mut namespace, mut index) = (false, None, None);
    for attribute in &near.attributes {
        match attribute {
            LinkAttribute::LinkNetNsId(number) if *number >= 0 => namespace = Some(*number),
            LinkAttribute::Link(number) => index = Some(*number),
            LinkAttribute::LinkInfo(infos) => {
                is_pair = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Netkit)));
            }
            _ => {}
        }
    }
    // Without a number of its own it is in this namespace, where packets cannot be handed to it.
    is_pair.then_some((namespace?, index?))
}

/// Whether what arrives at a device is its namespace's own business, and the other end of its pair is `near`.
fn is_an_end(far: &LinkMessage, near: u32) -> bool {
    let is_part = far.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    let is_pair = far.attributes.contains(&LinkAttribute::Link(near));
    is_pair && !is_part && far.header.flags.contains(LinkFlags::Up)
}

/// The address that a device has, if it is in use.
fn address_of(entry: &AddressMessage) -> Option<IpAddr> {
    // The same bits, of which the header has room for the first eight.
    let mut flags = AddressFlags::from_bits_retain(entry.header.flags.bits().into());
    let (mut address, mut local) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // Where the two differ, the first is that of the other end of a point-to-point link.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags |= *all,
            _ => {}
        }
    }
    let in_use = !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    let address = local.or(address).filter(|_| in_use)?;
    // Every device has one of these; it says nothing of which.
    let is_link_local = matches!(address, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(&ip));
    (!is_link_local).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(flags: LinkFlags, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.flags = flags;
        link.attributes = attributes;
        link
    }

    #[test]
    fn only_a_pair_whose_other_end_is_in_another_namespace_has_a_far_end() {
        let near = |kind, namespace: Option<i32>| {
            let mut attributes = vec![LinkAttribute::Link(5)];
            attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
            attributes.extend(namespace.map(LinkAttribute::LinkNetNsId));
            far_end(&link(LinkFlags::Up, attributes))
        };
        assert_eq!(near(InfoKind::Veth, Some(3)), Some((3, 5)));
        assert_eq!(near(InfoKind::Netkit, Some(0)), Some((0, 5)));
        assert_eq!(near(InfoKind::Veth, None), None);
        // The kernel could not give it a number.
        assert_eq!(near(InfoKind::Veth, Some(-1)), None);
        // The device below a VLAN is no other end.
        assert_eq!(near(InfoKind::Vlan, Some(3)), None);
    }

    #[test]
    fn a_part_of_another_device_or_one_that_is_down_is_no_end() {
        let pair = LinkAttribute::Link(7);
        assert!(is_an_end(&link(LinkFlags::Up, vec![pair.clone()]), 7));
        assert!(!is_an_end(&link(LinkFlags::empty(), vec![pair.clone()]), 7));
        assert!(!is_an_end(&link(LinkFlags::Up, vec![pair.clone(), LinkAttribute::Controller(3)]), 7));
        // Another device that has come by the same numbers.
        assert!(!is_an_end(&link(LinkFlags::Up, vec![pair]), 8));
    }

    #[test]
    fn an_address_counts_when_it_is_in_use_and_the_devices_own() {
        let address = |flags: AddressFlags, attributes: &[AddressAttribute]| {
            let mut entry = AddressMessage::default();
            entry.attributes = attributes.to_vec();
            entry.attributes.push(AddressAttribute::Flags(flags));
            address_of(&entry)
        };
        let [own, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse().unwrap());
        let v6: IpAddr = "fd00::1".parse().unwrap();
        let permanent = AddressFlags::Permanent;
        let point_to_point = [AddressAttribute::Address(other), AddressAttribute::Local(own)];
        assert_eq!(address(permanent, &point_to_point), Some(own));
        assert_eq!(address(permanent, &[AddressAttribute::Address(v6)]), Some(v6));
        assert_eq!(address(AddressFlags::Tentative, &[AddressAttribute::Address(v6)]), None);
        assert_eq!(address(AddressFlags::Dadfailed, &[AddressAttribute::Address(v6)]), None);
        assert_eq!(address(permanent, &[AddressAttribute::Address("fe80::1".parse().unwrap())]), None);
    }
}
