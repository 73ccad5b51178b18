//! Requests at a fixed rate, in an open loop: each has its time, and its latency counts from that time, not from when
//! it could be sent. So a stall of one second at 5 000 requests a second shows in 5 000 latencies, not in one.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};

use super::exchange::Exchange;
use super::link::{self, Link, PATIENCE};
use super::quantile::quantile;
use super::ready::ready;
use super::tls;

/// Between two attempts to connect again.
const PAUSE: Duration = Duration::from_millis(10);
/// Threads that open the new connections: one that waits must not hold up the next.
const OPENERS: u32 = 8;

#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    #[command(flatten)]
    server: tls::Server,
    /// Connections that stay open.
    #[arg(long)]
    connections: usize,
    /// Requests per second, over all of them in turn.
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    seconds: f64,
    /// Say `ready` first; then replace a connection that is lost, and count it. Without this it is an error.
    #[arg(long)]
    reconnect: bool,
    /// Also connect anew so many times a second, each time with one PING.
    #[arg(long, default_value_t = 0)]
    new_per_second: u32,
}

/// What came of it. Times in ms.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Steady {
    /// Requests that were answered.
    pub(crate) answered: u64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
    /// Requests that were never answered.
    pub(crate) failed: u64,
    /// Open connections that broke.
    pub(crate) lost: u64,
    /// New connections that were answered.
    pub(crate) opened: u64,
    /// New connections that were refused, broke or took more than two seconds.
    pub(crate) refused: u64,
    /// From when a new connection was due to the answer to its PING: of those that were answered, the longest.
    pub(crate) slowest: f64,
    /// The longest time in which nothing was answered.
    pub(crate) gap: f64,
}

/// A place for a connection.
#[derive(Default)]
struct Slot {
    link: Option<Link>,
    /// Requests whose time came while there was no connection.
    waiting: VecDeque<Instant>,
}

pub(super) fn run(args: &Args) -> Result<Steady> {
    // Or the kernel would let each wait last 50 us longer.
    nix::sys::prctl::set_timerslack(1)?;
    let config = tls::config(&args.server.authority, false)?;
    let slots =
        (0..args.connections).map(|_| Ok(Slot { link: Some(connect(&config, args)?), ..Slot::default() }));
    let (reconnect, reconnected) = channel();
    let mut load = Load {
        args: args.clone(),
        config: Arc::clone(&config),
        slots: slots.collect::<Result<_>>()?,
        reconnect,
        reconnected,
        latencies: Vec::new(),
        failed: 0,
        lost: 0,
        last_answer: Instant::now(),
        gap: Duration::ZERO,
    };
    if args.reconnect {
        ready()?;
    }
    let start = Instant::now();
    let openers: Vec<_> = (0..OPENERS.min(args.new_per_second))
        .map(|number| {
            let (args, config) = (args.clone(), Arc::clone(&config));
            thread::spawn(move || open_anew(&args, &config, number, start))
        })
        .collect();
    load.run(start)?;
    let mut latencies = load.latencies;
    let (mut opened, mut refused, mut slowest) = (0, 0, 0.0_f64);
    for opener in openers {
        let (times, failures) = opener.join().expect("an opener does not panic");
        opened += times.len() as u64;
        slowest = times.into_iter().fold(slowest, f64::max);
        refused += failures;
    }
    latencies.sort_by(f64::total_cmp);
    let at = |share| quantile(&latencies, share);
    Ok(Steady {
        answered: latencies.len() as u64,
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
        failed: load.failed,
        lost: load.lost,
        opened,
        refused,
        slowest,
        gap: milliseconds(load.gap),
    })
}

struct Load {
    args: Args,
    config: Arc<ClientConfig>,
    slots: Vec<Slot>,
    /// Whoever connects again puts a slot's new connection in at one end.
    reconnect: Sender<(usize, Link)>,
    reconnected: Receiver<(usize, Link)>,
    latencies: Vec<f64>,
    failed: u64,
    lost: u64,
    last_answer: Instant,
    gap: Duration,
}

impl Load {
    fn run(&mut self, start: Instant) -> Result<()> {
        let total = (self.args.rate * self.args.seconds) as u64;
        let rate = self.args.rate;
        let time_of = |number: u64| start + Duration::from_secs_f64(number as f64 / rate);
        let end = time_of(total);
        let mut next = 0;
        self.last_answer = start;
        loop {
            let now = Instant::now();
            while next < total && time_of(next) <= now {
                let slot = next as usize % self.slots.len();
                self.slots[slot].waiting.push_back(time_of(next));
                self.send(slot)?;
                next += 1;
            }
            while let Ok((slot, link)) = self.reconnected.try_recv() {
                self.slots[slot].link = Some(link);
                self.send(slot)?;
            }
            let outstanding = self.slots.iter().any(Slot::is_busy);
            if next == total && (!outstanding || now > end + PATIENCE) {
                break;
            }
            let until = if next < total { time_of(next).min(now + PAUSE) } else { now + PAUSE };
            for slot in self.readable(until.saturating_duration_since(now))? {
                self.receive(slot)?;
            }
        }
        self.failed += self.slots.iter().map(Slot::outstanding).sum::<u64>();
        self.gap = self.gap.max(end.saturating_duration_since(self.last_answer));
        ensure!(self.args.reconnect || self.failed == 0, "{} requests were not answered", self.failed);
        Ok(())
    }

    /// Waits for answers, at most so long; the slots that have some.
    fn readable(&self, wait: Duration) -> Result<Vec<usize>> {
        let linked = self.slots.iter().enumerate();
        link::ready(linked.filter_map(|(number, slot)| Some((number, slot.link.as_ref()?))), wait)
    }

    /// Sends what waits in a slot.
    fn send(&mut self, number: usize) -> Result<()> {
        let slot = &mut self.slots[number];
        let Some(link) = &mut slot.link else {
            return Ok(());
        };
        while let Some(due) = slot.waiting.pop_front() {
            link.ask(due)?;
        }
        match link.flush() {
            Ok(()) => Ok(()),
            Err(error) => self.broken(number, error),
        }
    }

    fn receive(&mut self, number: usize) -> Result<()> {
        let Some(link) = &mut self.slots[number].link else {
            return Ok(());
        };
        let outcome = link.answers();
        let now = Instant::now();
        match outcome {
            Ok(0) => {}
            Ok(answers) => {
                for due in link.due.drain(..answers) {
                    self.latencies.push(milliseconds(now - due));
                }
                self.gap = self.gap.max(now - self.last_answer);
                self.last_answer = now;
            }
            Err(error) => self.broken(number, error)?,
        }
        Ok(())
    }

    /// Gives a connection up; another takes its place as soon as one can be had.
    fn broken(&mut self, number: usize, error: io::Error) -> Result<()> {
        if !self.args.reconnect {
            return Err(error).context("a connection broke");
        }
        let slot = &mut self.slots[number];
        if let Some(link) = slot.link.take() {
            self.failed += link.due.len() as u64;
            self.lost += 1;
        }
        let (args, config, sender) = (self.args.clone(), Arc::clone(&self.config), self.reconnect.clone());
        // Ends with the process at the latest.
        thread::spawn(move || {
            let link = loop {
                match connect(&config, &args) {
                    Ok(link) => break link,
                    Err(_) => thread::sleep(PAUSE),
                }
            };
            // Nobody waits for it any more when the load is over.
            let _ = sender.send((number, link));
        });
        Ok(())
    }
}

impl Slot {
    fn outstanding(&self) -> u64 {
        (self.waiting.len() + self.link.as_ref().map_or(0, |link| link.due.len())) as u64
    }

    fn is_busy(&self) -> bool {
        self.outstanding() > 0
    }
}

fn connect(config: &Arc<ClientConfig>, args: &Args) -> Result<Link> {
    Link::open(config, args.server.target, &args.server.sni, &Arc::new(Exchange::ping()))
}

/// New connections at their times: latencies in ms, and how many failed.
fn open_anew(args: &Args, config: &Arc<ClientConfig>, number: u32, start: Instant) -> (Vec<f64>, u64) {
    let total = (f64::from(args.new_per_second) * args.seconds) as u32;
    let (mut times, mut refused) = (Vec::new(), 0);
    for nth in (number..total).step_by(OPENERS.min(args.new_per_second) as usize) {
        let due = start + Duration::from_secs_f64(f64::from(nth) / f64::from(args.new_per_second));
        thread::sleep(due.saturating_duration_since(Instant::now()));
        match connect(config, args) {
            Ok(link) if due.elapsed() <= PATIENCE => {
                times.push(milliseconds(due.elapsed()));
                tls::close(link.into_stream());
            }
            _ => refused += 1,
        }
    }
    (times, refused)
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
