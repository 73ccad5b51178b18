//! The site of every scenario: client, gateway and server namespaces, the same kernel settings in each, and the
//! servers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use snisplice_tests::{Authority, Leaf, NetNs, Process, Redis, TempDir, Triangle};

/// The one name that clients ask for.
pub(crate) const SNI: &str = "redis.bench.example";
pub(crate) const REDIS_PORT: u16 = 6379;
pub(crate) const REDIS_TLS_PORT: u16 = 6380;
pub(crate) const IPERF_PORT: u16 = 5201;

/// Settings of every namespace. Each is the kernel's default where no comment says otherwise, so that the tuning
/// of the machine at hand does not reach the figures.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/tcp_timestamps", "1"),
    ("net/ipv4/tcp_rmem", "4096 131072 6291456"),
    ("net/ipv4/tcp_wmem", "4096 16384 4194304"),
    // A new connection per request leaves tens of thousands of ports in TIME_WAIT: have more, and reuse them.
    ("net/ipv4/ip_local_port_range", "10000 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
    // No subject may lose a connection to a short queue.
    ("net/core/somaxconn", "8192"),
    ("net/ipv4/tcp_max_syn_backlog", "8192"),
];

/// Namespaces, servers and files; all gone on drop.
pub(crate) struct Site {
    /// Held for their lives only, before what they live in.
    _servers: (Redis, Redis, Process),
    pub(crate) triangle: Triangle,
    pub(crate) leaf: Leaf,
    /// Chain and key in one file, as HAProxy wants them.
    pub(crate) combined: PathBuf,
    files: TempDir,
    _authority: Authority,
}

impl Site {
    pub(crate) fn build(congestion_control: &str) -> Result<Site> {
        let triangle = Triangle::new()?;
        for namespace in [&triangle.client, &triangle.gateway, &triangle.server] {
            namespace.sysctl("net/ipv4/tcp_congestion_control", congestion_control)?;
            for (key, value) in SYSCTLS {
                namespace.sysctl(key, value)?;
            }
        }
        let authority = Authority::new("snisplice bench authority")?;
        let leaf = authority.leaf(&[SNI])?;
        let files = TempDir::new()?;
        let combined = files.join("combined.pem");
        fs::write(&combined, [fs::read(&leaf.chain)?, fs::read(&leaf.key)?].concat())?;
        let servers = (
            Redis::plain(&triangle.server, REDIS_PORT)?,
            Redis::tls(&triangle.server, REDIS_TLS_PORT, &leaf)?,
            iperf_server(&triangle.server)?,
        );
        Ok(Site { _servers: servers, triangle, leaf, combined, files, _authority: authority })
    }

    /// Where a subject keeps its files.
    pub(crate) fn dir(&self) -> &Path {
        self.files.path()
    }
}

fn iperf_server(namespace: &NetNs) -> Result<Process> {
    let mut command = namespace.command("iperf3");
    command.args(["--server", "--port", &IPERF_PORT.to_string()]);
    let mut server = Process::spawn("iperf3", command)?;
    server.wait_listening(&[IPERF_PORT])?;
    Ok(server)
}
