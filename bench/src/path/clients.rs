//! The clients: redis-benchmark, iperf3, and the tools of ours where there is none. A wrong answer is an error,
//! never a slow figure.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use snisplice_tests::Process;

use super::subjects::{Endpoint, Stand};
use super::topology::IPERF_PORT;
use crate::tools::quantile;
pub(crate) use crate::tools::{Connections, Direction, Paired, Steady, Transfer, Way};

/// What redis-benchmark does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requests {
    pub(crate) set: bool,
    pub(crate) clients: u32,
    pub(crate) pipeline: u32,
    /// Bytes of a value.
    pub(crate) value: u32,
}

/// What redis-benchmark or h2load found.
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// What iperf3 found, at the receiving end.
pub(crate) struct Bulk {
    pub(crate) gbit_per_second: f64,
    pub(crate) gib: f64,
}

/// How much an iperf3 test transfers.
#[derive(Clone, Copy)]
pub(crate) enum Length {
    Seconds(f64),
    Mebibytes(u32),
}

/// Runs redis-benchmark, over TLS or not.
pub(crate) fn redis_benchmark(
    stand: &Stand,
    endpoint: &Endpoint,
    tls: bool,
    load: Requests,
    requests: u64,
) -> Result<Rate> {
    let test = if load.set { "set" } else { "get" };
    let mut command = stand.site.triangle.client.command("redis-benchmark");
    command.args(["-h", &endpoint.address.ip().to_string(), "-p", &endpoint.address.port().to_string()]);
    command.args(["-c", &load.clients.to_string(), "-P", &load.pipeline.to_string()]);
    command.args(["-d", &load.value.to_string(), "-n", &requests.to_string(), "-t", test, "--csv"]);
    if tls {
        // One suite on offer, so that every subject uses the same.
        command.args([
            "--tls",
            "--sni",
            &endpoint.sni,
            "--tls-ciphersuites",
            "TLS_AES_128_GCM_SHA256",
            "--cacert",
        ]);
        command.arg(&stand.site.leaf.authority);
    }
    let output = run(&mut command)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && stderr.trim().is_empty(),
        "redis-benchmark: {}: {stderr}",
        output.status
    );
    parse_redis_csv(&String::from_utf8_lossy(&output.stdout), test)
}

/// What h2load does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HttpRequests {
    /// HTTP/2 instead of HTTP/1.1.
    pub(crate) http2: bool,
    pub(crate) clients: u32,
    /// Requests of a client that wait for their answers at the same time.
    pub(crate) streams: u32,
    /// The number in `/rN`.
    pub(crate) rule: u32,
    /// Bytes of an answer.
    pub(crate) answer: usize,
}

/// Runs h2load, over TLS. It does not verify certificates.
pub(crate) fn h2load(stand: &Stand, endpoint: &Endpoint, load: HttpRequests, requests: u64) -> Result<Rate> {
    let HttpRequests { http2, clients, streams, rule, answer } = load;
    let log = stand.site.dir().join("h2load.log");
    let _ = fs::remove_file(&log);
    let mut command = stand.site.triangle.client.command("h2load");
    command.args(["-n", &requests.to_string(), "-c", &clients.to_string(), "-m", &streams.to_string()]);
    // One suite and one group on offer, so that every subject uses the same.
    command.args(["--tls13-ciphers=TLS_AES_128_GCM_SHA256", "--groups=X25519"]);
    command.args([&format!("--connect-to={}", endpoint.address), "--log-file"]).arg(&log);
    if !http2 {
        command.arg("--h1");
    }
    command.arg(format!("https://{}:{}/r{rule}/{answer}", endpoint.sni, endpoint.address.port()));
    let output = run(&mut command)?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "h2load: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let protocol = if http2 { "h2" } else { "http/1.1" };
    ensure!(said.contains(&format!("Application protocol: {protocol}")), "not {protocol}:\n{said}");
    let log = fs::read_to_string(&log).context("the log of h2load")?;
    parse_h2load(&said, &log, requests, answer)
}

/// Runs iperf3, with a server of its own.
///
/// A lasting iperf3 server closes its listening socket after each test and opens it again. A connection that a proxy
/// makes between the two is reset (which a proxy turns into "control socket has closed unexpectedly"), and a proxy makes them later than a
/// client whose own connection has ended before.
pub(crate) fn iperf(
    stand: &Stand,
    endpoint: &Endpoint,
    direction: Direction,
    streams: u32,
    length: Length,
) -> Result<Bulk> {
    let triangle = &stand.site.triangle;
    let mut server = triangle.server.command("iperf3");
    server.args(["--server", "--one-off", "--port", &IPERF_PORT.to_string()]);
    let mut server = Process::spawn("iperf3 server", server)?;
    server.wait_listening(&[IPERF_PORT])?;

    let mut command = triangle.client.command("iperf3");
    command.args(["-c", &endpoint.address.ip().to_string(), "-p", &endpoint.address.port().to_string()]);
    command.args(["-P", &streams.to_string(), "-J"]);
    match length {
        // It takes whole seconds only.
        Length::Seconds(seconds) => command.args(["-t", &seconds.ceil().to_string()]),
        Length::Mebibytes(mebibytes) => command.args(["-n", &format!("{mebibytes}M")]),
    };
    if direction == Direction::Down {
        command.arg("-R");
    }
    let output = run(&mut command)?;
    let found = parse_iperf_json(&output.stdout).with_context(|| format!("iperf3: {}", output.status))?;
    server.wait(Duration::from_secs(10)).context("the server did not see the end")?;
    Ok(found)
}

/// One TLS transfer of so many bytes.
pub(crate) fn stream(
    stand: &Stand,
    endpoint: &Endpoint,
    direction: Direction,
    bytes: u64,
) -> Result<Transfer> {
    let direction = if direction == Direction::Up { "up" } else { "down" };
    tool(stand, "stream", endpoint, &["--direction", direction, "--bytes", &bytes.to_string()])
}

/// New TLS connections to any of so many names, from so many clients at once.
pub(crate) fn connect(
    stand: &Stand,
    endpoint: &Endpoint,
    clients: u32,
    names: u32,
    resume: bool,
    seconds: f64,
) -> Result<Connections> {
    let (clients, names, seconds) = (clients.to_string(), names.to_string(), seconds.to_string());
    let mut args = vec!["--clients", &clients, "--names", &names, "--seconds", &seconds];
    if resume {
        args.push("--resume");
    }
    tool(stand, "connect", endpoint, &args)
}

/// Runs a tool of ours to its end.
pub(crate) fn tool<T: DeserializeOwned>(
    stand: &Stand,
    name: &str,
    endpoint: &Endpoint,
    args: &[&str],
) -> Result<T> {
    let mut command = tool_command(stand, name, endpoint);
    let output = run(command.args(args))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {stderr}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("what {name} printed"))
}

/// A tool of ours at work.
pub(crate) struct Running {
    name: &'static str,
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Starts it and waits until it says that it is ready.
    pub(crate) fn start(
        stand: &Stand,
        name: &'static str,
        endpoint: &Endpoint,
        args: &[&str],
    ) -> Result<Running> {
        let mut command = tool_command(stand, name, endpoint);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        let mut stdout = BufReader::new(child.stdout.take().context("piped")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let mut running = Running { name, child, stdout };
        if line != "ready\n" {
            running.wait()?;
            bail!("{name} was not ready");
        }
        Ok(running)
    }

    /// Whether it still works.
    pub(crate) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it found, once it has ended. One that waits for the end of its standard input gets it.
    pub(crate) fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        self.wait()?;
        serde_json::from_str(&text).with_context(|| format!("what {} printed", self.name))
    }

    fn wait(&mut self) -> Result<()> {
        let mut stderr = String::new();
        self.child.stderr.as_mut().context("piped")?.read_to_string(&mut stderr)?;
        ensure!(self.child.wait()?.success(), "{}: {stderr}", self.name);
        Ok(())
    }
}

fn tool_command(stand: &Stand, name: &str, endpoint: &Endpoint) -> Command {
    let mut command = stand.site.triangle.client.command(&stand.own);
    command.args([
        "tool",
        name,
        "--target",
        &endpoint.address.to_string(),
        "--sni",
        &endpoint.sni,
        "--authority",
    ]);
    command.arg(&stand.site.leaf.authority);
    command
}

fn run(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("running {}", command.get_program().display()))
}

fn parse_redis_csv(csv: &str, test: &str) -> Result<Rate> {
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
        // Infinite is the rate of what took less than a millisecond.
        ensure!(value > 0.0, "redis-benchmark's {name} is {value}:\n{csv}");
        Ok(value)
    };
    ensure!(row.first().is_some_and(|name| name.eq_ignore_ascii_case(test)), "not a row of {test}:\n{csv}");
    Ok(Rate { per_second: cell("rps")?, p50_ms: cell("p50_latency_ms")?, p99_ms: cell("p99_latency_ms")? })
}

/// `log`: when each request began, its status, and after how many microseconds its answer was whole.
fn parse_h2load(said: &str, log: &str, requests: u64, answer: usize) -> Result<Rate> {
    let all = format!("{requests} succeeded, 0 failed, 0 errored, 0 timeout");
    ensure!(
        said.contains(&all) && said.contains(&format!("status codes: {requests} 2xx")),
        "not all were answered:\n{said}"
    );
    let data = format!("({}) data", requests * answer as u64);
    ensure!(said.contains(&data), "not all of the answers have come:\n{said}");
    let finished = said.lines().find_map(|line| line.strip_prefix("finished in "));
    let rate = finished.and_then(|line| line.split(", ").find_map(|part| part.strip_suffix(" req/s")));
    let per_second = rate.with_context(|| format!("h2load printed no rate:\n{said}"))?.trim().parse()?;
    let times = log.lines().map(|line| Ok(line.split('\t').nth(2).context("no time")?.parse()?));
    let mut times = times.collect::<Result<Vec<f64>>>().context("the log of h2load")?;
    ensure!(times.len() as u64 == requests, "{} of {requests} are in its log", times.len());
    times.sort_by(f64::total_cmp);
    let ms = |share| quantile(&times, share) / 1e3;
    Ok(Rate { per_second, p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

fn parse_iperf_json(json: &[u8]) -> Result<Bulk> {
    let report: serde_json::Value = serde_json::from_slice(json)?;
    if let Some(error) = report["error"].as_str() {
        bail!("{error}");
    }
    let received = &report["end"]["sum_received"];
    let number =
        |name: &str| received[name].as_f64().filter(|value| *value > 0.0).context("nothing received");
    Ok(Bulk { gbit_per_second: number("bits_per_second")? / 1e9, gib: number("bytes")? / f64::from(1 << 30) })
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
