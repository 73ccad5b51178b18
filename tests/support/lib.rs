//! What the tests, the demo and the benchmarks share: network namespaces, real peers, certificates, byte streams.
//!
//! Nothing here needs cleaning up by hand: namespaces live as long as a file descriptor, processes die with
//! the thread that started them, files live in a directory that is removed on drop.

pub mod api_server;
pub mod backend;
pub mod bpffs;
pub mod certs;
pub mod counters;
pub mod dns;
pub mod ech;
pub mod envoy;
pub mod gateway;
pub mod half_successor;
pub mod hold;
pub mod interrupt;
pub mod left;
pub mod mysql;
pub mod netns;
pub mod postgres;
pub mod probes;
pub mod process;
pub mod proxy;
pub mod pump;
pub mod redis;
pub mod signals;
pub mod skip;
pub mod starttls;
pub mod stranger;
pub mod tempdir;
pub mod threads;
pub mod tls;
pub mod topology;
pub mod wait;
pub mod wire;

pub use api_server::ApiServer;
pub use backend::Backend;
pub use bpffs::BpfFs;
pub use certs::{Authority, Leaf};
pub use counters::Counters;
pub use dns::{FailingNameServer, NameServer};
pub use gateway::{Gateway, Launch, Status};
pub use half_successor::HalfSuccessor;
pub use mysql::Mysql;
pub use netns::NetNs;
pub use postgres::Postgres;
pub use process::Process;
pub use redis::Redis;
pub use starttls::StarttlsServer;
pub use tempdir::TempDir;
pub use topology::Triangle;
pub use wait::eventually;
pub use wire::Wire;
