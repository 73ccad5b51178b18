//! What the gateway itself sends on a way of its own, by the loopback device ([`lb_common::packet::inject`]).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::{bpf_redirect, bpf_skb_change_type},
    programs::TcContext,
};
use lb_common::packet::{
    Ethernet,
    inject::{ARRIVAL, Way},
};

use super::{ETHERNET, NEXT, PACKET_HOST, header, read, redirect};

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
        // The mark was for this program. Left on, `ip rule fwmark` and the receiver's filters could match it.
        (*skb).mark = 0;
        if way.kind == ARRIVAL {
            // Its program sees it there, as any packet that the device receives, and so does the stack.
            return bpf_redirect(way.ifindex, BPF_F_INGRESS.into()) as i32;
        }
        // It was addressed to nobody; what is for another host is not taken at the other end of a veth.
        bpf_skb_change_type(skb, PACKET_HOST);
        let Some(addresses) = header::<Ethernet>(&ctx, 0, ETHERNET) else { return NEXT };
        *addresses = [0; 12];
    }
    redirect(&ctx, way.ifindex, way.kind).unwrap_or(NEXT)
}
