//! The routing table: by which device packets leave, and by which devices they may arrive. Asked as `ip route get` does, by
//! rtnetlink.
//!
//! Packets of a spliced connection pass no socket, so the kernel neither looks up a route for them nor checks the reverse
//! path of what arrives. Both are asked for here, with all that routing rules may look at: addresses, mark, ports.

use crate::clock::now_ms;
use crate::socket::canonical;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use lb_common::packet::LOOPBACK;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteType;
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use super::devices::{Changes, Device, Watch, device_of, link};
use super::exits::{Between, Exits};
use super::netlink::Netlink;
use super::route::{Answer, Question};

pub use super::exits::Exit;

/// The routes of one network namespace.
///
/// A question takes 6 to 10 microseconds (Linux 6.18, a small virtual machine); one of [`Routes::admits`],
/// which is asked only for packets by unexpected devices, takes 30. Exits are remembered for a moment (`Exits`), so that many
/// connections between the same hosts do not ask for each.
pub struct Routes {
    /// Shared by all threads. A thread waits microseconds for another's answer; but when rules have changed, a millisecond for
    /// every thousand of them, while they are listed.
    asking: Mutex<Asking>,
}

struct Asking {
    netlink: Netlink,
    /// Tells that answers may have changed.
    news: Watch,
    exits: Exits,
    /// Whether a rule looks at ports. `None`: the rules have changed since they were read.
    rules_by_ports: Option<bool>,
}

/// Why packets cannot be sent to a peer by a redirect.
#[derive(Debug, thiserror::Error)]
pub enum Unroutable {
    /// There is no route, or an unreachable one; or this host does not have the device of the peer's scope. The kernel's
    /// error is the same for all of them.
    #[error("no route to the peer")]
    Unreachable,
    /// A route or rule forbids it.
    #[error("a route or rule prohibits packets to the peer")]
    Prohibited,
    /// A route or rule discards the packets.
    #[error("a route or rule discards packets to the peer")]
    Discarded,
    /// The peer's address is a broadcast or multicast address.
    #[error("the peer's address is not that of one host")]
    NotUnicast,
    /// The route encapsulates packets (`ip route add … encap`), which a redirect would bypass.
    #[error("the route to the peer encapsulates")]
    Encapsulated,
    /// The kernel does not answer, or its answer lacks the device; or the ends are of two families.
    #[error("asking the kernel for a route")]
    Unknown(#[source] io::Error),
}

impl From<io::Error> for Unroutable {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENODEV) => Self::Unreachable,
            Some(libc::EACCES) => Self::Prohibited,
            Some(libc::EINVAL) => Self::Discarded,
            _ => Self::Unknown(error),
        }
    }
}

impl Routes {
    /// Those of the network namespace in which the calling thread is.
    pub fn open() -> io::Result<Self> {
        let news = Watch::new()?;
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        let asking = Asking { netlink, news, exits: Exits::default(), rules_by_ports: None };
        Ok(Self { asking: Mutex::new(asking) })
    }

    /// Where a TCP socket of this process with these ends and this mark, in this VRF, would send its packets. Of a link-local peer
    /// the scope says the link. `local` may be the address of another host, whose packets the socket sends. If the route has several paths, the answer is the one that the kernel chooses for these ends.
    pub fn exit(
        &self,
        local: SocketAddr,
        peer: SocketAddr,
        mark: u32,
        vrf: Option<u32>,
    ) -> Result<Exit, Unroutable> {
        let (local, peer) = (canonical(local), canonical(peer));
        if local.is_ipv4() != peer.is_ipv4() {
            return Err(Unroutable::Unknown(io::ErrorKind::InvalidInput.into()));
        }
        let scope = if let SocketAddr::V6(peer) = peer { peer.scope_id() } else { 0 };
        // A link in a VRF leads to the VRF's table as well.
        let link = if scope == 0 { vrf.unwrap_or(0) } else { scope };
        let by = |source| {
            let mut question = question(peer.ip(), source, mark);
            question.tcp(local.port(), peer.port());
            if link != 0 {
                question.device(link);
            }
            question
        };
        let mut asking = self.lock();
        asking.look_at_news();
        let between = Between { local: local.ip(), peer: peer.ip(), link, mark };
        if let Some(exit) = asking.exits.get(&between) {
            return Ok(exit);
        }
        let exit = exit_of(&ask_by(&mut asking.netlink, local.ip(), by)?)?;
        asking.exits.insert(between, exit);
        Ok(exit)
    }

    /// A change was heard of elsewhere: answers from before it are not used again, even if the notification is not yet read here.
    ///
    /// An answer is asked for and remembered under one lock. So what was asked for before this is forgotten, and what is asked for
    /// afterwards is answered from the changed table.
    pub fn forget(&self) {
        self.lock().forget();
    }

    /// Whether this host takes what a raw socket with this mark sends to a client's address: a rule leads it to a local
    /// route.
    pub fn takes(&self, client: IpAddr, mark: u32) -> bool {
        let answer = ask(&mut self.lock().netlink, question(client.to_canonical(), None, mark));
        answer.is_ok_and(|route| route.kind == RouteType::Local)
    }

    /// Whether a packet from `peer` to `local` may arrive by `device`: feasible path reverse path forwarding (RFC 3704,
    /// section 2.3). The kernel must have a route to the peer by that device, and no more specific one, or one in an
    /// earlier table, by another device. So all paths of a route are admitted, and a second default route with a higher
    /// metric; a default route is not if a prefix leads to another device. For a device in a VRF, the VRF's routes count.
    /// `mark`: for rules that select by it.
    ///
    /// Ports are not taken into account: rules that select by them are passed over. IPv6 routes with a higher metric are
    /// not found in a table that a rule selects by source.
    pub fn admits(&self, peer: IpAddr, local: IpAddr, mark: u32, device: u32) -> io::Result<bool> {
        let (peer, local) = (peer.to_canonical(), local.to_canonical());
        if peer.is_ipv4() != local.is_ipv4() {
            return Ok(false);
        }
        let netlink = &mut self.lock().netlink;
        let vrf = vrf_of(netlink, device)?;
        let by = |source, device: Option<u32>| {
            let mut question = question(peer, source, mark);
            // Without this IPv4 would answer any device with a route.
            question.as_in_its_table();
            if let Some(device) = device {
                question.device(device);
            }
            question
        };
        let best = ask_by(netlink, local, |source| by(source, vrf));
        let Some(best) = found(best)? else { return Ok(false) };
        if best.kind == RouteType::Local {
            return Ok(device == LOOPBACK);
        }
        if best.kind != RouteType::Unicast {
            return Ok(false);
        }
        if leaves_by(&best, device) {
            return Ok(true);
        }
        // With a source address, IPv6 prefers the device but does not insist on it.
        let other = match local.is_ipv4() {
            true => ask_by(netlink, local, |source| by(source, Some(device))),
            false => ask(netlink, by(None, Some(device))),
        };
        let other = found(other)?;
        Ok(other.is_some_and(|other| is_as_good(&other, &best)))
    }

    fn lock(&self) -> MutexGuard<'_, Asking> {
        // Answers to a request that was given up are recognised by their sequence number.
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    /// Forgets what is no longer to be believed.
    fn look_at_news(&mut self) {
        // After an error it is unknown whether there was any.
        let changes = self.news.changed().unwrap_or(Changes::ALL);
        if changes.rules {
            self.rules_by_ports = None;
        }
        let now = now_ms();
        if changes.routes {
            self.forget();
        } else if self.exits.are_old(now) {
            let is_by_addresses = self.is_by_addresses();
            self.exits.begin(now, is_by_addresses);
        }
    }

    /// As [`Routes::forget`].
    fn forget(&mut self) {
        // A change may be told a moment before it is made.
        self.exits.begin(now_ms(), false);
    }

    /// Whether no rule looks at ports, and no choice between the paths of a route.
    fn is_by_addresses(&mut self) -> bool {
        if self.rules_by_ports.is_none() {
            // After an error they are read again when the next moment begins.
            self.rules_by_ports = self.look_at_rules().ok();
        }
        self.rules_by_ports == Some(false) && ["ipv4", "ipv6"].into_iter().all(chooses_by_addresses)
    }

    /// Whether a rule looks at ports.
    fn look_at_rules(&mut self) -> io::Result<bool> {
        let looks = |rule: &RuleMessage| {
            use RuleAttribute::{DestinationPortRange, SourcePortRange};
            rule.attributes
                .iter()
                .any(|attribute| matches!(attribute, SourcePortRange(_) | DestinationPortRange(_)))
        };
        let rules =
            self.netlink.list(RouteNetlinkMessage::GetRule(RuleMessage::default()), |entry| match entry {
                Ok(RouteNetlinkMessage::NewRule(rule)) => Some(looks(&rule)),
                Ok(_) => None,
                Err(_) => Some(true),
            });
        Ok(rules?.contains(&true))
    }
}

/// Whether the kernel chooses between the paths of a route by the addresses of a packet alone, which is the default. It says
/// nothing when that changes.
fn chooses_by_addresses(family: &str) -> bool {
    match fs::read_to_string(format!("/proc/sys/net/{family}/fib_multipath_hash_policy")) {
        Ok(policy) => policy.trim() == "0",
        // A kernel without multipath routes, or without IPv6; unless nothing at all can be read here.
        Err(error) => error.kind() == io::ErrorKind::NotFound && Path::new("/proc/sys/net").exists(),
    }
}

fn question(peer: IpAddr, local: Option<IpAddr>, mark: u32) -> Question {
    let mut question = Question::new(peer);
    if let Some(local) = local {
        question.source(local);
    }
    question.mark(mark);
    question
}

fn ask(netlink: &mut Netlink, question: Question) -> io::Result<Answer> {
    match netlink.ask_in_bytes(libc::RTM_GETROUTE, question.into_bytes())? {
        (libc::RTM_NEWROUTE, route) => Answer::read(route).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        (other, _) => {
            let what = format!("the kernel answers with a message of type {other}");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

/// As [`ask`], for packets with this source. IPv4 answers with an error if that is not an address of this host, which the
/// client's is not (`source = "client"`). Then it is asked without a source: rules that select by it are passed over.
fn ask_by(
    netlink: &mut Netlink,
    local: IpAddr,
    question: impl Fn(Option<IpAddr>) -> Question,
) -> io::Result<Answer> {
    match ask(netlink, question(Some(local))) {
        Err(error) if local.is_ipv4() && error.raw_os_error() == Some(libc::ENETUNREACH) => {
            ask(netlink, question(None))
        }
        answer => answer,
    }
}

/// `None`: there is no usable route.
fn found(answer: io::Result<Answer>) -> io::Result<Option<Answer>> {
    match answer.map_err(Unroutable::from) {
        Ok(route) => Ok(Some(route)),
        Err(Unroutable::Unknown(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

fn exit_of(route: &Answer) -> Result<Exit, Unroutable> {
    let is_local = match route.kind {
        RouteType::Unicast => false,
        RouteType::Local => true,
        RouteType::Unreachable | RouteType::Throw => return Err(Unroutable::Unreachable),
        RouteType::Prohibit => return Err(Unroutable::Prohibited),
        RouteType::BlackHole => return Err(Unroutable::Discarded),
        _ => return Err(Unroutable::NotUnicast),
    };
    if route.encapsulates {
        return Err(Unroutable::Encapsulated);
    }
    let nowhere = || Unroutable::Unknown(io::Error::other("a route without a device"));
    Ok(Exit { device: route.device.ok_or_else(nowhere)?, is_local })
}

/// Whether `route` admits a packet as well as the best route does.
fn is_as_good(route: &Answer, best: &Answer) -> bool {
    // If the table of the best route has no route by the device, the kernel answers from a later one, which does not count.
    route.kind == RouteType::Unicast
        && route.table == best.table
        && route.destination_length >= best.destination_length
}

/// Whether one of a route's paths is by the device.
fn leaves_by(route: &Answer, device: u32) -> bool {
    route.device == Some(device) || route.paths.contains(&device)
}

/// The VRF that a device is in.
fn vrf_of(netlink: &mut Netlink, device: u32) -> io::Result<Option<u32>> {
    let Some(device) = described(netlink, device)? else { return Ok(None) };
    let Some(master) = device.master else { return Ok(None) };
    let is_vrf = described(netlink, master)?.is_some_and(|master| master.kind.as_deref() == Some("vrf"));
    Ok(is_vrf.then_some(master))
}

fn described(netlink: &mut Netlink, device: u32) -> io::Result<Option<Device>> {
    Ok(link(netlink, device, None)?.as_ref().and_then(device_of))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(kind: RouteType) -> Answer {
        let (paths, encapsulates) = (Vec::new(), false);
        Answer { kind, destination_length: 24, table: 254, device: Some(7), paths, encapsulates }
    }

    #[test]
    fn rules_are_not_read_again_before_they_change() {
        let routes = Routes::open().unwrap();
        let mut asking = routes.lock();
        for known in [true, false] {
            // One of the two is wrong, which would show.
            asking.rules_by_ports = Some(known);
            asking.is_by_addresses();
            assert_eq!(asking.rules_by_ports, Some(known));
        }
        asking.rules_by_ports = None;
        asking.is_by_addresses();
        assert!(asking.rules_by_ports.is_some());
    }

    #[test]
    fn a_route_says_by_which_device_its_packets_leave() {
        let exit = |kind| exit_of(&route(kind)).unwrap();
        assert_eq!(exit(RouteType::Unicast), Exit { device: 7, is_local: false });
        assert_eq!(exit(RouteType::Local), Exit { device: 7, is_local: true });
    }

    #[test]
    fn a_route_that_a_redirect_cannot_follow_is_refused_with_its_reason() {
        let refusal = |kind| exit_of(&route(kind)).unwrap_err();
        assert!(matches!(refusal(RouteType::Unreachable), Unroutable::Unreachable));
        assert!(matches!(refusal(RouteType::Prohibit), Unroutable::Prohibited));
        assert!(matches!(refusal(RouteType::BlackHole), Unroutable::Discarded));
        assert!(matches!(refusal(RouteType::Broadcast), Unroutable::NotUnicast));
        let wrapped = Answer { encapsulates: true, ..route(RouteType::Unicast) };
        assert!(matches!(exit_of(&wrapped).unwrap_err(), Unroutable::Encapsulated));
        let nowhere = Answer { device: None, ..route(RouteType::Unicast) };
        assert!(matches!(exit_of(&nowhere).unwrap_err(), Unroutable::Unknown(_)));
    }

    #[test]
    fn any_path_of_a_route_may_be_by_the_device() {
        let several = Answer { device: None, paths: vec![3, 4], ..route(RouteType::Unicast) };
        assert_eq!([3, 4, 7].map(|device| leaves_by(&several, device)), [true, true, false]);
        assert!(leaves_by(&route(RouteType::Unicast), 7));
    }
}
