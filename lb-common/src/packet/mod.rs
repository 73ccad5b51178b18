//! The packet tier: maps, and what the programs do to a packet of a spliced connection.
//!
//! A spliced connection is two [`Flow`]s, one per direction, each found by the [`Tuple`] of its arriving packets.
//! Addresses and ports are kept as they stand in a packet (network order); every other number is in the byte order
//! of the machine. IPv4 addresses are mapped into IPv6 (RFC 4291, section 2.5.5.2).
//!
//! A flow is constant: what changes with each packet is in the connection's [`Track`](track::Track).
//!
//! | map | type | holds | written by |
//! |---|---|---|---|
//! | [`FLOWS`] | hash | tuple -> [`Flow`] | userspace; the programs remove both when a new SYN takes the tuple |
//! | [`TRACKS`] | array, mapped into userspace | [`Flow::slot`] -> [`Track`](track::Track) | userspace before its flows go in, then the programs |
//! | [`PATHS`] | hash | [`Path`] -> 1 | userspace |
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
mod legs;
pub mod odd;
pub mod options;
pub mod track;
pub mod translate;

pub use legs::{PerDirection, PerLeg, Side};

/// Hash: [`Tuple`] -> [`Flow`]. Never an LRU, which would evict live connections.
pub const FLOWS: &str = "PACKET_FLOWS";
/// Array of [`Track`](track::Track), by [`Flow::slot`].
pub const TRACKS: &str = "PACKET_TRACKS";
/// Hash: [`Path`] -> 1: by which devices other than [`Flow::from`] packets may come.
pub const PATHS: &str = "PACKET_PATHS";
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
/// Entries of [`PATHS`].
pub const MAX_PATHS: u32 = 1 << 16;
/// Entries of [`SIGHTINGS`]: handshakes under way. A flood of SYNs evicts the oldest.
pub const MAX_SIGHTINGS: u32 = 1 << 16;
/// Entries of [`HANDOVERS`]: connections whose sockets are about to be closed.
pub const MAX_HANDOVERS: u32 = 1 << 16;
/// Entries of [`NAMES`]: listeners, routes, pools and servers.
pub const MAX_NAMES: u32 = 1 << 18;
/// Bytes of the ring buffer. If an event does not fit, the next sweep finds out what it would have told.
pub const EVENTS_BYTES: u32 = 1 << 20;
/// Words of one bitmap of ports.
pub const PORT_WORDS: u32 = 1024;

/// The index of the loopback device, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// One tick of [`Half::heard`](track::Half::heard), as a shift of nanoseconds of CLOCK_MONOTONIC: 1.05 ms. 2^32 of them are
/// 52 days.
pub const TICK_SHIFT: u32 = 20;

/// An address as in a packet; IPv4 mapped into IPv6.
pub type Address = [u32; 4];

/// The third word of an IPv4 address mapped into IPv6.
pub const MAPPED: u32 = 0xffff_u32.to_be();

/// Packet mark ("snip") of segments that the gateway itself sends to its socket during a handover.
pub const FOR_SOCKET_MARK: u32 = 0x736e_6970;

/// Addresses and ports of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple {
    /// The sender's address.
    pub source: Address,
    /// The receiver's address.
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

    /// That of the packets in the other direction.
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
    /// Into the other end of a veth in another network namespace, which is the packet's receiver. Its Ethernet addresses
    /// are not looked at.
    pub const PEER: u8 = 1;
    /// To a socket of this host, by way of the loopback device.
    pub const LOCAL: u8 = 2;
}

/// One direction of a spliced connection: the packets of one end, X, for the other, Y. Constant: userspace replaces it
/// whole. 88 bytes: with its key and the kernel's own 56 it fits a 192-byte slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Of the connection.
    pub id: u64,
    /// [`Half::position`](track::Half::position) of X before the first byte that is accounted.
    pub origin: u64,
    /// Addresses and ports of the packets when they leave.
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
    /// The device they come by.
    pub from: u32,
    /// Place in [`TRACKS`], the same for both directions.
    pub slot: u32,
    /// Window scale of X: the shift of the windows in its packets.
    pub own_scale: u8,
    /// Window scale of Y.
    pub peer_scale: u8,
    /// Window scale that our socket announced to Y: the shift of the windows that Y is sent.
    pub promised_scale: u8,
    /// See [`flag`].
    pub flags: u8,
    /// See [`exit`].
    pub exit: u8,
    /// Zeros: the kernel compares and copies every byte.
    pub padding: [u8; 3],
}

impl Flow {
    /// Whether a flag is set.
    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Which end X is.
    #[inline(always)]
    pub const fn side(&self) -> Side {
        if self.has(flag::FROM_SERVER) { Side::Server } else { Side::Client }
    }
}

/// A second device by which packets of a flow may come, because the routing table has a route to their sender by it. It is
/// for one sender: the route to another one may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Path {
    /// The device they come by.
    pub device: u32,
    /// The one they are expected by ([`Flow::from`]).
    pub expected: u32,
    /// Their sender's address.
    pub peer: Address,
}

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
    /// An acknowledgement number of the sender: that of a SYN-ACK, or of the first segment that follows a SYN. It is not
    /// the socket's own if something between the device and the socket changes sequence numbers (SYNPROXY). Valid only with
    /// [`sighted::ACKNOWLEDGED`].
    pub ack: u32,
}

/// Two Ethernet addresses as they stand in a packet: destination, source.
pub type Ethernet = [u8; 12];

/// There is no window scale option.
pub const NO_WINDOW_SCALE: u8 = 0xff;

/// Flags of a [`Sighting`].
pub mod sighted {
    /// A timestamps option.
    pub const TIMESTAMPS: u8 = 1;
    /// SACK permitted.
    pub const SACK: u8 = 2;
    /// The AE flag: accurate ECN is offered or accepted. Its counters cannot be translated.
    pub const ACCURATE_ECN: u8 = 4;
    /// [`Sighting::ack`](super::Sighting::ack) is known.
    pub const ACKNOWLEDGED: u8 = 8;
}

/// What the programs must know while the sockets of a connection still have bytes to deliver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Handover {
    /// A pure ACK below this acknowledgement number is for the socket, whose own bytes it acknowledges; all others are
    /// forwarded.
    pub await_ack: PerDirection<u32>,
    /// A TSecr before this echoes a socket, not the other end; 0 is sent instead.
    pub tsecr_floor: PerDirection<u32>,
    /// Right edge of the window that the socket last advertised to the sender.
    ///
    /// A pure ACK for the socket whose SEQ lies beyond it (the other end's window may be larger) is rewritten to it: the
    /// socket would drop the ACK. And while a socket still sends to an end, forwarded windows to that end are clamped to
    /// it: a socket acknowledges only what it has received itself, and an ACK that is older than the largest window is
    /// dropped (RFC 5961, section 5.2).
    pub promised: PerDirection<u32>,
}

/// What no packet shows of a connection: for the access log and the timeouts, also of the next process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// When it was accepted, in milliseconds of CLOCK_MONOTONIC.
    pub opened_ms: u64,
    /// Keys of [`NAMES`]: listener, route, pool, server.
    pub names: [u64; 4],
    /// Tuple of the client's packets as they arrive.
    pub from_client: Tuple,
    /// Tuple of the server's packets as they arrive.
    pub from_server: Tuple,
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
    /// What the access log needs of the ClientHello, encoded by userspace.
    pub facts: [u8; Record::FACTS],
}

impl Record {
    /// Room for facts: with the kernel's own part a record fills a 512-byte slab.
    pub const FACTS: usize = 308;

    /// The tuple of each leg's packets as they arrive.
    pub const fn tuples(&self) -> PerLeg<Tuple> {
        PerLeg { client: self.from_client, server: self.from_server }
    }
}

/// A name of the configuration, cut to 270 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Name {
    /// Bytes used of `text`.
    pub length: u16,
    /// UTF-8.
    pub text: [u8; 270],
}

/// A message of the programs to userspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// Of the connection.
    pub id: u64,
    /// See [`event`].
    pub kind: u32,
    /// 1 if it is about a packet of the server.
    pub from_server: u32,
    /// [`event::TOO_BIG`]: the packet's sequence number, as it arrived. [`event::REUSED`]: how the connection had ended
    /// ([`closings`]). [`event::WRONG_DEVICE`]: the device it came by.
    pub number: u32,
    /// For [`event::TOO_BIG`]: the largest packet that would have passed.
    pub mtu: u32,
}

impl Event {
    /// Whose packet it is about.
    pub const fn side(&self) -> Side {
        if self.from_server == 0 { Side::Client } else { Side::Server }
    }

    /// What [`closings`] has put into `number`.
    pub const fn closings(&self) -> PerLeg<u8> {
        let [client, server, ..] = self.number.to_le_bytes();
        PerLeg { client, server }
    }
}

/// Both ends' [`Half::closing`](track::Half::closing), the client's first, in one number for an [`Event`].
#[inline(always)]
pub const fn closings(of_client: u8, of_server: u8) -> u32 {
    (of_server as u32) << 8 | of_client as u32
}

/// Kinds of [`Event`].
pub mod event {
    /// Both FINs have passed, and their acknowledgements.
    pub const FINISHED: u32 = 1;
    /// A SYN took the tuple of a connection that was over: that connection's flows are removed.
    pub const REUSED: u32 = 2;
    /// A packet exceeded the MTU of the device it leaves by and was dropped: userspace tells its sender by ICMP.
    pub const TOO_BIG: u32 = 3;
    /// An exact reset has passed.
    pub const RESET: u32 = 4;
    /// A SYN, or a reset in the window that is not exact: userspace sends its sender a challenge ACK (RFC 5961, sections
    /// 3.2 and 4.2).
    pub const CHALLENGE: u32 = 5;
    /// A packet came by another device than its connection's: userspace asks the routing table whether it may.
    pub const WRONG_DEVICE: u32 = 6;
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $drop:literal;)*) => {
        /// What the programs count.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Count {
            $($(#[$doc])* $name,)*
            /// How many there are.
            Number,
        }

        impl Count {
            /// All of them, in the order of their numbers.
            pub const ALL: [Self; Self::Number as usize] = [$(Self::$name),*];

            /// As metrics and `status` call it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Number => "",
                }
            }

            /// Whether the packet was dropped.
            pub const fn is_drop(self) -> bool {
                match self {
                    $(Self::$name => $drop,)*
                    Self::Number => false,
                }
            }
        }
    };
}

counts! {
    /// A SYN or SYN-ACK was sighted.
    Sighted = "handshake_sighted", false;
    /// An odd packet ([`odd`]) of a spliced connection that no process took.
    OddLost = "odd_lost", true;
    /// TCP options or lengths that contradict each other.
    BadOptions = "bad_options", true;
    /// Marked "congestion experienced", for a leg without ECN: the loss says the same (RFC 6040, section 4.2).
    Congestion = "congestion", true;
    /// Larger than the MTU of the device it leaves by.
    TooBig = "too_big", true;
    /// Its flow was removed or replaced while the program worked on the packet.
    FlowGone = "flow_gone", true;
    /// The kernel refused to change the packet, or a map has no such element.
    NotWritable = "not_writable", true;
    /// It came by a device by which there is no route to its sender.
    WrongDevice = "wrong_device", true;
    /// A SYN on a live connection, or a SYN-ACK that does not repeat that of its beginning.
    SynOnLive = "syn_on_live", true;
    /// A late copy of the SYN that a connection began with, after its end.
    SynLate = "syn_late", true;
    /// A reset in the window, but not exact: its sender gets a challenge ACK.
    ResetInexact = "reset_inexact", true;
    /// A reset outside of the window.
    ResetOutside = "reset_outside", true;
    /// After both FINs were acknowledged, and not a retransmission.
    BehindEnd = "behind_end", true;
    /// An ICMP error about bytes that are not under way, or that contradicts itself.
    IcmpUnrelated = "icmp_unrelated", true;
    /// A segment of the gateway for its own socket, which is closed by now.
    SocketGone = "socket_gone", true;
    /// An ICMP error was translated.
    IcmpTranslated = "icmp_translated", false;
    /// An exact reset passed.
    ResetExact = "reset_exact", false;
    /// A SYN took over the tuple of a connection that was over.
    TakenOver = "taken_over", false;
    /// Forwarded without effect on the tracker: no ACK flag.
    NoAck = "no_ack", false;
    /// The same: its acknowledgement is older than the largest window.
    TooOld = "too_old", false;
    /// The same: beyond the window, or its acknowledgement is beyond what was sent.
    TooNew = "too_new", false;
    /// At most a window beyond what is known ([`Near`](track::Verdict::Near)).
    Near = "near", false;
    /// A keepalive probe, or a probe of a zero window.
    Keepalive = "keepalive", false;
    /// An odd packet ([`odd`]) was handed to userspace, to come again plain.
    OddTaken = "odd_taken", false;
    /// The ring buffer had no room for an event.
    EventLost = "event_lost", false;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn the_kernel_keeps_values_in_the_slabs_they_were_made_for() {
        // struct htab_elem is 48 bytes, keys are padded to 8, and the allocator of bpf adds 8.
        assert!(48 + size_of::<Tuple>().next_multiple_of(8) + size_of::<Flow>() + 8 <= 192);
        assert_eq!(size_of::<Flow>(), 88);
        assert_eq!(size_of::<track::Track>(), 64);
        assert_eq!(48 + 8 + size_of::<Record>() + 8, 512);
    }
}
