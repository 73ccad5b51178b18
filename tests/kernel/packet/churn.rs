//! Many connections: from one port again and again, and two hundred at a time with packets lost.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_tests::pump::{Duplex, End, Plan, Start, exchange};
use snisplice_tests::topology::{Shape, Triangle};
use snisplice_tests::wire::Faults;
use snisplice_tests::{Backend, Gateway};

use crate::case::{Expect, WIRES, config, counters, grown, no_faults};
use crate::ends::{Opening, SocketOptions};

/// A gateway with a server that does what the client's first bytes ask for ([`ask`]).
struct Scene {
    net: Triangle,
    gateway: Gateway,
    opening: Opening,
    _backend: Backend,
}

impl Scene {
    fn new(shape: Shape) -> Result<Self> {
        let net = Triangle::shaped(shape)?;
        let opening = Opening::default();
        let listener = SocketOptions::default().listen(&net.server)?;
        let backend = Backend::serve(&net.server, listener, move |mut stream| {
            opening.greet(&mut stream, None)?;
            // The client sees what went wrong here.
            let _ = answer(stream.try_into()?);
            Ok(())
        })?;
        let gateway = Gateway::start(&net.gateway, &config(&opening, net.server_addresses[0], None, ""))?;
        Ok(Self { net, gateway, opening, _backend: backend })
    }

    /// The lines of the access log that are not of a connection that was closed by an end.
    fn unusual_ends(&self) -> Result<Vec<Value>> {
        let usual = |line: &Value| line["close_reason"].as_str().is_some_and(|r| r.ends_with("_closed"));
        Ok(self.gateway.access_log()?.into_iter().filter(|line| !usual(line)).collect())
    }

    /// One connection, from a certain port if one is given.
    fn connect(&self, port: Option<u16>, ending: Ending, plan: &Plan) -> Result<()> {
        let mut opening = self.opening;
        opening.socket.port = port;
        let (duplex, _) = opening.open(&self.net.client).context("connecting")?;
        ask(duplex, ending, plan)
    }
}

/// Who ends a connection first, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ClientCloses,
    ServerCloses,
    BothClose,
    ClientResets,
    ServerResets,
}

const ENDINGS: [Ending; 5] = [
    Ending::ClientCloses,
    Ending::ServerCloses,
    Ending::BothClose,
    Ending::ClientResets,
    Ending::ServerResets,
];

impl Ending {
    /// The parts of client and server in an exchange that ends like this.
    fn plans(self, plan: &Plan) -> [Plan; 2] {
        // What the client has asked for in front is a greeting: both go on when they have heard from each other.
        let hears = |plan: Plan| Plan { start: Start::AfterBytes(1), ..plan };
        let waits = |plan: Plan, start| Plan { greeting: 1, start, ..plan };
        let (client, server) = (plan.clone(), plan.mirrored());
        let (all_here, all_there) = (Start::AfterBytes(client.receive), Start::AfterBytes(server.receive));
        match self {
            Self::ClientCloses => [hears(client), waits(server, Start::AfterEnd)],
            Self::ServerCloses => [waits(client, Start::AfterEnd), hears(server)],
            Self::BothClose => [hears(client), waits(server, Start::AtOnce)],
            Self::ClientResets => [
                hears(Plan { end: End::Reset, ..client }),
                waits(Plan { end: End::MeetReset, ..server }, all_there),
            ],
            Self::ServerResets => [
                waits(Plan { end: End::MeetReset, ..client }, all_here),
                hears(Plan { end: End::Reset, ..server }),
            ],
        }
    }
}

/// The client's part: tells the server what to do, then does its own.
fn ask(mut duplex: Duplex, ending: Ending, plan: &Plan) -> Result<()> {
    let number = ENDINGS.iter().position(|e| *e == ending).expect("ENDINGS has all");
    for word in [plan.send_seed, plan.receive_seed, plan.send, plan.receive, number as u64] {
        duplex.writer.write_all(&word.to_le_bytes())?;
    }
    exchange(duplex, &ending.plans(plan)[0])
}

/// The server's part.
fn answer(mut duplex: Duplex) -> Result<()> {
    let mut word = || -> Result<u64> {
        let mut bytes = [0; 8];
        duplex.reader.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    };
    let [send_seed, receive_seed, send, receive] = [word()?, word()?, word()?, word()?];
    let ending = ENDINGS[usize::try_from(word()?)?];
    let plan = Plan { send_seed, receive_seed, send, receive, ..Plan::both_ways(0) };
    exchange(duplex, &ending.plans(&plan)[1])
}

/// A client that uses its port again at once, as one behind a busy NAT does.
#[test]
fn a_port_that_is_used_again_at_once_is_a_new_connection() -> Result<()> {
    const AGAIN: u64 = 25;
    let scene = Scene::new(Shape::default())?;
    // After a close of its own, the client itself remembers the connection and would not use the port again.
    for (ending, port) in
        [(Ending::ServerCloses, 5001), (Ending::ClientResets, 5002), (Ending::ServerResets, 5003)]
    {
        for round in 0..AGAIN {
            let plan = Plan { send_seed: round, receive_seed: !round, ..Plan::both_ways(1 + 1000 * round) };
            scene.connect(Some(port), ending, &plan).with_context(|| format!("{ending:?}, round {round}"))?;
        }
    }
    let log = scene.gateway.wait_access_log(3 * AGAIN as usize)?;
    ensure!(log.len() == 3 * AGAIN as usize, "{} lines", log.len());
    log.iter().try_for_each(|line| Expect::Packet.check(line))
}

/// So many clients at a time.
const CROWD: u64 = 200;

/// For so long; a longer time in seconds comes from the environment.
fn churn_time() -> Duration {
    let seconds = std::env::var("SNISPLICE_CHURN_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(15))
}

#[test]
fn two_hundred_connections_come_and_go_with_packets_lost() -> Result<()> {
    let scene = Scene::new(WIRES)?;
    let faults = Faults { loss: 0.01, repeat: 0.002, reorder: 0.005, ..Faults::NONE };
    scene.net.wires().flat_map(|wire| wire.ways()).for_each(|way| way.set(faults));
    let before = counters(&scene.net)?;
    let until = Instant::now() + churn_time();
    let done = AtomicU64::new(0);
    // A reset can be lost, and then nobody repeats it.
    const GRACEFUL: [Ending; 3] = [Ending::ClientCloses, Ending::ServerCloses, Ending::BothClose];
    thread::scope(|scope| {
        let client = |number: u64| -> Result<()> {
            let mut round = 0;
            while Instant::now() < until {
                let seed = number << 32 | round;
                let plan = Plan {
                    send_seed: seed,
                    receive_seed: !seed,
                    send: 1 + seed.wrapping_mul(7919) % 30_000,
                    receive: 1 + seed.wrapping_mul(104_729) % 60_000,
                    ..Plan::both_ways(0)
                };
                let ending = GRACEFUL[(seed % 3) as usize];
                scene
                    .connect(None, ending, &plan)
                    .with_context(|| format!("client {number}, round {round}, {ending:?}, {plan:?}"))?;
                round += 1;
                done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        };
        let clients: Vec<_> = (0..CROWD).map(|number| scope.spawn(move || client(number))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no assertion in there"))
    })
    .with_context(|| format!("unusual ends: {:?}", scene.unusual_ends()))?;
    let done = done.into_inner();
    let log = scene.gateway.wait_access_log(usize::try_from(done)?)?;
    ensure!(log.len() as u64 == done && done > CROWD, "{} lines of {done} connections", log.len());
    log.iter().try_for_each(|line| Expect::Packet.check(line))?;
    // A client may take its port again while the sockets of the last connection from there still wait for the last
    // acknowledgement of their prefix: it gets no more through, and what is sent again meets no socket.
    let [client, gateway, server] = grown(&scene.net, &before)?;
    no_faults(&scene.net, &[client, gateway.except(&["Tcp.OutRsts"]), server], &[])
}
