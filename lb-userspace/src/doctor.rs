//! `snisplice doctor`: what this kernel and this user can do, and how to get the rest.
//!
//! `gather` asks the system; everything below it is a pure function of the `Facts`.

use std::{collections::HashSet, fmt, fs, io::IsTerminal as _};

use caps::{CapSet, Capability};
use rustix::process::{Resource, Rlimit, getrlimit};

use crate::{
    account::Tier,
    kernel::{
        probe::{self, Answer},
        version::{KernelVersion, sockmap_sound},
    },
};

/// Examines this machine.
pub fn run() -> Report {
    Report::new(&gather())
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
        if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
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
    tcp: Answer,
    effective: HashSet<Capability>,
    permitted: HashSet<Capability>,
    bpffs: Vec<String>,
    nofile: Rlimit,
    memlock: Rlimit,
    /// `kernel.unprivileged_bpf_disabled`.
    unprivileged_bpf: Option<String>,
    somaxconn: Option<u32>,
}

fn gather() -> Facts {
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
        tcp: probe::tcp(),
        effective: capabilities(CapSet::Effective),
        permitted: capabilities(CapSet::Permitted),
        bpffs: bpffs_mounts(&read("/proc/self/mounts").unwrap_or_default()),
        nofile: getrlimit(Resource::Nofile),
        memlock: getrlimit(Resource::Memlock),
        unprivileged_bpf: read("/proc/sys/kernel/unprivileged_bpf_disabled"),
        somaxconn: read("/proc/sys/net/core/somaxconn").and_then(|text| text.parse().ok()),
    }
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
const CAPABILITIES: [(Capability, &str, &str); 5] = [
    (Capability::CAP_BPF, "cap_bpf", "load programs, make maps"),
    (Capability::CAP_NET_ADMIN, "cap_net_admin", "attach programs to sockets and devices"),
    (Capability::CAP_PERFMON, "cap_perfmon", "programs that compute with packet pointers"),
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
        Line::answer("tcx", "tc programs that can be pinned and replaced", &facts.tcx, "kernel 6.6 or newer"),
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
        Line::answer(
            "TCP_REPAIR",
            "sequence numbers of a connection",
            &facts.tcp_repair,
            "a kernel with CONFIG_CHECKPOINT_RESTORE=y",
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
    let room =
        limit.maximum.map_or_else(String::new, |n| format!(": room for at most {} connections", n / 2));
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

/// Which tiers will work, in the order in which they are preferred, and why not.
fn tiers(facts: &Facts) -> Vec<(Tier, Result<(), String>)> {
    let copy = works(&[("TCP", &facts.tcp)]);
    let sockmap = match facts.kernel.as_ref().map(sockmap_sound) {
        None => Err("the kernel's release cannot be read".to_owned()),
        Some(Err(why)) => Err(format!("this kernel {why}")),
        Some(Ok(())) => works(&[("sk_skb", &facts.sk_skb), ("sockmap", &facts.sock_hash)]),
    };
    vec![(Tier::Packet, Err("not in this version".to_owned())), (Tier::Sockmap, sockmap), (Tier::Copy, copy)]
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
            tcp: Answer::Yes,
            effective: all.clone(),
            permitted: all,
            bpffs: vec!["/sys/fs/bpf".into()],
            nofile: Rlimit { current: Some(1024), maximum: Some(1 << 20) },
            memlock: Rlimit { current: None, maximum: None },
            unprivileged_bpf: Some("2".into()),
            somaxconn: Some(4096),
        }
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
        assert_eq!(tier(&healthy(), Tier::Packet), Err("not in this version".into()));
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
            effective: HashSet::new(),
            permitted: HashSet::new(),
            bpffs: vec![],
            nofile: Rlimit { current: Some(1024), maximum: Some(4096) },
            memlock: Rlimit { current: Some(65_536), maximum: Some(65_536) },
            unprivileged_bpf: Some("0".into()),
            somaxconn: Some(128),
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
    fn columns_line_up_and_colour_is_only_in_the_coloured_form() {
        let report = Report::new(&healthy());
        let plain = report.to_string();
        assert!(!plain.contains('\x1b'));
        assert!(format!("{report:#}").contains('\x1b'));
        assert!(plain.contains("\nok       BTF                   /sys/kernel/btf/vmlinux"), "{plain}");
    }
}
