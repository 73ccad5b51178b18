//! Finds out what a packet is, from its link layer header to its TCP header.

use aya_ebpf::programs::TcContext;
use lb_common::packet::{LOOPBACK, MAPPED, Tuple, inject::INJECTED_MARK, translate::Head};

use super::{
    bytes::read,
    error::{Error, NEXT, Pass},
    icmp, inject,
    layout::{ETHERNET, IPV4, IPV6, PROTOCOL_TCP, TCP},
    odd,
    segment::segment,
};

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_ICMPV6: u8 = 58;
const ETH_P_IP: u32 = 0x0800_u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// `LINK`: bytes of the link layer header.
#[inline(always)]
pub(super) fn forward<const LINK: usize>(ctx: &TcContext) -> Result<i32, Error> {
    /// The bits of a tag that name its VLAN; all 0 if it has but a priority (IEEE 802.1Q, section 9.6).
    const VLAN: u32 = 0xfff;
    // SAFETY: fields of the program's context, which lives as long as the run.
    let (protocol, tag) = unsafe { ((*ctx.skb.skb).protocol, (*ctx.skb.skb).vlan_tci) };
    if tag & VLAN != 0 {
        return Err(Pass::Tagged.into());
    }
    // SAFETY: the same.
    let (mark, ifindex) = unsafe { ((*ctx.skb.skb).mark, (*ctx.skb.skb).ifindex) };
    if LINK == ETHERNET && mark == INJECTED_MARK && ifindex == LOOPBACK {
        let verdict = inject::follow(ctx.skb.skb);
        if verdict != NEXT {
            return Ok(verdict);
        }
    }
    match protocol {
        ETH_P_IP => ipv4::<LINK>(ctx),
        ETH_P_IPV6 => ipv6::<LINK>(ctx),
        _ => Err(Pass::OtherProtocol.into()),
    }
}

#[inline(always)]
fn ipv4<const LINK: usize>(ctx: &TcContext) -> Result<i32, Error> {
    let Some(ip) = read::<[u32; 5]>(ctx, LINK, IPV4 + TCP) else {
        // The last fragment of a packet may be shorter.
        return Err(odd::v4(ctx.skb.skb, LINK as u32));
    };
    let [version, ..] = ip[0].to_ne_bytes();
    let [.., protocol, _, _] = ip[2].to_ne_bytes();
    if protocol != PROTOCOL_TCP {
        return if protocol == PROTOCOL_ICMP {
            icmp::v4::<LINK>(ctx, &ip)
        } else {
            Err(Pass::OtherProtocol.into())
        };
    }
    let fragment = u16::from_be((ip[1] >> 16) as u16) & 0x3fff;
    if version != 0x45 || fragment != 0 {
        return Err(odd::v4(ctx.skb.skb, LINK as u32));
    }
    let head: Head = read(ctx, LINK + IPV4, TCP).ok_or(Pass::Truncated)?;
    let tuple = Tuple::v4(ip[3], ip[4], head.ports as u16, (head.ports >> 16) as u16);
    let total = u32::from(u16::from_be((ip[0] >> 16) as u16));
    segment::<LINK, IPV4>(ctx, &tuple, &head, total)
}

#[inline(always)]
fn ipv6<const LINK: usize>(ctx: &TcContext) -> Result<i32, Error> {
    let Some(ip) = read::<[u32; 10]>(ctx, LINK, IPV6 + TCP) else {
        // The last fragment of a packet may be shorter.
        return Err(odd::v6(ctx.skb.skb, LINK as u32));
    };
    let [_, _, protocol, _] = ip[1].to_ne_bytes();
    if protocol != PROTOCOL_TCP {
        return match protocol {
            PROTOCOL_ICMPV6 => icmp::v6::<LINK>(ctx),
            _ if odd::is_extension(protocol) => Err(odd::v6(ctx.skb.skb, LINK as u32)),
            _ => Err(Pass::OtherProtocol.into()),
        };
    }
    // Never on a wire (RFC 4291, section 2.5.5.2); here it would pass for an IPv4 packet of the same addresses.
    if ip[4] == MAPPED && ip[2] | ip[3] == 0 {
        return Err(Pass::Mapped.into());
    }
    let head: Head = read(ctx, LINK + IPV6, TCP).ok_or(Pass::Truncated)?;
    let tuple = Tuple {
        source: [ip[2], ip[3], ip[4], ip[5]],
        destination: [ip[6], ip[7], ip[8], ip[9]],
        source_port: head.ports as u16,
        destination_port: (head.ports >> 16) as u16,
    };
    let payload = u32::from(u16::from_be(ip[1] as u16));
    let length = if payload == 0 { 0 } else { payload + IPV6 as u32 };
    segment::<LINK, IPV6>(ctx, &tuple, &head, length)
}
