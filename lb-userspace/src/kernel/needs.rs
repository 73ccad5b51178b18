//! What each tier requires of the kernel and what it prefers, declared once: for `doctor`, which asks for all of it, and
//! for the message after a tier could not be opened.

use super::pairs::PairEnds;
use super::pins;
use super::probe::{self, Answer};
use super::routes::Routes;
use super::version::{KernelVersion, sockmap_sound};
use crate::reason::Tier;
use crate::words::with_causes;
use caps::Capability;
use std::fmt;
use std::path::Path;

/// One thing that can be asked of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Sockets that listen.
    Tcp,
    /// Programs of the tc hook.
    Tc,
    /// Programs that compute with pointers, as all that read packets do.
    Pointers,
    /// Links of tc programs.
    Tcx,
    /// A bpf file system.
    Bpffs,
    /// Sequence numbers of a socket.
    TcpRepair,
    /// Hash maps that take memory for what is in them.
    GrowingHash,
    /// Ring buffers.
    RingBuffer,
    /// Perf buffers.
    PerfBuffer,
    /// Grace periods.
    Membarrier,
    /// Packet and raw IP sockets.
    RawSockets,
    /// Routing sockets.
    Routing,
    /// Notifications from other network namespaces.
    Veth,
    /// A checksum helper that knows IPv6.
    Ipv6Checksum,
    /// Verdict programs of a sockmap.
    SkSkb,
    /// Maps of sockets.
    SockHash,
    /// A release whose sockmap is sound.
    SockmapKernel,
    /// TLS records in the kernel.
    Ktls,
}

/// The texts and capabilities of a need.
struct About {
    name: &'static str,
    /// What it is for.
    purpose: &'static str,
    /// How to get it where the kernel does not have it.
    remedy: &'static str,
    /// What a process must hold to use it.
    capabilities: &'static [Capability],
}

const fn about(
    name: &'static str,
    purpose: &'static str,
    remedy: &'static str,
    capabilities: &'static [Capability],
) -> About {
    About { name, purpose, remedy, capabilities }
}

/// What a tier needs.
#[derive(Clone, Copy, Debug)]
pub struct Needs {
    /// Without one of these there is no such tier.
    pub requires: &'static [Need],
    /// The tier works without these; each with what is then lost.
    pub prefers: &'static [(Need, &'static str)],
}

/// What a tier requires and prefers.
pub const fn of(tier: Tier) -> Needs {
    match tier {
        Tier::Packet => Needs {
            requires: &[
                Need::Tc,
                Need::Pointers,
                Need::Bpffs,
                Need::GrowingHash,
                Need::RingBuffer,
                Need::PerfBuffer,
                Need::TcpRepair,
                Need::RawSockets,
                Need::Routing,
            ],
            prefers: &[
                (
                    Need::Tcx,
                    "the programs are filters of the clsact qdisc, which are not replaced without a gap",
                ),
                (Need::Membarrier, "a handover waits 100 ms instead for packets that are under way"),
                (Need::Veth, "packets take the longer way into containers"),
                (Need::Ipv6Checksum, "IPv6 packets whose checksum a network card has added up are spoilt"),
            ],
        },
        Tier::Sockmap => Needs {
            requires: &[
                Need::SockmapKernel,
                Need::SkSkb,
                Need::Pointers,
                Need::SockHash,
                Need::GrowingHash,
                Need::RingBuffer,
                Need::TcpRepair,
            ],
            prefers: &[],
        },
        Tier::Ktls => Needs { requires: &[Need::Tcp, Need::Ktls], prefers: &[] },
        Tier::Copy => Needs { requires: &[Need::Tcp], prefers: &[] },
    }
}

/// Those of the packet tier's requirements that loading its programs needs. The thread that loads them has no privileges to
/// ask for the others.
pub const PROGRAMS: &[Need] = &[Need::Tc, Need::Pointers];

impl Need {
    /// Every need, in the order of declaration: `ALL[need as usize] == need`.
    pub const ALL: [Self; 18] = [
        Self::Tcp,
        Self::Tc,
        Self::Pointers,
        Self::Tcx,
        Self::Bpffs,
        Self::TcpRepair,
        Self::GrowingHash,
        Self::RingBuffer,
        Self::PerfBuffer,
        Self::Membarrier,
        Self::RawSockets,
        Self::Routing,
        Self::Veth,
        Self::Ipv6Checksum,
        Self::SkSkb,
        Self::SockHash,
        Self::SockmapKernel,
        Self::Ktls,
    ];

    const fn about(self) -> About {
        use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_NET_BROADCAST, CAP_NET_RAW, CAP_PERFMON};
        match self {
            Self::Tcp => about("TCP", "sockets that listen", "a kernel with CONFIG_INET=y", &[]),
            Self::Tc => about(
                "tc",
                "programs on devices",
                "a kernel with CONFIG_BPF_SYSCALL=y, CONFIG_NET_CLS_ACT=y",
                &[CAP_BPF, CAP_NET_ADMIN],
            ),
            Self::Pointers => about(
                "packet pointers",
                "programs that compute with pointers into packets",
                "a kernel with CONFIG_BPF_SYSCALL=y",
                &[CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON],
            ),
            Self::Tcx => about(
                "tcx",
                "tc programs that can be pinned and replaced",
                "kernel 6.6 or newer; an older one needs CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS",
                &[CAP_NET_ADMIN],
            ),
            Self::Bpffs => about(
                "bpffs",
                "programs and maps are pinned there",
                "mount -t bpf bpf /sys/fs/bpf, and `bpffs` on it",
                &[],
            ),
            Self::TcpRepair => about(
                "TCP_REPAIR",
                "sequence numbers of a connection",
                "a kernel with CONFIG_CHECKPOINT_RESTORE=y",
                &[CAP_NET_ADMIN],
            ),
            Self::GrowingHash => {
                about("flow table", "maps that grow as they fill", "kernel 4.6 or newer", &[CAP_BPF])
            }
            Self::RingBuffer => {
                about("ring buffer", "events of the programs", "kernel 5.8 or newer", &[CAP_BPF])
            }
            Self::PerfBuffer => about(
                "perf buffer",
                "odd packets (fragments, IP options) that the programs hand to the gateway",
                "a kernel with CONFIG_PERF_EVENTS=y, and a container that allows perf_event_open(2)",
                &[CAP_PERFMON],
            ),
            Self::Membarrier => about(
                "membarrier",
                "knowing that no packet is under way",
                "a kernel without nohz_full= on its command line, or a container that allows membarrier(2)",
                &[],
            ),
            Self::RawSockets => about(
                "raw sockets",
                "resets, probes and ICMP errors for connections that have no socket (AF_PACKET, raw IP)",
                "a container, or RestrictAddressFamilies= in systemd, that allows AF_PACKET and raw sockets",
                &[CAP_NET_RAW, CAP_NET_ADMIN],
            ),
            Self::Routing => about(
                "netlink",
                "routes and devices",
                "a container, or RestrictAddressFamilies= in systemd, that allows AF_NETLINK",
                &[],
            ),
            Self::Veth => about(
                "veth",
                "the direct way into containers",
                "kernel 4.20 or newer",
                &[CAP_NET_ADMIN, CAP_NET_BROADCAST],
            ),
            Self::Ipv6Checksum => about(
                "IPv6 checksum",
                "checksums of IPv6 that a network card has added up stay right",
                "kernel 6.16, or a stable one of its time, before IPv6 through the packet tier",
                &[CAP_BPF, CAP_NET_ADMIN],
            ),
            Self::SkSkb => about(
                "sk_skb",
                "verdict programs of a sockmap",
                "a kernel with CONFIG_BPF_STREAM_PARSER=y",
                &[CAP_BPF, CAP_NET_ADMIN],
            ),
            Self::SockHash => about(
                "sockmap",
                "maps of sockets",
                "a kernel with CONFIG_BPF_STREAM_PARSER=y",
                &[CAP_BPF, CAP_NET_ADMIN],
            ),
            Self::SockmapKernel => {
                about("sockmap kernel", "moves every byte once", "a kernel with the fix", &[])
            }
            Self::Ktls => {
                about("kTLS", "TLS records in the kernel", "modprobe tls, or a kernel with CONFIG_TLS", &[])
            }
        }
    }

    /// Its name in messages.
    pub const fn name(self) -> &'static str {
        self.about().name
    }

    /// What it is for.
    pub const fn purpose(self) -> &'static str {
        self.about().purpose
    }

    /// What a process must hold to use it.
    pub const fn capabilities(self) -> &'static [Capability] {
        self.about().capabilities
    }

    /// Whether one of these tiers cannot do without.
    pub fn is_required(self, tiers: &[Tier]) -> bool {
        tiers.iter().any(|tier| of(*tier).requires.contains(&self))
    }

    /// What is lost without it in the tier that prefers it.
    pub fn cost(self) -> Option<&'static str> {
        let preferred = Tier::ALL.iter().flat_map(|tier| of(*tier).prefers);
        preferred.into_iter().find(|(need, _)| *need == self).map(|(_, cost)| *cost)
    }

    /// Asks the running kernel, for a gateway with its pins in `bpffs`. Changes nothing.
    pub fn ask(self, bpffs: &Path) -> Answer {
        match self {
            Self::Tcp => probe::tcp(),
            Self::Tc => probe::tc_program(),
            Self::Pointers => probe::pointers(),
            Self::Tcx => probe::tcx(),
            Self::Bpffs => pins::place(bpffs),
            Self::TcpRepair => probe::tcp_repair(),
            Self::GrowingHash => probe::growing_hash(),
            Self::RingBuffer => probe::ring_buffer(),
            Self::PerfBuffer => probe::perf_buffer(),
            Self::Membarrier => probe::membarrier(),
            Self::RawSockets => probe::raw_sockets(),
            Self::Routing => Answer::from_io(Routes::open().map(drop), &[libc::EAFNOSUPPORT]),
            Self::Veth => {
                Answer::from_io(PairEnds::open().map(drop), &[libc::ENOPROTOOPT, libc::EAFNOSUPPORT])
            }
            Self::Ipv6Checksum => probe::ipv6_checksum(),
            Self::SkSkb => probe::sk_skb_program(),
            Self::SockHash => probe::sock_hash(),
            Self::SockmapKernel => match KernelVersion::running().as_ref().map(sockmap_sound) {
                Some(Ok(())) => Answer::Yes,
                Some(Err(why)) => Answer::Unknown(why.to_owned()),
                None => Answer::Unknown("the kernel's release cannot be read".to_owned()),
            },
            Self::Ktls => probe::ktls(),
        }
    }
}

/// A need that is not met: `raw sockets (not permitted): run as root, …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    need: Need,
    answer: Answer,
}

impl Lack {
    /// `None`: it is met.
    pub fn new(need: Need, answer: Answer) -> Option<Self> {
        (answer != Answer::Yes).then_some(Self { need, answer })
    }

    /// The first of these that is not met.
    pub fn first(needs: &[Need], mut ask: impl FnMut(Need) -> Answer) -> Option<Self> {
        needs.iter().find_map(|need| Self::new(*need, ask(*need)))
    }

    /// Which it is.
    pub const fn need(&self) -> Need {
        self.need
    }

    /// What the kernel has answered.
    pub fn found(&self) -> &str {
        match &self.answer {
            Answer::Yes => "there",
            Answer::No => "not in this kernel",
            Answer::NotPermitted => "not permitted",
            Answer::Unknown(error) => error,
        }
    }

    /// How to get it.
    pub fn remedy(&self) -> String {
        let About { remedy, capabilities, .. } = self.need.about();
        if self.answer != Answer::NotPermitted || capabilities.is_empty() {
            return remedy.to_owned();
        }
        let names: Vec<_> = capabilities.iter().map(Capability::to_string).collect();
        format!("run as root, or with {}", names.join(", "))
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.need.name(), self.found(), self.remedy())
    }
}

/// The error, with the first of `needs` that the kernel does not meet, if there is one. Asks the kernel.
pub fn explained(error: anyhow::Error, needs: &[Need], bpffs: &Path) -> anyhow::Error {
    match Lack::first(needs, |need| need.ask(bpffs)) {
        None => error,
        Some(lack) => anyhow::anyhow!("{}; it requires {lack}", with_causes(error.as_ref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_need_is_its_own_index_and_has_a_name_of_its_own() {
        for (i, need) in Need::ALL.into_iter().enumerate() {
            assert_eq!(need as usize, i);
            assert!(!need.about().remedy.is_empty());
        }
        assert_eq!(Need::ALL.map(Need::name).into_iter().collect::<HashSet<_>>().len(), Need::ALL.len());
    }

    #[test]
    fn what_a_tier_prefers_it_does_not_require() {
        for needs in Tier::ALL.iter().map(|tier| of(*tier)) {
            assert!(needs.prefers.iter().all(|(need, _)| !needs.requires.contains(need)));
        }
        assert!(PROGRAMS.iter().all(|need| of(Tier::Packet).requires.contains(need)));
    }

    #[test]
    fn of_several_the_first_that_is_lacking_is_named_with_what_to_do() {
        let asked = |need| match need {
            Need::RawSockets => Answer::NotPermitted,
            Need::Routing => Answer::No,
            _ => Answer::Yes,
        };
        let lack = Lack::first(of(Tier::Packet).requires, asked).unwrap();
        assert_eq!(
            lack.to_string(),
            "raw sockets (not permitted): run as root, or with CAP_NET_RAW, CAP_NET_ADMIN"
        );
        assert_eq!(Lack::first(of(Tier::Copy).requires, asked), None);
        let lack = Lack::new(Need::RingBuffer, Answer::No).unwrap();
        assert_eq!(lack.to_string(), "ring buffer (not in this kernel): kernel 5.8 or newer");
        let lack = Lack::new(Need::Membarrier, Answer::NotPermitted).unwrap();
        assert!(lack.remedy().contains("membarrier(2)"), "no capability grants it");
    }
}
