//! Odd packets: IP fragments, and packets with IPv4 options or IPv6 extension headers. The programs translate only plain
//! packets. They copy the odd ones of spliced connections to userspace, which reassembles them, removes the options and
//! headers, and sends them back as an [arrival](super::inject::ARRIVAL).
//!
//! Only a first fragment has ports. The programs note whose it was and take the later ones by that note ([`Fragments`]).
//! A later fragment that arrives before its first goes up the stack; if an odd packet of a flow came lately between the
//! same two hosts, it is copied as well, for its first may be a flow's.

use super::Address;

/// Perf buffers of an [`Odd`] and the packet behind it.
pub const ODD: &str = "PACKET_ODD";
/// LRU hash: [`Fragments`] -> the tick ([`TICK_SHIFT`](super::TICK_SHIFT)) at which it was noted, u32.
pub const FRAGMENTS: &str = "PACKET_FRAGMENTS";

/// Entries of [`FRAGMENTS`]: packets whose fragments are under way. Only fragments with a flow's addresses and ports make
/// one.
pub const MAX_FRAGMENTS: u32 = 1 << 12;

/// The longest frame that is copied: the 16-bit length of a perf record includes the record's header, [`Odd`] and
/// padding.
pub const MAX_FRAME: u32 = u16::MAX as u32 - 64;

/// How many extension headers of an IPv6 packet the programs skip to find TCP; RFC 8200, section 4.1 has six.
pub const MAX_HEADERS: usize = 6;

/// What stands in front of a copied frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Odd {
    /// The device it came by.
    pub ifindex: u32,
    /// Bytes of the frame.
    pub length: u32,
    /// Bytes of its link layer header.
    pub link: u32,
    /// Payload of each segment that the packet was merged from; 0: not merged.
    pub segment: u32,
}

impl Odd {
    /// Splits a record of [`ODD`] into this and the frame. `None`: the record is too short.
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = bytes.split_first_chunk::<{ size_of::<Self>() }>()?;
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let odd = Self { ifindex: word(0), length: word(4), link: word(8), segment: word(12) };
        // Padding may follow.
        Some((odd, rest.get(..odd.length as usize)?))
    }
}

/// The fragments of one packet, or of all packets between two hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragments {
    /// Their sender.
    pub source: Address,
    /// Their receiver.
    pub destination: Address,
    /// The identification, as it stands in the packet.
    pub id: u32,
    /// 1: those with that identification; 0: all, and `id` is 0.
    pub of_one: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_split_into_what_is_known_of_it_and_its_frame() {
        let words = [3_u32, 5, 14, 1400].map(u32::to_ne_bytes);
        let copy = [words.as_flattened(), b"framepadding"].concat();
        let odd = Odd { ifindex: 3, length: 5, link: 14, segment: 1400 };
        assert_eq!(Odd::split(&copy), Some((odd, &b"frame"[..])));
        assert_eq!(Odd::split(&copy[..20]), None);
        assert_eq!(Odd::split(&copy[..15]), None);
    }
}
