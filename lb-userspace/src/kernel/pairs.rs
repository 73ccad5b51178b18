//! The far ends of veth and netkit pairs.
//!
//! A packet that is redirected straight to the far device (bpf_redirect_peer) bypasses the bridge, router or virtual server
//! that may stand between that device and the packet's destination. So this is done only if the far device has the
//! destination address itself and has no master. In doubt it is not done: a redirect to the neighbour is always right.

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

/// The most pairs that are remembered; when there are more, all are forgotten and asked for anew.
const PAIRS: usize = 4096;

/// The most addresses of one device that are remembered; the rest is taken for absent.
const ADDRESSES: usize = 64;

/// The far ends of the pairs of one network namespace.
pub struct PairEnds {
    known: Mutex<FarEnds>,
    /// Receives notifications of this namespace and of every other one that has an id here. A far end's namespace has one
    /// after it was asked for.
    news: Socket,
}

struct FarEnds {
    netlink: Netlink,
    /// The far device's addresses, by the index of the near device. No older than the last call of [`PairEnds::changed`].
    addresses: HashMap<u32, Box<[IpAddr]>>,
}

impl PairEnds {
    /// For the network namespace in which the calling thread is. Needs CAP_NET_BROADCAST here, CAP_NET_ADMIN here and
    /// later, and Linux 4.20: else changes in other namespaces cannot be followed, or questions about them not be asked.
    pub fn open() -> io::Result<Self> {
        // First: every change from here on is notified.
        let groups = [RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR];
        let news = netlink::listen(NETLINK_ROUTE, &groups)?;
        news.set_listen_all_namespaces(true)?;
        let known = FarEnds { netlink: Netlink::open_strict(NETLINK_ROUTE)?, addresses: HashMap::new() };
        Ok(Self { known: Mutex::new(known), news })
    }

    /// Whether packets for `address` may be redirected straight to the far end of this device: the device is one of a pair,
    /// and its far end is up, in another namespace, has no master, and has the address.
    pub fn holds(&self, device: u32, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let far_ends = &mut *self.lock();
        if let Some(addresses) = far_ends.addresses.get(&device) {
            return addresses.contains(&address);
        }
        let addresses = far_ends.ask(device).unwrap_or_else(|error| {
            tracing::debug!(device, %error, "cannot ask for the far end of this device");
            Box::default()
        });
        let holds = addresses.contains(&address);
        if far_ends.addresses.len() >= PAIRS {
            far_ends.addresses.clear();
        }
        far_ends.addresses.insert(device, addresses);
        holds
    }

    /// Reads all notifications; whether answers may have changed.
    pub fn changed(&self) -> io::Result<bool> {
        let mut changed = false;
        netlink::drain(&self.news, |_| changed = true)?;
        if changed {
            // Under the lock: an answer that was asked for before the change is remembered by now, and is forgotten here.
            self.lock().addresses.clear();
        }
        Ok(changed)
    }

    fn lock(&self) -> MutexGuard<'_, FarEnds> {
        // The map is never left half-changed.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for PairEnds {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

impl FarEnds {
    /// The addresses of a device's far end; none if packets may not be redirected there.
    fn ask(&mut self, device: u32) -> io::Result<Box<[IpAddr]>> {
        let netlink = &mut self.netlink;
        let near = link(netlink, device, None)?;
        let Some((namespace, index)) = near.as_ref().and_then(far_end) else { return Ok(Box::default()) };
        let far = link(netlink, index, Some(namespace))?;
        // The id may stand for another namespace by now.
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

/// The addresses of this network namespace that are in use, but for loopback and link-local ones.
pub fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Unspec;
    let mut own = netlink.list(RouteNetlinkMessage::GetAddress(request), |entry| match entry {
        Ok(RouteNetlinkMessage::NewAddress(entry)) => address_of(&entry),
        _ => None,
    })?;
    own.retain(|ip| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback(),
    });
    own.sort();
    own.dedup();
    Ok(own)
}

/// The other end of a pair: the id of its namespace, and its index there.
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
    // Without an id the far end is in this namespace, to which bpf_redirect_peer does not go.
    is_pair.then_some((namespace?, index?))
}

/// Whether a device is up, has no master, and is the other end of `near`'s pair.
fn is_an_end(far: &LinkMessage, near: u32) -> bool {
    let is_part = far.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Controller(_)));
    let is_pair = far.attributes.contains(&LinkAttribute::Link(near));
    is_pair && !is_part && far.header.flags.contains(LinkFlags::Up)
}

/// The address that a device has, if it is in use.
fn address_of(entry: &AddressMessage) -> Option<IpAddr> {
    // The header has the first eight bits, the attribute all of them.
    let mut flags = AddressFlags::from_bits_retain(entry.header.flags.bits().into());
    let (mut address, mut local) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            // If the two differ, `Address` is that of the other end of a point-to-point link.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(all) => flags |= *all,
            _ => {}
        }
    }
    let in_use = !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
    let address = local.or(address).filter(|_| in_use)?;
    // Link-local addresses are not unique among the devices.
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
