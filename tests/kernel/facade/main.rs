//! What `snisplice::kernel` has of the kernel beside programs: devices, batches of map entries, connection tracking,
//! raw sockets. Each test has network namespaces of its own.

mod batch;
mod conntrack;
mod devices;
mod probe;
mod raw;
