//! One load on two ways to the same server, taking turns: the subject's, and the bare route beside it.
//!
//! Client, server and machine are the same for both, and so is the second in which they are measured. What the host
//! of a virtual machine or the scheduler does to one way, it does to the other, and the ratio of the two says more than
//! two runs a minute apart.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::link::{self, Link, PATIENCE};
use super::stream::{Direction, transfer};
use super::{connect, quantile, tls};

/// The two ways, as the sides of a pair.
const WAYS: usize = 2;
/// Which way has which turn: a drift of the machine hits both alike.
const ORDER: [usize; 4] = [0, 1, 1, 0];
/// Short, so that both ways see the same weather; shorter than 200 ms, after which TCP would start slowly again.
const TURN: Duration = Duration::from_millis(50);
/// Of new connections, which are over later than their turn: those of 16 clients last some 5 ms.
const CONNECT_TURN: Duration = Duration::from_millis(250);
/// Bytes that warm a connection up, and tell how many fill a turn.
const WARM_UP: u64 = 32 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: tls::Server,
    /// The same server, by the bare route.
    #[arg(long)]
    beside: SocketAddr,
    #[arg(long, value_enum)]
    load: Load,
    /// Connections at the same time, to each.
    #[arg(long)]
    connections: usize,
    /// In clear text; of `up` and `down`.
    #[arg(long)]
    plain: bool,
    /// Requests per second, in an open loop; of `ping`. Without: each connection asks as soon as it has its answer.
    #[arg(long)]
    rate: Option<f64>,
    /// Resume a session; of `connect`.
    #[arg(long)]
    resume: bool,
    /// Of both together.
    #[arg(long)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Load {
    /// Bytes toward the server.
    Up,
    /// Bytes from the server.
    Down,
    /// PING to Redis on open connections.
    Ping,
    /// New connections with one PING each.
    Connect,
}

/// What came of it, each way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Paired {
    pub(crate) bare: Way,
    pub(crate) subject: Way,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Way {
    /// Bits, answers or connections per second of its turns.
    pub(crate) rate: f64,
    /// Of a request, or of a connection until its first byte; ms, 0 of bulk.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// What one way has to show.
#[derive(Default)]
struct Tally {
    seconds: f64,
    done: f64,
    /// ms.
    latencies: Vec<f64>,
}

pub(super) fn run(args: &Args) -> Result<Paired> {
    ensure!(args.connections > 0, "no connections");
    let tallies = match args.load {
        Load::Up => bulk(args, Direction::Up),
        Load::Down => bulk(args, Direction::Down),
        Load::Ping => ping(args),
        Load::Connect => visits(args),
    }?;
    let [bare, subject] = tallies.map(Tally::way);
    ensure!(bare.rate > 0.0 && subject.rate > 0.0, "nothing was done");
    Ok(Paired { bare, subject })
}

impl Tally {
    fn way(mut self) -> Way {
        self.latencies.sort_by(f64::total_cmp);
        let at = |share| quantile(&self.latencies, share);
        let rate = if self.seconds > 0.0 { self.done / self.seconds } else { 0.0 };
        Way { rate, p50: at(0.5), p99: at(0.99) }
    }
}

impl Args {
    fn addresses(&self) -> [SocketAddr; WAYS] {
        [self.beside, self.server.target]
    }

    /// Turns that fill the time, each way as often as the other.
    fn turns(&self, turn: Duration) -> usize {
        let fours = self.seconds / (turn.as_secs_f64() * ORDER.len() as f64);
        ORDER.len() * (fours.round() as usize).max(1)
    }
}

/// A thread per stream; all of them have the same turn.
fn bulk(args: &Args, direction: Direction) -> Result<[Tally; WAYS]> {
    let barrier = Barrier::new(args.connections);
    let results: Vec<Result<[Tally; WAYS]>> = thread::scope(|scope| {
        let streams: Vec<_> =
            (0..args.connections).map(|_| scope.spawn(|| streams(args, direction, &barrier))).collect();
        streams.into_iter().map(|stream| stream.join().expect("a stream does not panic")).collect()
    });
    let mut tallies: [Tally; WAYS] = Default::default();
    for result in results {
        for (tally, part) in tallies.iter_mut().zip(result?) {
            // From one barrier to the next: every thread has the same time.
            tally.seconds = tally.seconds.max(part.seconds);
            tally.done += part.done;
        }
    }
    Ok(tallies)
}

fn streams(args: &Args, direction: Direction, barrier: &Barrier) -> Result<[Tally; WAYS]> {
    // Errors wait for the end of every turn, or the other threads would wait for ever.
    let mut opened = args.addresses().map(|address| open(args, address).context("opening a stream"));
    let mut turn = |way: usize, bytes: u64| -> Result<f64> {
        barrier.wait();
        let start = Instant::now();
        let done = match &mut opened[way] {
            Ok(stream) => transfer(stream.as_mut(), direction, bytes).map(|_| ()),
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        barrier.wait();
        if done.is_err() {
            opened[way] = Err(anyhow::anyhow!("a stream broke"));
        }
        done.map(|()| start.elapsed().as_secs_f64())
    };
    let share = WARM_UP / args.connections as u64;
    let warm_up: Vec<Result<f64>> = ORDER.map(|way| turn(way, share)).into();
    // The connections are warm in the second half of it. A thread that has failed goes on taking its turns.
    let seconds: f64 = warm_up.iter().skip(WAYS).map(|seconds| seconds.as_ref().map_or(1.0, |s| *s)).sum();
    let bytes = (share as f64 * TURN.as_secs_f64() * WAYS as f64 / seconds.max(1e-3)) as u64;
    let mut tallies: [Tally; WAYS] = Default::default();
    let mut failure = warm_up.into_iter().find_map(Result::err);
    for number in 0..args.turns(TURN) {
        let way = ORDER[number % ORDER.len()];
        match turn(way, bytes) {
            Ok(seconds) => {
                tallies[way].seconds += seconds;
                tallies[way].done += bytes as f64 * 8.0;
            }
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    failure.map_or(Ok(tallies), Err)
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn open(args: &Args, address: SocketAddr) -> Result<Box<dyn Stream>> {
    if args.plain {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        return Ok(Box::new(socket));
    }
    let config = tls::config(&args.server.authority, false)?;
    Ok(Box::new(tls::connect(&config, address, &args.server.sni)?))
}

/// One thread, as redis-benchmark has.
fn ping(args: &Args) -> Result<[Tally; WAYS]> {
    // Or the kernel would let each wait last 50 us longer.
    nix::sys::prctl::set_timerslack(1)?;
    let config = tls::config(&args.server.authority, false)?;
    let mut links = args.addresses().map(|address| {
        (0..args.connections)
            .map(|_| Link::open(&config, address, &args.server.sni))
            .collect::<Result<Vec<_>>>()
    });
    let mut tallies: [Tally; WAYS] = Default::default();
    for number in 0..ORDER.len() + args.turns(TURN) {
        let way = ORDER[number % ORDER.len()];
        let links = links[way].as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let mut tally = Tally::default();
        ping_turn(links, args.rate, &mut tally)?;
        // The first turns warm up.
        if number >= ORDER.len() {
            tallies[way].seconds += tally.seconds;
            tallies[way].done += tally.done;
            tallies[way].latencies.append(&mut tally.latencies);
        }
    }
    Ok(tallies)
}

/// Requests for the length of a turn, and the wait for their answers.
fn ping_turn(links: &mut [Link], rate: Option<f64>, tally: &mut Tally) -> Result<()> {
    let start = Instant::now();
    let end = start + TURN;
    let mut asked = 0_usize;
    let due = |number: usize, rate: f64| start + Duration::from_secs_f64(number as f64 / rate);
    if rate.is_none() {
        for link in links.iter_mut() {
            link.ask(start)?;
            link.flush()?;
        }
    }
    loop {
        let now = Instant::now();
        let mut until = end + PATIENCE;
        if let Some(rate) = rate {
            while due(asked, rate) <= now && due(asked, rate) < end {
                let link = &mut links[asked % links.len()];
                link.ask(due(asked, rate))?;
                link.flush()?;
                asked += 1;
            }
            if due(asked, rate) < end {
                until = due(asked, rate);
            }
        }
        let outstanding = links.iter().any(|link| !link.due.is_empty());
        if !outstanding && now >= end {
            break;
        }
        ensure!(now < end + PATIENCE, "requests were not answered");
        let wait = if outstanding { until } else { until.min(end) };
        for number in link::ready(links.iter().enumerate(), wait.saturating_duration_since(now))? {
            let link = &mut links[number];
            let answers = link.answers()?;
            let now = Instant::now();
            for due in link.due.drain(..answers) {
                tally.latencies.push((now - due).as_secs_f64() * 1e3);
                tally.done += 1.0;
            }
            if rate.is_none() && answers > 0 && now < end {
                link.ask(now)?;
                link.flush()?;
            }
        }
    }
    tally.seconds += start.elapsed().as_secs_f64();
    Ok(())
}

/// A thread per client; a connection belongs to the turn in which it begins.
fn visits(args: &Args) -> Result<[Tally; WAYS]> {
    let start = Instant::now();
    let turns = args.turns(CONNECT_TURN);
    let results: Vec<Result<[Tally; WAYS]>> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..args.connections).map(|_| scope.spawn(|| client(args, start, turns))).collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    });
    let mut tallies: [Tally; WAYS] = Default::default();
    for result in results {
        for (tally, mut part) in tallies.iter_mut().zip(result?) {
            tally.seconds = CONNECT_TURN.as_secs_f64() * (turns / WAYS) as f64;
            tally.done += part.done;
            tally.latencies.append(&mut part.latencies);
        }
    }
    Ok(tallies)
}

fn client(args: &Args, start: Instant, turns: usize) -> Result<[Tally; WAYS]> {
    // Sessions of one server mean nothing to the other where TLS is terminated.
    let configs = [config(args, args.beside)?, config(args, args.server.target)?];
    let mut tallies: [Tally; WAYS] = Default::default();
    loop {
        let turn = (start.elapsed().as_secs_f64() / CONNECT_TURN.as_secs_f64()) as usize;
        // The first four warm up.
        if turn >= ORDER.len() + turns {
            return Ok(tallies);
        }
        let way = ORDER[turn % ORDER.len()];
        let time = connect::visit(&configs[way], args.addresses()[way], &args.server.sni, args.resume)?;
        if turn >= ORDER.len() {
            tallies[way].latencies.push(time);
            tallies[way].done += 1.0;
        }
    }
}

/// Settings of a client, with a session to resume if it is to.
fn config(args: &Args, address: SocketAddr) -> Result<std::sync::Arc<rustls::ClientConfig>> {
    let config = tls::config(Path::new(&args.server.authority), args.resume)?;
    if args.resume {
        tls::close(tls::open(&config, address, &args.server.sni)?);
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_has_as_many_turns_and_neither_is_always_first() {
        assert_eq!(ORDER.iter().sum::<usize>(), ORDER.len() / WAYS);
        let first: Vec<usize> = ORDER.chunks(WAYS).map(|pair| pair[0]).collect();
        assert_eq!(first, [0, 1]);
    }

    #[test]
    fn a_way_is_its_work_by_its_time() {
        let tally = Tally { seconds: 2.0, done: 6.0, latencies: vec![3.0, 1.0, 2.0] };
        let way = tally.way();
        assert_eq!((way.rate, way.p50, way.p99), (3.0, 2.0, 3.0));
        assert_eq!(Tally::default().way().rate, 0.0);
    }
}
