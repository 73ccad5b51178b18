//! snisplice: an eBPF-accelerated SNI load balancer for a gateway node.
use snisplice as _;
fn main() {}
