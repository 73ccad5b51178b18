//! The scenarios: what is asked of every subject, and what is measured meanwhile.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::sys::signal::Signal;

use super::load::{self, Connections, Direction, Length, Paired, Rate, Requests, Running, Steady};
use super::subjects::{Endpoint, Kind, Service, Stand, Subject};
use super::{flows, handover, memory};
use crate::machine::{self, busy_seconds};
use crate::report::{Better, Metric, Sample};

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Shows in under three minutes that everything works.
    Quick,
    /// What matters, long enough to mean something.
    Default,
    /// Also every combination of redis-benchmark's options.
    Full,
}

/// Everything that one subject does in one go.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) cases: Vec<Case>,
}

/// One table of the report. The metrics follow from the load.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) title: String,
    load: Load,
    /// Of one measurement.
    seconds: f64,
}

#[derive(Clone, Copy)]
enum Load {
    /// iperf3, plain TCP.
    Iperf { direction: Direction, streams: u32 },
    /// One TLS transfer.
    Stream { service: Service, direction: Direction },
    /// redis-benchmark.
    Requests { service: Service, requests: Requests },
    /// PING at a fixed rate, over 50 connections.
    Latency { service: Service, rate: u32 },
    /// New TLS connections from so many clients at once.
    Connections { service: Service, clients: u32, resume: bool },
    /// New TLS connections from so many clients at once, and how long their handover takes.
    Handover { clients: u32 },
    /// One of these, taking turns with the bare route.
    Paired { service: Service, turns: Turns, connections: u32 },
    /// Connections that have talked once and then keep silent.
    Idle { connections: u64 },
    /// New connections to any of so many names.
    Routes { routes: u32 },
    /// Requests while the flow table holds so many entries.
    Flows { flows: u32 },
    /// PING at a fixed rate while something happens.
    Operation(Operation),
}

/// What takes turns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turns {
    Bulk(Direction),
    /// PING as fast as the answers come, or so many a second.
    Ping(Option<u32>),
    Connect {
        resume: bool,
    },
}

/// What happens, once a second.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Nothing,
    /// One more route each time.
    Reload,
    /// SIGTERM, and started again when it has ended.
    Restart,
    /// SIGKILL to every process, and started again.
    Kill,
    /// One of two servers is killed, then started again.
    Server,
}

/// Connections of the latency and operation scenarios.
const STEADY: u32 = 50;
/// Bytes that warm a TLS transfer up.
const WARM_UP: u64 = 64 << 20;
/// Idle connections to one server: Redis takes 12 000 at most.
const IDLE_PER_SERVER: u64 = 10_000;

impl Depth {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Depth::Quick => "quick",
            Depth::Default => "default",
            Depth::Full => "full",
        }
    }

    pub(crate) fn rounds(self) -> u32 {
        if self == Depth::Quick { 1 } else { 3 }
    }

    /// Of one measurement.
    fn seconds(self) -> f64 {
        if self == Depth::Quick { 0.5 } else { 2.0 }
    }

    /// Every scenario, in the order of the report.
    pub(crate) fn scenarios(self) -> Vec<Scenario> {
        let scenario = |name, cases| Scenario { name, cases };
        vec![
            scenario("bulk", self.bulk()),
            scenario("requests", self.requests()),
            scenario("latency", self.latency()),
            scenario("connections", self.connections()),
            scenario("paired", self.paired()),
            scenario("scale", self.scale()),
            scenario("operations", self.operations()),
        ]
    }

    fn bulk(self) -> Vec<Case> {
        use Direction::{Down, Up};
        let way = |direction| if direction == Up { "up" } else { "down" };
        let iperf = |direction, streams: u32| {
            let plural = if streams == 1 { "one iperf3 stream" } else { "8 iperf3 streams" };
            let toward = if direction == Up { "toward" } else { "from" };
            self.case(
                format!("tcp-{}-{streams}", way(direction)),
                format!("{plural} {toward} the server through a plain TCP listener"),
                Load::Iperf { direction, streams },
            )
        };
        let stream = |direction, service| {
            let (kind, how) = match service {
                Service::BulkTls => ("passthrough", "passed through by SNI"),
                _ => ("terminated", "terminated at the gateway (bare: at the server)"),
            };
            self.case(
                format!("tls-{kind}-{}", way(direction)),
                format!(
                    "one TLS stream {}, {how}",
                    if direction == Up { "toward the server" } else { "from the server" }
                ),
                Load::Stream { service, direction },
            )
        };
        let mut cases = vec![iperf(Up, 1), iperf(Down, 1)];
        if self != Depth::Quick {
            cases.extend([iperf(Up, 8), iperf(Down, 8)]);
        }
        for service in [Service::BulkTls, Service::BulkTerminated] {
            if self != Depth::Quick {
                cases.push(stream(Up, service));
            }
            cases.push(stream(Down, service));
        }
        cases
    }

    fn requests(self) -> Vec<Case> {
        let case = |service, set, clients, pipeline, value| {
            let (kind, how) = match service {
                Service::RedisPlain => ("plain", "plain TCP"),
                Service::RedisTls => ("tls", "TLS passed through by SNI"),
                _ => ("terminated", "TLS terminated at the gateway (bare: at the server)"),
            };
            let test = if set { "SET" } else { "GET" };
            let bytes = match value {
                1024 => "1 KiB".to_owned(),
                65536 => "64 KiB".to_owned(),
                bytes => format!("{bytes} B"),
            };
            self.case(
                format!("{kind}-{}-c{clients}-p{pipeline}-{value}", test.to_lowercase()),
                format!("redis-benchmark {test}, {clients} connections, pipeline {pipeline}, {bytes}, {how}"),
                Load::Requests { service, requests: Requests { set, clients, pipeline, value } },
            )
        };
        use Service::{RedisPlain, RedisTerminated, RedisTls};
        match self {
            Depth::Quick => {
                [RedisTls, RedisPlain, RedisTerminated].map(|service| case(service, false, 50, 1, 3)).into()
            }
            Depth::Default => {
                let mut cases = Vec::new();
                for service in [RedisTls, RedisPlain] {
                    cases.extend([
                        case(service, false, 50, 1, 3),
                        case(service, true, 50, 1, 3),
                        case(service, false, 1, 1, 3),
                        case(service, false, 500, 1, 3),
                        case(service, false, 50, 16, 3),
                        case(service, false, 50, 1, 1024),
                        case(service, false, 50, 1, 65536),
                    ]);
                }
                cases.extend([
                    case(RedisTerminated, false, 50, 1, 3),
                    case(RedisTerminated, false, 1, 1, 3),
                    case(RedisTerminated, false, 50, 1, 65536),
                ]);
                cases
            }
            Depth::Full => {
                let mut cases = Vec::new();
                for service in [RedisTls, RedisPlain, RedisTerminated] {
                    for (set, clients) in
                        [false, true].into_iter().flat_map(|set| [1, 50, 500].map(|c| (set, c)))
                    {
                        for (pipeline, value) in
                            [1, 16].into_iter().flat_map(|p| [3, 1024, 65536].map(|v| (p, v)))
                        {
                            cases.push(case(service, set, clients, pipeline, value));
                        }
                    }
                }
                cases
            }
        }
    }

    fn latency(self) -> Vec<Case> {
        let case = |service, rate| {
            let (kind, how) = match service {
                Service::RedisTls => ("tls", "passed through by SNI"),
                _ => ("terminated", "terminated at the gateway (bare: at the server)"),
            };
            self.case(
                format!("{kind}-{rate}"),
                format!("PING over TLS at {rate} a second, {STEADY} connections, {how}"),
                Load::Latency { service, rate },
            )
        };
        match self {
            Depth::Quick => vec![case(Service::RedisTls, 5_000)],
            _ => vec![
                case(Service::RedisTls, 1_000),
                case(Service::RedisTls, 10_000),
                case(Service::RedisTerminated, 10_000),
            ],
        }
    }

    fn connections(self) -> Vec<Case> {
        let case = |service, clients, resume| {
            let (kind, how) = match service {
                Service::RedisTls => ("tls", "passed through by SNI"),
                _ => ("terminated", "terminated at the gateway (bare: at the server)"),
            };
            let (handshake, handshakes) =
                if resume { ("resumed", "resumed") } else { ("full", "full handshakes") };
            let many =
                if clients == 1 { "one after another".to_owned() } else { format!("{clients} clients") };
            self.case(
                format!("{kind}-{handshake}-{clients}"),
                format!("new TLS connections, {handshakes}, {many}, one PING each, {how}"),
                Load::Connections { service, clients, resume },
            )
        };
        let handover = |clients: u32| {
            self.case(
                format!("handover-{clients}"),
                format!("from a known route to flows in the kernel, {clients} clients with full handshakes"),
                Load::Handover { clients },
            )
        };
        use Service::{RedisTerminated, RedisTls};
        match self {
            Depth::Quick => {
                vec![case(RedisTls, 16, false), case(RedisTls, 16, true), case(RedisTerminated, 16, false)]
            }
            _ => [RedisTls, RedisTerminated]
                .into_iter()
                .flat_map(|service| {
                    [case(service, 16, false), case(service, 16, true), case(service, 1, false)]
                })
                .chain([handover(1), handover(16)])
                .collect(),
        }
    }

    fn paired(self) -> Vec<Case> {
        use Direction::{Down, Up};
        use Service::{BulkTerminated, BulkTls, Iperf, RedisTerminated, RedisTls};
        let case = |name: &str, what: &str, service, turns, connections| Case {
            seconds: 2.0 * self.seconds(),
            ..self.case(
                name.to_owned(),
                format!("{what}, in turns with the bare route"),
                Load::Paired { service, turns, connections },
            )
        };
        let ping = |name, what, connections, rate| case(name, what, RedisTls, Turns::Ping(rate), connections);
        let many = ping("ping-50", "PING over TLS, 50 connections", 50, None);
        if self == Depth::Quick {
            return vec![many];
        }
        let bulk = |name, what, service, direction, connections| {
            case(name, what, service, Turns::Bulk(direction), connections)
        };
        let connect = |name, what, resume| case(name, what, RedisTls, Turns::Connect { resume }, 16);
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
            connect("full-16", "new TLS connections, full handshakes, 16 clients", false),
            connect("resumed-16", "new TLS connections, resumed, 16 clients", true),
            bulk("terminated-up", "one TLS stream toward the server, terminated", BulkTerminated, Up, 1),
            bulk("terminated-down", "one TLS stream from the server, terminated", BulkTerminated, Down, 1),
            case(
                "terminated-ping-50",
                "PING, terminated, 50 connections",
                RedisTerminated,
                Turns::Ping(None),
                50,
            ),
        ]
    }

    fn scale(self) -> Vec<Case> {
        let idle = |connections: u64| {
            self.case(
                format!("idle-{connections}"),
                format!("{connections} idle TLS connections, passed through by SNI"),
                Load::Idle { connections },
            )
        };
        let routes = |routes: u32| {
            self.case(
                format!("routes-{routes}"),
                format!("{routes} routes: start, memory, and new TLS connections to any of the names"),
                Load::Routes { routes },
            )
        };
        let flows = |flows: u32| {
            self.case(
                format!("flows-{flows}"),
                format!("redis-benchmark, plain TCP, with {flows} connections in the flow table"),
                Load::Flows { flows },
            )
        };
        match self {
            // More routes are also in each reload of `operations`.
            Depth::Quick => vec![idle(500), flows(100)],
            _ => vec![
                idle(1_000),
                idle(20_000),
                routes(10),
                routes(10_000),
                routes(100_000),
                flows(100),
                flows(10_000),
                // The table of 1 048 576 entries, two a connection, nearly full.
                flows(500_000),
            ],
        }
    }

    fn operations(self) -> Vec<Case> {
        let case = |name: &str, what: &str, operation| {
            let title = format!("PING over TLS at 2000 a second and 50 new connections a second: {what}");
            Case {
                seconds: if self == Depth::Quick { 2.0 } else { 8.0 },
                ..self.case(name.to_owned(), title, Load::Operation(operation))
            }
        };
        let kill = || case("kill", "kill -9 and a start, every 2 s", Operation::Kill);
        let reload = || case("reload", "a reload with one more route, every second", Operation::Reload);
        match self {
            Depth::Quick => vec![reload(), kill()],
            _ => vec![
                case("nothing", "nothing else", Operation::Nothing),
                reload(),
                case("restart", "SIGTERM and a start, every 2 s", Operation::Restart),
                kill(),
                case("server", "one of two servers dies and comes back, every 2 s", Operation::Server),
            ],
        }
    }

    fn case(self, name: String, title: String, load: Load) -> Case {
        Case { name, title, load, seconds: self.seconds() }
    }
}

impl Case {
    /// What a subject must offer to take part.
    fn services(&self) -> &'static [Service] {
        match self.load {
            Load::Iperf { .. } => &[Service::Iperf],
            Load::Stream { service: Service::BulkTls, .. } => &[Service::BulkTls],
            Load::Stream { .. } => &[Service::BulkTerminated],
            Load::Requests { service: Service::RedisPlain, .. } | Load::Flows { .. } => {
                &[Service::RedisPlain]
            }
            Load::Requests { service, .. }
            | Load::Latency { service, .. }
            | Load::Connections { service, .. } => {
                if service == Service::RedisTls {
                    &[Service::RedisTls]
                } else {
                    &[Service::RedisTerminated]
                }
            }
            Load::Handover { .. } => &[Service::RedisTls],
            Load::Paired { service: Service::Iperf, .. } => &[Service::Iperf],
            Load::Paired { service: Service::BulkTls, .. } => &[Service::BulkTls],
            Load::Paired { service: Service::BulkTerminated, .. } => &[Service::BulkTerminated],
            Load::Paired { service: Service::RedisTerminated, .. } => &[Service::RedisTerminated],
            Load::Paired { .. } => &[Service::RedisTls],
            Load::Idle { .. } => &[Service::RedisTls, Service::SecondTls],
            Load::Routes { .. } => &[Service::Routes],
            Load::Operation(Operation::Server) => &[Service::PairTls],
            Load::Operation(_) => &[Service::RedisTls],
        }
    }

    pub(crate) fn takes(&self, kind: Kind) -> bool {
        // Where splicing in HAProxy makes no difference, it is not asked twice.
        let haproxy_splice = matches!(
            self.load,
            Load::Iperf { .. }
                | Load::Stream { service: Service::BulkTls, .. }
                | Load::Paired { service: Service::Iperf | Service::BulkTls, .. }
        );
        let special = match (self.load, kind) {
            (_, Kind::HaproxySplice) => haproxy_splice,
            (Load::Flows { .. } | Load::Handover { .. }, kind) => kind == Kind::SnisplicePacket,
            (Load::Operation(operation), Kind::Bare) => operation == Operation::Nothing,
            // It reads no configuration.
            (Load::Operation(Operation::Reload), Kind::Splice2) => false,
            // As the copy tier's, and the packet tier's with the kernel programs to load.
            (Load::Routes { .. }, Kind::SnispliceSockmap) => false,
            _ => true,
        };
        special && self.services().iter().all(|service| kind.offers(*service))
    }

    /// Whether the subject must not have done anything before.
    pub(crate) fn is_fresh(&self) -> bool {
        matches!(self.load, Load::Idle { .. } | Load::Routes { .. } | Load::Flows { .. } | Load::Operation(_))
    }

    /// Routes to start the subject with.
    pub(crate) fn routes(&self) -> u32 {
        if let Load::Routes { routes } = self.load { routes } else { 0 }
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        use Better::{Higher, Lower};
        let metric = |name: &str, unit: &str, better, compared| Metric {
            name: name.to_owned(),
            unit: unit.to_owned(),
            better,
            compared,
            of_bare: false,
        };
        match self.load {
            Load::Iperf { .. } | Load::Stream { .. } => {
                vec![
                    metric("throughput", "Gbit/s", Higher, true),
                    metric("machine's CPU", "s per GiB", Lower, true),
                ]
            }
            Load::Requests { .. } => vec![
                metric("requests", "1/s", Higher, true),
                metric("machine's CPU", "s per million", Lower, true),
                metric("p50", "ms", Lower, false),
                metric("p99", "ms", Lower, false),
            ],
            Load::Latency { .. } => vec![
                metric("p50", "ms", Lower, true),
                metric("p90", "ms", Lower, false),
                metric("p99", "ms", Lower, true),
                metric("p99.9", "ms", Lower, false),
                metric("worst", "ms", Lower, false),
                metric("machine's CPU", "s per million", Lower, false),
            ],
            Load::Connections { clients: 1, .. } => vec![
                metric("first byte, p50", "ms", Lower, true),
                metric("first byte, p99", "ms", Lower, false),
                metric("connections", "1/s", Higher, false),
                metric("machine's CPU", "s per million", Lower, false),
            ],
            Load::Connections { .. } => vec![
                metric("connections", "1/s", Higher, true),
                metric("machine's CPU", "s per million", Lower, true),
                metric("first byte, p50", "ms", Lower, false),
                metric("first byte, p99", "ms", Lower, false),
            ],
            Load::Handover { .. } => vec![
                metric("p50", "ms", Lower, true),
                metric("p99", "ms", Lower, false),
                metric("of the first byte's p50", "%", Lower, false),
                metric("connections", "1/s", Higher, false),
            ],
            Load::Paired { turns, .. } => {
                let figures: &[(&str, &str, Better, bool)] = match turns {
                    Turns::Bulk(_) => &[("throughput", "Gbit/s", Higher, true)],
                    Turns::Ping(None) => &[
                        ("requests", "1/s", Higher, true),
                        ("p50", "ms", Lower, true),
                        ("p99", "ms", Lower, true),
                    ],
                    // A tail of some seconds is a few stalls, whoever has them.
                    Turns::Ping(Some(_)) => &[("p50", "ms", Lower, true), ("p99", "ms", Lower, false)],
                    Turns::Connect { .. } => {
                        &[("connections", "1/s", Higher, true), ("first byte, p50", "ms", Lower, true)]
                    }
                };
                let part = |(name, _, better, compared): &(&str, &str, Better, bool)| Metric {
                    of_bare: true,
                    ..metric(&format!("{name} ÷ bare"), "", *better, *compared)
                };
                let both = |(name, unit, better, _): &(&str, &str, Better, bool)| {
                    [(*name).to_owned(), format!("bare's {name}")]
                        .map(|name| metric(&name, unit, *better, false))
                };
                figures.iter().map(part).chain(figures.iter().flat_map(both)).collect()
            }
            Load::Idle { .. } => vec![
                metric("process", "KiB per connection", Lower, true),
                metric("kernel", "KiB per connection", Lower, true),
                metric("open", "connections", Higher, false),
                metric("process, all open", "MiB", Lower, false),
                metric("process, none yet", "MiB", Lower, false),
            ],
            Load::Routes { .. } => vec![
                metric("ready after", "s", Lower, true),
                metric("process", "MiB", Lower, true),
                metric("connections", "1/s", Higher, false),
                metric("first byte, p50", "ms", Lower, false),
            ],
            Load::Flows { .. } => vec![
                metric("program", "ns per packet", Lower, true),
                metric("machine's CPU", "s per million", Lower, false),
                metric("requests", "1/s", Higher, false),
                metric("kernel", "bytes per connection", Lower, false),
            ],
            Load::Operation(_) => vec![
                metric("p99", "ms", Lower, true),
                metric("longest silence", "ms", Lower, false),
                metric("requests failed", "", Lower, false),
                metric("connections cut", "", Lower, false),
                metric("connections refused", "", Lower, true),
                metric("connections opened", "", Higher, false),
                metric("times", "", Higher, false),
            ],
        }
    }

    /// One measurement, warm-up included. `started` is how long the subject took to be ready.
    pub(crate) fn measure(
        &self,
        subject: &mut Subject<'_>,
        stand: &Stand,
        started: Duration,
    ) -> Result<Sample> {
        match self.load {
            Load::Iperf { direction, streams } => {
                let endpoint = subject.endpoint(Service::Iperf);
                load::iperf(stand, &endpoint, direction, streams, Length::Mebibytes(64))?;
                let length = Length::Seconds(self.seconds);
                let (found, cpu) = with_cpu(|| load::iperf(stand, &endpoint, direction, streams, length))?;
                Ok(vec![found.gbit_per_second, cpu / found.gib])
            }
            Load::Stream { service, direction } => {
                let endpoint = subject.endpoint(service);
                let warm = load::stream(stand, &endpoint, direction, WARM_UP)?;
                let bytes = (WARM_UP as f64 / warm.seconds * self.seconds) as u64;
                let (found, cpu) = with_cpu(|| load::stream(stand, &endpoint, direction, bytes))?;
                let gib = bytes as f64 / f64::from(1 << 30);
                Ok(vec![bytes as f64 * 8.0 / 1e9 / found.seconds, cpu / gib])
            }
            Load::Requests { service, requests } => {
                let (rate, cpu) = self.requests(stand, &subject.endpoint(service), service, requests)?;
                Ok(vec![rate.per_second, cpu, rate.p50_ms, rate.p99_ms])
            }
            Load::Latency { service, rate } => {
                let endpoint = subject.endpoint(service);
                let (connections, rate) = (STEADY.to_string(), rate.to_string());
                let run = |seconds: f64| {
                    let seconds = seconds.to_string();
                    let args = ["--connections", &connections, "--rate", &rate, "--seconds", &seconds];
                    load::tool::<Steady>(stand, "steady", &endpoint, &args)
                };
                run(0.2)?;
                let (found, cpu) = with_cpu(|| run(self.seconds))?;
                let per_million = cpu * 1e6 / found.answered as f64;
                Ok(vec![found.p50, found.p90, found.p99, found.p999, found.max, per_million])
            }
            Load::Connections { service, clients, resume } => {
                let endpoint = subject.endpoint(service);
                connect(stand, &endpoint, clients, 1, resume, 0.1)?;
                let (found, cpu) = with_cpu(|| connect(stand, &endpoint, clients, 1, resume, self.seconds))?;
                ensure!(found.count > 0, "no connection was answered");
                let per_million = cpu * 1e6 / found.count as f64;
                let (p50, p99) = (found.first_byte_p50_ms, found.first_byte_p99_ms);
                Ok(if clients == 1 {
                    vec![p50, p99, found.per_second, per_million]
                } else {
                    vec![found.per_second, per_million, p50, p99]
                })
            }
            Load::Handover { clients } => {
                let endpoint = subject.endpoint(Service::RedisTls);
                connect(stand, &endpoint, clients, 1, false, 0.1)?;
                let before = handover::Histogram::read(subject)?;
                let found = connect(stand, &endpoint, clients, 1, false, self.seconds)?;
                let seen = handover::Histogram::read(subject)?.since(&before);
                let ms = |part| seen.quantile(part).map(|seconds| seconds * 1e3);
                let (Some(p50), Some(p99)) = (ms(0.5), ms(0.99)) else {
                    bail!("no quantile of {} handovers", seen.count())
                };
                Ok(vec![p50, p99, 100.0 * p50 / found.first_byte_p50_ms, found.per_second])
            }
            Load::Paired { service, turns, connections } => {
                self.paired(subject, stand, service, turns, connections)
            }
            Load::Idle { connections } => idle(subject, stand, connections),
            Load::Routes { routes } => {
                let endpoint = subject.endpoint(Service::Routes);
                connect(stand, &endpoint, 4, routes, false, 0.1)?;
                let found = connect(stand, &endpoint, 4, routes, false, self.seconds)?;
                let used = subject.memory()?;
                Ok(vec![started.as_secs_f64(), mib(used), found.per_second, found.first_byte_p50_ms])
            }
            Load::Flows { flows } => self.flows(subject, stand, flows),
            Load::Operation(operation) => self.operation(subject, stand, operation),
        }
    }
}

impl Case {
    fn paired(
        &self,
        subject: &Subject<'_>,
        stand: &Stand,
        service: Service,
        turns: Turns,
        connections: u32,
    ) -> Result<Sample> {
        let mut args: Vec<String> = vec!["--beside".into(), service.direct().to_string()];
        args.extend(["--connections".into(), connections.to_string()]);
        args.extend(["--seconds".into(), self.seconds.to_string(), "--load".into()]);
        args.push(match turns {
            Turns::Bulk(Direction::Up) => "up".into(),
            Turns::Bulk(Direction::Down) => "down".into(),
            Turns::Ping(_) => "ping".into(),
            Turns::Connect { .. } => "connect".into(),
        });
        match turns {
            Turns::Ping(Some(rate)) => args.extend(["--rate".into(), rate.to_string()]),
            Turns::Connect { resume: true } => args.push("--resume".into()),
            Turns::Bulk(_) if service == Service::Iperf => args.push("--plain".into()),
            _ => {}
        }
        let _server =
            (service == Service::Iperf).then(|| stand.site.bulk_at_iperf(&stand.own)).transpose()?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let Paired { bare, subject } = load::tool(stand, "paired", &subject.endpoint(service), &args)?;
        let unit = if matches!(turns, Turns::Bulk(_)) { 1e9 } else { 1.0 };
        let rates = [subject.rate / unit, bare.rate / unit];
        let (p50s, p99s) = ([subject.p50, bare.p50], [subject.p99, bare.p99]);
        let figures: &[[f64; 2]] = match turns {
            Turns::Bulk(_) => &[rates],
            Turns::Ping(None) => &[rates, p50s, p99s],
            Turns::Ping(Some(_)) => &[p50s, p99s],
            Turns::Connect { .. } => &[rates, p50s],
        };
        let parts = figures.iter().map(|[subject, bare]| subject / bare);
        Ok(parts.chain(figures.iter().flatten().copied()).collect())
    }

    /// redis-benchmark for about the wanted time; also the machine's CPU seconds per million requests.
    fn requests(
        &self,
        stand: &Stand,
        endpoint: &Endpoint,
        service: Service,
        requests: Requests,
    ) -> Result<(Rate, f64)> {
        let tls = service != Service::RedisPlain;
        let run = |requests, count| load::redis_benchmark(stand, endpoint, tls, requests, count);
        // So that GET finds a value of this size.
        run(Requests { set: true, clients: 1, pipeline: 1, ..requests }, 10)?;
        let at_once = u64::from(requests.clients * requests.pipeline);
        // A tenth of the load at least, so that its rate means something.
        let mut warm_up = (at_once * 4).max(1_000);
        let mut warm = run(requests, warm_up)?;
        while warm_up as f64 / warm.per_second < self.seconds / 10.0 {
            warm_up *= 4;
            warm = run(requests, warm_up)?;
        }
        let count = ((warm.per_second * self.seconds) as u64).max(at_once);
        let (found, cpu) = with_cpu(|| run(requests, count))?;
        ensure!(
            found.per_second.is_finite(),
            "{count} requests took no time that redis-benchmark could measure"
        );
        Ok((found, cpu * 1e6 / count as f64))
    }

    /// Requests through a flow table that holds so many connections beside those of the load.
    fn flows(&self, subject: &Subject<'_>, stand: &Stand, flows: u32) -> Result<Sample> {
        let before = memory::of_kernel()?;
        let table = flows::Table::open(&super::subjects::bpffs())?;
        table.fill(flows)?;
        let bytes = (memory::of_kernel()? as f64 - before as f64) / f64::from(flows);
        let requests = Requests { set: false, clients: STEADY, pipeline: 1, value: 3 };
        let statistics = flows::Statistics::start()?;
        let (rate, cpu) =
            self.requests(stand, &subject.endpoint(Service::RedisPlain), Service::RedisPlain, requests)?;
        let per_packet = statistics.nanoseconds_per_run()?;
        table.check(flows)?;
        Ok(vec![per_packet, cpu, rate.per_second, bytes])
    }

    fn operation(&self, subject: &mut Subject<'_>, stand: &Stand, operation: Operation) -> Result<Sample> {
        let is_server = operation == Operation::Server;
        let endpoint = subject.endpoint(if is_server { Service::PairTls } else { Service::RedisTls });
        let (connections, seconds) = (STEADY.to_string(), self.seconds.to_string());
        let args = ["--connections", &connections, "--rate", "2000", "--seconds", &seconds];
        let args = [&args[..], &["--reconnect", "--new-per-second", "50"]].concat();
        let mut running = Running::start(stand, "steady", &endpoint, &args)?;
        let pause = Duration::from_millis(500);
        let mut times = 0;
        thread::sleep(pause);
        while running.is_running()? {
            match operation {
                Operation::Nothing => {}
                Operation::Reload => subject.reload()?,
                Operation::Restart => subject.restart(Signal::SIGTERM)?,
                Operation::Kill => subject.restart(Signal::SIGKILL)?,
                Operation::Server => stand.site.kill_second(),
            }
            thread::sleep(pause * 2);
            if is_server {
                stand.site.start_second()?;
            }
            if operation != Operation::Reload {
                thread::sleep(pause * 2);
            }
            times += 1;
        }
        let found: Steady = running.finish()?;
        ensure!(found.answered > 0, "nothing was answered");
        Ok(vec![
            found.p99,
            found.gap,
            found.failed as f64,
            found.lost as f64,
            found.refused as f64,
            found.opened as f64,
            f64::from(if operation == Operation::Nothing { 0 } else { times }),
        ])
    }
}

fn idle(subject: &Subject<'_>, stand: &Stand, connections: u64) -> Result<Sample> {
    let open_files = machine::open_files()?;
    let per_server = IDLE_PER_SERVER.min(open_files * 9 / 10);
    let count = connections.min(subject.kind.capacity(open_files)).min(2 * per_server);
    let first = count.min(per_server);
    let mut parts = vec![(subject.endpoint(Service::RedisTls), first)];
    if count > first {
        parts.push((subject.endpoint(Service::SecondTls), count - first));
    }
    // What only the start needed, is freed by now.
    thread::sleep(Duration::from_secs(1));
    let (process, kernel) = (subject.memory()?, memory::of_kernel()?);
    // In processes of their own: one cannot open more than its limit of files.
    let holders = parts
        .iter()
        .map(|(endpoint, count)| Running::start(stand, "idle", endpoint, &["--count", &count.to_string()]))
        .collect::<Result<Vec<_>>>()?;
    // And what only the opening needed.
    thread::sleep(Duration::from_secs(1));
    let (process_open, kernel_open) = (subject.memory()?, memory::of_kernel()?);
    let answered = holders.into_iter().map(Running::finish::<u64>).sum::<Result<u64>>()?;
    ensure!(answered == count, "{answered} of {count} idle connections were still alive");
    let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64 / 1024.0;
    Ok(vec![
        each(process, process_open),
        each(kernel, kernel_open),
        count as f64,
        mib(process_open),
        mib(process),
    ])
}

fn connect(
    stand: &Stand,
    endpoint: &Endpoint,
    clients: u32,
    names: u32,
    resume: bool,
    seconds: f64,
) -> Result<Connections> {
    let (clients, names, seconds) = (clients.to_string(), names.to_string(), seconds.to_string());
    let mut args = vec!["--clients", &clients, "--names", &names, "--seconds", &seconds];
    if resume {
        args.push("--resume");
    }
    load::tool(stand, "connect", endpoint, &args)
}

/// Runs `load` and measures what the whole machine spent on it, in core seconds.
fn with_cpu<T>(load: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = busy_seconds()?;
    let found = load()?;
    Ok((found, busy_seconds()? - before))
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
