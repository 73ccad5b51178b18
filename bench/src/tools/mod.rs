//! Programs of ours that a run starts in its namespaces, as processes of their own: the relay that is a subject,
//! the server of bytes, and the loads that no ordinary tool makes. A load prints a line of JSON when it is done;
//! one that opens connections first says `ready` before.

mod connect;
mod exchange;
mod idle;
mod link;
mod paired;
mod quantile;
mod ready;
mod relay;
mod serve;
mod steady;
mod stream;
mod tls;

use anyhow::Result;
use serde::Serialize;

pub(crate) use connect::Connections;
pub(crate) use paired::{Paired, Way};
pub(crate) use quantile::quantile;
pub(crate) use steady::Steady;
pub(crate) use stream::{Direction, Transfer};

/// `snisplice-bench tool NAME …`.
#[derive(clap::Subcommand)]
pub(crate) enum Tool {
    /// A relay with splice(2), and nothing else.
    Relay(relay::Args),
    /// Sends or takes as many bytes as a client asks for, in clear text and over TLS.
    Serve(serve::Args),
    /// One client of `serve`.
    Stream(stream::Args),
    /// PING to Redis over TLS at a fixed rate, whether or not the answers come.
    Steady(steady::Args),
    /// One load on two ways to the same server, which take turns.
    Paired(paired::Args),
    /// New TLS connections, each with one PING.
    Connect(connect::Args),
    /// TLS connections that have said PING once, and stay.
    Idle(idle::Args),
}

impl Tool {
    pub(crate) fn run(&self) -> Result<()> {
        match self {
            Tool::Relay(args) => relay::run(args),
            Tool::Serve(args) => serve::run(args),
            Tool::Stream(args) => print(&stream::run(args)?),
            Tool::Steady(args) => print(&steady::run(args)?),
            Tool::Paired(args) => print(&paired::run(args)?),
            Tool::Connect(args) => print(&connect::run(args)?),
            Tool::Idle(args) => print(&idle::run(args)?),
        }
    }
}

fn print(found: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(found)?);
    Ok(())
}
