//! The lines of the report, made from the facts.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::facts::{Facts, ports};
use crate::kernel::needs::{Lack, Need};
use crate::kernel::version::KernelVersion;
use crate::words::counted;
use caps::Capability;
use rustix::process::Rlimit;
use std::ops::RangeInclusive;

/// The state of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineState {
    Ok,
    /// Works, but something is worth changing.
    Note,
    Missing,
}

#[derive(Debug)]
pub(super) struct Line {
    pub(super) what: &'static str,
    pub(super) state: LineState,
    /// What was found.
    pub(super) found: String,
    /// How to get what is missing.
    pub(super) remedy: Option<String>,
}

impl Line {
    pub(super) fn new(what: &'static str, state: LineState, found: impl Into<String>) -> Self {
        Self { what, state, found: found.into(), remedy: None }
    }

    /// Adds what to do about it, unless the line is `Ok`.
    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        if self.state != LineState::Ok {
            self.remedy = Some(remedy.into());
        }
        self
    }
}

/// What each capability is for.
const CAPABILITIES: [(Capability, &str, &str); 7] = [
    (Capability::CAP_BPF, "cap_bpf", "load programs, make maps"),
    (Capability::CAP_NET_ADMIN, "cap_net_admin", "attach programs to sockets and devices"),
    (Capability::CAP_PERFMON, "cap_perfmon", "programs that compute with packet pointers"),
    (Capability::CAP_NET_RAW, "cap_net_raw", "end connections of the packet tier"),
    (Capability::CAP_NET_BROADCAST, "cap_net_broadcast", "hand packets straight to containers behind veth"),
    (Capability::CAP_NET_BIND_SERVICE, "cap_net_bind_service", "listen on ports below 1024"),
    (Capability::CAP_SYS_RESOURCE, "cap_sys_resource", "raise the limits of open files and locked memory"),
];

pub(super) fn lines(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![
        match facts.kernel {
            Some(version) => Line::new("kernel", LineState::Ok, version.to_string()),
            None => Line::new("kernel", LineState::Note, "its release cannot be read"),
        },
        btf(facts.btf),
        jit(facts.jit.as_deref()),
    ];
    lines.extend(Need::ALL.into_iter().map(|it| need(it, facts)));
    lines.extend([source_ports(facts), other_gateways(facts), lro(&facts.lro)]);
    lines.extend(CAPABILITIES.iter().map(|entry| capability(facts, *entry)));
    lines.extend([
        open_files(facts.nofile),
        locked_memory(facts),
        unprivileged_bpf(facts.unprivileged_bpf.as_deref()),
        backlog(facts.somaxconn),
    ]);
    lines
}

/// A need that is not met: `Missing` if a tier of the configuration requires it; if one only prefers it, a note says what is
/// lost.
fn need(need: Need, facts: &Facts) -> Line {
    let Some(lack) = Lack::new(need, facts.answer(need).clone()) else {
        return Line::new(need.name(), LineState::Ok, need.purpose());
    };
    let state = if need.is_required(&facts.tiers) { LineState::Missing } else { LineState::Note };
    let found = match need.cost() {
        Some(cost) => format!("{}: {cost}", lack.found()),
        None => format!("{}; {}", lack.found(), need.purpose()),
    };
    Line::new(need.name(), state, found).remedy(lack.remedy())
}

fn btf(there: bool) -> Line {
    match there {
        true => Line::new("BTF", LineState::Ok, "/sys/kernel/btf/vmlinux: the kernel's own types"),
        false => Line::new("BTF", LineState::Note, "no /sys/kernel/btf/vmlinux; for tools such as bpftool")
            .remedy("a kernel with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

fn jit(value: Option<&str>) -> Line {
    let line = |state, found: String| Line::new("BPF JIT", state, found);
    match value {
        Some("0") => line(LineState::Note, "off: programs are interpreted, and slow".to_owned())
            .remedy("sysctl -w net.core.bpf_jit_enable=1"),
        Some(value) => line(LineState::Ok, format!("net.core.bpf_jit_enable = {value}")),
        None => line(LineState::Note, "cannot be seen from this network namespace".to_owned())
            .remedy("look at net.core.bpf_jit_enable in the host's network namespace"),
    }
}

fn range(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// The ports toward servers may not be those that the kernel gives to other programs.
fn source_ports(facts: &Facts) -> Line {
    let line = |state, found: String| Line::new("source ports", state, found);
    let ours = range(&facts.source_ports);
    let Some(kernel) = &facts.kernel_ports else {
        return line(LineState::Note, format!("{ours}; net.ipv4.ip_local_port_range cannot be read"))
            .remedy("mount /proc in this container");
    };
    let reserved: Vec<_> = facts.reserved_ports.split(',').filter_map(ports).collect();
    let is_free = |port: u16| !kernel.contains(&port) || reserved.iter().any(|ports| ports.contains(&port));
    if facts.source_ports.clone().all(is_free) {
        return line(LineState::Ok, format!("{ours}; the kernel hands out others"));
    }
    let reserve = [&facts.reserved_ports, &ours].map(|ports| ports.as_str());
    let reserve: Vec<_> = reserve.into_iter().filter(|ports| !ports.is_empty()).collect();
    line(LineState::Note, format!("{ours} overlap those that the kernel hands out, {}", range(kernel)))
        .remedy(format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", reserve.join(",")))
}

/// Connections of other gateways on this host are kept apart from ours, but each port that one of them has toward a
/// server is one less for us.
fn other_gateways(facts: &Facts) -> Line {
    let line = |state, found: String| Line::new("other gateways", state, found);
    if facts.rivals.is_empty() {
        return line(LineState::Ok, "none that uses these source ports".to_owned());
    }
    let rivals: Vec<_> =
        facts.rivals.iter().map(|(directory, ports)| format!("{} ({directory})", range(ports))).collect();
    line(LineState::Note, format!("use some of these source ports: {}", rivals.join(", ")))
        .remedy("`source_ports` of its own for each gateway on this host")
}

fn lro(devices: &[String]) -> Line {
    let line = |state, found: String| Line::new("LRO", state, found);
    if devices.is_empty() {
        return line(LineState::Ok, "no device joins packets for good".to_owned());
    }
    let commands: Vec<_> = devices.iter().map(|device| format!("ethtool -K {device} lro off")).collect();
    line(LineState::Note, format!("joins packets for good on {}: they cannot be sent on", devices.join(", ")))
        .remedy(commands.join("; "))
}

fn capability(facts: &Facts, (capability, name, purpose): (Capability, &'static str, &str)) -> Line {
    if facts.effective.contains(&capability) {
        Line::new(name, LineState::Ok, purpose)
    } else if facts.permitted.contains(&capability) {
        Line::new(name, LineState::Note, format!("held, not in effect; {purpose}"))
            .remedy("raise it into the effective set")
    } else {
        // `Missing` if something that it permits is required.
        let is_required =
            |need: &Need| need.is_required(&facts.tiers) && need.capabilities().contains(&capability);
        let state = if Need::ALL.iter().any(is_required) { LineState::Missing } else { LineState::Note };
        Line::new(name, state, format!("not held; {purpose}")).remedy(format!(
            "run as root, or setcap {name}+ep on the program, or AmbientCapabilities= in systemd"
        ))
    }
}

/// With fewer descriptors a busy gateway may reach the limit: it needs two per connection.
const MANY_FILES: u64 = 65_536;

fn open_files(limit: Rlimit) -> Line {
    let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    // The gateway raises the soft limit itself, so the hard one counts.
    let state = if limit.maximum.is_none_or(|n| n >= MANY_FILES) { LineState::Ok } else { LineState::Note };
    let room = limit.maximum.map_or_else(String::new, |n| {
        format!(": room for {} at most", counted((n / 2) as usize, "connection"))
    });
    Line::new(
        "open files",
        state,
        format!("{} now, {} at most{room}", text(limit.current), text(limit.maximum)),
    )
    .remedy("ulimit -Hn 1048576, or LimitNOFILE= in systemd, before a large number of clients")
}

fn locked_memory(facts: &Facts) -> Line {
    // Since 5.11 maps are charged to the memory cgroup.
    let counts = facts.kernel.is_none_or(|version| version < KernelVersion::new(5, 11, 0));
    match facts.memlock.current {
        Some(bytes) if counts => {
            Line::new("locked memory", LineState::Note, format!("{bytes} bytes limit the maps"))
                .remedy("ulimit -l unlimited, or LimitMEMLOCK=infinity in systemd")
        }
        Some(bytes) => {
            Line::new("locked memory", LineState::Ok, format!("{bytes} bytes; does not limit maps here"))
        }
        None => Line::new("locked memory", LineState::Ok, "unlimited"),
    }
}

fn unprivileged_bpf(value: Option<&str>) -> Line {
    match value {
        Some("0") => {
            Line::new("unprivileged bpf", LineState::Note, "open to every user: snisplice does not need that")
                .remedy("sysctl -w kernel.unprivileged_bpf_disabled=2")
        }
        Some(value) => Line::new(
            "unprivileged bpf",
            LineState::Ok,
            format!("closed (kernel.unprivileged_bpf_disabled = {value})"),
        ),
        None => Line::new("unprivileged bpf", LineState::Ok, "closed"),
    }
}

/// The backlog the kernel has used by default since 5.4.
const DEFAULT_BACKLOG: u32 = 4096;

fn backlog(somaxconn: Option<u32>) -> Line {
    match somaxconn {
        Some(n) => {
            let state = if n >= DEFAULT_BACKLOG { LineState::Ok } else { LineState::Note };
            Line::new("accept backlog", state, format!("net.core.somaxconn = {n}"))
                .remedy(format!("sysctl -w net.core.somaxconn={DEFAULT_BACKLOG}"))
        }
        None => Line::new("accept backlog", LineState::Note, "net.core.somaxconn cannot be read")
            .remedy("mount /proc in this container"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::probe::Answer;
    use std::collections::HashSet;

    #[test]
    fn whatever_is_not_ok_says_how_to_get_it() {
        let facts = Facts {
            kernel: Some(KernelVersion::new(5, 10, 0)),
            btf: false,
            jit: Some("0".into()),
            effective: HashSet::new(),
            permitted: HashSet::new(),
            nofile: Rlimit { current: Some(1024), maximum: Some(4096) },
            memlock: Rlimit { current: Some(65_536), maximum: Some(65_536) },
            unprivileged_bpf: Some("0".into()),
            somaxconn: Some(128),
            kernel_ports: Some(1024..=65_535),
            rivals: vec![("/sys/fs/bpf/edge/v1/packet".into(), 20_000..=40_000)],
            lro: vec!["eth0".into(), "eth1".into()],
            counted: Err("Permission denied".into()),
            ..Facts::healthy()
        };
        for answer in [Answer::No, Answer::NotPermitted, Answer::Unknown("Cannot allocate memory".into())] {
            let facts =
                Need::ALL.into_iter().fold(facts.clone(), |facts, need| facts.with(need, answer.clone()));
            for line in lines(&facts).iter().filter(|line| line.what != "kernel") {
                assert_ne!(line.state, LineState::Ok, "{}", line.what);
                assert!(line.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{}", line.what);
            }
        }
    }

    #[test]
    fn what_a_tier_requires_is_missing_and_what_it_prefers_is_noted_with_its_cost() {
        let need = |it, answer| super::need(it, &Facts::healthy().with(it, answer));
        let line = need(Need::RawSockets, Answer::NotPermitted);
        assert_eq!(line.state, LineState::Missing);
        assert_eq!(line.remedy.unwrap(), "run as root, or with CAP_NET_RAW, CAP_NET_ADMIN");
        let line = need(Need::Membarrier, Answer::No);
        assert_eq!(line.state, LineState::Note);
        assert!(line.found.starts_with("not in this kernel: a handover waits"), "{}", line.found);
        let line = need(Need::Ktls, Answer::No);
        assert_eq!(
            (line.state, line.found.as_str()),
            (LineState::Note, "not in this kernel; TLS records in the kernel")
        );
    }

    #[test]
    fn capabilities_are_missing_where_a_tier_requires_what_they_permit() {
        let facts = Facts { effective: HashSet::new(), permitted: HashSet::new(), ..Facts::healthy() };
        let states = CAPABILITIES.map(|entry| (entry.1, capability(&facts, entry).state));
        let missing: Vec<_> = states.into_iter().filter(|(_, state)| *state == LineState::Missing).collect();
        let names: Vec<_> = missing.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["cap_bpf", "cap_net_admin", "cap_perfmon", "cap_net_raw"]);
    }

    #[test]
    fn ports_that_the_kernel_hands_out_too_are_to_be_reserved_beside_those_that_are() {
        let wide = Facts { kernel_ports: Some(10_000..=65_535), ..Facts::healthy() };
        let line = source_ports(&wide);
        assert_eq!(line.state, LineState::Note);
        assert_eq!(line.remedy.unwrap(), "sysctl -w net.ipv4.ip_local_reserved_ports=10240-29999");
        let other = Facts { reserved_ports: "8080,20000-20100".into(), ..wide.clone() };
        assert_eq!(
            source_ports(&other).remedy.unwrap(),
            "sysctl -w net.ipv4.ip_local_reserved_ports=8080,20000-20100,10240-29999"
        );
        for reserved in ["10240-29999", "80,10000-20000,20001-40000"] {
            let reserved = Facts { reserved_ports: reserved.into(), ..wide.clone() };
            assert_eq!(source_ports(&reserved).state, LineState::Ok);
        }
        let touching = Facts { kernel_ports: Some(29_999..=60_999), ..Facts::healthy() };
        assert_eq!(source_ports(&touching).state, LineState::Note);
    }

    #[test]
    fn other_gateways_with_the_same_ports_are_named() {
        let rivals = vec![
            ("/sys/fs/bpf/edge/v1/packet".into(), 20_000..=40_000),
            ("/sys/fs/bpf/b/v2/packet".into(), 10_240..=10_500),
        ];
        let line = other_gateways(&Facts { rivals, ..Facts::healthy() });
        assert_eq!(line.state, LineState::Note);
        let found = "use some of these source ports: 20000-40000 (/sys/fs/bpf/edge/v1/packet), \
                     10240-10500 (/sys/fs/bpf/b/v2/packet)";
        assert_eq!(line.found, found);
    }

    #[test]
    fn only_the_effective_set_counts_and_a_permitted_one_is_said() {
        let facts = Facts { effective: HashSet::new(), ..Facts::healthy() };
        let line = capability(&facts, CAPABILITIES[0]);
        assert_eq!(line.state, LineState::Note);
        assert!(line.found.starts_with("held, not in effect"));
    }

    #[test]
    fn locked_memory_matters_to_old_kernels_only() {
        let limited = Facts { memlock: Rlimit { current: Some(65_536), maximum: None }, ..Facts::healthy() };
        assert_eq!(locked_memory(&limited).state, LineState::Ok);
        let old = Facts { kernel: Some(KernelVersion::new(5, 10, 250)), ..limited };
        assert_eq!(locked_memory(&old).state, LineState::Note);
    }
}
