//! Network devices of the network namespace in which the calling thread is.
//!
//! rtnetlink is asked, because /sys/class/net shows the namespace of whoever mounted it.

use std::ffi::{c_char, c_ulong};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use lb_common::packet::LOOPBACK;
use libc::{
    RTM_DELLINK, RTM_DELRULE, RTM_NEWLINK, RTM_NEWRULE, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE, RTNLGRP_LINK,
    RTNLGRP_NEXTHOP,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoVxlan, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::netlink::{self, Netlink};
use crate::config::Interfaces;

/// One network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Unique in its namespace, and not used again soon.
    pub index: u32,
    /// Unique in its namespace; may change.
    pub name: String,
    /// The administrator has set it up (IFF_UP); it may have no carrier.
    pub is_up: bool,
    /// What precedes the IP header in a packet that a tc program sees.
    pub link_layer: LinkLayer,
    /// The index of its master: the bridge, bond or VRF that it is a part of.
    pub master: Option<u32>,
    /// The driver's name for virtual devices, such as "veth", "bridge" or "vlan".
    pub kind: Option<String>,
    /// A tunnel in external mode: the other end is chosen for each packet.
    pub is_external: bool,
}

/// What precedes the IP header in a packet that a tc program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// Nothing.
    Bare,
    /// Something else.
    Unsupported,
}

impl From<LinkLayerType> for LinkLayer {
    fn from(kind: LinkLayerType) -> Self {
        match kind {
            LinkLayerType::Ether | LinkLayerType::Loopback => Self::Ethernet,
            // As the kernel's dev_is_mac_header_xmit, except for GRE: packets of a GRE device without a fixed other end
            // carry the outer headers.
            LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit => Self::Bare,
            _ => Self::Unsupported,
        }
    }
}

/// All devices, in the kernel's order.
pub fn devices() -> io::Result<Vec<Device>> {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    Netlink::open(NETLINK_ROUTE)?.list(RouteNetlinkMessage::GetLink(link), |entry| match entry {
        Ok(RouteNetlinkMessage::NewLink(link)) => device_of(&link),
        Ok(_) => None,
        Err(error) => {
            tracing::warn!(%error, "the kernel describes a network device in a way not understood");
            None
        }
    })
}

/// One device, as the kernel describes it. `elsewhere`: the id of another network namespace in that of the socket. `None`:
/// there is no such device.
pub(super) fn link(
    netlink: &mut Netlink,
    index: u32,
    elsewhere: Option<i32>,
) -> io::Result<Option<LinkMessage>> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    link.attributes.extend(elsewhere.map(LinkAttribute::IfNetnsId));
    match netlink.ask(RouteNetlinkMessage::GetLink(link)) {
        Ok(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link)),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The devices that get programs.
///
/// With `auto` these are all devices on which packets for this host's IP arrive, also while they are down: without a
/// program, a packet of a spliced connection would reach the TCP stack, which would reset the connection. Left out are
///
/// - ports of a bridge, bond, team or switch: their packets pass the master too. A VRF is no such master;
/// - tunnels in external mode (`ip link add … type vxlan external`): the route's encapsulation says where a packet goes,
///   and a redirect bypasses it. Other tunnels are like any device;
/// - devices on which nothing arrives (dummy), or only packets that go on to another device (ifb).
///
/// The loopback device is always among them, whatever the configuration names: the gateway's own packets to the ends of
/// spliced connections are sent by it ([`lb_common::packet::inject`]).
///
/// A VLAN and the device below it are both among them, as are a macvlan and its lower device. The program on the lower
/// device sees the packets first, and passes over those with a VLAN tag.
pub fn relevant<'a>(devices: &'a [Device], interfaces: &Interfaces) -> Vec<&'a Device> {
    let carries_ip = devices.iter().filter(|device| device.link_layer != LinkLayer::Unsupported);
    match interfaces {
        Interfaces::Auto => carries_ip
            .filter(|device| !is_port(device, devices) && !device.is_external && !is_sink(device))
            .collect(),
        Interfaces::Named(names) => {
            carries_ip.filter(|device| device.index == LOOPBACK || names.contains(&device.name)).collect()
        }
    }
}

/// Whether packets that arrive on the device pass its master too. A master that is not in the list is assumed to be such a
/// one.
fn is_port(device: &Device, devices: &[Device]) -> bool {
    device.master.is_some() && vrf_of(device, devices).is_none()
}

/// The index of the VRF that a device is in.
pub fn vrf_of(device: &Device, devices: &[Device]) -> Option<u32> {
    let master = devices.iter().find(|other| Some(other.index) == device.master)?;
    (master.kind.as_deref() == Some("vrf")).then_some(master.index)
}

fn is_sink(device: &Device) -> bool {
    matches!(device.kind.as_deref(), Some("dummy" | "ifb"))
}

/// Whether the device merges packets by large receive offload (LRO), which cannot be undone: merged packets are too large
/// to be forwarded. `false` also if the driver has no LRO.
pub fn joins_packets(device: &Device) -> io::Result<bool> {
    /// linux/sockios.h.
    const SIOCETHTOOL: c_ulong = 0x8946;
    /// linux/ethtool.h.
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_LRO: u32 = 1 << 15;
    /// linux/ethtool.h `struct ethtool_value`.
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    let mut value = Value { command: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: zeros are a value of every field of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte of the name stays 0; no name is longer.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(device.name.bytes()) {
        *to = from as c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the kernel reads the name and writes to `value`, which outlives the call, as much as the command says.
    let status = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    match (status, io::Error::last_os_error()) {
        (0, _) => Ok(value.data & ETH_FLAG_LRO != 0),
        (_, error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        (_, error) => Err(error),
    }
}

/// What has changed since the last call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Devices were added, removed or changed.
    pub devices: bool,
    /// Routes, rules, addresses, next hops or devices have changed, which decide where packets go.
    pub routes: bool,
    /// Rules have changed.
    pub rules: bool,
}

impl Changes {
    pub(super) const ALL: Self = Self { devices: true, routes: true, rules: true };

    /// Adds what a message of rtnetlink of this type says; `None`: messages were lost.
    fn note(&mut self, kind: Option<u16>) {
        let Some(kind) = kind else { return *self = Self::ALL };
        self.devices |= matches!(kind, RTM_NEWLINK | RTM_DELLINK);
        self.rules |= matches!(kind, RTM_NEWRULE | RTM_DELRULE);
        // Any message may mean a changed route: those of a device go with it, without a message for IPv4.
        self.routes = true;
    }
}

/// Receives notifications about devices and routes. Its descriptor is readable when there is one.
///
/// There are none about neighbours, which the kernel looks up for each packet, and about the sysctls that choose between
/// the paths of a route.
#[derive(Debug)]
pub struct Watch(Socket);

impl Watch {
    /// Begins to watch the namespace in which the calling thread is.
    pub fn new() -> io::Result<Self> {
        const GROUPS: [u32; 8] = [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_ROUTE,
            RTNLGRP_IPV4_RULE,
            RTNLGRP_IPV6_RULE,
            RTNLGRP_NEXTHOP,
        ];
        netlink::listen(NETLINK_ROUTE, &GROUPS).map(Self)
    }

    /// Reads all notifications; what has changed since the last call.
    pub fn changed(&self) -> io::Result<Changes> {
        let mut changes = Changes::default();
        netlink::drain(&self.0, |kind| changes.note(kind))?;
        Ok(changes)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `None`: the message has no name, which does not occur.
pub(super) fn device_of(link: &LinkMessage) -> Option<Device> {
    let mut device = Device {
        index: link.header.index,
        name: String::new(),
        is_up: link.header.flags.contains(LinkFlags::Up),
        link_layer: link.header.link_layer_type.into(),
        master: None,
        kind: None,
        is_external: false,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::Controller(index) => device.master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => device.kind = Some(kind.to_string()),
                        LinkInfo::Data(data) => device.is_external = is_external(data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (!device.name.is_empty()).then_some(device)
}

fn is_external(data: &InfoData) -> bool {
    match data {
        InfoData::Vxlan(options) => {
            options.iter().any(|option| matches!(option, InfoVxlan::CollectMetadata(true)))
        }
        InfoData::Geneve(options) => options.contains(&InfoGeneve::CollectMetadata),
        InfoData::IpTunnel(options) => options.contains(&InfoIpTunnel::CollectMetadata),
        InfoData::GreTap(options) | InfoData::ErSpan(options) => options.contains(&InfoGre::CollectMetadata),
        InfoData::GreTap6(options) | InfoData::Ip6ErSpan(options) => {
            options.contains(&InfoGre6::CollectMetadata)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: u32, name: &str, kind: &str) -> Device {
        Device {
            index,
            name: name.to_owned(),
            is_up: true,
            link_layer: LinkLayer::Ethernet,
            master: None,
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            is_external: false,
        }
    }

    fn part_of(master: u32, device: Device) -> Device {
        Device { master: Some(master), ..device }
    }

    fn names(devices: &[Device], interfaces: &Interfaces) -> Vec<String> {
        relevant(devices, interfaces).into_iter().map(|device| device.name.clone()).collect()
    }

    #[test]
    fn auto_takes_the_devices_where_packets_reach_this_hosts_ip() {
        let devices = [
            device(1, "lo", ""),
            part_of(5, device(2, "eth0", "")),
            part_of(4, device(3, "veth1", "veth")),
            device(4, "br0", "bridge"),
            device(5, "bond0", "bond"),
            device(6, "bond0.7", "vlan"),
            device(7, "vrf-red", "vrf"),
            part_of(7, device(8, "eth1", "")),
            part_of(99, device(9, "eth2", "")),
            device(10, "flannel.1", "vxlan"),
            Device { is_external: true, ..device(11, "cilium_vxlan", "vxlan") },
            device(12, "kube-ipvs0", "dummy"),
            device(13, "ifb0", "ifb"),
            Device { link_layer: LinkLayer::Bare, ..device(14, "wg0", "wireguard") },
            Device { link_layer: LinkLayer::Unsupported, ..device(15, "ib0", "ipoib") },
            Device { is_up: false, ..device(16, "eth3", "") },
        ];
        assert_eq!(
            names(&devices, &Interfaces::Auto),
            ["lo", "br0", "bond0", "bond0.7", "vrf-red", "eth1", "flannel.1", "wg0", "eth3"]
        );
    }

    #[test]
    fn named_devices_are_taken_as_they_are_unless_their_packets_cannot_be_read() {
        let devices = [
            device(1, "lo", ""),
            part_of(9, device(2, "eth0", "")),
            Device { link_layer: LinkLayer::Unsupported, ..device(3, "ib0", "ipoib") },
            device(4, "eth1", ""),
        ];
        let named = Interfaces::Named(vec!["eth0".into(), "ib0".into(), "absent".into()]);
        assert_eq!(names(&devices, &named), ["lo", "eth0"]);
    }

    #[test]
    fn a_change_of_a_device_may_move_routes_and_others_are_no_change_of_a_device() {
        let after = |kinds: &[Option<u16>]| {
            let mut changes = Changes::default();
            kinds.iter().for_each(|kind| changes.note(*kind));
            (changes.devices, changes.routes, changes.rules)
        };
        assert_eq!(after(&[]), (false, false, false));
        assert_eq!(after(&[Some(libc::RTM_NEWROUTE), Some(libc::RTM_DELADDR)]), (false, true, false));
        assert_eq!(after(&[Some(RTM_DELLINK)]), (true, true, false));
        assert_eq!(after(&[Some(RTM_NEWRULE)]), (false, true, true));
        assert_eq!(after(&[Some(RTM_DELRULE), Some(libc::RTM_NEWADDR)]), (false, true, true));
        assert_eq!(after(&[None, Some(libc::RTM_NEWROUTE)]), (true, true, true));
    }
}
