//! Addresses that are put on a device while they are served.
//!
//! Each has a protocol number of ours (IFA_PROTO, Linux 5.18), so that those of a process that was killed are found again.
//! An older kernel ignores the number: what a killed process has left there stays.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::Netlink;

/// No other program is known to use it; those below 16 are the kernel's.
const OURS: AddressProtocol = AddressProtocol::Other(0x53);

/// Gives an address to a device, with the whole length as its prefix, at once: without duplicate detection. No error: the device
/// has it already.
pub fn add(device: &str, address: IpAddr) -> io::Result<()> {
    let mut message = message(device, address)?;
    message.attributes.push(AddressAttribute::Protocol(OURS));
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match Netlink::open(NETLINK_ROUTE)?.change(RouteNetlinkMessage::NewAddress(message), flags) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Takes an address from a device. No error: it does not have it.
pub fn remove(device: &str, address: IpAddr) -> io::Result<()> {
    let message = message(device, address)?;
    match Netlink::open(NETLINK_ROUTE)?.change(RouteNetlinkMessage::DelAddress(message), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        done => done,
    }
}

/// The addresses that [`add`] has given to devices, also in an earlier process, with the names of these.
pub fn ours() -> io::Result<Vec<(String, IpAddr)>> {
    let found = all(|entry| entry.attributes.contains(&AddressAttribute::Protocol(OURS)))?;
    let socket = naming_socket()?;
    let named = found
        .into_iter()
        .map(|(index, address)| Ok((rustix::net::netdevice::index_to_name(&socket, index)?, address)));
    named.collect()
}

/// All addresses that a device has.
pub fn on(device: &str) -> io::Result<BTreeSet<IpAddr>> {
    let device = index(device)?;
    Ok(all(|entry| entry.header.index == device)?.into_iter().map(|(_, address)| address).collect())
}

/// The addresses of these entries, with the numbers of their devices.
fn all(is_wanted: impl Fn(&AddressMessage) -> bool) -> io::Result<Vec<(u32, IpAddr)>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    Netlink::open(NETLINK_ROUTE)?.list(request, |entry| match entry {
        Ok(RouteNetlinkMessage::NewAddress(entry)) if is_wanted(&entry) => {
            let address = entry.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                AddressAttribute::Address(address) if address.is_ipv6() => Some(*address),
                _ => None,
            })?;
            Some((entry.header.index, address))
        }
        _ => None,
    })
}

/// The devices on whose segment an address is, by their own addresses.
pub fn segments_of(address: Ipv4Addr) -> io::Result<BTreeSet<u32>> {
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let found = Netlink::open(NETLINK_ROUTE)?.list(request, |entry| match entry {
        Ok(RouteNetlinkMessage::NewAddress(entry)) if (1..32).contains(&entry.header.prefix_len) => {
            let own = entry.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(own)) => Some(*own),
                _ => None,
            })?;
            let network = Ipv4Net::new(own, entry.header.prefix_len).ok()?;
            (network.contains(&address) && !own.is_loopback()).then_some(entry.header.index)
        }
        _ => None,
    })?;
    Ok(found.into_iter().collect())
}

fn message(device: &str, address: IpAddr) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.index = index(device)?;
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = if address.is_ipv4() { 32 } else { 128 };
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    Ok(message)
}

fn index(device: &str) -> io::Result<u32> {
    Ok(rustix::net::netdevice::name_to_index(naming_socket()?, device)?)
}

/// An Internet socket, and not a netlink socket: only those know the names of devices.
fn naming_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?)
}
