//! Each directory of `examples/` as it stands: its configuration, real servers at the addresses that it names, and real
//! clients.

mod canary;
mod databases;
mod east_west;
mod ech;
mod failover;
mod multisite;
mod redis;
mod scene;
mod site;
