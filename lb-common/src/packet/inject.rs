//! Frames that the gateway itself sends, bypassing netfilter and the routing table: it sends them on the loopback device,
//! at whose ingress the program redirects them.
//!
//! A frame bears [`INJECTED_MARK`], and in place of its Ethernet addresses the [`Way`] it goes:
//!
//! | bytes | |
//! |---|---|
//! | 0-5 | destination address: for [`ARRIVAL`] that with which the packet arrives; else [`NOBODY`] |
//! | 6 | [`NO_SENDER`] |
//! | 7 | one of [`exit`], or [`ARRIVAL`] |
//! | 8-11 | interface index of the device, network order |
//!
//! It is addressed to another host, so that the stack drops it if no program takes it. A mark is not sent over a network,
//! so no such frame can arrive from there; and a packet to which a rule of this host gives the same mark has another source
//! address. Gateways of several versions may share a host, and the program of each takes the frames of all: a change of
//! this layout needs another mark.

use super::{Ethernet, exit};

/// Packet mark ("snin") of injected frames.
pub const INJECTED_MARK: u32 = 0x736e_696e;

/// Instead of an [`exit`]: the packet arrives by the device once more; it was odd before and is plain now.
pub const ARRIVAL: u8 = 0xff;

/// First byte of the source address. Its lowest bit marks a group address, which no sender has (IEEE 802.3, section
/// 3.2.3).
pub const NO_SENDER: u8 = b's';

/// A locally administered Ethernet address that no device has.
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
    /// The addresses of a frame that goes this way. `to`: its destination address.
    pub const fn addresses(&self, to: [u8; 6]) -> Ethernet {
        let ([a, b, c, d, e, f], [g, h, i, j]) = (to, self.ifindex.to_be_bytes());
        [a, b, c, d, e, f, NO_SENDER, self.kind, g, h, i, j]
    }

    /// The way in a frame's addresses; `None`: it is no injected frame.
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
