//! The site of every scenario: client, gateway and server namespaces, the same kernel settings in each, and the
//! servers.

use std::cell::RefCell;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;
use snisplice_tests::process::checked_output;
use snisplice_tests::{Authority, Leaf, NetNs, Process, Redis, TempDir, Triangle, left, topology};

use crate::machine;

/// Every name that clients ask for is below it; so is the wildcard of the certificate.
pub(crate) const DOMAIN: &str = "bench.example";
pub(crate) const REDIS_PORT: u16 = 6379;
pub(crate) const REDIS_TLS_PORT: u16 = 6380;
/// Another Redis: one cannot hold more connections than it may open files, and one may die.
pub(crate) const SECOND_TLS_PORT: u16 = 6381;
pub(crate) const IPERF_PORT: u16 = 5201;
/// The server of bytes, in clear text and over TLS.
pub(crate) const BULK_PORT: u16 = 5301;
pub(crate) const BULK_TLS_PORT: u16 = 5302;

/// The server of HTTP, in clear text and over TLS.
pub(crate) const HTTP_PORT: u16 = 8080;
pub(crate) const HTTP_TLS_PORT: u16 = 8443;

/// Where the very many servers of some scenarios are: addresses of the server's namespace, at the port of Redis.
const MANY_SERVERS: &str = "10.77.0.0/16";

/// The address of one of 65 536 servers. Redis answers at all of them.
pub(crate) fn many_servers(number: u32) -> SocketAddr {
    let [_, _, high, low] = number.to_be_bytes();
    SocketAddr::from(([10, 77, high, low], REDIS_PORT))
}

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

/// Bytes of the answers that the server of HTTP has.
pub(crate) const ANSWERS: [usize; 2] = [200, 16384];

/// Namespaces, servers and files; all gone on drop.
pub(crate) struct Site {
    /// Held for their lives only, before what they live in.
    _servers: (Redis, Redis, Process, HttpServer),
    /// The Redis that may die.
    second: RefCell<Option<Redis>>,
    pub(crate) triangle: Triangle,
    pub(crate) leaf: Leaf,
    /// Chain and key in one file, as HAProxy wants them.
    pub(crate) combined: PathBuf,
    files: TempDir,
    _authority: Authority,
}

impl Site {
    /// `own` is this program, for the server of bytes.
    pub(crate) fn build(congestion_control: &str, own: &Path) -> Result<Site> {
        let triangle = Triangle::new()?;
        for namespace in [&triangle.client, &triangle.gateway, &triangle.server] {
            namespace.sysctl("net/ipv4/tcp_congestion_control", congestion_control)?;
            for (key, value) in SYSCTLS {
                namespace.sysctl(key, value)?;
            }
        }
        triangle.server.ip(&format!("route add local {MANY_SERVERS} dev lo"))?;
        triangle.gateway.ip(&format!("route add {MANY_SERVERS} via {}", topology::SERVER))?;
        left::route_to_ends(&triangle)?;
        let authority = Authority::new("snisplice bench authority")?;
        let leaf = authority.leaf(&[DOMAIN, &format!("*.{DOMAIN}")])?;
        let files = TempDir::new()?;
        let combined = files.join("combined.pem");
        fs::write(&combined, [fs::read(&leaf.chain)?, fs::read(&leaf.key)?].concat())?;
        let servers = (
            Redis::plain(&triangle.server, REDIS_PORT)?,
            Redis::tls(&triangle.server, REDIS_TLS_PORT, &leaf)?,
            bulk_server(&triangle.server, own, &leaf, BULK_PORT, Some(BULK_TLS_PORT))?,
            http_server(&triangle.server, &leaf, files.path())?,
        );
        let site = Site {
            _servers: servers,
            second: RefCell::new(None),
            triangle,
            leaf,
            combined,
            files,
            _authority: authority,
        };
        site.start_second()?;
        Ok(site)
    }

    /// Where a subject keeps its files.
    pub(crate) fn dir(&self) -> &Path {
        self.files.path()
    }

    /// Starts the second Redis again.
    pub(crate) fn start_second(&self) -> Result<()> {
        let redis = Redis::tls(&self.triangle.server, SECOND_TLS_PORT, &self.leaf)?;
        self.second.replace(Some(redis));
        Ok(())
    }

    /// A server of bytes in the place of iperf3's.
    pub(crate) fn bulk_at_iperf(&self, own: &Path) -> Result<Process> {
        bulk_server(&self.triangle.server, own, &self.leaf, IPERF_PORT, None)
    }

    /// Kills the second Redis.
    pub(crate) fn kill_second(&self) {
        self.second.take();
    }

    /// Lets no packet reach the second Redis (`true`), as if its machine had lost its power, or each of them again.
    pub(crate) fn silence_second(&self, silent: bool) -> Result<()> {
        let rules = match silent {
            true => format!(
                "add table inet silence; \
                 add chain inet silence input {{ type filter hook input priority 0; }}; \
                 add rule inet silence input tcp dport {SECOND_TLS_PORT} drop"
            ),
            false => "delete table inet silence".to_owned(),
        };
        checked_output(self.triangle.server.command("nft").arg(rules))?;
        Ok(())
    }
}

/// nginx: a killed one would leave its workers behind, one that is asked to end does not.
struct HttpServer(Process);

impl Drop for HttpServer {
    fn drop(&mut self) {
        let _ = self.0.stop();
    }
}

/// nginx, which answers `/…/SIZE` with as many bytes, in `dir`.
fn http_server(namespace: &NetNs, leaf: &Leaf, dir: &Path) -> Result<HttpServer> {
    let dir = dir.join("http-server");
    fs::create_dir_all(&dir)?;
    for size in ANSWERS {
        fs::write(dir.join(size.to_string()), vec![b'x'; size])?;
    }
    let values = [
        ("dir", dir.display().to_string()),
        ("cores", machine::cores()?.to_string()),
        ("http", HTTP_PORT.to_string()),
        ("http_tls", HTTP_TLS_PORT.to_string()),
        ("certificate", leaf.chain.display().to_string()),
        ("key", leaf.key.display().to_string()),
    ];
    let text =
        values.iter().fold(include_str!("../../peers/http-server.conf").to_owned(), |text, (name, value)| {
            text.replace(&format!("{{{{{name}}}}}"), value)
        });
    let file = dir.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = namespace.command("nginx");
    command.args(["-e", "stderr", "-p"]).arg(&dir).arg("-c").arg(&file);
    let mut server = Process::spawn("server of HTTP", command)?;
    server.wait_listening(&[HTTP_PORT, HTTP_TLS_PORT])?;
    Ok(HttpServer(server))
}

fn bulk_server(
    namespace: &NetNs,
    own: &Path,
    leaf: &Leaf,
    port: u16,
    tls_port: Option<u16>,
) -> Result<Process> {
    let mut command = namespace.command(own);
    command.args(["tool", "serve", "--port", &port.to_string()]);
    command.arg("--chain").arg(&leaf.chain).arg("--key").arg(&leaf.key);
    if let Some(port) = tls_port {
        command.args(["--tls-port", &port.to_string()]);
    }
    let mut server = Process::spawn("server of bytes", command)?;
    server.wait_listening(&[port].into_iter().chain(tls_port).collect::<Vec<_>>())?;
    Ok(server)
}
