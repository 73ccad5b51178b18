//! Many quiet TLS connections.

use std::io::stdin;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::SockRef;

use super::exchange::Exchange;
use super::ready::ready;
use super::tls;

/// At the same time: opening one after another would take the round trips of all.
const THREADS: u32 = 4;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    server: tls::Server,
    #[arg(long)]
    count: u32,
}

/// Opens all, says that it is ready, and waits for the end of standard input. Then each must still answer: how many
/// did.
pub(super) fn run(args: &Args) -> Result<u64> {
    let config = tls::config(&args.server.authority, false)?;
    let open = |number| {
        let stream = tls::open(&config, args.server.target, &args.server.sni)
            .with_context(|| format!("idle connection {number}"))?;
        Ok(stream)
    };
    let streams: Vec<Result<Vec<_>>> = thread::scope(|scope| {
        let open = &open;
        let threads: Vec<_> = (0..THREADS)
            .map(|first| {
                scope.spawn(move || (first..args.count).step_by(THREADS as usize).map(open).collect())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("opening does not panic")).collect()
    });
    let mut streams =
        streams.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect::<Vec<_>>();
    ready()?;
    stdin().read_line(&mut String::new())?;
    let ping = Exchange::ping();
    let answered = streams.iter_mut().filter_map(|stream| ping.once(stream).ok()).count();
    // By a reset: thousands of TIME_WAITs would be in the next figures, and leave them while they are taken.
    for stream in &streams {
        SockRef::from(stream.sock.socket()).set_linger(Some(Duration::ZERO))?;
    }
    Ok(answered as u64)
}
