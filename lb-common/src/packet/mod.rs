//! The packet tier: maps, and what the programs do to a packet of a spliced connection.
//!
//! A spliced connection is two [`Flow`]s, one per direction, each found by the [`Tuple`] of the packets that arrive.
//! Addresses and ports are kept as they stand in a packet (network order); every other number is in the byte order
//! of the machine. IPv4 addresses are mapped into IPv6 (RFC 4291, section 2.5.5.2).
//!
//! | map | type | holds | written by |
//! |---|---|---|---|
//! | [`FLOWS`] | hash | tuple -> [`Flow`] | userspace inserts and removes, the programs update and remove |
//! | [`SIGHTINGS`] | LRU hash | tuple of a SYN or SYN-ACK -> [`Sighting`] | the programs |
//! | [`HANDOVERS`] | hash | connection id -> [`Handover`] while sockets still live | userspace |
//! | [`CONNECTIONS`] | hash | connection id -> [`Record`], also for the next process | userspace |
//! | [`NAMES`] | hash | hash of a name -> [`Name`], for the next process | userspace |
//! | [`PORTS`] | array | bitmaps of the ports whose SYNs and SYN-ACKs are sighted | userspace |
//! | [`COUNTS`] | per-CPU array | [`Count`] -> packets | the programs |
//! | [`EVENTS`] | ring buffer | [`Event`] | the programs |
//! | [`ODD`](odd::ODD) | perf event array | copies of [odd] packets | the programs |
//! | [`FRAGMENTS`](odd::FRAGMENTS) | LRU hash | [`odd::Fragments`] whose parts are taken | the programs |

pub mod icmp;
pub mod inject;
pub mod odd;
pub mod options;
pub mod translate;

/// Hash: [`Tuple`] -> [`Flow`]. Never an LRU, which would evict live connections.
pub const FLOWS: &str = "PACKET_FLOWS";
/// LRU hash: [`Tuple`] -> [`Sighting`].
pub const SIGHTINGS: &str = "PACKET_SIGHTINGS";
/// Hash: connection id -> [`Handover`].
pub const HANDOVERS: &str = "PACKET_HANDOVERS";
/// Hash: connection id -> [`Record`].
pub const CONNECTIONS: &str = "PACKET_CONNECTIONS";
/// Hash: hash of a name -> [`Name`].
pub const NAMES: &str = "PACKET_NAMES";
/// Array of 64-bit words: [`PORT_WORDS`] for listeners, then as many for source ports.
pub const PORTS: &str = "PACKET_PORTS";
/// Per-CPU array of `u64`, by [`Count`].
pub const COUNTS: &str = "PACKET_COUNTS";
/// Ring buffer of [`Event`].
pub const EVENTS: &str = "PACKET_EVENTS";
/// The program for devices with an Ethernet header.
pub const FORWARD_ETHERNET: &str = "packet_ethernet";
/// The program for devices whose packets begin with the IP header.
pub const FORWARD_BARE: &str = "packet_bare";

/// Entries of [`FLOWS`] unless the loader says otherwise; a connection takes two.
pub const DEFAULT_FLOWS: u32 = 1 << 20;
/// Entries of [`SIGHTINGS`]: handshakes that may be under way, and the flood that may push them out.
pub const MAX_SIGHTINGS: u32 = 1 << 16;
/// Entries of [`HANDOVERS`]: connections whose sockets are about to be closed.
pub const MAX_HANDOVERS: u32 = 1 << 16;
/// Entries of [`NAMES`]: listeners, routes, pools and servers.
pub const MAX_NAMES: u32 = 1 << 18;
/// Size of the ring buffer. An event that finds no room is noticed by the next sweep.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Words of one bitmap of ports.
pub const PORT_WORDS: u32 = 1024;

/// One tick of [`Flow::active`], as a shift of nanoseconds of CLOCK_MONOTONIC: 1.05 ms. 2^32 of them are 52 days.
pub const TICK_SHIFT: u32 = 20;

/// An address as in a packet; IPv4 mapped into IPv6.
pub type Address = [u32; 4];

/// The third word of an IPv4 address mapped into IPv6.
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// Packet mark ("snip") of what the gateway itself tells a socket during a handover.
pub const FOR_SOCKET_MARK: u32 = 0x736e_6970;

/// What a packet is addressed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple {
    /// Who sends it.
    pub source: Address,
    /// Whom it is for.
    pub destination: Address,
    /// The sender's port, network order.
    pub source_port: u16,
    /// The receiver's port, network order.
    pub destination_port: u16,
}

impl Tuple {
    /// Of an IPv4 packet.
    #[inline(always)]
    pub const fn v4(source: u32, destination: u32, source_port: u16, destination_port: u16) -> Self {
        let (source, destination) = ([0, 0, MAPPED, source], [0, 0, MAPPED, destination]);
        Self { source, destination, source_port, destination_port }
    }

    /// Of the packets that go the other way.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// How far a connection has come to its end: the same in both of its flows.
///
/// Each byte is stored to as a whole, so that a program on another CPU loses nothing: the kernel's target has no
/// atomic instructions that all its kernels know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct State {
    /// By direction (0: from the client): 0, or the place of its FIN: [`State::FIRST`] or [`State::SECOND`].
    pub fin: [u8; 2],
    /// By direction: 1 after a reset whose sequence number the receiver takes.
    pub reset: [u8; 2],
}

impl State {
    /// The other direction had not ended.
    pub const FIRST: u8 = 1;
    /// The other direction had ended.
    pub const SECOND: u8 = 2;

    /// Both have sent their FIN, or one has reset: what still passes is the tail of the connection.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        self.is_finished() || self.is_reset()
    }

    /// Both have sent their FIN. A reset after that only says that somebody has forgotten the connection by now.
    #[inline(always)]
    pub const fn is_finished(&self) -> bool {
        self.fin[0] != 0 && self.fin[1] != 0
    }

    /// One of them has reset.
    #[inline(always)]
    pub const fn is_reset(&self) -> bool {
        self.reset[0] != 0 || self.reset[1] != 0
    }

    /// In one number, for an [`Event`].
    #[inline(always)]
    pub const fn packed(&self) -> u32 {
        let ([a, b], [c, d]) = (self.fin, self.reset);
        u32::from_ne_bytes([a, b, c, d])
    }

    /// What was [packed](Self::packed).
    pub const fn unpacked(number: u32) -> Self {
        let [a, b, c, d] = number.to_ne_bytes();
        Self { fin: [a, b], reset: [c, d] }
    }
}

/// Flags of a [`Flow`], fixed at its start.
pub mod flag {
    /// The packets come from the server.
    pub const FROM_SERVER: u8 = 1;
    /// Both legs use timestamps.
    pub const TIMESTAMPS: u8 = 2;
    /// Both legs use SACK.
    pub const SACK: u8 = 4;
    /// Only one leg uses ECN.
    pub const STRIP_ECN: u8 = 8;
}

/// How a packet leaves.
pub mod exit {
    /// By a device, to the neighbour that the routing table names.
    pub const NEIGHBOUR: u8 = 0;
    /// Into the other end of a veth, in another network namespace, with the addresses of the [`Record`](super::Record).
    pub const PEER: u8 = 1;
    /// To a socket of this host, by way of the loopback device.
    pub const LOCAL: u8 = 2;
}

/// One direction of a spliced connection. 96 bytes: with its key and the kernel's own 56 it fills a 192-byte slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Of the connection.
    pub id: u64,
    /// Payload bytes, each counted once: how far the sender's sequence numbers have advanced.
    pub bytes: u64,
    /// What the packets are addressed by when they leave.
    pub out: Tuple,
    /// Added to sequence numbers.
    pub seq_delta: u32,
    /// Added to acknowledgement numbers and SACK edges.
    pub ack_delta: u32,
    /// Added to TSval.
    pub tsval_delta: u32,
    /// Added to TSecr.
    pub tsecr_delta: u32,
    /// The device the packets leave by.
    pub ifindex: u32,
    /// Sequence number of the first byte counted in `bytes`, as it arrives.
    pub base: u32,
    /// Highest acknowledgement number seen, as it arrives.
    pub ack: u32,
    /// See [`State`].
    pub state: State,
    /// Packets, as the kernel merges them.
    pub packets: u32,
    /// When the last packet came ([`TICK_SHIFT`]).
    pub active: u32,
    /// Scale of the sender's window less the scale that the receiver was promised.
    pub window_shift: i8,
    /// See [`flag`].
    pub flags: u8,
    /// See [`exit`].
    pub exit: u8,
    /// 1 while the sockets may still live: there may be a [`Handover`]. 2 if, besides, bytes have come from beyond what
    /// was known: what is before them may be in a socket.
    pub handover: u8,
}

impl Flow {
    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence number behind the last byte seen, as it arrives.
    #[inline(always)]
    pub const fn end(&self) -> u32 {
        self.base.wrapping_add(self.bytes as u32)
    }

    /// Counts the bytes up to this sequence number, unless they were counted before.
    ///
    /// Two CPUs may race here; the position is absolute, so that the next packet corrects what a lost store leaves
    /// out.
    #[inline(always)]
    pub const fn advance(&mut self, end: u32) {
        let ahead = end.wrapping_sub(self.end());
        if ahead.wrapping_sub(1) < MAX_WINDOW {
            self.bytes += ahead as u64;
        }
    }

    /// Notes an acknowledgement number.
    #[inline(always)]
    pub const fn acknowledge(&mut self, ack: u32) {
        if ack.wrapping_sub(self.ack).wrapping_sub(1) < MAX_WINDOW {
            self.ack = ack;
        }
    }
}

/// The largest window (RFC 7323, section 2.3): what is further ahead does not belong to the connection.
pub const MAX_WINDOW: u32 = 1 << 30;

/// How far ahead of the bytes seen a FIN may be to count: its own packet may overtake lost ones.
pub const MAX_FIN_AHEAD: u32 = 1 << 24;

/// Whether sequence number `a` is before `b` (RFC 9293, section 3.4).
#[inline(always)]
pub const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// A SYN toward a listener or a SYN-ACK of a server, as it arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Sighting {
    /// The sender's initial sequence number.
    pub isn: u32,
    /// The device it came by.
    pub ifindex: u32,
    /// TSval, if it has timestamps.
    pub tsval: u32,
    /// MSS option; 0 if absent.
    pub mss: u16,
    /// See [`sighted`].
    pub flags: u8,
    /// Window scale; [`NO_WINDOW_SCALE`] if absent.
    pub window_scale: u8,
    /// The first 12 bytes of its Ethernet header: to whom, from whom.
    pub ethernet: Ethernet,
}

/// Two Ethernet addresses as they stand in a packet: to whom, from whom.
pub type Ethernet = [u8; 12];

/// There is no window scale option.
pub const NO_WINDOW_SCALE: u8 = 0xff;

/// Flags of a [`Sighting`].
pub mod sighted {
    /// A timestamps option.
    pub const TIMESTAMPS: u8 = 1;
    /// SACK permitted.
    pub const SACK: u8 = 2;
    /// The AE flag: accurate ECN is offered or taken, whose counters cannot be translated.
    pub const ACCURATE_ECN: u8 = 4;
}

/// What the programs must know while the sockets of a connection still hold a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Handover {
    /// By direction (0: from the client): the acknowledgement number from which on packets without payload are
    /// forwarded. Earlier ones are for the socket, which still has bytes to get through.
    pub await_ack: [u32; 2],
    /// By direction: an earlier TSecr echoes a socket, not the other end; 0 is sent instead.
    pub tsecr_floor: [u32; 2],
    /// By direction: how far the sender was allowed to send, by its own count, when it last heard of its socket. An
    /// acknowledgement from further ahead, where the other end may have room, the socket would not take: it is given as
    /// from here. And while a socket still sends to an end, that end is allowed no more than this: the socket
    /// acknowledges only what it has received itself, and a segment whose acknowledgement is older by more than the
    /// largest window than what has been acknowledged since is not taken (RFC 5961, section 5.2).
    pub promised: [u32; 2],
    /// By direction: the place of a FIN that the socket has taken ([`State`]).
    pub fin: [u8; 2],
    /// By direction: the scale of the windows that the sender is told.
    pub window_scale: [u8; 2],
}

/// What is known of a connection and no packet tells; also to the next process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// When it was accepted, in milliseconds of CLOCK_MONOTONIC.
    pub opened_ms: u64,
    /// By direction (0: from the client): bytes that the sockets have carried. The flow counts them too, unless they
    /// passed the programs before it was there and nothing has followed them.
    pub carried: [u64; 2],
    /// Keys of [`NAMES`]: listener, route, pool, server.
    pub names: [u64; 4],
    /// What packets of the client arrive with.
    pub from_client: Tuple,
    /// What packets of the server arrive with.
    pub from_server: Tuple,
    /// By leg (0: the client's): the Ethernet addresses that packets leave with where the kernel does not find them
    /// ([`exit::PEER`]).
    pub ethernet: [Ethernet; 2],
    /// The client's address, or what a trusted proxy said it is.
    pub client: Address,
    /// Its port, network order.
    pub client_port: u16,
    /// Bytes used of `facts`.
    pub facts_length: u16,
    /// Seconds; 0: never.
    pub idle_timeout: u32,
    /// Seconds; 0: never.
    pub max_age: u32,
    /// What the access log will say of its ClientHello, packed by userspace.
    pub facts: [u8; Record::FACTS],
}

impl Record {
    /// Room for facts: with the kernel's own part a record fills a 512-byte slab.
    pub const FACTS: usize = 268;
}

/// A name of the configuration; longer ones are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    /// Bytes used of `text`.
    pub length: u16,
    /// UTF-8.
    pub text: [u8; 270],
}

/// What the programs tell userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Of the connection.
    pub id: u64,
    /// See [`event`].
    pub kind: u32,
    /// For [`event::TOO_BIG`]: 1 if the packet came from the server.
    pub from_server: u32,
    /// For [`event::TOO_BIG`]: the packet's sequence number, as it arrived. For [`event::REUSED`]: how the connection
    /// had ended ([`State::packed`]).
    pub seq: u32,
    /// For [`event::TOO_BIG`]: the largest packet that would have passed.
    pub mtu: u32,
}

/// Kinds of [`Event`].
pub mod event {
    /// Both FINs have passed, or a reset.
    pub const CLOSED: u32 = 1;
    /// A SYN took over the tuple of a connection that was closed: its flows are gone.
    pub const REUSED: u32 = 2;
    /// A packet did not fit the device it should leave by, and was dropped: its sender must be told.
    pub const TOO_BIG: u32 = 3;
}

/// What the programs count besides the flows' own counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Count {
    /// A SYN or SYN-ACK was sighted.
    Sighted,
    /// Dropped: an odd packet ([`odd`]) of a spliced connection that nobody was there to take.
    OddLost,
    /// Dropped: TCP options that contradict themselves.
    BadOptions,
    /// Dropped: congestion was experienced, and the other leg could not be told otherwise.
    Congestion,
    /// Dropped: larger than the device it should leave by takes.
    TooBig,
    /// Dropped: the packet could not be changed.
    NotWritable,
    /// An ICMP error was translated.
    IcmpTranslated,
    /// An event found no room.
    EventLost,
    /// An odd packet ([`odd`]) was handed up, to come again plain.
    OddTaken,
    /// How many there are.
    Number,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn the_kernel_keeps_values_in_the_slabs_they_were_made_for() {
        // struct htab_elem is 48 bytes, keys are padded to 8, and the allocator of bpf adds 8.
        assert_eq!(48 + size_of::<Tuple>().next_multiple_of(8) + size_of::<Flow>() + 8, 192);
        assert_eq!(48 + 8 + size_of::<Record>() + 8, 512);
    }

    #[test]
    fn bytes_are_counted_once_across_the_wrap() {
        let mut flow = translate::tests::flow();
        (flow.base, flow.bytes) = (u32::MAX - 9, 0);
        for (end, bytes) in [(u32::MAX, 9), (5, 15), (u32::MAX, 15), (5, 15), (6, 16), (6 + (1 << 31), 16)] {
            flow.advance(end);
            assert_eq!(flow.bytes, bytes);
        }
    }

    #[test]
    fn acknowledgements_only_go_forward() {
        let mut flow = translate::tests::flow();
        flow.ack = u32::MAX - 1;
        for (ack, highest) in [(3, 3), (u32::MAX, 3), (3, 3), (4, 4)] {
            flow.acknowledge(ack);
            assert_eq!(flow.ack, highest);
        }
    }

    #[test]
    fn a_connection_is_closed_by_both_fins_or_one_reset() {
        let state = |fin, reset| State { fin, reset };
        assert!(!state([0, 0], [0, 0]).is_closed());
        assert!(!state([1, 0], [0, 0]).is_closed());
        assert!(state([1, 2], [0, 0]).is_closed());
        assert!(state([0, 0], [0, 1]).is_closed());
    }
}
