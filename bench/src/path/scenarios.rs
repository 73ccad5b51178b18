//! The scenarios: what is asked of every subject, and what is measured meanwhile.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::load::{self, Direction, Reconnect};
use super::subjects::{Kind, Mode, Subject};
use super::topology::Site;
use crate::machine::busy_seconds;
use crate::report::{Better, Goal, Metric, Sample};

/// One scenario. The metrics follow from its load.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    title: &'static str,
    mode: Mode,
    load: Load,
    pub(crate) subjects: &'static [Kind],
    pub(crate) goal: Option<Goal>,
}

#[derive(Clone, Copy)]
enum Load {
    /// redis-benchmark, GET over 50 connections that stay.
    Requests,
    /// redis-benchmark, 50 at a time, a new TLS connection for every GET.
    Connections,
    /// One iperf3 stream, first toward the server, then from it.
    Bulk,
    /// Connections that have talked once and then keep silent.
    Idle,
}

/// How much of everything one measurement does.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    requests: u32,
    new_connections: u32,
    bulk_seconds: u32,
    idle_connections: u32,
}

impl Size {
    /// About five seconds a measurement.
    pub(crate) const FULL: Size =
        Size { requests: 250_000, new_connections: 6_000, bulk_seconds: 5, idle_connections: 5_000 };
    /// About a second.
    pub(crate) const QUICK: Size =
        Size { requests: 30_000, new_connections: 1_000, bulk_seconds: 1, idle_connections: 1_000 };
}

const PROXIES: &[Kind] = &[Kind::Snisplice, Kind::Haproxy, Kind::Nginx, Kind::Envoy];
const PROXIES_AND_DIRECT: &[Kind] = &[Kind::Snisplice, Kind::Haproxy, Kind::Nginx, Kind::Envoy, Kind::Direct];

/// Every scenario, in the order of the report.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "passthrough-redis",
        title: "redis-benchmark over TLS, GET, 50 connections, passed through by SNI",
        mode: Mode::Passthrough,
        load: Load::Requests,
        subjects: PROXIES_AND_DIRECT,
        goal: Some(Goal { ratio: 1.0, peers: &["haproxy", "nginx"] }),
    },
    Scenario {
        name: "bulk",
        title: "one iperf3 stream through a plain TCP listener",
        mode: Mode::Tcp,
        load: Load::Bulk,
        subjects: &[
            Kind::Snisplice,
            Kind::Haproxy,
            Kind::HaproxySplice,
            Kind::Nginx,
            Kind::Envoy,
            Kind::Direct,
        ],
        goal: Some(Goal { ratio: 1.0, peers: &["haproxy", "haproxy-splice", "nginx", "envoy"] }),
    },
    Scenario {
        name: "terminated-redis",
        title: "redis-benchmark over TLS, GET, 50 connections, terminated at the gateway (direct: at the server)",
        mode: Mode::Terminated,
        load: Load::Requests,
        subjects: PROXIES_AND_DIRECT,
        goal: Some(Goal { ratio: 1.1, peers: &["haproxy", "nginx"] }),
    },
    Scenario {
        name: "new-connections-passthrough",
        title: "redis-benchmark, a new TLS connection for every GET, passed through by SNI",
        mode: Mode::Passthrough,
        load: Load::Connections,
        subjects: PROXIES_AND_DIRECT,
        goal: Some(Goal { ratio: 1.0, peers: &["haproxy"] }),
    },
    Scenario {
        name: "new-connections-terminated",
        title: "redis-benchmark, a new TLS connection for every GET, terminated at the gateway (direct: at the \
                server)",
        mode: Mode::Terminated,
        load: Load::Connections,
        subjects: PROXIES_AND_DIRECT,
        goal: Some(Goal { ratio: 1.0, peers: &["haproxy"] }),
    },
    Scenario {
        name: "idle-memory-passthrough",
        title: "idle TLS connections, passed through by SNI",
        mode: Mode::Passthrough,
        load: Load::Idle,
        subjects: PROXIES,
        goal: None,
    },
    Scenario {
        name: "idle-memory-terminated",
        title: "idle TLS connections, terminated at the gateway",
        mode: Mode::Terminated,
        load: Load::Idle,
        subjects: PROXIES,
        goal: None,
    },
];

impl Scenario {
    /// What it does, with the amount where that matters to the reader.
    pub(crate) fn title(&self, size: Size) -> String {
        match self.load {
            Load::Idle => format!("{} {}", size.idle_connections, self.title),
            Load::Requests | Load::Connections | Load::Bulk => self.title.to_owned(),
        }
    }

    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let metric = |name, unit, better, compared| Metric { name, unit, better, compared };
        match self.load {
            Load::Requests => vec![
                metric("requests", "1/s", Better::Higher, true),
                metric("p50", "ms", Better::Lower, false),
                metric("p99", "ms", Better::Lower, false),
                metric("CPU", "s per million", Better::Lower, false),
            ],
            Load::Connections => vec![
                metric("new connections", "1/s", Better::Higher, true),
                metric("CPU", "s per million", Better::Lower, false),
            ],
            Load::Bulk => vec![
                metric("up", "Gbit/s", Better::Higher, true),
                metric("down", "Gbit/s", Better::Higher, true),
                metric("CPU up", "s per GiB", Better::Lower, false),
                metric("CPU down", "s per GiB", Better::Lower, false),
            ],
            Load::Idle => vec![
                metric("per connection", "KiB", Better::Lower, true),
                metric("all open", "MiB", Better::Lower, false),
                metric("none yet", "MiB", Better::Lower, false),
            ],
        }
    }

    /// One measurement of a freshly started subject, warm-up included.
    pub(crate) fn measure(&self, site: &Site, subject: &Subject, size: Size) -> Result<Sample> {
        let target = subject.target(self.mode);
        match self.load {
            Load::Requests => {
                let requests = size.requests;
                load::redis_benchmark(site, target, "set", requests / 10, Reconnect::Never)?;
                let (found, cpu) =
                    with_cpu(|| load::redis_benchmark(site, target, "get", requests, Reconnect::Never))?;
                Ok(vec![found.per_second, found.p50_ms, found.p99_ms, cpu * 1e6 / f64::from(requests)])
            }
            Load::Connections => {
                let connections = size.new_connections;
                load::redis_benchmark(site, target, "set", connections / 10, Reconnect::EveryRequest)?;
                let (found, cpu) = with_cpu(|| {
                    load::redis_benchmark(site, target, "get", connections, Reconnect::EveryRequest)
                })?;
                Ok(vec![found.per_second, cpu * 1e6 / f64::from(connections)])
            }
            Load::Bulk => {
                let seconds = size.bulk_seconds;
                let mut rates = Vec::new();
                let mut costs = Vec::new();
                for direction in [Direction::Up, Direction::Down] {
                    load::iperf(site, target, direction, 1)?;
                    let (found, cpu) = with_cpu(|| load::iperf(site, target, direction, seconds))?;
                    rates.push(found.gbit_per_second);
                    costs.push(cpu / found.gib);
                }
                Ok([rates, costs].concat())
            }
            Load::Idle => {
                let before = subject.memory()?;
                let open = load::idle_connections(site, target, size.idle_connections)?;
                // What a subject frees, it frees by now.
                thread::sleep(Duration::from_secs(1));
                let after = subject.memory()?;
                open.close().context("an idle connection was no longer alive")?;
                let per_connection = (after as f64 - before as f64) / f64::from(size.idle_connections);
                Ok(vec![per_connection / 1024.0, mib(after), mib(before)])
            }
        }
    }
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
