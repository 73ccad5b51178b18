//! The clients: redis-benchmark, iperf3, and many quiet TLS connections. A wrong answer is an error, never a
//! slow figure.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::topology::{SNI, Site};

/// Whether redis-benchmark keeps its connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reconnect {
    Never,
    EveryRequest,
}

/// What redis-benchmark found.
pub(crate) struct Requests {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// Which way the bytes of an iperf3 stream flow, seen from the client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Up,
    Down,
}

/// What iperf3 found, at the receiving end.
pub(crate) struct Transfer {
    pub(crate) gbit_per_second: f64,
    pub(crate) gib: f64,
}

/// Runs redis-benchmark over TLS: one command, 50 connections.
pub(crate) fn redis_benchmark(
    site: &Site,
    target: SocketAddr,
    test: &str,
    requests: u32,
    reconnect: Reconnect,
) -> Result<Requests> {
    let mut command = site.triangle.client.command("redis-benchmark");
    command
        .args([
            "-h",
            &target.ip().to_string(),
            "-p",
            &target.port().to_string(),
            "-c",
            "50",
            "-t",
            test,
            "--csv",
        ])
        .args(["-n", &requests.to_string(), "-k", if reconnect == Reconnect::Never { "1" } else { "0" }])
        // One suite on offer, so that every subject uses the same.
        .args(["--tls", "--sni", SNI, "--tls-ciphersuites", "TLS_AES_128_GCM_SHA256", "--cacert"])
        .arg(&site.leaf.authority);
    let output = run(command)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let trouble: Vec<_> = stderr.lines().filter(|line| !is_advice(line)).collect();
    ensure!(
        output.status.success() && trouble.is_empty(),
        "redis-benchmark: {}: {}",
        output.status,
        trouble.join("\n")
    );
    parse_redis_csv(&String::from_utf8_lossy(&output.stdout), test)
}

/// Runs one iperf3 stream.
pub(crate) fn iperf(site: &Site, target: SocketAddr, direction: Direction, seconds: u32) -> Result<Transfer> {
    let mut command = site.triangle.client.command("iperf3");
    command.args([
        "-c",
        &target.ip().to_string(),
        "-p",
        &target.port().to_string(),
        "-t",
        &seconds.to_string(),
        "-J",
    ]);
    if direction == Direction::Down {
        command.arg("-R");
    }
    let output = run(command)?;
    parse_iperf_json(&output.stdout).with_context(|| format!("iperf3: {}", output.status))
}

/// Established TLS connections to Redis, each of which has answered a PING.
pub(crate) struct IdleConnections(Vec<StreamOwned<ClientConnection, TcpStream>>);

/// Opens `count` connections from the client's namespace, one after another.
pub(crate) fn idle_connections(site: &Site, target: SocketAddr, count: u32) -> Result<IdleConnections> {
    let config = client_config(site)?;
    site.triangle.client.run(|| {
        let open = (0..count)
            .map(|number| connect(&config, target).with_context(|| format!("idle connection {number}")))
            .collect::<Result<_>>()?;
        Ok(IdleConnections(open))
    })
}

impl IdleConnections {
    /// Checks that every connection still answers, then closes them all.
    pub(crate) fn close(mut self) -> Result<()> {
        for stream in &mut self.0 {
            ping(stream)?;
            stream.conn.send_close_notify();
            stream.flush()?;
        }
        Ok(())
    }
}

fn connect(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
) -> Result<StreamOwned<ClientConnection, TcpStream>> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.set_nodelay(true)?;
    let connection = ClientConnection::new(Arc::clone(config), ServerName::try_from(SNI)?)?;
    let mut stream = StreamOwned::new(connection, socket);
    ping(&mut stream)?;
    Ok(stream)
}

fn ping(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> Result<()> {
    stream.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer)?;
    ensure!(&answer == b"+PONG\r\n", "Redis answered {answer:?} to PING");
    Ok(())
}

/// The same suite and key exchange as redis-benchmark's, and a full handshake every time.
fn client_config(site: &Site) -> Result<Arc<ClientConfig>> {
    use rustls::crypto::aws_lc_rs as crypto;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&site.leaf.authority)?)?;
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: vec![crypto::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![crypto::kx_group::X25519],
        ..crypto::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn run(mut command: Command) -> Result<Output> {
    command.output().with_context(|| format!("running {}", command.get_program().display()))
}

/// What redis-benchmark prints whenever it reconnects: to set tcp_tw_reuse, which is set.
fn is_advice(line: &str) -> bool {
    line.trim().is_empty() || line.starts_with("WARNING: Keepalive disabled.")
}

fn parse_redis_csv(csv: &str, test: &str) -> Result<Requests> {
    let mut lines = csv.lines().map(|line| line.split(',').map(|cell| cell.trim_matches('"')).collect());
    let (Some(header), Some(row), None) = (lines.next(), lines.next(), lines.next()) else {
        bail!("redis-benchmark printed not one header and one row:\n{csv}");
    };
    let (header, row): (Vec<&str>, Vec<&str>) = (header, row);
    let cell = |name: &str| -> Result<f64> {
        let column = header.iter().position(|cell| *cell == name);
        let text = column.and_then(|column| row.get(column));
        let value: f64 =
            text.with_context(|| format!("redis-benchmark printed no {name}:\n{csv}"))?.parse()?;
        ensure!(value.is_finite() && value > 0.0, "redis-benchmark's {name} is {value}:\n{csv}");
        Ok(value)
    };
    ensure!(row.first().is_some_and(|name| name.eq_ignore_ascii_case(test)), "not a row of {test}:\n{csv}");
    Ok(Requests {
        per_second: cell("rps")?,
        p50_ms: cell("p50_latency_ms")?,
        p99_ms: cell("p99_latency_ms")?,
    })
}

fn parse_iperf_json(json: &[u8]) -> Result<Transfer> {
    let report: serde_json::Value = serde_json::from_slice(json)?;
    if let Some(error) = report["error"].as_str() {
        bail!("{error}");
    }
    let received = &report["end"]["sum_received"];
    let number =
        |name: &str| received[name].as_f64().filter(|value| *value > 0.0).context("nothing received");
    Ok(Transfer {
        gbit_per_second: number("bits_per_second")? / 1e9,
        gib: number("bytes")? / f64::from(1 << 30),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str = "\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\
                       \"p95_latency_ms\",\"p99_latency_ms\",\"max_latency_ms\"\n\
                       \"GET\",\"45454.55\",\"0.6\",\"0.1\",\"0.55\",\"0.9\",\"1.2\",\"3.4\"\n";

    #[test]
    fn the_csv_of_redis_benchmark_is_read_by_column_name() {
        let found = parse_redis_csv(CSV, "get").unwrap();
        assert_eq!((found.per_second, found.p50_ms, found.p99_ms), (45454.55, 0.55, 1.2));
    }

    #[test]
    fn a_wrong_row_a_zero_rate_and_stray_lines_are_errors() {
        assert!(parse_redis_csv(CSV, "set").is_err());
        assert!(parse_redis_csv(&CSV.replace("45454.55", "0.00"), "get").is_err());
        assert!(parse_redis_csv(&format!("{CSV}Error from server\n"), "get").is_err());
        assert!(parse_redis_csv("", "get").is_err());
    }

    #[test]
    fn iperf_errors_and_empty_transfers_are_errors() {
        let good = br#"{"end":{"sum_received":{"bits_per_second":2e9,"bytes":1073741824}}}"#;
        let found = parse_iperf_json(good).unwrap();
        assert_eq!((found.gbit_per_second, found.gib), (2.0, 1.0));
        assert!(parse_iperf_json(br#"{"error":"unable to connect"}"#).is_err());
        assert!(parse_iperf_json(br#"{"end":{"sum_received":{"bits_per_second":0,"bytes":0}}}"#).is_err());
        assert!(parse_iperf_json(b"").is_err());
    }
}
