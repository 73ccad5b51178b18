//! ICMP errors about a spliced connection: a router on one leg reports a packet that came from the other.
//!
//! The error quotes the packet as it left the gateway. The packet's sender knows it by its own addresses, ports and
//! sequence number, so the quote is translated back.

use super::translate::ports;
use super::{Flow, Tuple};

/// Bytes of an ICMP header.
pub const HEADER: usize = 8;
/// Bytes of the TCP header that every error quotes (RFC 792).
pub const QUOTED: usize = 8;

/// Type and code of "fragmentation needed", which names an MTU (RFC 1191).
pub const FRAGMENTATION_NEEDED: [u8; 2] = [3, 4];
/// Type of ICMPv6's "packet too big", which names an MTU (RFC 4443, section 3.2).
pub const PACKET_TOO_BIG: u8 = 2;
/// Offset of the MTU, two bytes, in an ICMP header.
pub const MTU: usize = 6;
/// Offset of the MTU, four bytes, in an ICMPv6 header.
pub const MTU_V6: usize = 4;

/// The first two words of a TCP header.
pub type Quote = [u32; 2];

/// Whether an ICMP message of this type quotes a packet that could not be delivered (RFC 792): unreachable, time
/// exceeded, parameter problem.
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 11 | 12)
}

/// The same for ICMPv6 (RFC 4443): unreachable, packet too big, time exceeded, parameter problem.
#[inline(always)]
pub const fn is_error_v6(kind: u8) -> bool {
    matches!(kind, 1..=4)
}

impl Flow {
    /// Addresses and ports with which the quoted packet arrived at the gateway. `self` is the flow of the opposite
    /// direction: of packets from where the quoted one went.
    #[inline(always)]
    pub const fn quoted_tuple(&self) -> Tuple {
        self.out.reversed()
    }

    /// The quote of the packet as it arrived at the gateway.
    #[inline(always)]
    pub const fn quote(&self, quote: &Quote) -> Quote {
        let tuple = self.quoted_tuple();
        // The delta of acknowledgements of what was received maps the receiver's numbers to the sender's.
        let seq = u32::from_be(quote[1]).wrapping_add(self.ack_delta);
        [ports(tuple.source_port, tuple.destination_port), seq.to_be()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::translate::{Head, tests::flow};
    use super::*;

    #[test]
    fn a_quote_is_undone_to_what_the_sender_has_sent() {
        let mut request = flow();
        request.out = Tuple::v4(10, 11, 12, 13);
        let mut response = flow();
        response.out = Tuple::v4(20, 21, 22, 23);
        response.ack_delta = request.seq_delta.wrapping_neg();
        let sent = Head { ports: ports(23, 22), seq: 77_u32.to_be(), ack: 0, control: 0 };
        let left = request.translate(&sent);
        assert_eq!(response.quote(&[left.ports, left.seq]), [sent.ports, sent.seq]);
        assert_eq!(response.quoted_tuple(), Tuple::v4(21, 20, 23, 22));
    }
}
