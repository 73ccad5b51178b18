//! Frames that the gateway itself puts on a way of its own: sent on the loopback device, past netfilter and the routing
//! table, and taken from there by the program at its ingress.
//!
//! A frame bears [`INJECTED_MARK`] and is of the [`Way`] that stands where the Ethernet addresses of others do:
//!
//! | bytes | |
//! |---|---|
//! | 0-5 | to whom: what the packet arrives with, for [`ARRIVAL`]; else nobody |
//! | 6 | [`NO_SENDER`] |
//! | 7 | one of [`exit`], or [`ARRIVAL`] |
//! | 8-11 | interface index of the device, network order |
//!
//! It is addressed to another host than the loopback device's, so that the stack drops it where there is no program to
//! take it. Marks do not travel, so none comes from the network; and what a rule of this host happens to give the same
//! mark has another sender. Gateways of several versions may share a host, and any one's program takes the frames of all: a
//! change of this layout takes another mark.

use super::{Ethernet, exit};

/// Packet mark ("snin") of what the gateway sends on a way of its own.
pub const INJECTED_MARK: u32 = 0x736e_696e;

/// Instead of an [`exit`]: a packet as if it had just come by the device, plain where it was odd before.
pub const ARRIVAL: u8 = 0xff;

/// Where a sender's address begins: its lowest bit says that it is a group's, as no sender's does (IEEE 802.3, section
/// 3.2.3).
pub const NO_SENDER: u8 = b's';

/// Nobody's Ethernet address, of those that anybody may choose.
pub const NOBODY: [u8; 6] = [0x02, b's', b'n', b'i', b'p', 0];

/// Where an injected frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The device it leaves or arrives by; never 0.
    pub ifindex: u32,
    /// One of [`exit`], or [`ARRIVAL`].
    pub kind: u8,
}

impl Way {
    /// The addresses of a frame that goes this way. `to`: the address with which it arrives, for [`ARRIVAL`].
    pub const fn addresses(&self, to: [u8; 6]) -> Ethernet {
        let ([a, b, c, d, e, f], [g, h, i, j]) = (to, self.ifindex.to_be_bytes());
        [a, b, c, d, e, f, NO_SENDER, self.kind, g, h, i, j]
    }

    /// The way of a frame with these addresses; `None`: none of ours.
    #[inline(always)]
    pub const fn of(addresses: &Ethernet) -> Option<Self> {
        let [.., begin, kind, a, b, c, d] = *addresses;
        let ifindex = u32::from_be_bytes([a, b, c, d]);
        let is_known = matches!(kind, exit::NEIGHBOUR | exit::PEER | exit::LOCAL | ARRIVAL);
        if begin == NO_SENDER && is_known && ifindex != 0 { Some(Self { ifindex, kind }) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_way_is_read_as_it_was_written(ifindex in 1..=u32::MAX, kind in 0..4_usize, to: [u8; 6]) {
            let kind = [exit::NEIGHBOUR, exit::PEER, exit::LOCAL, ARRIVAL][kind];
            let way = Way { ifindex, kind };
            let addresses = way.addresses(to);
            prop_assert_eq!(&addresses[..6], &to);
            prop_assert_eq!(Way::of(&addresses), Some(way));
        }

        #[test]
        fn no_other_addresses_are_a_way(addresses: Ethernet) {
            if let Some(way) = Way::of(&addresses) {
                let to = *addresses.first_chunk().expect("12 bytes");
                prop_assert_eq!(way.addresses(to), addresses);
            }
        }
    }

    #[test]
    fn a_network_cards_address_and_a_device_that_cannot_be_are_no_way() {
        let good = Way { ifindex: 7, kind: exit::LOCAL }.addresses(NOBODY);
        for (byte, value) in [(6, 0), (7, 3), (11, 0)] {
            let mut addresses = good;
            addresses[byte] = value;
            assert_eq!(Way::of(&addresses), None, "{addresses:02x?}");
        }
    }
}
