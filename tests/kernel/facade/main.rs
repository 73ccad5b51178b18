//! What `snisplice::kernel` has of the kernel beside programs: devices, routes, pairs, IPsec policies, batches of map
//! entries, adopted maps, connection tracking, raw sockets. Each test has network namespaces of its own.

mod adoption;
mod batch;
mod conntrack;
mod devices;
mod ipsec;
mod pairs;
mod probe;
mod raw;
mod routes;
