//! Counts keepalive probes where they arrive.

use std::net::TcpStream;

use anyhow::{Context, Result};

use crate::netns::NetNs;
use crate::process::checked_output;
use crate::stranger::Numbers;
use crate::wait::eventually;

/// Counts the keepalive probes that reach a socket: segments whose sequence number is one below the one that it expects.
#[derive(Debug)]
pub struct Probes<'a>(&'a NetNs);

impl<'a> Probes<'a> {
    /// Counts from now on. The socket, in this namespace, must receive no more bytes. One counter per namespace.
    pub fn of(ns: &'a NetNs, socket: &TcpStream) -> Result<Self> {
        Self::with(ns, socket, "accept")
    }

    /// As [`of`](Self::of), but drops every segment to the socket, as if its machine were gone.
    pub fn of_dead(ns: &'a NetNs, socket: &TcpStream) -> Result<Self> {
        Self::with(ns, socket, "drop")
    }

    fn with(ns: &'a NetNs, socket: &TcpStream, verdict: &str) -> Result<Self> {
        let probe = Numbers::of(socket)?.expected.wrapping_sub(1);
        let port = socket.local_addr()?.port();
        let rules = format!(
            "table inet probes {{ counter seen {{ }}; chain input {{ type filter hook input priority 0; \
             tcp dport {port} tcp sequence {probe} counter name seen; tcp dport {port} {verdict}; }}; }}"
        );
        checked_output(ns.command("nft").arg(rules))?;
        Ok(Self(ns))
    }

    /// How many there were so far.
    pub fn seen(&self) -> Result<u64> {
        let text = checked_output(self.0.command("nft").args(["list", "counter", "inet", "probes", "seen"]))?;
        let number = text.split_whitespace().skip_while(|word| *word != "packets").nth(1);
        number.and_then(|number| number.parse().ok()).with_context(|| text.clone())
    }

    /// Waits for this many probes. Each may take as long as [`eventually`] waits.
    pub fn wait(&self, number: u64) -> Result<()> {
        (1..=number).try_for_each(|number| {
            eventually(&format!("keepalive probe {number}"), || {
                self.seen().ok().filter(|seen| *seen >= number).map(drop)
            })
        })
    }
}
