//! snisplice: an eBPF-accelerated SNI load balancer for a gateway node.

use std::process::ExitCode;

fn main() -> ExitCode {
    snisplice::cli::main()
}
