//! What the gateway itself sends on a way of its own, by the loopback device ([`lb_common::packet::inject`]).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type},
    programs::TcContext,
};
use lb_common::packet::{
    Ethernet, exit,
    inject::{ARRIVAL, Way},
};

use super::{ETHERNET, LOOPBACK, NEXT, header, read};

/// linux/if_packet.h: for this host.
const PACKET_HOST: u32 = 0;

/// Sends a marked frame on its way. Not inlined: other packets pay for a comparison, no more.
#[inline(never)]
pub(super) fn follow(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    let Some(way) = read(&ctx, 0, ETHERNET).and_then(|addresses: Ethernet| Way::of(&addresses)) else {
        return NEXT;
    };
    // SAFETY: a field of the program's context, which lives as long as the run, and helpers that take the context; the
    // header's bounds are checked.
    unsafe {
        // It was for us. The look-up of a neighbour would take it for one of the administrator's, and so would the end.
        (*skb).mark = 0;
        if way.kind == ARRIVAL {
            // Its program sees it there, as any packet that the device receives, and so does the stack.
            return bpf_redirect(way.ifindex, BPF_F_INGRESS.into()) as i32;
        }
        // It was addressed to nobody; what is for another host is not taken at the other end of a veth.
        bpf_skb_change_type(skb, PACKET_HOST);
        if way.kind == exit::NEIGHBOUR {
            return bpf_redirect_neigh(way.ifindex, core::ptr::null_mut(), 0, 0) as i32;
        }
        let Some(addresses) = header::<Ethernet>(&ctx, 0, ETHERNET) else { return NEXT };
        *addresses = [0; 12];
        if way.kind == exit::PEER {
            return bpf_redirect_peer(way.ifindex, 0) as i32;
        }
        bpf_redirect(LOOPBACK, BPF_F_INGRESS.into()) as i32
    }
}
