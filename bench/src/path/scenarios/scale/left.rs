//! Very many connections of the packet tier: adopted by a gateway that starts, and open while it has nothing to do.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use snisplice_tests::left::{Belonging, Left, LeftMaps};
use snisplice_tests::topology;

use crate::path::case::{Figure, Load, Measurement, compared, metrics, sample, shown};
use crate::path::memory;
use crate::path::subjects::{Kind, PASSTHROUGH, Service, pins};
use crate::path::topology::REDIS_TLS_PORT;
use crate::report::Better::Lower;
use crate::report::{Metric, Sample};

/// Sweeps of many connections are seconds apart.
const MEASURED: Duration = Duration::from_secs(30);

/// A gateway is at rest if it takes less of a core for so long: it has asked for the route of each connection by then.
const AT_REST: (f64, Duration) = (0.2, Duration::from_secs(2));

/// What a start with connections took.
struct Adopted {
    /// Seconds until it serves.
    without: f64,
    with: f64,
    /// Of a core.
    cpu: f64,
    /// Until the routes of all are known, of a core.
    cpu_until_rest: f64,
    /// Bytes.
    memory: u64,
}

const ADOPTION: &[Figure<Adopted>] = &[
    compared("serves after", "s", Lower, |found| found.with),
    shown("with none", "s", Lower, |found| found.without),
    shown("CPU until then", "s", Lower, |found| found.cpu),
    shown("CPU until at rest", "s", Lower, |found| found.cpu_until_rest),
    shown("process", "MiB", Lower, |found| memory::mib(found.memory)),
];

pub(super) struct Adopt {
    pub(super) connections: u32,
}

const IDLENESS: &[Figure<f64>] = &[compared("idle gateway", "% of a core", Lower, |cpu| *cpu)];

/// While nothing happens.
pub(super) struct Open {
    pub(super) connections: u32,
}

/// Ends the gateway and starts it again with so many connections more.
fn adopt(on: &mut Measurement<'_, '_>, connections: u32) -> Result<Adopted> {
    on.subject.end(Signal::SIGTERM)?;
    let without = start_again(on)?;
    on.subject.end(Signal::SIGTERM)?;
    let belonging = Belonging {
        listener: "passthrough",
        port: PASSTHROUGH,
        route: "redis-tls",
        server: topology::server(REDIS_TLS_PORT),
        sni: &on.subject.endpoint(Service::RedisTls).sni,
    };
    LeftMaps::open(&pins(), &on.stand.site.triangle, belonging)?.leave(0..connections, Left::Open)?;
    let with = start_again(on)?;
    let cpu = on.subject.cpu()?;
    check(on, connections)?;
    let memory = on.subject.memory()?;
    let mut cpu_until_rest = cpu;
    loop {
        let before = on.subject.cpu()?;
        thread::sleep(AT_REST.1);
        let after = on.subject.cpu()?;
        if after - before < AT_REST.0 * AT_REST.1.as_secs_f64() {
            break;
        }
        cpu_until_rest = after;
    }
    Ok(Adopted { without, with, cpu, cpu_until_rest, memory })
}

/// Starts the gateway; seconds until it serves.
fn start_again(on: &mut Measurement<'_, '_>) -> Result<f64> {
    let start = Instant::now();
    on.subject.start_again()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Makes sure that the gateway takes all of them for open.
fn check(on: &Measurement<'_, '_>, connections: u32) -> Result<()> {
    let open = on.subject.open()?;
    ensure!(open == u64::from(connections), "{open} of {connections} connections are open");
    Ok(())
}

impl Load for Adopt {
    fn services(&self) -> Vec<Service> {
        vec![Service::RedisTls]
    }

    fn takes(&self, kind: Kind) -> bool {
        kind == Kind::SnisplicePacket
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(ADOPTION)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        Ok(sample(ADOPTION, &adopt(on, self.connections)?))
    }
}

impl Load for Open {
    fn services(&self) -> Vec<Service> {
        vec![Service::RedisTls]
    }

    fn takes(&self, kind: Kind) -> bool {
        kind == Kind::SnisplicePacket
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(IDLENESS)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        adopt(on, self.connections)?;
        let (before, start) = (on.subject.cpu()?, Instant::now());
        thread::sleep(MEASURED);
        let cpu = (on.subject.cpu()? - before) / start.elapsed().as_secs_f64() * 100.0;
        check(on, self.connections)?;
        Ok(sample(IDLENESS, &cpu))
    }
}
