//! A gateway between two ends that a test holds in its hands.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_tests::pump::Duplex;
use snisplice_tests::topology::Triangle;
use snisplice_tests::{Backend, Gateway, Launch, eventually};

use crate::PACKET;
use crate::case::{Expect, config};
use crate::ends::{Opening, PATIENCE, SocketOptions};

/// A gateway, and a server whose ends of connections the test holds.
pub(crate) struct Scene {
    pub(crate) net: Triangle,
    pub(crate) gateway: Gateway,
    pub(crate) opening: Opening,
    accepted: Receiver<TcpStream>,
    backend: Option<Backend>,
}

impl Scene {
    pub(crate) fn new(opening: Opening, route: &str) -> Result<Self> {
        Self::with_gateway(opening, "", route)
    }

    /// With further settings of the gateway, a table of its own, and of the route.
    pub(crate) fn with_gateway(opening: Opening, gateway: &str, route: &str) -> Result<Self> {
        Self::launched(opening, gateway, route, |_| Ok(Launch::default()))
    }

    /// The same, in unusual circumstances.
    pub(crate) fn launched(
        opening: Opening,
        gateway: &str,
        route: &str,
        launch: impl FnOnce(&Triangle) -> Result<Launch>,
    ) -> Result<Self> {
        Self::within(Triangle::new()?, opening, gateway, route, launch)
    }

    /// The same between other namespaces.
    pub(crate) fn within(
        net: Triangle,
        opening: Opening,
        gateway: &str,
        route: &str,
        launch: impl FnOnce(&Triangle) -> Result<Launch>,
    ) -> Result<Self> {
        let (sender, accepted) = mpsc::channel();
        let listener = SocketOptions::default().listen(&net.server)?;
        let backend = Backend::serve(&net.server, listener, move |mut stream| {
            opening.greet(&mut stream, None)?;
            sender.send(stream).map_err(std::io::Error::other)
        })?;
        let address = net.server_addresses[usize::from(opening.v6)];
        let config = gateway.to_owned() + &config(&opening, address, None, route);
        let launch = launch(&net)?;
        let gateway = Gateway::start_with(&net.gateway, &config, launch)?;
        Ok(Self { net, gateway, opening, accepted, backend: Some(backend) })
    }

    /// Changes the configuration file; the gateway does not know yet.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(String) -> String) -> Result<()> {
        let text = fs::read_to_string(self.gateway.config_file())?;
        self.gateway.write_config(&change(text))
    }

    /// Both ends of a connection, across which a few bytes went each way; and how many the client said before.
    pub(crate) fn connection(&self) -> Result<(Duplex, TcpStream, u64)> {
        let (client, said) = self.opening.open(&self.net.client)?;
        self.connected(client, said)
    }

    /// From here on the server refuses connections.
    pub(crate) fn stop_listening(&mut self) {
        self.backend = None;
    }

    /// The server's end of the next connection that has said its part.
    pub(crate) fn accepted(&self, patience: Duration) -> Result<TcpStream> {
        Ok(self.accepted.recv_timeout(patience)?)
    }

    /// The same of a client that has said its part.
    pub(crate) fn connected(&self, mut client: Duplex, said: u64) -> Result<(Duplex, TcpStream, u64)> {
        let mut server = self.accepted(PATIENCE)?;
        client.writer.write_all(b"ping")?;
        let mut got = [0; 4];
        server.read_exact(&mut got)?;
        server.write_all(b"pong")?;
        client.reader.read_exact(&mut got)?;
        ensure!(&got == b"pong");
        Ok((client, server, said))
    }

    /// The live connections, once there are so many in the tier they belong to.
    pub(crate) fn spliced(&self, number: usize) -> Result<Vec<Value>> {
        eventually(&format!("{number} connections in their tier"), || {
            let live = self.gateway.connections().ok()?;
            let all = live.len() == number && live.iter().all(|c| Expect::Packet.check(c).is_ok());
            all.then_some(live)
        })
        .with_context(|| format!("{:?}", self.gateway.connections()))
    }

    /// Waits until netfilter, which has tracked it, knows nothing of a connection any more.
    pub(crate) fn forgotten_by_netfilter(&self, client: &Duplex, server: &TcpStream) -> Result<()> {
        let tracked = || self.net.gateway.run(|| fs::read_to_string(CONNTRACK));
        let ports = [client.socket.local_addr()?.port(), server.peer_addr()?.port()];
        let ports = ports.map(|port| format!("={port} "));
        eventually("both entries to go", || {
            let table = tracked().ok()?;
            (!ports.iter().any(|port| table.contains(port))).then_some(())
        })
        .with_context(|| format!("{:?}", tracked()))
    }
}

/// netfilter's table of connections, in the network namespace of the thread.
pub(crate) const CONNTRACK: &str = "/proc/thread-self/net/nf_conntrack";

/// What an end sees that the gateway has ended.
pub(crate) fn meets_reset(mut stream: &TcpStream) -> Result<()> {
    let seen = stream.read(&mut [0]).map_err(|e| e.kind());
    // The copy tier ends a connection with whatever its sockets make of it.
    let ended = seen == Err(ErrorKind::ConnectionReset) || (!PACKET && seen == Ok(0));
    ensure!(ended, "{seen:?} instead of a reset");
    Ok(())
}
