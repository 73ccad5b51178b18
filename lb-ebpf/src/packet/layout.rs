//! Sizes and numbers of the headers in a packet.

pub(super) const ETHERNET: usize = 14;
pub(super) const IPV4: usize = 20;
pub(super) const IPV6: usize = 40;
pub(super) const TCP: usize = 20;
/// Offset of the checksum in a TCP header.
pub(super) const TCP_CHECKSUM: usize = 16;
pub(super) const PROTOCOL_TCP: u8 = 6;
/// Any device takes packets of this size (RFC 8200, section 5).
pub(super) const FITS_ANYWHERE: u32 = 1280;
/// linux/if_packet.h: the frame is addressed to this host. The IP stack takes no other.
pub(super) const PACKET_HOST: u32 = 0;
