//! What `snisplice::kernel` has of the kernel beside programs: devices, routes, pairs, IPsec policies, batches of map
//! entries, filters, other gateways, adopted maps, whose the pins are, connection tracking, raw sockets; and that programs are
//! loaded while signals come. Each test has network namespaces of its own.

mod adoption;
mod batch;
mod conntrack;
mod devices;
mod filters;
mod foreign;
mod ipsec;
mod loading;
mod pairs;
mod pins;
mod probe;
mod raw;
mod routes;
