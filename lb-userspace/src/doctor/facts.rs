//! The part of the doctor that asks the system.

use crate::config::{Gateway, Interfaces};
use crate::kernel::devices;
use crate::kernel::foreign::{FlowTable, flow_tables};
use crate::kernel::needs::Need;
use crate::kernel::packet::{self, Counts};
use crate::kernel::probe::Answer;
use crate::kernel::version::KernelVersion;
use crate::reason::Tier;
use caps::{CapSet, Capability};
use rustix::process::{Resource, Rlimit, getrlimit};
use std::collections::HashSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::SystemTime;

/// What the report is made from.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) kernel: Option<KernelVersion>,
    pub(super) btf: bool,
    /// `net.core.bpf_jit_enable`; absent in network namespaces other than the first.
    pub(super) jit: Option<String>,
    /// By `need as usize`.
    pub(super) answers: [Answer; Need::ALL.len()],
    pub(super) effective: HashSet<Capability>,
    pub(super) permitted: HashSet<Capability>,
    pub(super) nofile: Rlimit,
    pub(super) memlock: Rlimit,
    /// `kernel.unprivileged_bpf_disabled`.
    pub(super) unprivileged_bpf: Option<String>,
    pub(super) somaxconn: Option<u32>,
    /// Of the configuration.
    pub(super) tiers: Vec<Tier>,
    /// Of the configuration.
    pub(super) source_ports: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_port_range`.
    pub(super) kernel_ports: Option<RangeInclusive<u16>>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub(super) reserved_ports: String,
    /// Other gateways that use some of them: where their pins are, and their ranges.
    pub(super) rivals: Vec<(String, RangeInclusive<u16>)>,
    /// Devices that merge packets by LRO.
    pub(super) lro: Vec<String>,
    /// The counters of pinned programs, and since when they count; or why they cannot be read.
    pub(super) counted: Result<Option<(SystemTime, Counts)>, String>,
}

impl Facts {
    /// Asks the system, for a gateway with these settings.
    pub(super) fn gather(Gateway { fixed, live }: &Gateway) -> Self {
        let (source_ports, bpffs) = (&fixed.source_ports, fixed.bpffs.as_path());
        let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let capabilities = |set| caps::read(None, set).unwrap_or_default().into_iter().collect();
        Self {
            kernel: KernelVersion::running(),
            btf: fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false),
            jit: read("/proc/sys/net/core/bpf_jit_enable"),
            answers: Need::ALL.map(|need| need.ask(bpffs)),
            effective: capabilities(CapSet::Effective),
            permitted: capabilities(CapSet::Permitted),
            nofile: getrlimit(Resource::Nofile),
            memlock: getrlimit(Resource::Memlock),
            unprivileged_bpf: read("/proc/sys/kernel/unprivileged_bpf_disabled"),
            somaxconn: read("/proc/sys/net/core/somaxconn").and_then(|text| text.parse().ok()),
            rivals: rivals(source_ports, bpffs),
            tiers: live.tiers.clone(),
            source_ports: source_ports.clone(),
            kernel_ports: read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| ports(&text)),
            reserved_ports: read("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
            lro: joining_devices(),
            counted: packet::counts(bpffs).map_err(|error| format!("{:#}", anyhow::Error::from(error))),
        }
    }

    /// The kernel's answer.
    pub(super) fn answer(&self, need: Need) -> &Answer {
        &self.answers[need as usize]
    }
}

fn rivals(source_ports: &RangeInclusive<u16>, bpffs: &Path) -> Vec<(String, RangeInclusive<u16>)> {
    let tables = flow_tables(bpffs).into_iter();
    let of = |table: &FlowTable| {
        Some((table.directory().display().to_string(), table.overlapping(bpffs, source_ports)?))
    };
    tables.filter_map(|table| of(&table)).collect()
}

/// The devices that would get programs and merge packets by LRO.
fn joining_devices() -> Vec<String> {
    let devices = devices::devices().unwrap_or_default();
    let joins = |device: &&devices::Device| devices::joins_packets(device).unwrap_or(false);
    let relevant = devices::relevant(&devices, &Interfaces::Auto).into_iter();
    relevant.filter(joins).map(|device| device.name.clone()).collect()
}

/// Two ports with white space (`ip_local_port_range`) or `-` between them, or one.
pub(super) fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.split(['-', '\t', ' ']).filter(|end| !end.is_empty());
    let first = ends.next()?.parse().ok()?;
    let last = ends.next().map_or(Some(first), |last| last.parse().ok())?;
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Facts {
        /// Of a machine on which everything works.
        pub(in crate::doctor) fn healthy() -> Self {
            let all: HashSet<_> = caps::all();
            Self {
                kernel: Some(KernelVersion::new(6, 18, 44)),
                btf: true,
                jit: Some("1".into()),
                answers: Need::ALL.map(|_| Answer::Yes),
                effective: all.clone(),
                permitted: all,
                nofile: Rlimit { current: Some(1024), maximum: Some(1 << 20) },
                memlock: Rlimit { current: None, maximum: None },
                unprivileged_bpf: Some("2".into()),
                somaxconn: Some(4096),
                tiers: vec![Tier::Packet, Tier::Copy],
                source_ports: 10_240..=29_999,
                kernel_ports: Some(32_768..=60_999),
                reserved_ports: String::new(),
                rivals: vec![],
                lro: vec![],
                counted: Ok(None),
            }
        }

        /// The same with another answer.
        pub(in crate::doctor) fn with(mut self, need: Need, answer: Answer) -> Self {
            self.answers[need as usize] = answer;
            self
        }
    }

    #[test]
    fn ranges_of_ports_are_read_as_the_kernel_writes_them() {
        assert_eq!(ports("32768\t60999"), Some(32_768..=60_999));
        assert_eq!(ports("8080"), Some(8080..=8080));
        assert_eq!(ports("20000-20100"), Some(20_000..=20_100));
        assert_eq!(ports(""), None);
    }
}
