//! `paired` and `values`: a load that takes turns with the bare route.

use anyhow::Result;

use crate::path::case::{Case, Depth, Figure, Load, Measurement, compared, shown};
use crate::path::clients::{self, Direction, Paired, Way};
use crate::path::subjects::{Kind, Service};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    use Direction::{Down, Up};
    use Service::{BulkTerminated, BulkTls, Iperf, RedisTerminated, RedisTls};
    let case = |name: &str, what: &str, service, turns, connections| {
        in_turns(depth, name, what, InTurns { service, turns, connections })
    };
    let ping = |name, what, connections, rate| case(name, what, RedisTls, Turns::Ping(rate), connections);
    let many = ping("ping-50", "PING over TLS, 50 connections", 50, None);
    if depth == Depth::Quick {
        return vec![many];
    }
    let bulk = |name, what, service, direction, connections| {
        case(name, what, service, Turns::Bulk(direction), connections)
    };
    let connect = |name, what, service, resume| case(name, what, service, Turns::Connect { resume }, 16);
    let ended = |name, what, connections| case(name, what, RedisTerminated, Turns::Ping(None), connections);
    vec![
        bulk("tcp-up-1", "one TCP stream toward the server", Iperf, Up, 1),
        bulk("tcp-down-1", "one TCP stream from the server", Iperf, Down, 1),
        bulk("tcp-up-8", "8 TCP streams toward the server", Iperf, Up, 8),
        bulk("tcp-down-8", "8 TCP streams from the server", Iperf, Down, 8),
        bulk("tls-up", "one TLS stream toward the server", BulkTls, Up, 1),
        bulk("tls-down", "one TLS stream from the server", BulkTls, Down, 1),
        ping("ping-1", "PING over TLS, one connection", 1, None),
        many,
        ping("rate-10000", "PING over TLS at 10 000 a second, 50 connections", 50, Some(10_000)),
        connect("full-16", "new TLS connections, full handshakes, 16 clients", RedisTls, false),
        connect("resumed-16", "new TLS connections, resumed, 16 clients", RedisTls, true),
        bulk("terminated-up", "one TLS stream toward the server, terminated", BulkTerminated, Up, 1),
        bulk("terminated-down", "one TLS stream from the server, terminated", BulkTerminated, Down, 1),
        ended("terminated-ping-1", "PING, terminated, one connection", 1),
        ended("terminated-ping-50", "PING, terminated, 50 connections", 50),
        connect(
            "terminated-full-16",
            "new TLS connections, terminated, full handshakes, 16 clients",
            RedisTerminated,
            false,
        ),
        connect(
            "terminated-resumed-16",
            "new TLS connections, terminated, resumed, 16 clients",
            RedisTerminated,
            true,
        ),
    ]
}

/// `values`: GET and SET on terminated routes.
pub(super) fn values(depth: Depth) -> Vec<Case> {
    if depth == Depth::Quick {
        return Vec::new();
    }
    let value = |kib: usize, connections: u32, set: bool| {
        let command = if set { "SET" } else { "GET" };
        let name = format!("{}-{kib}k-{connections}", command.to_lowercase());
        let how =
            if connections == 1 { "one connection".to_owned() } else { format!("{connections} connections") };
        let what = format!("{command} of {kib} KiB, terminated, {how}");
        let turns = Turns::Value { set, bytes: kib * 1024 };
        in_turns(depth, &name, &what, InTurns { service: Service::RedisTerminated, turns, connections })
    };
    let sizes = [(1, 50), (16, 50), (64, 50), (16, 1)];
    sizes
        .iter()
        .flat_map(|&(kib, connections)| [false, true].map(|set| value(kib, connections, set)))
        .collect()
}

fn in_turns(depth: Depth, name: &str, what: &str, load: InTurns) -> Case {
    let mut case = depth.case(name.to_owned(), format!("{what}, in turns with the bare route"), load);
    case.seconds *= 2.0;
    case
}

/// What takes turns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turns {
    Bulk(Direction),
    /// PING as fast as the answers come, or so many a second.
    Ping(Option<u32>),
    /// GET or SET as fast as the answers come.
    Value {
        set: bool,
        bytes: usize,
    },
    Connect {
        resume: bool,
    },
}

/// Each is shown three times: as a part of the bare route's, of the subject and of the bare route.
const BULK: &[Figure<Way>] = &[compared("throughput", "Gbit/s", Higher, |way| way.rate / 1e9)];
const EXCHANGE: &[Figure<Way>] = &[
    compared("requests", "1/s", Higher, |way| way.rate),
    compared("p50", "ms", Lower, |way| way.p50),
    compared("p99", "ms", Lower, |way| way.p99),
];
const PING_AT_A_RATE: &[Figure<Way>] = &[
    compared("p50", "ms", Lower, |way| way.p50),
    // A tail of some seconds is a few stalls, whoever has them.
    shown("p99", "ms", Lower, |way| way.p99),
    shown("p99.9", "ms", Lower, |way| way.p999),
];
const CONNECT: &[Figure<Way>] = &[
    compared("connections", "1/s", Higher, |way| way.rate),
    compared("first byte, p50", "ms", Lower, |way| way.p50),
];

struct InTurns {
    service: Service,
    turns: Turns,
    connections: u32,
}

impl InTurns {
    fn figures(&self) -> &'static [Figure<Way>] {
        match self.turns {
            Turns::Bulk(_) => BULK,
            Turns::Ping(None) | Turns::Value { .. } => EXCHANGE,
            Turns::Ping(Some(_)) => PING_AT_A_RATE,
            Turns::Connect { .. } => CONNECT,
        }
    }
}

impl Load for InTurns {
    fn services(&self) -> Vec<Service> {
        vec![self.service]
    }

    fn takes(&self, kind: Kind) -> bool {
        kind != Kind::HaproxySplice || matches!(self.service, Service::Iperf | Service::BulkTls)
    }

    fn metrics(&self) -> Vec<Metric> {
        let part = |figure: &Figure<Way>| Metric {
            name: format!("{} ÷ bare", figure.name),
            unit: String::new(),
            of_bare: true,
            ..figure.metric()
        };
        let both = |figure: &Figure<Way>| {
            [figure.name.to_owned(), format!("bare's {}", figure.name)].map(|name| Metric {
                name,
                compared: false,
                ..figure.metric()
            })
        };
        let figures = self.figures();
        figures.iter().map(part).chain(figures.iter().flat_map(both)).collect()
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let mut args: Vec<String> = vec!["--beside".into(), self.service.direct().to_string()];
        args.extend(["--connections".into(), self.connections.to_string()]);
        args.extend(["--seconds".into(), on.seconds.to_string(), "--load".into()]);
        args.push(match self.turns {
            Turns::Bulk(Direction::Up) => "up".into(),
            Turns::Bulk(Direction::Down) => "down".into(),
            Turns::Ping(_) => "ping".into(),
            Turns::Value { set: false, .. } => "get".into(),
            Turns::Value { set: true, .. } => "set".into(),
            Turns::Connect { .. } => "connect".into(),
        });
        let is_plain = self.service == Service::Iperf;
        match self.turns {
            Turns::Ping(Some(rate)) => args.extend(["--rate".into(), rate.to_string()]),
            Turns::Value { bytes, .. } => args.extend(["--bytes".into(), bytes.to_string()]),
            Turns::Connect { resume: true } => args.push("--resume".into()),
            Turns::Bulk(_) if is_plain => args.push("--plain".into()),
            _ => {}
        }
        let _server = is_plain.then(|| on.stand.site.bulk_at_iperf(&on.stand.own)).transpose()?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let endpoint = on.subject.endpoint(self.service);
        let Paired { bare, subject } = clients::tool(on.stand, "paired", &endpoint, &args)?;
        let both = self.figures().iter().map(|figure| [(figure.of)(&subject), (figure.of)(&bare)]);
        let parts = both.clone().map(|[subject, bare]| subject / bare);
        Ok(parts.chain(both.flatten()).collect())
    }
}
