//! The kernel's own counters of a network namespace: what its TCP dropped, refused and reset.

use std::collections::BTreeMap;
use std::{fmt, fs};

use anyhow::{Context, Result};

use crate::netns::NetNs;

/// Counters by name, such as `TcpExt.PAWSEstab` and `Tcp.OutRsts`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

/// Counters that grow when a packet arrives that no correct peer sends, or when a connection is reset.
pub const FAULTS: &[&str] = &[
    "Ip.InHdrErrors",
    "Ip.InAddrErrors",
    "IpExt.InCsumErrors",
    "Tcp.EstabResets",
    "Tcp.InCsumErrors",
    "Tcp.OutRsts",
    "TcpExt.PAWSActive",
    "TcpExt.PAWSEstab",
    "TcpExt.TCPAbortFailed",
    "TcpExt.TCPAbortOnClose",
    "TcpExt.TCPAbortOnData",
    "TcpExt.TCPAbortOnLinger",
    "TcpExt.TCPAbortOnMemory",
    "TcpExt.TCPAbortOnTimeout",
];

impl Counters {
    /// The present counters of a namespace.
    pub fn of(ns: &NetNs) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let (snmp, netstat) = ns.run(|| Ok::<_, std::io::Error>((read("snmp")?, read("netstat")?)))?;
        let mut counters = Self::default();
        for text in [snmp, netstat] {
            counters.add(&text).with_context(|| text.clone())?;
        }
        Ok(counters)
    }

    /// One counter; 0 if this kernel does not have it.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// How much each counter has grown since; those that have not are left out.
    pub fn since(&self, before: &Self) -> Self {
        let grown = self.0.iter().map(|(name, &now)| (name.clone(), now.saturating_sub(before.get(name))));
        Self(grown.filter(|&(_, by)| by > 0).collect())
    }

    /// Those of [`FAULTS`], without zeros.
    pub fn faults(&self) -> Self {
        let faults = self.0.iter().filter(|(name, by)| **by > 0 && FAULTS.contains(&name.as_str()));
        Self(faults.map(|(name, &by)| (name.clone(), by)).collect())
    }

    /// Without these.
    pub fn except(mut self, names: &[&str]) -> Self {
        self.0.retain(|name, _| !names.contains(&name.as_str()));
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads pairs of lines: `Tcp: NAME NAME …`, `Tcp: NUMBER NUMBER …`.
    fn add(&mut self, text: &str) -> Result<()> {
        for pair in text.lines().collect::<Vec<_>>().chunks_exact(2) {
            let (group, names) = pair[0].split_once(": ").context("a group")?;
            let (_, values) = pair[1].split_once(": ").context("a group")?;
            for (name, value) in names.split(' ').zip(values.split(' ')) {
                // Tcp.MaxConn is -1.
                self.0.insert(format!("{group}.{name}"), value.parse().unwrap_or(0));
            }
        }
        Ok(())
    }
}

/// Without the zeros.
impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().filter(|&(_, &value)| value > 0)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_refused_connection_is_a_reset_more_and_a_namespace_counts_alone() {
        let (here, elsewhere) = (NetNs::new("here").unwrap(), NetNs::new("elsewhere").unwrap());
        let before = Counters::of(&here).unwrap();
        here.run(|| TcpStream::connect("127.0.0.1:9")).unwrap_err();
        let grown = Counters::of(&here).unwrap().since(&before);
        assert_eq!((grown.get("Tcp.OutRsts"), grown.get("Tcp.ActiveOpens")), (1, 1));
        assert!(grown.faults().except(&["Tcp.OutRsts"]).is_empty(), "{grown:?}");
        assert_eq!(Counters::of(&elsewhere).unwrap().get("Tcp.OutRsts"), 0);
    }

    #[test]
    fn every_fault_is_a_counter_of_this_kernel() {
        let counters = Counters::of(&NetNs::new("faults").unwrap()).unwrap();
        for name in FAULTS {
            assert!(counters.0.contains_key(*name), "{name}");
        }
    }
}
