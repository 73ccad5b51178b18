//! `snisplice doctor`: what this kernel and this user can do, and how to get the rest.
//!
//! `gather` asks the system; everything below it is a pure function of the `Facts`.

use std::{collections::HashSet, fmt, fs, ops::RangeInclusive, path::Path, time::SystemTime};

use caps::{CapSet, Capability};
use lb_common::packet::Count;
use rustix::process::{Resource, Rlimit, getrlimit};

use crate::{
    config::Interfaces,
    kernel::{
        devices,
        foreign::{FlowTable, flow_tables},
        packet::{self, Counts},
        probe::{self, Answer},
        version::{KernelVersion, sockmap_sound},
    },
    reason::Tier,
    terminal::in_colour,
    words::counted,
};

/// Examines this machine, for a gateway with these ports toward servers and its pins there.
pub fn run(source_ports: RangeInclusive<u16>, bpffs: &Path) -> Report {
    Report::new(&gather(source_ports, bpffs))
}

/// The findings, line by line. `{}` is plain text, `{:#}` coloured.
#[derive(Debug)]
pub struct Report {
    lines: Vec<Line>,
    tiers: Vec<(Tier, Result<(), String>)>,
}

impl Report {
    /// Judges the facts.
    fn new(facts: &Facts) -> Self {
        Self { lines: lines(facts), tiers: tiers(facts) }
    }

    /// Prints to standard output, in colour if that is a terminal.
    pub fn print(&self) {
        if in_colour(&std::io::stdout()) {
            print!("{self:#}");
        } else {
            print!("{self}");
        }
    }

    /// Whether a gateway can run here at all: the copy tier works.
    pub fn can_serve(&self) -> bool {
        self.tiers.iter().any(|(tier, works)| *tier == Tier::Copy && works.is_ok())
    }
}

/// What the report is made from.
#[derive(Clone, Debug)]
struct Facts {
    kernel: Option<KernelVersion>,
    btf: bool,
    /// `net.core.bpf_jit_enable`; absent in a network namespace that is not the first.
    jit: Option<String>,
    tc: Answer,
    tcx: Answer,
    sk_skb: Answer,
    sock_hash: Answer,
    ktls: Answer,
    tcp_repair: Answer,
    growing_hash: Answer,
    ring_buffer: Answer,
    membarrier: Answer,
    raw_sockets: Answer,
    ipv6_checksum: Answer,
    tcp: Answer,
    effective: HashSet<Capability>,
    permitted: HashSet<Capability>,
    bpffs: Vec<String>,
    nofile: Rlimit,
    memlock: Rlimit,
    /// `kernel.unprivileged_bpf_disabled`.
    unprivileged_bpf: Option<String>,
    somaxconn: Option<u32>,
    /// Of the configuration.
    source_ports: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_port_range`.
    kernel_ports: Option<RangeInclusive<u16>>,
    /// `net.ipv4.ip_local_reserved_ports`.
    reserved_ports: String,
    /// Other gateways that use some of them: where their pins are, and their ranges.
    rivals: Vec<(String, RangeInclusive<u16>)>,
    /// Devices that join packets for good.
    lro: Vec<String>,
    /// What pinned programs have counted, and since when; or why that cannot be read.
    counted: Result<Option<(SystemTime, Counts)>, String>,
}

fn gather(source_ports: RangeInclusive<u16>, bpffs: &Path) -> Facts {
    let read = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let capabilities = |set| caps::read(None, set).unwrap_or_default().into_iter().collect();
    Facts {
        kernel: KernelVersion::running(),
        btf: fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false),
        jit: read("/proc/sys/net/core/bpf_jit_enable"),
        tc: probe::tc_program(),
        tcx: probe::tcx(),
        sk_skb: probe::sk_skb_program(),
        sock_hash: probe::sock_hash(),
        ktls: probe::ktls(),
        tcp_repair: probe::tcp_repair(),
        growing_hash: probe::growing_hash(),
        ring_buffer: probe::ring_buffer(),
        membarrier: probe::membarrier(),
        raw_sockets: probe::raw_sockets(),
        ipv6_checksum: probe::ipv6_checksum(),
        tcp: probe::tcp(),
        effective: capabilities(CapSet::Effective),
        permitted: capabilities(CapSet::Permitted),
        bpffs: bpffs_mounts(&read("/proc/self/mounts").unwrap_or_default()),
        nofile: getrlimit(Resource::Nofile),
        memlock: getrlimit(Resource::Memlock),
        unprivileged_bpf: read("/proc/sys/kernel/unprivileged_bpf_disabled"),
        somaxconn: read("/proc/sys/net/core/somaxconn").and_then(|text| text.parse().ok()),
        rivals: rivals(&source_ports, bpffs),
        source_ports,
        kernel_ports: read("/proc/sys/net/ipv4/ip_local_port_range").and_then(|text| ports(&text)),
        reserved_ports: read("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default(),
        lro: joining_devices(),
        counted: packet::counts(bpffs).map_err(|error| format!("{:#}", anyhow::Error::from(error))),
    }
}

fn rivals(source_ports: &RangeInclusive<u16>, bpffs: &Path) -> Vec<(String, RangeInclusive<u16>)> {
    let tables = flow_tables(bpffs).into_iter();
    let of = |table: &FlowTable| {
        Some((table.directory().display().to_string(), table.overlapping(bpffs, source_ports)?))
    };
    tables.filter_map(|table| of(&table)).collect()
}

/// Those of the devices that would get programs.
fn joining_devices() -> Vec<String> {
    let devices = devices::devices().unwrap_or_default();
    let joins = |device: &&devices::Device| devices::joins_packets(device).unwrap_or(false);
    let relevant = devices::relevant(&devices, &Interfaces::Auto).into_iter();
    relevant.filter(joins).map(|device| device.name.clone()).collect()
}

/// Two ports with white space (`ip_local_port_range`) or `-` between them, or one.
fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.split(['-', '\t', ' ']).filter(|end| !end.is_empty());
    let first = ends.next()?.parse().ok()?;
    let last = ends.next().map_or(Some(first), |last| last.parse().ok())?;
    Some(first..=last)
}

/// Where bpffs is mounted, from the text of /proc/self/mounts.
fn bpffs_mounts(mounts: &str) -> Vec<String> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f.get(2) == Some(&"bpf")).map(|f| f[1].to_owned()).collect()
}

/// How a line stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// Works, but something is worth changing.
    Note,
    Missing,
}

#[derive(Debug)]
struct Line {
    what: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// How to get what is missing.
    remedy: Option<String>,
}

impl Line {
    fn new(what: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { what, state, found: found.into(), remedy: None }
    }

    /// What to do about it; dropped where nothing is to be done.
    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        if self.state != State::Ok {
            self.remedy = Some(remedy.into());
        }
        self
    }

    /// A line for an answer. `no` is the remedy where the kernel lacks it.
    fn answer(what: &'static str, purpose: &str, answer: &Answer, no: &str) -> Self {
        let (state, found, remedy) = match answer {
            Answer::Yes => (State::Ok, purpose.to_owned(), ""),
            Answer::No => (State::Missing, format!("not in this kernel; {purpose}"), no),
            Answer::NotPermitted => (State::Missing, format!("not permitted; {purpose}"), AS_ROOT),
            Answer::Unknown(error) => (State::Missing, format!("{error}; {purpose}"), no),
        };
        Self::new(what, state, found).remedy(remedy)
    }
}

const AS_ROOT: &str = "run as root, or with the capabilities below";

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

fn lines(facts: &Facts) -> Vec<Line> {
    let mut lines = vec![
        match facts.kernel {
            Some(version) => Line::new("kernel", State::Ok, version.to_string()),
            None => Line::new("kernel", State::Note, "its release cannot be read"),
        },
        Line::new("BTF", ok_or_missing(facts.btf), "/sys/kernel/btf/vmlinux: the kernel's own types")
            .remedy("a kernel with CONFIG_DEBUG_INFO_BTF=y"),
        jit(facts.jit.as_deref()),
        Line::answer(
            "tc",
            "programs on devices",
            &facts.tc,
            "a kernel with CONFIG_BPF_SYSCALL=y, CONFIG_NET_CLS_ACT=y",
        ),
        tcx(&facts.tcx),
        Line::answer(
            "TCP_REPAIR",
            "sequence numbers of a connection",
            &facts.tcp_repair,
            "a kernel with CONFIG_CHECKPOINT_RESTORE=y",
        ),
        Line::answer("flow table", "maps that grow as they fill", &facts.growing_hash, "kernel 4.6 or newer"),
        Line::answer("ring buffer", "events of the programs", &facts.ring_buffer, "kernel 5.8 or newer"),
        Line::answer(
            "membarrier",
            "knowing that no packet is under way",
            &facts.membarrier,
            "a kernel without nohz_full= on its command line, or a container that allows membarrier(2)",
        ),
        Line::answer(
            "raw sockets",
            "resets, probes and ICMP errors for connections that have no socket (AF_PACKET, raw IP)",
            &facts.raw_sockets,
            "a container, or RestrictAddressFamilies= in systemd, that allows AF_PACKET and raw sockets",
        ),
        ipv6_checksum(&facts.ipv6_checksum),
        source_ports(facts),
        other_gateways(facts),
        lro(&facts.lro),
        Line::answer(
            "sk_skb",
            "verdict programs of a sockmap",
            &facts.sk_skb,
            "a kernel with CONFIG_BPF_STREAM_PARSER=y",
        ),
        Line::answer(
            "sockmap",
            "maps of sockets",
            &facts.sock_hash,
            "a kernel with CONFIG_BPF_STREAM_PARSER=y",
        ),
        sockmap_kernel(facts.kernel),
        Line::answer(
            "kTLS",
            "TLS records in the kernel",
            &facts.ktls,
            "modprobe tls, or a kernel with CONFIG_TLS",
        ),
    ];
    lines.extend(CAPABILITIES.iter().map(|entry| capability(facts, *entry)));
    lines.extend([
        Line::new(
            "bpffs",
            ok_or_missing(!facts.bpffs.is_empty()),
            if facts.bpffs.is_empty() { "not mounted; for pins".into() } else { facts.bpffs.join(", ") },
        )
        .remedy("mount -t bpf bpf /sys/fs/bpf"),
        open_files(facts.nofile),
        locked_memory(facts),
        unprivileged_bpf(facts.unprivileged_bpf.as_deref()),
        backlog(facts.somaxconn),
    ]);
    lines.extend(dropped_packets(&facts.counted));
    lines
}

fn ok_or_missing(there: bool) -> State {
    if there { State::Ok } else { State::Missing }
}

fn jit(value: Option<&str>) -> Line {
    let (state, found) = match value {
        Some("0") => (State::Missing, "off: programs are interpreted".to_owned()),
        Some(value) => (State::Ok, format!("net.core.bpf_jit_enable = {value}")),
        None => (State::Note, "cannot be seen from this network namespace".to_owned()),
    };
    let remedy = match state {
        State::Missing => "sysctl -w net.core.bpf_jit_enable=1",
        _ => "look at net.core.bpf_jit_enable in the host's network namespace",
    };
    Line::new("BPF JIT", state, found).remedy(remedy)
}

fn tcx(answer: &Answer) -> Line {
    match answer {
        Answer::No => {
            Line::new("tcx", State::Note, "not in this kernel; the programs become filters of clsact")
                .remedy(TCX)
        }
        answer => Line::answer("tcx", "tc programs that can be pinned and replaced", answer, TCX),
    }
}

/// Where tcx is to be had.
const TCX: &str = "kernel 6.6 or newer";

fn ipv6_checksum(answer: &Answer) -> Line {
    const PURPOSE: &str = "checksums of IPv6 that a network card has added up stay right";
    match answer {
        // The tier works without, where no card of that kind is in use.
        Answer::No => Line::new("IPv6 checksum", State::Note, format!("not in this kernel; {PURPOSE}"))
            .remedy("kernel 6.16, or a stable one of its time, before IPv6 through the packet tier"),
        answer => Line::answer("IPv6 checksum", PURPOSE, answer, "kernel 6.16"),
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
        return line(State::Note, format!("{ours}; net.ipv4.ip_local_port_range cannot be read"))
            .remedy("mount /proc in this container");
    };
    let reserved: Vec<_> = facts.reserved_ports.split(',').filter_map(ports).collect();
    let is_free = |port: u16| !kernel.contains(&port) || reserved.iter().any(|ports| ports.contains(&port));
    if facts.source_ports.clone().all(is_free) {
        return line(State::Ok, format!("{ours}; the kernel hands out others"));
    }
    let reserve = [&facts.reserved_ports, &ours].map(|ports| ports.as_str());
    let reserve: Vec<_> = reserve.into_iter().filter(|ports| !ports.is_empty()).collect();
    line(State::Note, format!("{ours} overlap those that the kernel hands out, {}", range(kernel)))
        .remedy(format!("sysctl -w net.ipv4.ip_local_reserved_ports={}", reserve.join(",")))
}

/// Connections of other gateways on this host are kept apart from ours, but each port that one of them has toward a
/// server is one less for us.
fn other_gateways(facts: &Facts) -> Line {
    let line = |state, found: String| Line::new("other gateways", state, found);
    if facts.rivals.is_empty() {
        return line(State::Ok, "none that uses these source ports".to_owned());
    }
    let rivals: Vec<_> =
        facts.rivals.iter().map(|(directory, ports)| format!("{} ({directory})", range(ports))).collect();
    line(State::Note, format!("use some of these source ports: {}", rivals.join(", ")))
        .remedy("`source_ports` of its own for each gateway on this host")
}

fn lro(devices: &[String]) -> Line {
    let line = |state, found: String| Line::new("LRO", state, found);
    if devices.is_empty() {
        return line(State::Ok, "no device joins packets for good".to_owned());
    }
    let commands: Vec<_> = devices.iter().map(|device| format!("ethtool -K {device} lro off")).collect();
    line(State::Note, format!("joins packets for good on {}: they cannot be sent on", devices.join(", ")))
        .remedy(commands.join("; "))
}

fn sockmap_kernel(kernel: Option<KernelVersion>) -> Line {
    let line = |state, found: &str| Line::new("sockmap kernel", state, found);
    match kernel.map(|version| sockmap_sound(&version)) {
        Some(Ok(())) => line(State::Ok, "moves every byte once"),
        Some(Err(why)) => line(State::Missing, why).remedy("a kernel with the fix"),
        None => line(State::Missing, "unknown release").remedy("a kernel whose release can be read"),
    }
}

fn capability(facts: &Facts, (capability, name, purpose): (Capability, &'static str, &str)) -> Line {
    if facts.effective.contains(&capability) {
        Line::new(name, State::Ok, purpose)
    } else if facts.permitted.contains(&capability) {
        Line::new(name, State::Note, format!("held, not in effect; {purpose}"))
            .remedy("raise it into the effective set")
    } else {
        Line::new(name, State::Missing, format!("not held; {purpose}")).remedy(format!(
            "run as root, or setcap {name}+ep on the program, or AmbientCapabilities= in systemd"
        ))
    }
}

/// Descriptors below which a busy gateway meets its limit: two per connection.
const MANY_FILES: u64 = 65_536;

fn open_files(limit: Rlimit) -> Line {
    let text = |limit: Option<u64>| limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    // The gateway raises the soft limit itself, so the hard one counts.
    let state = if limit.maximum.is_none_or(|n| n >= MANY_FILES) { State::Ok } else { State::Note };
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
            Line::new("locked memory", State::Note, format!("{bytes} bytes limit the maps"))
                .remedy("ulimit -l unlimited, or LimitMEMLOCK=infinity in systemd")
        }
        Some(bytes) => {
            Line::new("locked memory", State::Ok, format!("{bytes} bytes; does not limit maps here"))
        }
        None => Line::new("locked memory", State::Ok, "unlimited"),
    }
}

fn unprivileged_bpf(value: Option<&str>) -> Line {
    match value {
        Some("0") => {
            Line::new("unprivileged bpf", State::Note, "open to every user: snisplice does not need that")
                .remedy("sysctl -w kernel.unprivileged_bpf_disabled=2")
        }
        Some(value) => Line::new(
            "unprivileged bpf",
            State::Ok,
            format!("closed (kernel.unprivileged_bpf_disabled = {value})"),
        ),
        None => Line::new("unprivileged bpf", State::Ok, "closed"),
    }
}

/// The backlog the kernel has used by default since 5.4.
const DEFAULT_BACKLOG: u32 = 4096;

fn backlog(somaxconn: Option<u32>) -> Line {
    match somaxconn {
        Some(n) => {
            let state = if n >= DEFAULT_BACKLOG { State::Ok } else { State::Note };
            Line::new("accept backlog", state, format!("net.core.somaxconn = {n}"))
                .remedy(format!("sysctl -w net.core.somaxconn={DEFAULT_BACKLOG}"))
        }
        None => Line::new("accept backlog", State::Note, "net.core.somaxconn cannot be read")
            .remedy("mount /proc in this container"),
    }
}

/// Where each reason for a drop is explained.
const MANUAL: &str = include_str!("../../docs/operating.md");

/// A line for each reason that has occurred.
fn dropped_packets(counted: &Result<Option<(SystemTime, Counts)>, String>) -> Vec<Line> {
    let line = |state, found: String| Line::new("dropped packets", state, found);
    let (since, counts) = match counted {
        Ok(Some((since, counts))) => (humantime::format_rfc3339_seconds(*since), counts),
        Ok(None) => return vec![],
        Err(error) => {
            let unread = line(State::Note, format!("cannot be read: {error}"));
            return vec![unread.remedy("run as root, or as the user the gateway runs as")];
        }
    };
    let dropped = counts.iter().filter(|(reason, n)| reason.is_drop() && *n > 0);
    let explained = |(reason, n): &(Count, u64)| {
        let explanation = explanation(reason.name());
        let [what, harmless, remedy] = explanation.expect("the manual has a row for each reason");
        let state = if remedy == NOTHING { State::Ok } else { State::Note };
        let found = format!("{}, {n} since {since}: {what}", reason.name());
        line(state, found).remedy(format!("harmless: {harmless}; {remedy}"))
    };
    dropped.map(explained).collect()
}

/// What the manual says where there is nothing to be done.
const NOTHING: &str = "nothing";

/// What was dropped, when that is harmless, and what to do: from the reason's row in the manual.
fn explanation(reason: &str) -> Option<[&'static str; 3]> {
    let (_, section) = MANUAL.split_once("\n### Dropped packets\n")?;
    let section = section.split("\n#").next()?;
    section.lines().find_map(|line| {
        let mut cells = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ");
        let is_it = cells.next()?.strip_suffix('`')? == reason;
        if is_it { Some([cells.next()?, cells.next()?, cells.next()?]) } else { None }
    })
}

/// Which tiers will work, in the order in which they are preferred, and why not.
fn tiers(facts: &Facts) -> Vec<(Tier, Result<(), String>)> {
    let copy = works(&[("TCP", &facts.tcp)]);
    let sockmap = match facts.kernel.as_ref().map(sockmap_sound) {
        None => Err("the kernel's release cannot be read".to_owned()),
        Some(Err(why)) => Err(format!("this kernel {why}")),
        Some(Ok(())) => works(&[("sk_skb", &facts.sk_skb), ("sockmap", &facts.sock_hash)]),
    };
    let packet = works(&[
        ("tc", &facts.tc),
        ("the flow table", &facts.growing_hash),
        ("the ring buffer", &facts.ring_buffer),
        ("TCP_REPAIR", &facts.tcp_repair),
        ("membarrier", &facts.membarrier),
        ("raw sockets", &facts.raw_sockets),
    ]);
    vec![(Tier::Packet, packet), (Tier::Sockmap, sockmap), (Tier::Copy, copy)]
}

/// The first answer that is not yes says why not.
fn works(answers: &[(&str, &Answer)]) -> Result<(), String> {
    for (what, answer) in answers {
        match answer {
            Answer::Yes => {}
            Answer::No => return Err(format!("{what} is not in this kernel")),
            Answer::NotPermitted => return Err(format!("{what} is not permitted to this user")),
            Answer::Unknown(error) => return Err(format!("{what}: {error}")),
        }
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|line| line.what.len()).max().unwrap_or(0);
        for line in &self.lines {
            let state = mark(f.alternate(), line.state);
            writeln!(f, "{state}  {:width$}  {}", line.what, line.found)?;
            if let Some(remedy) = &line.remedy {
                writeln!(f, "{:7}  {:width$}  -> {remedy}", "", "")?;
            }
        }
        writeln!(f, "\ntiers")?;
        for (tier, works) in &self.tiers {
            let state = mark(f.alternate(), ok_or_missing(works.is_ok()));
            let why = works.as_ref().err().map_or("works", String::as_str);
            writeln!(f, "{state}  {:width$}  {why}", tier.name())?;
        }
        Ok(())
    }
}

/// The state as a word of seven columns, in colour or not.
fn mark(colour: bool, state: State) -> String {
    let (word, code) = match state {
        State::Ok => ("ok", 32),
        State::Note => ("note", 33),
        State::Missing => ("missing", 31),
    };
    if colour { format!("\x1b[{code}m{word:7}\x1b[0m") } else { format!("{word:7}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::splice::packet::Loss;
    use std::collections::BTreeSet;

    /// A machine on which everything works.
    fn healthy() -> Facts {
        let all: HashSet<_> = CAPABILITIES.iter().map(|(capability, ..)| *capability).collect();
        Facts {
            kernel: Some(KernelVersion::new(6, 18, 44)),
            btf: true,
            jit: Some("1".into()),
            tc: Answer::Yes,
            tcx: Answer::Yes,
            sk_skb: Answer::Yes,
            sock_hash: Answer::Yes,
            ktls: Answer::Yes,
            tcp_repair: Answer::Yes,
            growing_hash: Answer::Yes,
            ring_buffer: Answer::Yes,
            membarrier: Answer::Yes,
            raw_sockets: Answer::Yes,
            ipv6_checksum: Answer::Yes,
            tcp: Answer::Yes,
            effective: all.clone(),
            permitted: all,
            bpffs: vec!["/sys/fs/bpf".into()],
            nofile: Rlimit { current: Some(1024), maximum: Some(1 << 20) },
            memlock: Rlimit { current: None, maximum: None },
            unprivileged_bpf: Some("2".into()),
            somaxconn: Some(4096),
            source_ports: 10_240..=29_999,
            kernel_ports: Some(32_768..=60_999),
            reserved_ports: String::new(),
            rivals: vec![],
            lro: vec![],
            counted: Ok(None),
        }
    }

    /// So many packets of each kind.
    fn counted(n: u64) -> Result<Option<(SystemTime, Counts)>, String> {
        Ok(Some((SystemTime::UNIX_EPOCH, Count::ALL.map(|what| (what, n)))))
    }

    fn tier(facts: &Facts, wanted: Tier) -> Result<(), String> {
        tiers(facts).into_iter().find(|(tier, _)| *tier == wanted).unwrap().1
    }

    #[test]
    fn a_healthy_machine_has_nothing_to_remedy() {
        let report = Report::new(&healthy());
        assert!(report.lines.iter().all(|line| line.state == State::Ok && line.remedy.is_none()), "{report}");
        assert!(report.can_serve());
        assert_eq!(tier(&healthy(), Tier::Sockmap), Ok(()));
        assert_eq!(tier(&healthy(), Tier::Packet), Ok(()));
    }

    #[test]
    fn whatever_is_not_ok_says_how_to_get_it() {
        let facts = Facts {
            kernel: Some(KernelVersion::new(5, 10, 0)),
            btf: false,
            jit: Some("0".into()),
            tc: Answer::NotPermitted,
            tcx: Answer::No,
            sk_skb: Answer::NotPermitted,
            sock_hash: Answer::Unknown("Cannot allocate memory".into()),
            ktls: Answer::No,
            tcp_repair: Answer::NotPermitted,
            growing_hash: Answer::No,
            ring_buffer: Answer::No,
            membarrier: Answer::No,
            raw_sockets: Answer::NotPermitted,
            ipv6_checksum: Answer::No,
            effective: HashSet::new(),
            permitted: HashSet::new(),
            bpffs: vec![],
            nofile: Rlimit { current: Some(1024), maximum: Some(4096) },
            memlock: Rlimit { current: Some(65_536), maximum: Some(65_536) },
            unprivileged_bpf: Some("0".into()),
            somaxconn: Some(128),
            kernel_ports: Some(1024..=65_535),
            rivals: vec![("/sys/fs/bpf/edge/v1/packet".into(), 20_000..=40_000)],
            lro: vec!["eth0".into(), "eth1".into()],
            counted: Err("Permission denied".into()),
            ..healthy()
        };
        let report = Report::new(&facts);
        for line in report.lines.iter().filter(|line| line.what != "kernel") {
            assert_ne!(line.state, State::Ok, "{}", line.what);
            assert!(line.remedy.as_ref().is_some_and(|remedy| !remedy.is_empty()), "{}", line.what);
        }
        assert!(report.can_serve(), "the copy tier asks for none of it");
    }

    #[test]
    fn without_tcp_there_is_no_gateway() {
        assert!(!Report::new(&Facts { tcp: Answer::No, ..healthy() }).can_serve());
    }

    #[test]
    fn the_sockmap_tier_says_what_it_lacks() {
        let forbidden = Facts { sk_skb: Answer::NotPermitted, ..healthy() };
        assert_eq!(tier(&forbidden, Tier::Sockmap), Err("sk_skb is not permitted to this user".into()));
        let unsound = Facts { kernel: Some(KernelVersion::new(6, 1, 141)), ..healthy() };
        assert!(tier(&unsound, Tier::Sockmap).unwrap_err().starts_with("this kernel may send bytes twice"));
    }

    #[test]
    fn the_packet_tier_says_what_it_lacks_and_can_do_without_some_of_it() {
        for (facts, why) in [
            (Facts { tc: Answer::No, ..healthy() }, "tc is not in this kernel"),
            (
                Facts { raw_sockets: Answer::NotPermitted, ..healthy() },
                "raw sockets is not permitted to this user",
            ),
            (Facts { membarrier: Answer::No, ..healthy() }, "membarrier is not in this kernel"),
        ] {
            assert_eq!(tier(&facts, Tier::Packet), Err(why.into()));
        }
        let mut worse =
            Facts { tcx: Answer::No, ipv6_checksum: Answer::No, lro: vec!["eth0".into()], ..healthy() };
        worse.effective.remove(&Capability::CAP_NET_BROADCAST);
        assert_eq!(tier(&worse, Tier::Packet), Ok(()));
        assert_eq!(tcx(&worse.tcx).state, State::Note);
    }

    #[test]
    fn ports_that_the_kernel_hands_out_too_are_to_be_reserved_beside_those_that_are() {
        let wide = Facts { kernel_ports: Some(10_000..=65_535), ..healthy() };
        let line = source_ports(&wide);
        assert_eq!(line.state, State::Note);
        assert_eq!(line.remedy.unwrap(), "sysctl -w net.ipv4.ip_local_reserved_ports=10240-29999");
        let other = Facts { reserved_ports: "8080,20000-20100".into(), ..wide.clone() };
        assert_eq!(
            source_ports(&other).remedy.unwrap(),
            "sysctl -w net.ipv4.ip_local_reserved_ports=8080,20000-20100,10240-29999"
        );
        for reserved in ["10240-29999", "80,10000-20000,20001-40000"] {
            let reserved = Facts { reserved_ports: reserved.into(), ..wide.clone() };
            assert_eq!(source_ports(&reserved).state, State::Ok);
        }
        let touching = Facts { kernel_ports: Some(29_999..=60_999), ..healthy() };
        assert_eq!(source_ports(&touching).state, State::Note);
    }

    #[test]
    fn other_gateways_with_the_same_ports_are_named() {
        let rivals = vec![
            ("/sys/fs/bpf/edge/v1/packet".into(), 20_000..=40_000),
            ("/sys/fs/bpf/b/v2/packet".into(), 10_240..=10_500),
        ];
        let line = other_gateways(&Facts { rivals, ..healthy() });
        assert_eq!(line.state, State::Note);
        let found = "use some of these source ports: 20000-40000 (/sys/fs/bpf/edge/v1/packet), \
                     10240-10500 (/sys/fs/bpf/b/v2/packet)";
        assert_eq!(line.found, found);
    }

    #[test]
    fn ranges_of_ports_are_read_as_the_kernel_writes_them() {
        assert_eq!(ports("32768\t60999"), Some(32_768..=60_999));
        assert_eq!(ports("8080"), Some(8080..=8080));
        assert_eq!(ports("20000-20100"), Some(20_000..=20_100));
        assert_eq!(ports(""), None);
    }

    #[test]
    fn only_the_effective_set_counts_and_a_permitted_one_is_said() {
        let facts = Facts { effective: HashSet::new(), ..healthy() };
        let line = capability(&facts, CAPABILITIES[0]);
        assert_eq!(line.state, State::Note);
        assert!(line.found.starts_with("held, not in effect"));
    }

    #[test]
    fn locked_memory_matters_to_old_kernels_only() {
        let limited = Facts { memlock: Rlimit { current: Some(65_536), maximum: None }, ..healthy() };
        assert_eq!(locked_memory(&limited).state, State::Ok);
        let old = Facts { kernel: Some(KernelVersion::new(5, 10, 250)), ..limited };
        assert_eq!(locked_memory(&old).state, State::Note);
    }

    #[test]
    fn bpffs_is_found_wherever_it_is_mounted() {
        let mounts =
            "proc /proc proc rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\nnone /run/bpf bpf rw 0 0\n";
        assert_eq!(bpffs_mounts(mounts), ["/sys/fs/bpf", "/run/bpf"]);
        assert!(bpffs_mounts("tmpfs /bpf tmpfs rw 0 0\n\n").is_empty());
    }

    #[test]
    fn every_reason_for_a_drop_is_explained_where_it_occurs() {
        let lines = dropped_packets(&counted(3));
        let reasons: Vec<_> = Count::ALL.into_iter().filter(|what| what.is_drop()).collect();
        for reason in &reasons {
            let begin = format!("{}, 3 since 1970-01-01T00:00:00Z: ", reason.name());
            let line = lines.iter().find(|line| line.found.starts_with(&begin));
            let line = line.unwrap_or_else(|| panic!("{} has no row in docs/operating.md", reason.name()));
            assert_eq!(line.remedy.is_some(), line.state == State::Note, "{}", line.found);
        }
        assert_eq!(lines.len(), reasons.len());
        assert!(dropped_packets(&counted(0)).is_empty());
        assert!(dropped_packets(&Ok(None)).is_empty());
    }

    #[test]
    fn the_manual_has_a_row_for_all_that_is_counted_and_no_other() {
        let (_, section) = MANUAL.split_once("\n### Dropped packets\n").unwrap();
        let rows = section.split("\n#").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
        let named: BTreeSet<_> = rows.map(|row| row.split('`').next().unwrap()).collect();
        let counted = Count::ALL.iter().map(|what| what.name());
        assert_eq!(named, counted.chain(Loss::ALL.iter().map(|loss| loss.name())).collect());
    }

    #[test]
    fn columns_line_up_and_colour_is_only_in_the_coloured_form() {
        let report = Report::new(&healthy());
        let plain = report.to_string();
        assert!(!plain.contains('\x1b'));
        assert!(format!("{report:#}").contains('\x1b'));
        assert!(plain.contains("\nok       BTF                   /sys/kernel/btf/vmlinux"), "{plain}");
    }
}
