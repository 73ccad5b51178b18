//! New TLS connections as fast as they come, each with one PING.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustls::HandshakeKind;
use serde::{Deserialize, Serialize};

use super::quantile::quantile;
use super::tls;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    target: SocketAddr,
    /// The server name; `{}` in it becomes a number below `--names`.
    #[arg(long)]
    sni: String,
    /// How many names there are.
    #[arg(long, default_value_t = 1)]
    names: u64,
    #[arg(long)]
    authority: PathBuf,
    /// Clients at work at the same time.
    #[arg(long)]
    clients: u64,
    #[arg(long)]
    seconds: f64,
    /// Resume a session instead of making a full handshake.
    #[arg(long)]
    resume: bool,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Connections {
    /// Connections that were answered.
    pub(crate) count: u64,
    pub(crate) per_second: f64,
    /// From connect(2) to the first byte of the answer.
    pub(crate) first_byte_p50_ms: f64,
    pub(crate) first_byte_p99_ms: f64,
}

pub(super) fn run(args: &Args) -> Result<Connections> {
    let start = Instant::now();
    let bound = Duration::from_secs_f64(args.seconds);
    let found: Vec<Result<Vec<f64>>> = thread::scope(|scope| {
        let clients: Vec<_> =
            (0..args.clients).map(|number| scope.spawn(move || client(args, number, start, bound))).collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut first_bytes = found.into_iter().collect::<Result<Vec<_>>>()?.concat();
    first_bytes.sort_by(f64::total_cmp);
    Ok(Connections {
        count: first_bytes.len() as u64,
        per_second: first_bytes.len() as f64 / seconds,
        first_byte_p50_ms: quantile(&first_bytes, 0.5),
        first_byte_p99_ms: quantile(&first_bytes, 0.99),
    })
}

/// One client's times to the first byte, in ms.
fn client(args: &Args, number: u64, start: Instant, bound: Duration) -> Result<Vec<f64>> {
    let config = config(&args.authority, args.target, &args.sni.replace("{}", "0"), args.resume)?;
    let mut times = Vec::new();
    while start.elapsed() < bound {
        // A prime apart, so that neighbours in time are not neighbours in a table.
        let name = (times.len() as u64 * 7919 + number * 104_729) % args.names;
        let visit = visit(&config, args.target, &args.sni.replace("{}", &name.to_string()), args.resume);
        times.push(visit.with_context(|| format!("connection {}", times.len()))?);
    }
    Ok(times)
}

/// Settings of a client; with a session of this server, if it is to resume one: its first connection cannot.
pub(super) fn config(
    authority: &Path,
    target: SocketAddr,
    sni: &str,
    resumes: bool,
) -> Result<Arc<rustls::ClientConfig>> {
    let config = tls::config(authority, resumes)?;
    if resumes {
        tls::close(tls::open(&config, target, sni)?);
    }
    Ok(config)
}

/// One connection with one PING: ms from connect(2) to the first byte of the answer.
pub(super) fn visit(
    config: &Arc<rustls::ClientConfig>,
    target: SocketAddr,
    sni: &str,
    resumes: bool,
) -> Result<f64> {
    let begin = Instant::now();
    let stream = tls::open(config, target, sni)?;
    let time = begin.elapsed().as_secs_f64() * 1e3;
    let kind = stream.conn.handshake_kind();
    let expected = if resumes { HandshakeKind::Resumed } else { HandshakeKind::Full };
    ensure!(kind == Some(expected), "the handshake was {kind:?} and not {expected:?}");
    tls::close(stream);
    Ok(time)
}
