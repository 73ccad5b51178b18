//! Translates a TCP header for the other leg, and computes the change of its checksum. Pure; the same source for kernel
//! and host.

use super::{Flow, before, flag};

/// TCP flags, in the order of the header's fourteenth byte.
pub mod tcp {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number is valid.
    pub const ACK: u8 = 0x10;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;
    /// Accurate ECN; the lowest bit of the byte before.
    pub const AE: u8 = 0x01;
}

/// The part of a TCP header that is translated, as it stands in the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    /// Source and destination port.
    pub ports: u32,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Data offset, flags, window.
    pub control: u32,
}

impl Head {
    /// The words, for the checksum.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        [self.ports, self.seq, self.ack, self.control]
    }

    /// Bytes of the header, options included.
    #[inline(always)]
    pub const fn length(&self) -> usize {
        (self.control.to_ne_bytes()[0] >> 4) as usize * 4
    }

    /// See [`tcp`].
    #[inline(always)]
    pub const fn flags(&self) -> u8 {
        self.control.to_ne_bytes()[1]
    }

    /// Whether any of these flags is set.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags() & flags != 0
    }

    /// Sequence number, in host order.
    #[inline(always)]
    pub const fn sequence(&self) -> u32 {
        u32::from_be(self.seq)
    }

    /// Acknowledgement number, in host order.
    #[inline(always)]
    pub const fn acknowledgement(&self) -> u32 {
        u32::from_be(self.ack)
    }

    /// The window, unscaled.
    #[inline(always)]
    pub const fn window(&self) -> u16 {
        let [_, _, window @ ..] = self.control.to_ne_bytes();
        u16::from_be_bytes(window)
    }

    /// The header with its window, of this scale, clamped to the right edge `end`.
    #[inline(always)]
    pub const fn with_window_up_to(&self, end: u32, scale: u8) -> Self {
        let [offset, flags, window @ ..] = self.control.to_ne_bytes();
        let ack = self.acknowledgement();
        let room = if before(end, ack) { 0 } else { end.wrapping_sub(ack) >> (scale & 15) };
        let window = u16::from_be_bytes(window);
        let window = if (window as u32) < room { window } else { room as u16 }.to_be_bytes();
        Self { control: u32::from_ne_bytes([offset, flags, window[0], window[1]]), ..*self }
    }
}

impl Flow {
    /// The header as the packet leaves.
    #[inline(always)]
    pub const fn translate(&self, head: &Head) -> Head {
        let [offset, mut flags, window @ ..] = head.control.to_ne_bytes();
        if self.has(flag::STRIP_ECN) {
            flags &= !(tcp::ECE | tcp::CWR);
        }
        let window = u16::from_be_bytes(window);
        // The window of a SYN is never scaled (RFC 7323, section 2.2).
        let window = if head.has(tcp::SYN) { window } else { self.window(window) }.to_be_bytes();
        Head {
            ports: ports(self.out.source_port, self.out.destination_port),
            seq: head.sequence().wrapping_add(self.seq_delta).to_be(),
            ack: if head.has(tcp::ACK) {
                head.acknowledgement().wrapping_add(self.ack_delta).to_be()
            } else {
                head.ack
            },
            control: u32::from_ne_bytes([offset, flags, window[0], window[1]]),
        }
    }

    /// The window in units of the scale announced to the receiver. A window that is not zero stays so: it is rounded up by
    /// less than one unit.
    #[inline(always)]
    pub const fn window(&self, window: u16) -> u16 {
        let shift = self.own_scale as i8 - self.promised_scale as i8;
        if shift >= 0 {
            let wide = (window as u32) << (shift as u32 & 15);
            if wide > u16::MAX as u32 { u16::MAX } else { wide as u16 }
        } else {
            let narrow = window >> (shift.unsigned_abs() as u32 & 15);
            if narrow == 0 && window != 0 { 1 } else { narrow }
        }
    }

    /// TSval and TSecr as the packet leaves. A TSecr before the floor echoes our own socket's TSval, which the receiver has
    /// never sent: it becomes 0, as before the first segment is received.
    #[inline(always)]
    pub const fn timestamps(&self, tsval: u32, tsecr: u32, tsecr_floor: Option<u32>) -> (u32, u32) {
        let unknown = match tsecr_floor {
            _ if tsecr == 0 => true,
            Some(floor) => before(tsecr, floor),
            None => false,
        };
        let tsecr = if unknown { 0 } else { tsecr.wrapping_add(self.tsecr_delta) };
        (tsval.wrapping_add(self.tsval_delta), tsecr)
    }
}

/// Two ports as they stand in a packet.
#[inline(always)]
pub const fn ports(source: u16, destination: u16) -> u32 {
    let ([a, b], [c, d]) = (source.to_ne_bytes(), destination.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// Sums by how much changed words change a checksum (RFC 1624): the difference that `bpf_l4_csum_replace` takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference(u64);

impl Difference {
    /// A word changes. Both as they stand in the packet, at an even offset.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + !old as u64 + new as u64)
    }

    /// Several words change.
    #[inline(always)]
    pub const fn words<const N: usize>(mut self, old: &[u32; N], new: &[u32; N]) -> Self {
        let mut i = 0;
        while i < N {
            self = self.word(old[i], new[i]);
            i += 1;
        }
        self
    }

    /// The sum, with its carries.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (once as u32).wrapping_add((once >> 32) as u32)
    }

    /// A checksum field as it stands in the packet, after the change.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        let sum = self.sum();
        let sum = (!checksum) as u32 + (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        !((sum & 0xffff) + (sum >> 16)) as u16
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Tuple, exit};
    use super::*;

    pub(in super::super) fn flow() -> Flow {
        Flow {
            id: 1,
            origin: 0,
            out: Tuple::v4(1, 2, 3, 4),
            seq_delta: 0x8000_0001,
            ack_delta: 7,
            tsval_delta: 100,
            tsecr_delta: u32::MAX - 99,
            ifindex: 1,
            from: 2,
            slot: 0,
            own_scale: 0,
            peer_scale: 0,
            promised_scale: 0,
            flags: flag::TIMESTAMPS | flag::SACK,
            exit: exit::NEIGHBOUR,
            padding: [0; 3],
        }
    }

    #[test]
    fn a_window_is_rescaled_and_never_closed_or_wrapped_by_it() {
        let mut flow = flow();
        for (own, promised, window, expected) in [
            (7, 7, 500, 500),
            (10, 7, 500, 4000),
            (14, 0, 65535, 65535),
            (0, 7, 65535, 511),
            (0, 7, 127, 1),
            (0, 7, 0, 0),
            (0, 14, 1, 1),
        ] {
            (flow.own_scale, flow.promised_scale) = (own, promised);
            assert_eq!(flow.window(window), expected, "{window} from {own} to {promised}");
        }
    }

    #[test]
    fn a_window_ends_where_it_is_told_to_at_the_latest() {
        let head = |ack: u32, window: u16| {
            let [high, low] = window.to_be_bytes();
            Head {
                ports: 1,
                seq: 2,
                ack: ack.to_be(),
                control: u32::from_ne_bytes([0x50, tcp::ACK, high, low]),
            }
        };
        for (ack, window, end, scale, expected) in [
            (1000, 500, 2000, 0, 500),
            (1000, 500, 1400, 0, 400),
            (1000, 500, 1000, 0, 0),
            (1000, 500, 999, 0, 0),
            (1000, 500, 1000 + (100 << 7) + 127, 7, 100),
            (u32::MAX - 9, 500, 90, 0, 100),
            (1000, u16::MAX, 1000 + (1 << 30), 14, u16::MAX),
            (1000, u16::MAX, 1000 + (1 << 30), 0, u16::MAX),
        ] {
            let limited = head(ack, window).with_window_up_to(end, scale);
            assert_eq!(limited, head(ack, expected), "{window} from {ack}, to {end}, by {scale}");
        }
    }

    #[test]
    fn a_tsecr_that_echoes_our_own_socket_is_unknown() {
        let flow = flow();
        assert_eq!(flow.timestamps(5, 1000, None), (105, 900));
        assert_eq!(flow.timestamps(5, 1000, Some(1000)), (105, 900));
        assert_eq!(flow.timestamps(5, 999, Some(1000)), (105, 0));
        assert_eq!(flow.timestamps(5, 0, None), (105, 0));
    }

    #[test]
    fn a_difference_changes_a_checksum_as_a_new_sum_would() {
        let sum = |words: &[u32]| {
            let mut sum: u64 = words.iter().flat_map(|w| [w & 0xffff, w >> 16]).map(u64::from).sum();
            while sum >> 16 != 0 {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            !(sum as u16)
        };
        let (old, new) = ([0x1234_5678, 0xffff_ffff, 0], [0xfedc_ba98, 1, 0xffff_0000]);
        let changed = Difference::default().words(&old, &new).apply(sum(&old));
        assert_eq!(changed, sum(&new));
    }
}
