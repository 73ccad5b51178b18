//! Netfilter's connection tracking, against a rule that needs it.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use snisplice::kernel::conntrack::Conntrack;
use snisplice_tests::process::checked_output;
use snisplice_tests::skip::has_program;
use snisplice_tests::{NetNs, require};

/// In the network namespace of the thread.
const TABLE: &str = "/proc/thread-self/net/nf_conntrack";

/// Both ends of a connection.
struct Connection {
    client: TcpStream,
    _server: TcpStream,
}

impl Connection {
    fn new(listener: &TcpListener) -> Result<Self> {
        let client = TcpStream::connect(listener.local_addr()?)?;
        Ok(Self { client, _server: listener.accept()?.0 })
    }

    fn ends(&self) -> Result<[SocketAddr; 2]> {
        Ok([self.client.local_addr()?, self.client.peer_addr()?])
    }

    /// Whether netfilter takes it for one that goes on.
    fn is_tracked(&self) -> Result<bool> {
        let [source, destination] = self.ends()?;
        let ports = format!(" sport={} dport={} ", source.port(), destination.port());
        let table = fs::read_to_string(TABLE)?;
        Ok(table.lines().any(|entry| entry.contains(&ports) && entry.contains("ESTABLISHED")))
    }
}

/// A namespace in which netfilter tracks connections.
fn tracking() -> Result<NetNs> {
    let ns = NetNs::new("tracked")?;
    checked_output(ns.command("nft").arg(
        "table inet filter { chain input { type filter hook input priority 0; ct state established accept; }; }",
    ))?;
    Ok(ns)
}

#[test]
fn those_connections_are_forgotten_and_no_other() -> Result<()> {
    require!(fs::exists(TABLE)?, "the kernel does not show its conntrack table");
    require!(has_program("nft"), "no nft");
    tracking()?.run(|| -> Result<()> {
        let conntrack = Conntrack::open()?.context("no ctnetlink")?;
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address)?;
            let (one, other) = (Connection::new(&listener)?, Connection::new(&listener)?);
            ensure!(one.is_tracked()? && other.is_tracked()?, "{}", fs::read_to_string(TABLE)?);
            // The second time there is none.
            for _ in 0..2 {
                conntrack.forget(Instant::now(), std::iter::once(one.ends()?));
                ensure!(!one.is_tracked()? && other.is_tracked()?, "{}", fs::read_to_string(TABLE)?);
            }
        }
        Ok(())
    })
}

/// That the table was empty once is remembered, for connections that were over by then.
#[test]
fn a_connection_that_came_after_the_table_was_empty_is_forgotten_too() -> Result<()> {
    require!(fs::exists(TABLE)?, "the kernel does not show its conntrack table");
    require!(has_program("nft"), "no nft");
    tracking()?.run(|| -> Result<()> {
        let conntrack = Conntrack::open()?.context("no ctnetlink")?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let nobody = [SocketAddr::from(([127, 0, 0, 1], 1)); 2];
        conntrack.forget(Instant::now(), std::iter::once(nobody));
        let one = Connection::new(&listener)?;
        ensure!(one.is_tracked()?, "{}", fs::read_to_string(TABLE)?);
        conntrack.forget(Instant::now(), std::iter::once(one.ends()?));
        ensure!(!one.is_tracked()?, "{}", fs::read_to_string(TABLE)?);
        Ok(())
    })
}
