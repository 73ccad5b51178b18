//! What nearly every test starts from.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::sockopt::ReuseAddr;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
};
use snisplice_tests::process::checked_output;
use snisplice_tests::tls::client_hello;
use snisplice_tests::{Authority, Gateway, NetNs, Triangle, gateway, process, topology};

/// Far more than any answer takes; a read that meets it is a failed test instead of a stuck one.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Three namespaces and an authority.
pub(crate) struct World {
    pub(crate) net: Triangle,
    pub(crate) authority: Authority,
}

impl World {
    pub(crate) fn new() -> Result<Self> {
        process::PRINT_OUTPUT.store(true, Ordering::Relaxed);
        gateway::PACKET_TIER.store(false, Ordering::Relaxed);
        Ok(Self { net: Triangle::new()?, authority: Authority::new("snisplice test authority")? })
    }

    pub(crate) fn gateway(&self, config: &str) -> Result<Gateway> {
        Gateway::start(&self.net.gateway, config)
    }

    /// A connection from the client to a port of the gateway.
    pub(crate) fn connect(&self, port: u16) -> Result<TcpStream> {
        dial(&self.net.client, topology::gateway(port))
    }

    /// A connection from one of several addresses of the client.
    pub(crate) fn connect_from(&self, source: IpAddr, target: SocketAddr) -> Result<TcpStream> {
        self.connect_by(SocketAddr::new(source, 0), target)
    }

    /// A connection from one of the client's addresses and a port, which other connections may have too.
    pub(crate) fn connect_by(&self, source: SocketAddr, target: SocketAddr) -> Result<TcpStream> {
        let stream = self.net.client.run(|| -> Result<TcpStream> {
            let family = if source.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&fd, ReuseAddr, &true)?;
            bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(target))?;
            Ok(fd.into())
        })?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        Ok(stream)
    }

    /// A passed-through connection: a real ClientHello for this name is sent.
    pub(crate) fn open(&self, sni: &str) -> Result<TcpStream> {
        let mut stream = self.connect(443)?;
        stream.write_all(&client_hello(sni, &[]))?;
        Ok(stream)
    }

    /// What a [`snisplice_tests::backend::naming`] backend behind this name answers; empty if nobody did.
    pub(crate) fn ask(&self, sni: &str) -> Result<String> {
        Ok(answer(self.open(sni)?))
    }

    /// What a [`snisplice_tests::backend::naming_and_holding`] backend behind this name answers.
    pub(crate) fn ask_and_hang_up(&self, sni: &str) -> Result<String> {
        let mut stream = self.open(sni)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut bytes = [0; 64];
        let n = stream.read(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
    }
}

pub(crate) fn dial(ns: &NetNs, target: SocketAddr) -> Result<TcpStream> {
    let stream =
        ns.run(|| TcpStream::connect_timeout(&target, READ_TIMEOUT)).with_context(|| target.to_string())?;
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Drops what arrives and matches, without a word.
pub(crate) fn silence(ns: &NetNs, what: &str) -> Result<()> {
    let rules = format!(
        "add table inet hole; add chain inet hole in {{ type filter hook input priority 0; }}; \
         add rule inet hole in {what} counter drop"
    );
    checked_output(ns.command("nft").arg(rules)).map(drop)
}

/// Packets that [`silence`] has dropped.
pub(crate) fn silenced(ns: &NetNs) -> Result<u64> {
    let rules = checked_output(ns.command("nft").args(["list", "ruleset"]))?;
    let counts = rules.split("counter packets ").skip(1).filter_map(|rest| rest.split(' ').next());
    counts.map(|count| Ok(count.parse::<u64>()?)).sum()
}

/// Everything until the end of the stream, however it ends.
pub(crate) fn answer(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset behind the answer is for other tests to judge.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}
