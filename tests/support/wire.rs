//! A wire between the gateway and a neighbour that loses, repeats, reorders, delays and marks TCP packets. It also checks
//! the checksums of each, with an independent packet library.
//!
//! Both ends are TUN or TAP devices, and a thread for each way carries the packets from one to the other. Such a
//! device has no offloads: it gives out packets segmented and with their checksums, as a network card does.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::{IpEcn, NetSlice, SlicedPacket, TransportSlice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::netns::NetNs;
use crate::pump::Random;

/// What kind of devices the ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ethernet (TAP).
    Ethernet,
    /// Ethernet whose receiver merges segments (GRO), as most cards' drivers do.
    EthernetGro,
    /// Packets without any link header (TUN).
    Ip,
}

/// What happens to TCP packets on their way; other packets always pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Probability of being lost.
    pub loss: f64,
    /// Probability of arriving twice.
    pub repeat: f64,
    /// Probability of being overtaken by [`OVERTAKEN_BY`] later packets, or by those of [`HELD_AT_MOST`].
    pub reorder: f64,
    /// Probability that a packet of an ECN-capable sender is marked "congestion experienced".
    pub mark: f64,
    /// Probability that a frame gets a priority: the tag of no VLAN (IEEE 802.1Q, section 9.6).
    pub priority: f64,
    /// How long every packet takes.
    pub delay: Duration,
}

impl Faults {
    /// A wire without faults.
    pub const NONE: Self =
        Self { loss: 0.0, repeat: 0.0, reorder: 0.0, mark: 0.0, priority: 0.0, delay: Duration::ZERO };
}

/// How many packets overtake one that is held back.
pub const OVERTAKEN_BY: u32 = 4;
/// How long a packet is held back if none comes to overtake it.
pub const HELD_AT_MOST: Duration = Duration::from_millis(3);

/// Counts of the packets in one direction, before the faults.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// TCP segments.
    pub segments: u64,
    /// Of these, with SYN.
    pub syn: u64,
    /// Of these, with RST.
    pub rst: u64,
    /// Of these, from an ECN-capable transport (ECT or CE in the IP header).
    pub ecn_capable: u64,
    /// Of these, without SYN and with ECE or CWR.
    pub ecn_echo: u64,
    /// ICMP packets of all kinds, without those of neighbour discovery.
    pub icmp: u64,
    /// The longest IP packet.
    pub longest: usize,
    /// Segments that arrived twice, or after later ones.
    pub disturbed: u64,
    /// Of these segments, with a VLAN tag.
    pub tagged: u64,
    /// Packets with a wrong checksum of IP or TCP.
    pub wrong_checksums: u64,
    /// The first of these.
    pub first_wrong: Option<Vec<u8>>,
}

/// One way of a wire.
#[derive(Debug, Default)]
pub struct Way {
    faults: Mutex<Faults>,
    seen: Mutex<Seen>,
}

impl Way {
    /// Changes what happens to packets from now on.
    pub fn set(&self, faults: Faults) {
        *self.faults.lock().expect("no panic while locked") = faults;
    }

    /// What went this way so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic while locked").clone()
    }
}

/// A wire with the gateway at one end; it is cut on drop.
#[derive(Debug)]
pub struct Wire {
    /// The way from the gateway to its neighbour.
    pub from_gateway: Arc<Way>,
    /// The way to the gateway.
    pub to_gateway: Arc<Way>,
    /// The threads end when this is closed.
    stop: Option<UnixStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Makes a device in either namespace, both up, and joins them.
    pub fn new(gateway: (&NetNs, &str), neighbour: (&NetNs, &str), kind: Kind) -> Result<Self> {
        let near = device(gateway.0, gateway.1, kind)?;
        let far = device(neighbour.0, neighbour.1, kind)?;
        let (stop, stopped) = UnixStream::pair()?;
        let mut wire = Self {
            from_gateway: Arc::default(),
            to_gateway: Arc::default(),
            stop: Some(stop),
            threads: Vec::new(),
        };
        for (seed, from, to, way) in
            [(1, near.try_clone()?, far.try_clone()?, &wire.from_gateway), (2, far, near, &wire.to_gateway)]
        {
            let relay = Relay {
                to,
                way: Arc::clone(way),
                kind,
                random: Random(seed),
                held: Vec::new(),
                delayed: VecDeque::new(),
            };
            let stopped = stopped.try_clone()?;
            wire.threads.push(thread::spawn(move || relay.run(from, &stopped)));
        }
        Ok(wire)
    }

    /// Both ways, from the gateway first.
    pub fn ways(&self) -> [&Way; 2] {
        [&self.from_gateway, &self.to_gateway]
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // A panic there was printed there; nothing is lost that a test would not miss.
            let _ = thread.join();
        }
    }
}

/// A TUN or TAP device that exists as long as its file is open, up, with a queue that a window of bytes fits into.
fn device(ns: &NetNs, name: &str, kind: Kind) -> Result<File> {
    let flags = libc::IFF_NO_PI
        | match kind {
            Kind::Ethernet => libc::IFF_TAP,
            Kind::EthernetGro => libc::IFF_TAP | libc::IFF_NAPI,
            Kind::Ip => libc::IFF_TUN,
        };
    let file = ns.run(|| {
        let file =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
        attach(&file, name, flags)?;
        Ok::<_, io::Error>(file)
    });
    let file = file.with_context(|| format!("/dev/net/tun: device {name}"))?;
    ns.ip(&format!("link set {name} txqueuelen 20000 up"))?;
    Ok(file)
}

/// TUNSETIFF.
fn attach(file: &File, name: &str, flags: i32) -> io::Result<()> {
    // SAFETY: an ifreq is plain old data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero: C's end of a string.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(flags).expect("the flags are 16 bits");
    // SAFETY: the kernel reads and writes an ifreq, which lives until the call returns and nobody else has.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The packets that have not arrived yet, and the end where they will.
struct Relay {
    to: File,
    way: Arc<Way>,
    kind: Kind,
    random: Random,
    held: Vec<Held>,
    /// In order of arrival; an earlier one is due no later than a later one, unless the delay was shortened.
    delayed: VecDeque<(Instant, Vec<u8>)>,
}

/// A packet that others overtake.
struct Held {
    packet: Vec<u8>,
    overtaken_by: u32,
    until: Instant,
}

impl Relay {
    /// Carries packets until the other end of `stopped` closes.
    fn run(mut self, mut from: File, stopped: &UnixStream) {
        /// Packets between two reads of the clock.
        const BURST: u32 = 64;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let due = self.held.iter().map(|h| h.until).chain(self.delayed.front().map(|d| d.0)).min();
            let timeout = due.map(|due| Timespec::try_from(due.saturating_duration_since(Instant::now())));
            let timeout = timeout.map(|t| t.expect("a short time"));
            let mut polled = [PollFd::new(&from, PollFlags::IN), PollFd::new(stopped, PollFlags::HUP)];
            match poll(&mut polled, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => panic!("poll: {error}"),
                Ok(_) if !polled[1].revents().is_empty() => return,
                Ok(_) => {}
            }
            for _ in 0..BURST {
                match from.read(&mut buffer) {
                    Ok(length) => self.take(&mut buffer[..length]),
                    // Empty; or the device is not up (yet, or any more).
                    Err(_) => break,
                }
            }
            let now = Instant::now();
            while self.delayed.front().is_some_and(|(due, _)| *due <= now) {
                let (_, packet) = self.delayed.pop_front().expect("there is one");
                self.deliver(&packet);
            }
            for late in self.held.extract_if(.., |held| held.until <= now).collect::<Vec<_>>() {
                self.pass(&late.packet);
            }
        }
    }

    /// Decides what happens to a packet.
    fn take(&mut self, packet: &mut [u8]) {
        let faults = *self.way.faults.lock().expect("no panic while locked");
        if !self.inspect(packet) {
            return self.deliver(packet);
        }
        if self.happens(faults.loss) {
            return;
        }
        if self.happens(faults.mark) {
            mark(packet, self.kind);
        }
        let mut packet = packet.to_vec();
        if self.happens(faults.priority) {
            // Behind both addresses: type 802.1Q, priority 5, VLAN 0.
            packet.splice(12..12, [0x81, 0, 5 << 5, 0]);
        }
        let packet = &packet;
        if self.happens(faults.reorder) {
            self.count_disturbed();
            let until = Instant::now() + HELD_AT_MOST;
            return self.held.push(Held { packet: packet.clone(), overtaken_by: 0, until });
        }
        self.pass(packet);
        if self.happens(faults.repeat) {
            self.count_disturbed();
            self.pass(packet);
        }
        for held in &mut self.held {
            held.overtaken_by += 1;
        }
        for held in self.held.extract_if(.., |h| h.overtaken_by == OVERTAKEN_BY).collect::<Vec<_>>() {
            self.pass(&held.packet);
        }
    }

    fn count_disturbed(&self) {
        self.way.seen.lock().expect("no panic while locked").disturbed += 1;
    }

    fn happens(&mut self, probability: f64) -> bool {
        // 53 bits are what a f64 holds.
        let uniform = (self.random.next() >> 11) as f64 / (1_u64 << 53) as f64;
        uniform < probability
    }

    /// Puts a packet on its way, with the configured delay.
    fn pass(&mut self, packet: &[u8]) {
        let delay = self.way.faults.lock().expect("no panic while locked").delay;
        if delay.is_zero() {
            self.deliver(packet);
        } else {
            self.delayed.push_back((Instant::now() + delay, packet.to_vec()));
        }
    }

    fn deliver(&mut self, packet: &[u8]) {
        // An error: the device is down, as a card without a cable.
        let _ = self.to.write(packet);
    }

    /// Counts a packet and checks its checksums; whether it is TCP.
    fn inspect(&self, bytes: &[u8]) -> bool {
        let Some(packet) = parse(bytes, self.kind) else {
            return false;
        };
        let (Some(net), Some(transport)) = (&packet.net, &packet.transport) else {
            return false;
        };
        let mut seen = self.way.seen.lock().expect("no panic while locked");
        let tcp = match transport {
            TransportSlice::Tcp(tcp) => tcp,
            TransportSlice::Icmpv4(_) => {
                seen.icmp += 1;
                return false;
            }
            TransportSlice::Icmpv6(icmp) => {
                // 133 to 137: neighbour discovery.
                seen.icmp += u64::from(!(133..=137).contains(&icmp.type_u8()));
                return false;
            }
            TransportSlice::Igmp(_) | TransportSlice::Udp(_) => return false,
        };
        let (right, ecn, length) = match net {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let sum = tcp.calc_checksum_ipv4(header.source(), header.destination());
                let right = same_sum(header.header_checksum(), header.to_header().calc_header_checksum())
                    && sum.is_ok_and(|sum| same_sum(sum, tcp.checksum()));
                (right, header.ecn(), usize::from(header.total_len()))
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let sum = tcp.calc_checksum_ipv6(header.source(), header.destination());
                (
                    sum.is_ok_and(|sum| same_sum(sum, tcp.checksum())),
                    header.ecn(),
                    header.slice().len() + usize::from(header.payload_length()),
                )
            }
            NetSlice::Arp(_) => return false,
        };
        seen.segments += 1;
        seen.tagged += u64::from(!packet.link_exts.is_empty());
        seen.syn += u64::from(tcp.syn());
        seen.rst += u64::from(tcp.rst());
        seen.ecn_capable += u64::from(ecn != IpEcn::NotEct);
        seen.ecn_echo += u64::from(!tcp.syn() && (tcp.ece() || tcp.cwr()));
        seen.longest = seen.longest.max(length);
        if !right {
            seen.wrong_checksums += 1;
            seen.first_wrong.get_or_insert_with(|| bytes.to_vec());
        }
        true
    }
}

/// Whether two checksums are the same number: in ones' complement there are two zeros.
fn same_sum(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

fn parse(bytes: &[u8], kind: Kind) -> Option<SlicedPacket<'_>> {
    if kind == Kind::Ip { SlicedPacket::from_ip(bytes) } else { SlicedPacket::from_ethernet(bytes) }.ok()
}

/// Marks a packet of an ECN-capable sender "congestion experienced", as a router with a full queue does.
fn mark(bytes: &mut [u8], kind: Kind) {
    let start = if kind == Kind::Ip { 0 } else { 14 };
    match parse(bytes, kind).and_then(|packet| packet.net) {
        Some(NetSlice::Ipv4(ip)) if ip.header().ecn() != IpEcn::NotEct => {
            let mut header = ip.header().to_header();
            header.ecn = IpEcn::THREE;
            header.header_checksum = header.calc_header_checksum();
            let header = header.to_bytes();
            bytes[start..start + header.len()].copy_from_slice(&header);
        }
        // The last two bits of the traffic class, which has no checksum.
        Some(NetSlice::Ipv6(ip)) if ip.header().ecn() != IpEcn::NotEct => bytes[start + 1] |= 0b11 << 4,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;
    use crate::pump::{Plan, exchange};
    use std::net::{TcpListener, TcpStream};

    /// An exchange over a wire with faults; the wire, and what both ends' kernels have counted.
    fn across(kind: Kind, faults: Faults, bytes: u64) -> (Wire, [Counters; 2]) {
        let (a, b) = (NetNs::new("a").unwrap(), NetNs::new("b").unwrap());
        let wire = Wire::new((&a, "wire"), (&b, "wire"), kind).unwrap();
        a.address("wire", "10.0.0.1/24").unwrap();
        b.address("wire", "10.0.0.2/24").unwrap();
        let listener = a.run(|| TcpListener::bind("10.0.0.1:7").unwrap());
        let client = b.run(|| TcpStream::connect("10.0.0.1:7").unwrap());
        let server = listener.accept().unwrap().0;
        wire.ways().iter().for_each(|way| way.set(faults));
        let plan = Plan::both_ways(bytes);
        thread::scope(|scope| {
            let there = scope.spawn(|| exchange(server.try_into().unwrap(), &plan.mirrored()));
            exchange(client.try_into().unwrap(), &plan).unwrap();
            there.join().unwrap().unwrap();
        });
        (wire, [&a, &b].map(|ns| Counters::of(ns).unwrap()))
    }

    #[test]
    fn a_wire_of_each_kind_carries_every_byte_and_checks_every_sum() {
        for kind in [Kind::Ethernet, Kind::EthernetGro, Kind::Ip] {
            let (wire, counters) = across(kind, Faults::NONE, 8 << 20);
            for way in wire.ways().map(Way::seen) {
                assert_eq!((way.syn, way.rst, way.wrong_checksums, way.longest), (1, 0, 0, 1500), "{kind:?}");
                assert!(way.segments > (8 << 20) / 1500, "{kind:?}: {way:?}");
            }
            for counters in counters {
                assert!(counters.faults().is_empty(), "{kind:?}: {counters:?}");
            }
        }
    }

    #[test]
    fn every_fault_is_met_by_the_other_ends_tcp() {
        let faults = |faults: Faults| across(Kind::Ethernet, faults, 1 << 20).1;
        let sum = |counters: &[Counters], name: &str| counters.iter().map(|c| c.get(name)).sum::<u64>();
        let lost = faults(Faults { loss: 0.02, ..Faults::NONE });
        assert!(sum(&lost, "Tcp.RetransSegs") > 0, "{lost:?}");
        let repeated = faults(Faults { repeat: 0.02, ..Faults::NONE });
        assert!(sum(&repeated, "TcpExt.TCPDSACKOldSent") > 0, "{repeated:?}");
        let reordered = faults(Faults { reorder: 0.02, ..Faults::NONE });
        assert!(sum(&reordered, "TcpExt.TCPOFOQueue") > 0, "{reordered:?}");
        // A segment that was held back may come after one with a newer timestamp: dropped as old (RFC 7323, section 5.3).
        for (counters, late) in [(lost, ""), (repeated, ""), (reordered, "TcpExt.PAWSEstab")] {
            for counters in counters {
                // The reset is for what comes once more after the connection is closed on that side.
                assert!(counters.faults().except(&["Tcp.OutRsts", late]).is_empty(), "{counters:?}");
            }
        }
    }

    #[test]
    fn a_wrong_checksum_is_noticed() {
        let (a, b) = (NetNs::new("a").unwrap(), NetNs::new("b").unwrap());
        let relay = Relay {
            to: device(&b, "wire", Kind::Ip).unwrap(),
            way: Arc::default(),
            kind: Kind::Ip,
            random: Random(0),
            held: Vec::new(),
            delayed: VecDeque::new(),
        };
        drop(a);
        for (wrong_byte, wrong) in [(None, 0), (Some(8), 1), (Some(45), 2)] {
            let mut packet = Vec::new();
            let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 3, 4);
            builder.write(&mut packet, b"0123456789").unwrap();
            if let Some(at) = wrong_byte {
                packet[at] ^= 0x40;
            }
            assert!(relay.inspect(&packet));
            assert_eq!(relay.way.seen().wrong_checksums, wrong);
        }
    }
}
