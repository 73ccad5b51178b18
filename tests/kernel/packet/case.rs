//! One connection (or a few, one after another) through a gateway: from a table row to a verdict.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_tests::pump::{Plan, Start, exchange};
use snisplice_tests::topology::{CLIENT, CLIENT6, Leg, Shape, Triangle};
use snisplice_tests::wire::{Faults, Kind};
use snisplice_tests::{Backend, Counters, Gateway, process};

use crate::PACKET;
use crate::ends::{Opening, PATIENCE, PROXIED, SERVER_PORT, SNI, SocketOptions, Speech};

pub(crate) const MIB: u64 = 1024 * 1024;

/// Both legs are wires.
pub(crate) const WIRES: Shape = Shape::Apart(Leg::Wire(Kind::Ethernet), Leg::Wire(Kind::Ethernet));

const STANDARD_MTU: u32 = 1500;

/// What the access log must say about the last connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expect {
    Packet,
    /// The next tier, for this reason.
    Copy(&'static str),
    /// The packet tier or, for one of these reasons, the next one.
    Either(&'static [&'static str]),
}

/// A connection, what it goes through, and what must come of it.
pub(crate) struct Case {
    pub(crate) shape: Shape,
    /// The longest packets of the leg toward the client and of that toward the server.
    pub(crate) mtu: [u32; 2],
    /// Changes the namespaces before the gateway starts.
    pub(crate) prepare: fn(&Triangle) -> Result<()>,
    /// Both ways of the wire toward the client, and of that toward the server.
    pub(crate) faults: [Faults; 2],
    pub(crate) opening: Opening,
    pub(crate) server_v6: bool,
    pub(crate) send_proxy: Option<&'static str>,
    /// The server must see the client's address.
    pub(crate) source_client: bool,
    pub(crate) client: Plan,
    pub(crate) server: Plan,
    /// Receive buffers of both ends.
    pub(crate) receive_buffer: Option<usize>,
    /// What to change [`MIDWAY`] after the exchange has begun.
    pub(crate) midway: Option<fn(&Triangle) -> Result<()>>,
    /// How many times, over one gateway; the tier is that of the last.
    pub(crate) rounds: usize,
    /// How many times the case may be tried: where what is counted depends on how busy the machine is.
    pub(crate) attempts: usize,
    pub(crate) expect: Expect,
    /// Any of these.
    pub(crate) close_reasons: &'static [&'static str],
    /// Counters of faults that this case itself moves.
    pub(crate) faulty: &'static [&'static str],
    /// What else must hold: the namespaces, and what client, gateway and server have counted.
    pub(crate) verify: fn(&Triangle, &[Counters; 3]) -> Result<()>,
}

/// How many bytes an end says first that wants an answer.
pub(crate) const GREETING: u64 = 100;

pub(crate) const MIDWAY: Duration = Duration::from_millis(300);

impl Case {
    /// TLS passthrough over two veth pairs and IPv4, so many bytes each way at once.
    pub(crate) fn both_ways(bytes: u64) -> Self {
        Self::exchange(Plan::both_ways(bytes))
    }

    /// The same, with a plan for the client; the server does its part. As in most protocols the client says something,
    /// and both send the rest when they have heard from each other; a connection begun otherwise may be too far gone
    /// for the packet tier before the gateway has looked at it ([`Self::impatient`]).
    pub(crate) fn exchange(client: Plan) -> Self {
        let case = Self::impatient(client);
        let [client, server] = [case.client, case.server].map(|p| Plan { start: Start::AfterBytes(1), ..p });
        Self { client: Plan { greeting: GREETING, ..client }, server, ..case }
    }

    /// The same with both ends sending at once.
    pub(crate) fn impatient(client: Plan) -> Self {
        Self {
            shape: Shape::default(),
            mtu: [STANDARD_MTU; 2],
            prepare: |_| Ok(()),
            faults: [Faults::NONE; 2],
            opening: Opening::default(),
            server_v6: false,
            send_proxy: None,
            source_client: false,
            server: client.mirrored(),
            client,
            receive_buffer: None,
            midway: None,
            rounds: 1,
            attempts: 1,
            expect: Expect::Packet,
            close_reasons: &["client_closed", "server_closed"],
            faulty: &[],
            verify: |_, _| Ok(()),
        }
    }

    /// The same over wires with these faults on both legs.
    pub(crate) fn faulty(self, faults: Faults) -> Self {
        Self { shape: WIRES, faults: [faults; 2], ..self }
    }

    /// The same over IPv6.
    pub(crate) fn v6(self) -> Self {
        Self { opening: Opening { v6: true, ..self.opening }, server_v6: true, ..self }
    }

    /// The same with another protocol.
    pub(crate) fn speaking(self, speech: Speech) -> Self {
        Self { opening: Opening { speech, ..self.opening }, ..self }
    }

    pub(crate) fn run(self) -> Result<()> {
        process::PRINT_OUTPUT.store(true, Ordering::Relaxed);
        for _ in 1..self.attempts {
            match self.attempt() {
                Err(error) => eprintln!("once more: {error:#}"),
                done => return done,
            }
        }
        self.attempt()
    }

    fn attempt(&self) -> Result<()> {
        let net = Triangle::shaped(self.shape)?;
        for (mtu, device, neighbour) in
            [(self.mtu[0], "front", &net.client), (self.mtu[1], "back", &net.server)]
        {
            if mtu != STANDARD_MTU {
                net.gateway.ip(&format!("link set {device} mtu {mtu}"))?;
                neighbour.ip(&format!("link set eth0 mtu {mtu}"))?;
            }
        }
        (self.prepare)(&net).context("preparing the namespaces")?;
        let (_backend, outcomes) = self.serve(&net)?;
        let mut config =
            config(&self.opening, net.server_addresses[usize::from(self.server_v6)], self.send_proxy, "");
        if self.source_client {
            net.take_answers(None)?;
            config += "source = 'client'\n";
        }
        let gateway = Gateway::start(&net.gateway, &config)?;
        for (joint, faults) in [(&net.front, self.faults[0]), (&net.back, self.faults[1])] {
            joint.wire().into_iter().flat_map(|wire| wire.ways()).for_each(|way| way.set(faults));
        }

        let before = counters(&net)?;
        let mut said = 0;
        for round in 1..=self.rounds {
            said =
                self.round(&net, &outcomes).with_context(|| format!("round {round} of {}", self.rounds))?;
        }
        let log = gateway.wait_access_log(self.rounds)?;
        let mut grown = grown(&net, &before)?;

        let last = log.last().expect("as many lines as rounds");
        self.expect.check(last)?;
        if self.opening.proxied.is_some() {
            ensure!(last["client"] == PROXIED.to_string(), "the client is not {PROXIED}: {last}");
        }
        let reason = last["close_reason"].as_str().unwrap_or_default();
        ensure!(self.close_reasons.contains(&reason), "the reason of the close: {last}");
        ensure!(
            last["bytes_in"] == said + self.client.send,
            "bytes_in is not {}: {last}",
            said + self.client.send
        );
        ensure!(last["bytes_out"] == self.client.receive, "bytes_out is not {}: {last}", self.client.receive);
        // A connection that stayed in the copy tier has sockets of the gateway, to which a segment may come late.
        let copied = log.iter().any(|line| line["tier"] == "copy");
        if copied {
            grown[1] = grown[1].clone().except(&["Tcp.OutRsts"]);
        }
        no_faults(&net, &grown, self.faulty)?;
        (self.verify)(&net, &grown)
    }

    /// A server that carries its plan out on each connection; the outcomes.
    fn serve(&self, net: &Triangle) -> Result<(Backend, Receiver<Result<()>>)> {
        let (sender, outcomes) = mpsc::channel();
        let (opening, send_proxy, plan) = (self.opening, self.send_proxy, self.server.clone());
        let options = SocketOptions { receive_buffer: self.receive_buffer, port: None };
        let source = self.source_client.then_some(match (opening.proxied, opening.v6) {
            (Some(_), _) => IpAddr::from(*PROXIED.ip()),
            (None, false) => CLIENT.into(),
            (None, true) => CLIENT6.into(),
        });
        let backend = Backend::serve(&net.server, options.listen(&net.server)?, move |mut stream| {
            let outcome = (|| {
                let seen = stream.peer_addr()?.ip().to_canonical();
                ensure!(source.is_none_or(|source| source == seen), "the server sees {seen}");
                opening.greet(&mut stream, send_proxy).context("the opening")?;
                exchange(stream.try_into()?, &plan)
            })();
            sender.send(outcome).map_err(io::Error::other)
        })?;
        Ok((backend, outcomes))
    }

    /// One connection; how many bytes the client said before those of its plan.
    fn round(&self, net: &Triangle, outcomes: &Receiver<Result<()>>) -> Result<u64> {
        let mut opening = self.opening;
        opening.socket.receive_buffer = self.receive_buffer;
        let (duplex, said) = opening.open(&net.client).context("the client's opening")?;
        let client = thread::scope(|scope| -> Result<_> {
            let client = scope.spawn(|| exchange(duplex, &self.client));
            if let Some(change) = self.midway {
                thread::sleep(MIDWAY);
                change(net)?;
            }
            Ok(client.join().expect("no assertion in there"))
        })?;
        let server = outcomes.recv_timeout(PATIENCE).context("the server's end")?.context("the server's end");
        // The first end that failed tells more, but which one that was nobody knows.
        match (client.context("the client's end"), server) {
            (Err(client), Err(server)) => Err(client.context(format!("{server:#}; and"))),
            (client, server) => client.and(server),
        }?;
        Ok(said)
    }
}

impl Expect {
    /// Checks a line of the access log, or a connection of `connections --json`.
    pub(crate) fn check(self, line: &Value) -> Result<()> {
        let seen = (line["tier"].as_str().unwrap_or_default(), line["tier_reason"].as_str());
        let fits = match self {
            _ if !PACKET => seen == ("copy", Some("packet_unavailable")),
            Self::Packet => seen == ("packet", None),
            Self::Copy(reason) => seen == ("copy", Some(reason)),
            Self::Either(reasons) => match seen {
                ("packet", reason) => reason.is_none(),
                (tier, reason) => tier == "copy" && reason.is_some_and(|reason| reasons.contains(&reason)),
            },
        };
        ensure!(fits, "expected {self:?}, but {seen:?}: {line}");
        Ok(())
    }
}

/// Checks that no kernel has counted a fault but the excepted ones, and that every checksum on a wire was right.
pub(crate) fn no_faults(net: &Triangle, grown: &[Counters; 3], except: &[&str]) -> Result<()> {
    /// What a segment meets that comes again, or late: newer timestamps, or no socket any more.
    const LATE: &[&str] = &["TcpExt.PAWSEstab", "Tcp.OutRsts"];
    let mut disturbed: u64 = grown.iter().map(|counters| counters.get("Tcp.RetransSegs")).sum();
    for seen in net.wires().flat_map(|wire| wire.ways()).map(|way| way.seen()) {
        ensure!(seen.segments > 0 && seen.wrong_checksums == 0, "on the wire: {seen:02x?}");
        disturbed += seen.disturbed;
    }
    let mut ends = vec![("client", &grown[0])];
    match net.shape {
        // The server shares its kernel's counters with the gateway.
        Shape::Local { .. } => ends.push(("gateway, which is the server too,", &grown[1])),
        _ => {
            let mut gateway = grown[1].clone();
            // Its sockets take part in the handshakes, in which a segment may be late too.
            if gateway.get("TcpExt.PAWSEstab") <= disturbed {
                gateway = gateway.except(&["TcpExt.PAWSEstab"]);
            }
            no_part_in_it(&gateway)?;
            ends.push(("server", &grown[2]));
        }
    }
    if !PACKET {
        ends.push(("gateway", &grown[1]));
    }
    for (who, grown) in ends {
        let mut faults = grown.faults().except(except);
        if who != "client" && matches!(net.shape, Shape::Local { .. }) {
            // A socket of the gateway that is closed silently is counted as one that was reset.
            faults = faults.except(&["Tcp.EstabResets"]);
        }
        let late: u64 = LATE.iter().map(|name| faults.get(name)).sum();
        if late <= disturbed {
            faults = faults.except(LATE);
        }
        ensure!(faults.is_empty(), "the {who}'s kernel has counted {faults:?}");
    }
    Ok(())
}

/// Checks that the gateway's TCP had no opinion on what passed in the packet tier.
pub(crate) fn no_part_in_it(gateway: &Counters) -> Result<()> {
    // A socket that is closed silently is counted as one that was reset.
    let faults = gateway.faults().except(&["Tcp.EstabResets"]);
    ensure!(!PACKET || faults.is_empty(), "the gateway's kernel has counted {faults:?}");
    Ok(())
}

/// How much the counters of client, gateway and server have grown since.
pub(crate) fn grown(net: &Triangle, before: &[Counters; 3]) -> Result<[Counters; 3]> {
    let now = counters(net)?;
    Ok([0, 1, 2].map(|i| now[i].since(&before[i])))
}

/// What client, gateway and server have counted so far.
pub(crate) fn counters(net: &Triangle) -> Result<[Counters; 3]> {
    Ok([Counters::of(&net.client)?, Counters::of(&net.gateway)?, Counters::of(&net.server)?])
}

/// A gateway with one listener, one route named `app1` (with further settings) and one server.
pub(crate) fn config(
    opening: &Opening,
    server: std::net::IpAddr,
    send_proxy: Option<&str>,
    route: &str,
) -> String {
    let port = opening.port();
    let (protocol, names) = match opening.speech {
        Speech::Tls => ("tls", format!("sni = ['{SNI}']\ntls = 'passthrough'")),
        Speech::Tcp => ("tcp", String::new()),
        Speech::Postgres => ("postgres", format!("sni = ['{SNI}']\ntls = 'passthrough'")),
        Speech::Starttls(dialogue) => (dialogue.protocol, format!("sni = ['{SNI}']\ntls = 'passthrough'")),
    };
    let send_proxy = send_proxy.map(|version| format!("send_proxy = '{version}'")).unwrap_or_default();
    let server = SocketAddr::new(server, SERVER_PORT);
    let proxied = if opening.proxied.is_some() {
        "proxy_protocol = true\ntrusted_proxies = ['10.0.0.0/8']"
    } else {
        ""
    };
    format!(
        "[[listener]]\nname = 'databases'\nbind = ['0.0.0.0:{port}', '[::]:{port}']\nprotocol = '{protocol}'\n{proxied}\n\
         [[route]]\nname = 'app1'\nlistener = 'databases'\n{names}\nbackends = [{{ pool = 'app1' }}]\n{route}\n\
         [[pool]]\nname = 'app1'\nservers = [{{ address = '{server}' }}]\n{send_proxy}\n\
         # A SYN may get lost, and the next one.\nconnect_timeout = '20s'\n"
    )
}
