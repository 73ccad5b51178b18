//! Who else listens on an address: the sockets by sock_diag(7), their processes by procfs.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::Netlink;

/// The most processes that a message names: the workers of a server share its sockets.
const MOST_NAMED: usize = 3;

/// Sockets of other processes that listen on one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Where.
    pub address: SocketAddr,
    /// Whose sockets they are.
    pub user: u32,
    /// Name and number of the processes that have them open; empty if this process may not see them.
    pub programs: Vec<(String, u32)>,
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, process)) in self.programs.iter().take(MOST_NAMED).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{name} (process {process})")?;
        }
        let more = self.programs.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            write!(f, " and {more} more")?;
        }
        if self.programs.is_empty() {
            let user = self.user;
            write!(f, "a program of user {user}, which root sees by `ss -ltnp`,")?;
        }
        let verb = if self.programs.len() > 1 { "listen" } else { "listens" };
        write!(f, " {verb} on {}", self.address)
    }
}

/// A listening socket.
struct Listening {
    address: SocketAddr,
    takes_both: bool,
    user: u32,
    inode: u32,
}

/// Sockets of other processes, in the network namespace of the calling thread, that conflict with a socket on `address` (if
/// IPv6, one for IPv6 only): they listen on the same address or on all, with the same port. Sockets that are bound to one
/// device are left out.
pub fn others(address: SocketAddr) -> io::Result<Vec<Occupant>> {
    let mut netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        found.extend(netlink.list(request(family, address.port()), |answer| listening(&answer.ok()?))?);
    }
    found.retain(|socket| meet(address.ip(), socket.address.ip(), socket.takes_both));
    let ours = sockets_of(Path::new("/proc/self"));
    found.retain(|socket| !ours.contains(&socket.inode));
    let mut holders = holders(&found.iter().map(|socket| socket.inode).collect());
    let mut occupants = BTreeMap::<_, Vec<_>>::new();
    for socket in found {
        let programs = holders.remove(&socket.inode).unwrap_or_default();
        occupants.entry((socket.address, socket.user)).or_default().extend(programs);
    }
    let occupants = occupants.into_iter().map(|((address, user), mut programs)| {
        programs.sort_by_key(|(_, process)| *process);
        programs.dedup();
        Occupant { address, user, programs }
    });
    Ok(occupants.collect())
}

/// Whether a socket listens on exactly this address, at whatever port, in the network namespace of the calling thread.
pub fn is_used(ip: IpAddr) -> io::Result<bool> {
    let family = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
    let all =
        Netlink::open(NETLINK_SOCK_DIAG)?.list(request(family, 0), |answer| listening(&answer.ok()?))?;
    Ok(all.iter().any(|socket| socket.address.ip() == ip))
}

fn request(family: u8, port: u16) -> SockDiagMessage {
    let mut socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    socket_id.source_port = port;
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id,
    })
}

fn listening(answer: &SockDiagMessage) -> Option<Listening> {
    let SockDiagMessage::InetResponse(answer) = answer else { return None };
    let InetResponse { header, nlas } = &**answer;
    let id = &header.socket_id;
    let only_v6 = nlas.contains(&Nla::SkV6Only(true));
    (id.interface_id == 0).then_some(Listening {
        address: SocketAddr::new(id.source_address, id.source_port),
        takes_both: header.family == AF_INET6 && !only_v6,
        user: header.uid,
        inode: header.inode,
    })
}

/// Whether a socket on `ours` (if IPv6, for IPv6 only) would get connections that one on `theirs` gets. Pure.
fn meet(ours: IpAddr, theirs: IpAddr, takes_both: bool) -> bool {
    let theirs = theirs.to_canonical();
    match (ours, theirs) {
        (IpAddr::V4(_), IpAddr::V6(_)) => theirs.is_unspecified() && takes_both,
        (IpAddr::V6(_), IpAddr::V4(_)) => false,
        _ => ours == theirs || ours.is_unspecified() || theirs.is_unspecified(),
    }
}

/// Name and number of each process that has one of the sockets open, by the socket's inode. Processes that this one may not
/// inspect are left out.
fn holders(sockets: &HashSet<u32>) -> BTreeMap<u32, Vec<(String, u32)>> {
    let mut holders = BTreeMap::<_, Vec<_>>::new();
    if sockets.is_empty() {
        return holders;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(number) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let held = sockets_of(&process.path());
        for socket in held.intersection(sockets) {
            let name = fs::read(process.path().join("comm")).unwrap_or_default();
            // At most 15 bytes, which the process has chosen itself.
            let name = String::from_utf8_lossy(&name).trim_end().escape_debug().to_string();
            holders.entry(*socket).or_default().push((name, number));
        }
    }
    holders
}

/// The inodes of the sockets that a process has open; none if it may not be inspected.
fn sockets_of(process: &Path) -> HashSet<u32> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| inode(fs::read_link(descriptor.path()).ok()?.to_str()?)).collect()
}

/// The inode in `socket:[INODE]` (proc(5)).
fn inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_meet_where_one_takes_what_the_other_does() {
        for (ours, theirs, takes_both, expected) in [
            ("10.0.0.1", "10.0.0.1", false, true),
            ("10.0.0.1", "10.0.0.2", false, false),
            ("10.0.0.1", "0.0.0.0", false, true),
            ("0.0.0.0", "10.0.0.1", false, true),
            ("0.0.0.0", "::", false, false),
            ("0.0.0.0", "::", true, true),
            ("10.0.0.1", "::", true, true),
            ("10.0.0.1", "2001:db8::1", true, false),
            ("0.0.0.0", "::ffff:10.0.0.1", true, true),
            ("10.0.0.2", "::ffff:10.0.0.1", true, false),
            ("::", "::ffff:10.0.0.1", true, false),
            ("::", "10.0.0.1", false, false),
            ("::", "2001:db8::1", false, true),
            ("2001:db8::1", "::", true, true),
            ("2001:db8::1", "2001:db8::2", true, false),
        ] {
            let met = meet(ours.parse().unwrap(), theirs.parse().unwrap(), takes_both);
            assert_eq!(met, expected, "{ours} and {theirs}, {takes_both}");
        }
    }

    #[test]
    fn an_occupant_is_named_as_far_as_it_is_known() {
        let shown = |processes: u32| {
            let programs = (1..=processes).map(|process| ("nginx".to_owned(), process)).collect();
            Occupant { address: "[::]:443".parse().unwrap(), user: 33, programs }.to_string()
        };
        assert_eq!(shown(0), "a program of user 33, which root sees by `ss -ltnp`, listens on [::]:443");
        assert_eq!(shown(1), "nginx (process 1) listens on [::]:443");
        assert_eq!(
            shown(5),
            "nginx (process 1), nginx (process 2), nginx (process 3) and 2 more listen on [::]:443"
        );
    }

    #[test]
    fn sockets_of_this_process_are_not_those_of_others() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(others(listener.local_addr().unwrap()).unwrap(), []);
    }

    #[test]
    fn only_the_link_of_a_socket_has_an_inode() {
        assert_eq!(inode("socket:[2595959]"), Some(2_595_959));
        for link in ["pipe:[1]", "socket:[x]", "socket:[1", "/dev/null"] {
            assert_eq!(inode(link), None);
        }
    }
}
