//! Whether servers that see their clients' addresses (`source = "client"`) answer through this host. Only a connection tells,
//! so one is made to each of them: from an address that no client has.

use super::lines::{Line, LineState};
use crate::config::{Host, Origin, Pool, SourceAddress};
use crate::kernel::routes::Routes;
use crate::kernel::tcp;
use lb_common::packet::FOR_SOCKET_MARK;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

/// Addresses for documentation, which no client has (RFC 5737, section 3; RFC 3849).
const NOBODY: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The most servers that are asked at once.
const AT_ONCE: usize = 64;

const PATIENCE: Duration = Duration::from_secs(2);

/// The most addresses of one name that are asked.
const ADDRESSES: usize = 4;

/// What is found out about one address of a server.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// POOL/SERVER, and the address if that is a name.
    pub(super) server: String,
    pub(super) found: Found,
}

/// How a server answers.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// It is a service, or its name cannot be looked up.
    NotAsked(String),
    /// Not even the gateway's own address.
    Silent(String),
    /// This process may not dial from another address.
    NotPermitted(String),
    /// The gateway's own address; and, if that `arrived` here, also one that no client has.
    Asked {
        from: IpAddr,
        arrived: bool,
        /// Packets with the gateway's mark are led to its sockets.
        marked: bool,
    },
}

/// Asks every server of the pools that show them their clients' addresses.
pub(super) fn ask(pools: &[Pool]) -> Vec<Answer> {
    let pools = pools.iter().filter(|pool| pool.source == SourceAddress::Client);
    let servers = pools.flat_map(|pool| pool.servers.iter().map(move |server| (&pool.name, &server.origin)));
    let targets: Vec<Target> = servers
        .flat_map(|(pool, origin)| {
            let server = format!("{pool}/{origin}");
            match addresses(origin) {
                Ok(addresses) => addresses.into_iter().map(|address| (server.clone(), Ok(address))).collect(),
                Err(why) => vec![(server, Err(why))],
            }
        })
        .collect();
    let answers = targets.chunks(AT_ONCE).flat_map(|targets| {
        thread::scope(|scope| {
            let asked: Vec<_> = targets.iter().map(|target| scope.spawn(move || answer(target))).collect();
            asked.into_iter().filter_map(|thread| thread.join().ok()).collect::<Vec<_>>()
        })
    });
    answers.collect()
}

/// A server as it is configured, and one of its addresses, or why it has none.
type Target = (String, Result<SocketAddr, String>);

fn answer((server, address): &Target) -> Answer {
    let (server, found) = match address {
        Err(why) => (server.clone(), Found::NotAsked(why.clone())),
        Ok(address) if server.ends_with(&address.to_string()) => (server.clone(), ask_one(*address)),
        Ok(address) => (format!("{server} ({address})"), ask_one(*address)),
    };
    Answer { server, found }
}

fn addresses(origin: &Origin) -> Result<Vec<SocketAddr>, String> {
    match origin {
        Origin::Service(_) => Err("its servers are in SRV records".to_owned()),
        Origin::Address(address) => match &address.host {
            Host::Ip(ip) => Ok(vec![SocketAddr::new(*ip, address.port)]),
            Host::Name(name) => {
                let found = (&**name, address.port).to_socket_addrs().map_err(|error| error.to_string())?;
                Ok(found.take(ADDRESSES).collect())
            }
        },
    }
}

fn ask_one(server: SocketAddr) -> Found {
    let from: IpAddr = if server.is_ipv4() { NOBODY.0.into() } else { NOBODY.1.into() };
    if let Err(error) = connect(server, None) {
        return Found::Silent(error.to_string());
    }
    let arrived = match connect(server, Some(from)) {
        Ok(()) => true,
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            return Found::NotPermitted(error.to_string());
        }
        // A refusal is an answer, too.
        Err(error) => error.kind() == io::ErrorKind::ConnectionRefused,
    };
    let marked = Routes::open().is_ok_and(|routes| routes.takes(from, FOR_SOCKET_MARK));
    Found::Asked { from, arrived, marked }
}

fn connect(server: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
    if let Some(from) = from {
        tcp::set_transparent(socket.as_fd(), from.is_ipv4())?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&server.into(), PATIENCE)
}

/// The line about one server.
pub(super) fn line(answer: &Answer) -> Line {
    let Answer { server, found } = answer;
    let line = |state, found: String| Line::new("answers to clients", state, format!("{server}: {found}"));
    match found {
        Found::NotAsked(why) => line(LineState::Note, format!("not asked: {why}"))
            .remedy("give a server by its address to have it asked"),
        Found::Silent(why) => {
            line(LineState::Note, format!("does not answer the gateway's own address ({why}): nothing can be said of others"))
                .remedy("start the server, then ask again")
        }
        Found::NotPermitted(why) => {
            line(LineState::Missing, format!("`source = \"client\"` is not permitted here: {why}"))
                .remedy("run as root, or with CAP_NET_ADMIN")
        }
        Found::Asked { from, arrived: true, marked: true } => line(
            LineState::Ok,
            format!(
                "its answers to {from}, an address that no client has, arrive here; whether those to clients do to which it \
                 has a route of its own (its own network), cannot be seen from here"
            ),
        ),
        Found::Asked { from, arrived: true, marked: false } => line(
            LineState::Note,
            format!("its answers to {from} arrive here, but packets marked {FOR_SOCKET_MARK:#x} do not: no packet tier"),
        )
        .remedy(rule(*from)),
        Found::Asked { from, arrived: false, marked } => line(
            LineState::Missing,
            format!("it answers the gateway's own address, and no answer to {from}, which no client has, arrives here"),
        )
        .remedy(match marked {
            false => format!("{}; and a netfilter rule that sets the mark (docs/operating.md)", rule(*from)),
            true => format!(
                "a netfilter rule here that marks answers (docs/operating.md); on the server a route to its clients by this \
                 gateway, and no filter that drops {from}"
            ),
        }),
    }
}

/// What leads packets with the gateway's mark to its sockets.
fn rule(from: IpAddr) -> String {
    let ip = if from.is_ipv4() { "ip" } else { "ip -6" };
    format!(
        "{ip} rule add fwmark {FOR_SOCKET_MARK:#x} lookup 29550; {ip} route add local default dev lo table 29550"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(found: Found) -> Line {
        line(&Answer { server: "redis/10.0.2.2:6379".into(), found })
    }

    #[test]
    fn a_line_says_what_is_known_and_what_is_to_be_done() {
        let from = IpAddr::from(NOBODY.0);
        for (found, state, said, remedy) in [
            (Found::Asked { from, arrived: true, marked: true }, LineState::Ok, "cannot be seen", ""),
            (
                Found::Asked { from, arrived: true, marked: false },
                LineState::Note,
                "no packet tier",
                "ip rule add fwmark 0x736e6970",
            ),
            (
                Found::Asked { from, arrived: false, marked: false },
                LineState::Missing,
                "no answer to 192.0.2.1",
                "ip route add local",
            ),
            (
                Found::Asked { from, arrived: false, marked: true },
                LineState::Missing,
                "no answer to 192.0.2.1",
                "on the server a route",
            ),
            (Found::Silent("refused".into()), LineState::Note, "nothing can be said", "start the server"),
            (Found::NotAsked("SRV".into()), LineState::Note, "not asked: SRV", "by its address"),
            (Found::NotPermitted("no".into()), LineState::Missing, "not permitted", "CAP_NET_ADMIN"),
        ] {
            let line = line_of(found);
            assert_eq!(line.state, state, "{line:?}");
            assert!(line.found.starts_with("redis/10.0.2.2:6379: ") && line.found.contains(said), "{line:?}");
            assert!(line.remedy.as_deref().unwrap_or_default().contains(remedy), "{line:?}");
        }
    }
}
