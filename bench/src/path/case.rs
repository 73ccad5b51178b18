//! A case: what is asked of every subject, and the figures that come of it.

use std::time::Duration;

use anyhow::Result;

use super::subjects::{Kind, Service, Size, Stand, Subject};
use crate::machine::busy_seconds;
use crate::report::{Better, Metric, Sample};

/// Connections of the cases that keep a number of them at work.
pub(super) const STEADY: u32 = 50;

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

    pub(super) fn case(self, name: String, title: String, load: impl Load + 'static) -> Case {
        Case { name, title, load: Box::new(load), seconds: self.seconds() }
    }
}

/// One table of the report.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) load: Box<dyn Load>,
    /// Of one measurement.
    pub(crate) seconds: f64,
}

impl Case {
    /// Whether this subject takes part.
    pub(crate) fn takes(&self, kind: Kind) -> bool {
        self.load.takes(kind) && self.load.services().iter().all(|service| kind.offers(*service))
    }
}

/// What is done, and what is found out by it.
pub(crate) trait Load {
    /// What a subject must offer to take part.
    fn services(&self) -> Vec<Service>;

    /// Whether a subject takes part that offers this. Where splicing in HAProxy makes no difference, it is not asked twice.
    fn takes(&self, kind: Kind) -> bool {
        kind != Kind::HaproxySplice
    }

    /// Whether the subject must not have done anything before.
    fn is_fresh(&self) -> bool {
        false
    }

    /// What the subject is configured with beside the services.
    fn size(&self) -> Size {
        Size::default()
    }

    /// Whether a line of a subject's log is what this load brings about, and no complaint.
    fn expects(&self, _line: &str) -> bool {
        false
    }

    fn metrics(&self) -> Vec<Metric>;

    /// One measurement, warm-up included: a value for each metric.
    fn measure(&self, on: &mut Measurement<'_, '_>) -> Result<Sample>;
}

/// What is measured on.
pub(crate) struct Measurement<'m, 's> {
    pub(crate) subject: &'m mut Subject<'s>,
    pub(crate) stand: &'s Stand,
    /// How long the subject took to be ready.
    pub(crate) started: Duration,
    /// How long the load is to last.
    pub(crate) seconds: f64,
}

/// One figure of what was found: its name, its unit, and how it is got.
pub(super) struct Figure<F> {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) better: Better,
    /// Whether the table shows how we compare in it.
    pub(super) compared: bool,
    pub(super) of: fn(&F) -> f64,
}

/// A figure in which we are compared.
pub(super) const fn compared<F>(
    name: &'static str,
    unit: &'static str,
    better: Better,
    of: fn(&F) -> f64,
) -> Figure<F> {
    Figure { name, unit, better, compared: true, of }
}

/// A figure that is only shown.
pub(super) const fn shown<F>(
    name: &'static str,
    unit: &'static str,
    better: Better,
    of: fn(&F) -> f64,
) -> Figure<F> {
    Figure { name, unit, better, compared: false, of }
}

impl<F> Figure<F> {
    pub(super) fn metric(&self) -> Metric {
        Metric {
            name: self.name.to_owned(),
            unit: self.unit.to_owned(),
            better: self.better,
            compared: self.compared,
            of_bare: false,
        }
    }
}

/// What the figures are called.
pub(super) fn metrics<F>(figures: &[Figure<F>]) -> Vec<Metric> {
    figures.iter().map(Figure::metric).collect()
}

/// What the figures are.
pub(super) fn sample<F>(figures: &[Figure<F>], found: &F) -> Sample {
    figures.iter().map(|figure| (figure.of)(found)).collect()
}

/// What a load found, and what the whole machine spent on it.
pub(super) struct Spent<T> {
    pub(super) found: T,
    /// Core seconds.
    pub(super) cpu: f64,
}

impl<T> Spent<T> {
    /// Runs a load.
    pub(super) fn on(load: impl FnOnce() -> Result<T>) -> Result<Self> {
        let before = busy_seconds()?;
        let found = load()?;
        Ok(Self { found, cpu: busy_seconds()? - before })
    }

    /// Core seconds of a million of these.
    pub(super) fn per_million(&self, count: u64) -> f64 {
        self.cpu * 1e6 / count as f64
    }
}
