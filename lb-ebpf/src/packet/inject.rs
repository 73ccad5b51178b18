//! Frames that the gateway itself sends by the loopback device ([`lb_common::packet::inject`]).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::{bpf_redirect, bpf_skb_change_type},
    programs::TcContext,
};
use lb_common::packet::{
    Ethernet,
    inject::{ARRIVAL, Way},
};

use super::{
    bytes::{read, writable},
    error::{Error, NEXT, verdict},
    layout::{ETHERNET, PACKET_HOST},
    redirect::send,
};

/// Sends a marked frame on its way; [`NEXT`]: it is none of ours. Not inlined: all other packets pay for one comparison.
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
            // That device's program sees it, and then the stack, as any packet that the device receives.
            return bpf_redirect(way.ifindex, BPF_F_INGRESS.into()) as i32;
        }
        // It was addressed to nobody. The other end of a veth does not take what is for another host.
        bpf_skb_change_type(skb, PACKET_HOST);
    }
    let sent = writable::<Ethernet>(&ctx, 0).map_err(Error::from).and_then(|addresses| {
        // SAFETY: within bounds.
        unsafe { *addresses = [0; 12] };
        send(&ctx, way)
    });
    verdict(sent)
}
