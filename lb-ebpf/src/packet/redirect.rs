//! How a translated packet leaves.

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_INGRESS,
    helpers::{bpf_check_mtu, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_vlan_pop},
    programs::TcContext,
};
use lb_common::packet::{Count, Flow, LOOPBACK, event, exit, inject::Way, translate::Head};

use super::{
    bytes::writable,
    error::{Error, written},
    event::tell,
    layout::FITS_ANYWHERE,
};

/// Which flow a map value belonged to when it was found. Since Linux 6.1 the kernel may give the memory of a removed
/// value to another one at once, also while a program works with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    #[inline(always)]
    pub(super) fn of(flow: &Flow) -> Self {
        // SAFETY: a reference is valid and aligned; volatile, because the memory may change.
        let (id, flags) =
            unsafe { (read_volatile(&raw const flow.id), read_volatile(&raw const flow.flags)) };
        // The other direction has the same id. Ids are counted from 1, so the highest byte is free.
        Self(id ^ u64::from(flags) << 56)
    }

    /// Whether the value still belongs to that flow: then what was read before was the flow's.
    #[inline(always)]
    pub(super) fn holds(self, flow: &Flow) -> bool {
        self == Self::of(flow)
    }
}

/// How the packets of a flow leave, as the map value has it now; [`Stamp::holds`] tells afterwards whether it was still
/// this flow's.
#[inline(always)]
pub(super) fn way_of(flow: &Flow) -> Way {
    // SAFETY: as in `Stamp::of`.
    unsafe {
        Way { ifindex: read_volatile(&raw const flow.ifindex), kind: read_volatile(&raw const flow.exit) }
    }
}

/// Whether the packet, or each segment it will be cut into, fits the device it leaves by. If not, userspace tells the
/// sender by ICMP.
#[inline(always)]
pub(super) fn fits(
    ctx: &TcContext,
    flow: &Flow,
    head: &Head,
    headers: u32,
    length: u32,
) -> Result<(), Count> {
    if length <= FITS_ANYWHERE || flow.exit == exit::LOCAL {
        return Ok(());
    }
    let mut mtu = 0;
    // SAFETY: a helper that takes the context of this program type; a field of it.
    let segment = unsafe {
        // Only for the number: its verdict takes merged segments for one packet, or does not look at them at all.
        bpf_check_mtu(ctx.as_ptr(), flow.ifindex, &mut mtu, 0, 0);
        (*ctx.skb.skb).gso_size
    };
    let size = if segment != 0 { headers + segment } else { length };
    if mtu == 0 || size <= mtu {
        return Ok(());
    }
    tell(flow, event::TOO_BIG, head.sequence(), mtu);
    Err(Count::TooBig)
}

/// Sends a packet, which has room for an Ethernet header, out by the device or into what is behind it.
#[inline(always)]
pub(super) fn send(ctx: &TcContext, way: Way) -> Result<i32, Error> {
    // SAFETY: a field of the program's context, and a helper that takes the context.
    unsafe {
        if (*ctx.skb.skb).vlan_present != 0 {
            // A priority is for the link that the packet came by.
            written(bpf_skb_vlan_pop(ctx.skb.skb))?;
        }
    }
    // SAFETY: helpers without pointers of ours; the header's bounds are checked.
    let verdict = unsafe {
        match way.kind {
            exit::LOCAL => {
                // To the loopback device, any address but its own, which is all zeros, is another host's.
                *writable::<[u16; 6]>(ctx, 0)? = [0; 6];
                bpf_redirect(LOOPBACK, BPF_F_INGRESS.into())
            }
            exit::PEER => bpf_redirect_peer(way.ifindex, 0),
            _ => bpf_redirect_neigh(way.ifindex, core::ptr::null_mut(), 0, 0),
        }
    };
    Ok(verdict as i32)
}
