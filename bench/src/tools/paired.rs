//! One load on two ways to the same server, taking turns: the subject's, and the bare route beside it.
//!
//! Client, server and machine are the same for both, and so is the second in which they are measured. What the host
//! of a virtual machine or the scheduler does to one way, it does to the other, and the ratio of the two says more than
//! two runs a minute apart.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::exchange::Exchange;
use super::link::{self, Link, PATIENCE};
use super::quantile::quantile;
use super::stream::{Direction, Header, confirmed, give, take};
use super::{connect, tls};

/// The two ways, as the sides of a pair.
const WAYS: usize = 2;
/// Which way has which turn: a drift of the machine hits both alike.
const ORDER: [usize; 4] = [0, 1, 1, 0];
/// Long beside what a turn begins and ends with, short beside the machine's weather.
const TURN: Duration = Duration::from_millis(100);
/// Requests that are due in the first moments of a turn are not in its latencies: they find every process asleep, and
/// in a closed loop all of them come at once.
const SETTLING: Duration = Duration::from_millis(5);
/// Bytes that are announced at once: enough that the headers cost nothing.
const CHUNK: u64 = 1 << 20;
/// Chunks that are asked for before they are needed.
const AHEAD: u64 = 4;
/// Bytes written at once, as iperf3 does.
const BUFFER: usize = 128 * 1024;

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
    /// Bytes of the value; of `get` and `set`.
    #[arg(long, default_value_t = 3)]
    bytes: usize,
    /// In clear text; of `up` and `down`.
    #[arg(long)]
    plain: bool,
    /// Requests per second, in an open loop; of `ping`, `get` and `set`. Without: each connection asks as soon as it has its answer.
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
    /// GET of a value on open connections.
    Get,
    /// SET of a value on open connections.
    Set,
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
    pub(crate) p999: f64,
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
        Load::Ping => exchanges(args, Exchange::ping()),
        Load::Get => exchanges(args, Exchange::get(args.bytes)),
        Load::Set => exchanges(args, Exchange::set(args.bytes)),
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
        Way { rate, p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

impl Args {
    fn addresses(&self) -> [SocketAddr; WAYS] {
        [self.beside, self.server.target]
    }

    /// Turns that fill the time, each way as often as the other.
    fn turns(&self) -> usize {
        let fours = self.seconds / (TURN.as_secs_f64() * ORDER.len() as f64);
        ORDER.len() * (fours.round() as usize).max(1)
    }
}

/// A thread per stream; all of them have the same turn. Each stream is measured over its own time, so that nobody pays for
/// the last one of a turn.
fn bulk(args: &Args, direction: Direction) -> Result<[Tally; WAYS]> {
    let barrier = Barrier::new(args.connections);
    let results: Vec<Result<[Tally; WAYS]>> = thread::scope(|scope| {
        let streams: Vec<_> =
            (0..args.connections).map(|_| scope.spawn(|| streams(args, direction, &barrier))).collect();
        streams.into_iter().map(|stream| stream.join().expect("a stream does not panic")).collect()
    });
    let mut tallies: [Tally; WAYS] = Default::default();
    for result in results {
        for (tally, stream) in tallies.iter_mut().zip(result?) {
            tally.seconds = 1.0;
            tally.done += stream.way().rate;
        }
    }
    Ok(tallies)
}

fn streams(args: &Args, direction: Direction, barrier: &Barrier) -> Result<[Tally; WAYS]> {
    let mut opened = args.addresses().map(|address| open(args, address).context("opening a stream"));
    let mut tallies: [Tally; WAYS] = Default::default();
    let mut failure = None;
    for number in 0..ORDER.len() + args.turns() {
        let way = ORDER[number % ORDER.len()];
        // A thread that has failed goes on taking its turns, or the others would wait for ever.
        barrier.wait();
        let outcome = match &mut opened[way] {
            Ok(stream) => bulk_turn(stream.as_mut(), direction),
            Err(_) => continue,
        };
        match outcome {
            Ok((bytes, seconds)) if number >= ORDER.len() => {
                tallies[way].seconds += seconds;
                tallies[way].done += bytes as f64 * 8.0;
            }
            // The first turns warm up.
            Ok(_) => {}
            Err(error) => {
                failure = failure.or(Some(error));
                opened[way] = Err(anyhow::anyhow!("it broke"));
            }
        }
    }
    match opened.into_iter().find_map(Result::err) {
        Some(error) => Err(failure.unwrap_or(error)),
        None => Ok(tallies),
    }
}

/// Bytes for the length of a turn: how many, and the seconds until the last had arrived.
fn bulk_turn(stream: &mut dyn Stream, direction: Direction) -> Result<(u64, f64)> {
    let start = Instant::now();
    let header = Header { direction, length: CHUNK }.bytes();
    let mut chunks = 0;
    match direction {
        Direction::Up => {
            let zeros = [0; BUFFER];
            while start.elapsed() < TURN {
                stream.write_all(&header)?;
                give(stream, CHUNK, &zeros)?;
                chunks += 1;
            }
            // One byte each, which have waited in the socket.
            (0..chunks).try_for_each(|_| confirmed(stream))?;
        }
        Direction::Down => {
            let mut asked = 0;
            loop {
                while asked < chunks + AHEAD && start.elapsed() < TURN {
                    stream.write_all(&header)?;
                    asked += 1;
                }
                stream.flush()?;
                if asked == chunks {
                    break;
                }
                take(stream, CHUNK)?;
                chunks += 1;
            }
        }
    }
    Ok((chunks * CHUNK, start.elapsed().as_secs_f64()))
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
fn exchanges(args: &Args, exchange: Exchange) -> Result<[Tally; WAYS]> {
    let exchange = Arc::new(exchange);
    // Or the kernel would let each wait last 50 us longer.
    nix::sys::prctl::set_timerslack(1)?;
    let config = tls::config(&args.server.authority, false)?;
    let [bare, subject] = args.addresses().map(|address| {
        (0..args.connections)
            .map(|_| Link::open(&config, address, &args.server.sni, &exchange))
            .collect::<Result<Vec<_>>>()
    });
    let mut links = [bare?, subject?];
    let mut tallies: [Tally; WAYS] = Default::default();
    for number in 0..ORDER.len() + args.turns() {
        let way = ORDER[number % ORDER.len()];
        let mut tally = Tally::default();
        exchange_turn(&mut links[way], args.rate, &mut tally)?;
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
fn exchange_turn(links: &mut [Link], rate: Option<f64>, tally: &mut Tally) -> Result<()> {
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
                if due >= start + SETTLING {
                    tally.latencies.push((now - due).as_secs_f64() * 1e3);
                }
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

/// A thread per client. A connection belongs to the turn in which it begins, and its time to its way: a client that one way
/// holds up is not missing from the other.
fn visits(args: &Args) -> Result<[Tally; WAYS]> {
    let start = Instant::now();
    let end = ORDER.len() + args.turns();
    let results: Vec<Result<[Tally; WAYS]>> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..args.connections).map(|_| scope.spawn(|| client(args, start, end))).collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    });
    let mut tallies: [Tally; WAYS] = Default::default();
    for result in results {
        for (tally, mut part) in tallies.iter_mut().zip(result?) {
            tally.seconds += part.seconds / args.connections as f64;
            tally.done += part.done;
            tally.latencies.append(&mut part.latencies);
        }
    }
    Ok(tallies)
}

fn client(args: &Args, start: Instant, end: usize) -> Result<[Tally; WAYS]> {
    // Sessions of one server mean nothing to the other where TLS is terminated.
    let [bare, subject] = args
        .addresses()
        .map(|address| connect::config(&args.server.authority, address, &args.server.sni, args.resume));
    let configs = [bare?, subject?];
    let mut tallies: [Tally; WAYS] = Default::default();
    loop {
        let begin = Instant::now();
        let turn = ((begin - start).as_secs_f64() / TURN.as_secs_f64()) as usize;
        if turn >= end {
            return Ok(tallies);
        }
        let way = ORDER[turn % ORDER.len()];
        let time = connect::visit(&configs[way], args.addresses()[way], &args.server.sni, args.resume)?;
        // The first turns warm up.
        if turn >= ORDER.len() {
            tallies[way].latencies.push(time);
            tallies[way].seconds += begin.elapsed().as_secs_f64();
            tallies[way].done += 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::super::serve;
    use super::*;

    /// A server of bytes; each of its connections is cut, or waits a while, when so many bytes have come or gone.
    fn server(after: Option<(u64, Duration)>) -> SocketAddr {
        struct Hindered(TcpStream, Option<(u64, Duration)>, u64);
        impl Hindered {
            fn pass(&mut self, bytes: usize) -> std::io::Result<usize> {
                self.2 += bytes as u64;
                match self.1 {
                    Some((after, pause)) if self.2 >= after => {
                        self.2 = 0;
                        if pause.is_zero() {
                            return Err(std::io::ErrorKind::ConnectionAborted.into());
                        }
                        thread::sleep(pause);
                    }
                    _ => {}
                }
                Ok(bytes)
            }
        }
        impl Read for Hindered {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                let read = self.0.read(buffer)?;
                self.pass(read)
            }
        }
        impl Write for Hindered {
            fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
                let written = self.0.write(buffer)?;
                self.pass(written)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                thread::spawn(move || serve::serve(Hindered(socket, after, 0)));
            }
        });
        address
    }

    fn args(load: Load, beside: SocketAddr, target: SocketAddr) -> Args {
        let server = tls::Server { target, sni: "a.example".to_owned(), authority: "none".into() };
        Args {
            server,
            beside,
            load,
            connections: 3,
            bytes: 3,
            plain: true,
            rate: None,
            resume: false,
            seconds: 1.0,
        }
    }

    #[test]
    fn the_way_that_waits_is_the_slow_one_in_both_directions() {
        // 40 ms for each megabyte of a connection: 0.2 Gbit/s at most.
        let (fast, slow) = (server(None), server(Some((1 << 20, Duration::from_millis(40)))));
        for load in [Load::Up, Load::Down] {
            let found = run(&args(load, fast, slow)).unwrap();
            assert!(found.subject.rate < 3.0 * 0.25e9, "{load:?}: {found:?}");
            assert!(found.subject.rate < found.bare.rate, "{load:?}: {found:?}");
            let found = run(&args(load, slow, fast)).unwrap();
            assert!(found.bare.rate < found.subject.rate, "{load:?}: {found:?}");
        }
    }

    #[test]
    fn a_server_that_breaks_off_is_an_error_and_nobody_waits_for_ever() {
        let (good, bad) = (server(None), server(Some((5 << 20, Duration::ZERO))));
        for load in [Load::Up, Load::Down] {
            assert!(run(&args(load, good, bad)).is_err(), "{load:?}");
            assert!(run(&args(load, bad, good)).is_err(), "{load:?}");
        }
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        assert!(run(&args(Load::Up, good, nobody)).is_err());
    }

    #[test]
    fn a_way_is_its_work_by_its_time() {
        let tally = Tally { seconds: 2.0, done: 6.0, latencies: vec![3.0, 1.0, 2.0] };
        let way = tally.way();
        assert_eq!((way.rate, way.p50, way.p99, way.p999), (3.0, 2.0, 3.0, 3.0));
        assert_eq!(Tally::default().way().rate, 0.0);
    }
}
