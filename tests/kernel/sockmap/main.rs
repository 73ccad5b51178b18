//! The sockmap tier on this kernel: real sockets, every byte checked.
//!
//! The two legs of a connection are carried by `splice` on a current-thread runtime, as in the gateway; the
//! programs at both ends are blocking threads. Each test has a network namespace of its own.

mod backpressure;
mod ends;
mod gateway;
mod peers;
mod programs;
mod transfers;
