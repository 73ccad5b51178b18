//! Connections that have talked once and then keep silent.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::machine;
use crate::path::case::{Figure, Load, Measurement, compared, metrics, sample, shown};
use crate::path::clients::Running;
use crate::path::memory;
use crate::path::subjects::Service;
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

/// To one server: Redis takes 12 000 at most.
const PER_SERVER: u64 = 10_000;

struct Used {
    connections: u64,
    before: Bytes,
    open: Bytes,
}

struct Bytes {
    process: u64,
    kernel: u64,
}

impl Used {
    fn kib_each(&self, bytes: fn(&Bytes) -> u64) -> f64 {
        (bytes(&self.open) as f64 - bytes(&self.before) as f64) / self.connections as f64 / 1024.0
    }
}

const FIGURES: &[Figure<Used>] = &[
    compared("process", "KiB per connection", Lower, |used| used.kib_each(|bytes| bytes.process)),
    compared("kernel", "KiB per connection", Lower, |used| used.kib_each(|bytes| bytes.kernel)),
    shown("open", "connections", Higher, |used| used.connections as f64),
    shown("process, all open", "MiB", Lower, |used| memory::mib(used.open.process)),
    shown("process, none yet", "MiB", Lower, |used| memory::mib(used.before.process)),
];

pub(super) struct Idle {
    pub(super) connections: u64,
}

impl Load for Idle {
    fn services(&self) -> Vec<Service> {
        vec![Service::RedisTls, Service::SecondTls]
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let open_files = machine::open_files()?;
        let per_server = PER_SERVER.min(open_files * 9 / 10);
        let count = self.connections.min(on.subject.kind.capacity(open_files)).min(2 * per_server);
        let first = count.min(per_server);
        let mut parts = vec![(on.subject.endpoint(Service::RedisTls), first)];
        if count > first {
            parts.push((on.subject.endpoint(Service::SecondTls), count - first));
        }
        // What only the start needed, is freed by now.
        thread::sleep(Duration::from_secs(1));
        let before = Bytes { process: on.subject.memory()?, kernel: memory::of_kernel()? };
        // In processes of their own: one cannot open more than its limit of files.
        let holders = parts
            .iter()
            .map(|(endpoint, count)| {
                Running::start(on.stand, "idle", endpoint, &["--count", &count.to_string()])
            })
            .collect::<Result<Vec<_>>>()?;
        // And what only the opening needed.
        thread::sleep(Duration::from_secs(1));
        let open = Bytes { process: on.subject.memory()?, kernel: memory::of_kernel()? };
        let answered = holders.into_iter().map(Running::finish::<u64>).sum::<Result<u64>>()?;
        ensure!(answered == count, "{answered} of {count} idle connections were still alive");
        Ok(sample(FIGURES, &Used { connections: count, before, open }))
    }
}
