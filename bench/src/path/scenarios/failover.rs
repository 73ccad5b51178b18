//! `failover`: one of two servers dies again and again, while clients connect: how soon it is noticed, and by whom.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::path::case::{Case, Depth, Figure, Load, Measurement, compared, metrics, sample, shown};
use crate::path::clients::{Running, Steady};
use crate::path::subjects::{Kind, Service, Subject};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};
use crate::tools::quantile;

/// Within this time each subject must have noticed.
const PATIENCE: Duration = Duration::from_secs(10);

/// A death, with what comes before and after it.
const LONGEST: Duration = Duration::from_secs(4);

/// Between two looks at what the subject knows.
const LOOK: Duration = Duration::from_millis(2);

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let case = |name: &str, what: &str, death: Death, service: Service| {
        let title = format!("50 new TLS connections a second, while one of two servers dies: {what}");
        let mut case = depth.case(name.to_owned(), title, Failover { death, service });
        case.seconds = if depth == Depth::Quick { 6.0 } else { 45.0 };
        case
    };
    let killed = case("killed", "its process, with a check every second", Death::Killed, Service::PairTls);
    if depth == Depth::Quick {
        return vec![killed];
    }
    vec![
        killed,
        case("silent", "its machine, with a check every second", Death::Silent, Service::PairTls),
        case("observed", "its process, seen by connections alone", Death::Killed, Service::PairObserved),
    ]
}

#[derive(Clone, Copy)]
enum Death {
    /// Who connects is refused.
    Killed,
    /// Who connects hears nothing.
    Silent,
}

struct Failover {
    death: Death,
    service: Service,
}

struct Found {
    load: Steady,
    /// From each death until the subject said that it uses the server no more, in ms, sorted.
    noticed: Vec<f64>,
}

const FIGURES: &[Figure<Found>] = &[
    compared("connections failed", "", Lower, |found| found.load.refused as f64),
    compared("slowest connection", "ms", Lower, |found| found.load.slowest),
    compared("noticed after, median", "ms", Lower, |found| quantile(&found.noticed, 0.5)),
    shown("worst", "ms", Lower, |found| quantile(&found.noticed, 1.0)),
    shown("connections opened", "", Higher, |found| found.load.opened as f64),
    shown("deaths", "", Higher, |found| found.noticed.len() as f64),
];

impl Failover {
    fn pool(&self, kind: Kind) -> String {
        let name = if self.service == Service::PairObserved { "pair-observed" } else { "pair-tls" };
        if kind == Kind::Haproxy { name.replace('-', "_") } else { name.to_owned() }
    }

    fn kill(&self, on: &Measurement<'_, '_>) -> Result<()> {
        match self.death {
            Death::Killed => on.stand.site.kill_second(),
            Death::Silent => on.stand.site.silence_second(true)?,
        }
        Ok(())
    }

    fn revive(&self, on: &Measurement<'_, '_>) -> Result<()> {
        match self.death {
            Death::Killed => on.stand.site.start_second(),
            Death::Silent => on.stand.site.silence_second(false),
        }
    }
}

impl Load for Failover {
    fn services(&self) -> Vec<Service> {
        vec![self.service]
    }

    /// Those who check servers and can be asked.
    fn takes(&self, kind: Kind) -> bool {
        kind.is_ours() || kind == Kind::Haproxy
    }

    fn is_fresh(&self) -> bool {
        true
    }

    /// That a server is down, or up again.
    fn expects(&self, line: &str) -> bool {
        [" down: ", "ejected: ", " is DOWN", " is UP", " was UP", "goes DOWN"]
            .iter()
            .any(|part| line.contains(part))
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(self.service);
        let pool = self.pool(on.subject.kind);
        wait(on.subject, &pool, true)?;
        let seconds = on.seconds.to_string();
        // The open connections are not what this is about.
        let args = ["--connections", "1", "--rate", "10", "--seconds", &seconds];
        let args = [&args[..], &["--reconnect", "--new-per-second", "50"]].concat();
        let running = Running::start(on.stand, "steady", &endpoint, &args)?;
        let (mut noticed, start) = (Vec::new(), Instant::now());
        // Without clients nobody might notice.
        while start.elapsed() + LONGEST < Duration::from_secs_f64(on.seconds) {
            // A death meets each part of the second between two checks.
            let part = (noticed.len() as f64 * 0.618) % 1.0;
            thread::sleep(Duration::from_secs_f64(1.0 + part));
            self.kill(on)?;
            let took = wait(on.subject, &pool, false);
            thread::sleep(Duration::from_millis(500));
            self.revive(on)?;
            noticed.push(took?.as_secs_f64() * 1e3);
            wait(on.subject, &pool, true)?;
        }
        let load: Steady = running.finish()?;
        ensure!(load.opened > 0, "no connection was opened");
        noticed.sort_by(f64::total_cmp);
        Ok(sample(FIGURES, &Found { load, noticed }))
    }
}

/// How long it takes until the subject uses the server, or uses it no more.
fn wait(subject: &Subject<'_>, pool: &str, used: bool) -> Result<Duration> {
    let start = Instant::now();
    while subject.uses_second(pool)? != used {
        ensure!(start.elapsed() < PATIENCE, "not noticed within {PATIENCE:?}");
        thread::sleep(LOOK);
    }
    Ok(start.elapsed())
}
