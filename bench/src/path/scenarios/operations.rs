//! `operations`: PING at a fixed rate, and new connections, while something happens.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use crate::path::case::{Case, Depth, Figure, Load, Measurement, STEADY, compared, metrics, sample, shown};
use crate::path::clients::{Running, Steady};
use crate::path::subjects::{Kind, Service};
use crate::report::Better::{Higher, Lower};
use crate::report::{Metric, Sample};

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let case = |name: &str, what: &str, operation: Operation| {
        let title = format!("PING over TLS at 2000 a second and 50 new connections a second: {what}");
        let mut case = depth.case(name.to_owned(), title, operation);
        case.seconds = if depth == Depth::Quick { 2.0 } else { 8.0 };
        case
    };
    let kill = || case("kill", "kill -9 and a start, every 2 s", Operation::Kill);
    let reload = || case("reload", "a reload with one more route, every second", Operation::Reload);
    match depth {
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

struct Survived {
    load: Steady,
    /// How often it happened.
    times: u32,
}

const FIGURES: &[Figure<Survived>] = &[
    compared("p99", "ms", Lower, |found| found.load.p99),
    shown("longest silence", "ms", Lower, |found| found.load.gap),
    shown("requests failed", "", Lower, |found| found.load.failed as f64),
    shown("connections cut", "", Lower, |found| found.load.lost as f64),
    compared("connections refused", "", Lower, |found| found.load.refused as f64),
    shown("connections opened", "", Higher, |found| found.load.opened as f64),
    shown("times", "", Higher, |found| f64::from(found.times)),
];

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

impl Operation {
    fn service(self) -> Service {
        if self == Self::Server { Service::PairTls } else { Service::RedisTls }
    }
}

impl Load for Operation {
    fn services(&self) -> Vec<Service> {
        vec![self.service()]
    }

    fn takes(&self, kind: Kind) -> bool {
        match kind {
            Kind::HaproxySplice => false,
            Kind::Bare => *self == Self::Nothing,
            // It reads no configuration.
            Kind::Splice2 => *self != Self::Reload,
            _ => true,
        }
    }

    fn is_fresh(&self) -> bool {
        true
    }

    fn metrics(&self) -> Vec<Metric> {
        metrics(FIGURES)
    }

    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample> {
        let endpoint = on.subject.endpoint(self.service());
        let (connections, seconds) = (STEADY.to_string(), on.seconds.to_string());
        let args = ["--connections", &connections, "--rate", "2000", "--seconds", &seconds];
        let args = [&args[..], &["--reconnect", "--new-per-second", "50"]].concat();
        let mut running = Running::start(on.stand, "steady", &endpoint, &args)?;
        let pause = Duration::from_millis(500);
        let mut times = 0;
        thread::sleep(pause);
        while running.is_running()? {
            match self {
                Self::Nothing => {}
                Self::Reload => on.subject.reload()?,
                Self::Restart => on.subject.restart(Signal::SIGTERM)?,
                Self::Kill => on.subject.restart(Signal::SIGKILL)?,
                Self::Server => on.stand.site.kill_second(),
            }
            thread::sleep(pause * 2);
            if *self == Self::Server {
                on.stand.site.start_second()?;
            }
            if *self != Self::Reload {
                thread::sleep(pause * 2);
            }
            times += u32::from(*self != Self::Nothing);
        }
        let load: Steady = running.finish()?;
        ensure!(load.answered > 0, "nothing was answered");
        Ok(sample(FIGURES, &Survived { load, times }))
    }
}
