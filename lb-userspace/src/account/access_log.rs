//! The access log: one line for each connection, written at its end.

use crate::config::{self, LogFormat, LogTarget};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

/// The most lines that wait for a slow disk. Further ones are dropped, and a warning says how many.
const QUEUE: usize = 65_536;

/// The longest time that a line stays in the buffer.
const FLUSH: Duration = Duration::from_millis(200);

/// A line of the access log. Absent fields are left out.
#[derive(Debug, Serialize)]
pub struct LogRecord<'a> {
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    /// The listener's name.
    pub listener: &'a str,
    /// The client.
    pub client: SocketAddr,
    /// A valid host name: the sniffer accepts no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<&'a str>,
    /// The name in the clear, if `sni` was encrypted (ECH).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni_outer: Option<&'a str>,
    /// What became of the client's Encrypted ClientHello.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ech: Option<&'static str>,
    /// The protocols offered, escaped and bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<&'a [String]>,
    /// Passthrough: the highest version offered; terminated: the version agreed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_version: Option<&'a str>,
    /// Its route.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    /// The pool chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<&'a str>,
    /// The server, as configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The tier that carried it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<&'static str>,
    /// Why it is not the first tier of the order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier_reason: Option<&'static str>,
    /// Client to server.
    pub bytes_in: u64,
    /// Server to client.
    pub bytes_out: u64,
    /// From accept to close.
    pub duration_ms: u64,
    /// A close reason, or the reject reason of a client that got no route.
    pub close_reason: &'static str,
    /// Why TLS with the client failed, or with the server: the close reason says with which.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_error: Option<&'static str>,
    /// Who the client is by its certificate, escaped and bounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<&'a str>,
    /// Fingerprint of the ClientHello.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ja4: Option<&'a str>,
}

impl LogRecord<'_> {
    /// The line in this format, without its line end.
    pub fn line(&self, format: LogFormat) -> String {
        match format {
            // Cannot fail: every field is a string or a number.
            LogFormat::Json => serde_json::to_string(self).unwrap_or_default(),
            LogFormat::Text => self.text(),
        }
    }

    fn text(&self) -> String {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_string();
        let mut line = format!(
            "{} {} {} sni={} route={} server={}/{} tier={}",
            self.time,
            self.listener,
            self.client,
            or_dash(self.sni),
            or_dash(self.route),
            or_dash(self.pool),
            or_dash(self.server.as_deref()),
            or_dash(self.tier),
        );
        if let Some(reason) = self.tier_reason {
            let _ = write!(line, "({reason})");
        }
        if let Some(alpn) = self.alpn {
            // A client may put spaces into it, but quotes are escaped.
            let _ = write!(line, " alpn=\"{}\"", alpn.join(","));
        }
        if let Some(name) = self.client_certificate {
            // As above.
            let _ = write!(line, " client_certificate=\"{name}\"");
        }
        let _ = write!(
            line,
            " in={} out={} {}ms {}",
            self.bytes_in, self.bytes_out, self.duration_ms, self.close_reason
        );
        if let Some(error) = self.tls_error {
            let _ = write!(line, "({error})");
        }
        line
    }
}

/// The time now in the access log's format.
pub(super) fn time_now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// Text from the network made safe to show: other characters than printable ASCII are escaped, and it has at most 64
/// characters.
pub(super) fn printable(bytes: &[u8]) -> String {
    bytes.escape_ascii().take(64).map(char::from).collect()
}

/// The access log. A thread of its own writes the lines, so that a slow disk never delays a worker.
pub struct AccessLog {
    /// How lines are written.
    pub format: LogFormat,
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
    reopen: Arc<AtomicBool>,
}

impl AccessLog {
    /// Opens the log. The thread ends when the `AccessLog` is dropped and the last line is written.
    pub fn open(config: &config::AccessLog) -> io::Result<(AccessLog, JoinHandle<()>)> {
        let path = match &config.target {
            LogTarget::Stdout => None,
            LogTarget::File(path) => Some(path.clone()),
        };
        let file = path.as_ref().map(append_to).transpose()?;
        let (lines, queue) = sync_channel(QUEUE);
        let (dropped, reopen) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let writer = Writer { queue, path, dropped: dropped.clone(), reopen: reopen.clone() };
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || writer.run(file))?;
        Ok((AccessLog { format: config.format, lines, dropped, reopen }, thread))
    }

    /// Queues a line; never waits.
    pub fn write(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Opens the file anew before the next line, after logrotate has moved it.
    pub fn reopen(&self) {
        self.reopen.store(true, Relaxed);
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

struct Writer {
    queue: Receiver<String>,
    path: Option<PathBuf>,
    dropped: Arc<AtomicU64>,
    reopen: Arc<AtomicBool>,
}

impl Writer {
    fn run(self, file: Option<File>) {
        // Privileges are per thread, and this one was started before the process dropped them.
        if let Err(error) = crate::privileges::drop_privileges() {
            tracing::warn!(%error, "the access log's thread keeps its privileges");
        }
        let sink = |file: Option<File>| -> BufWriter<Box<dyn Write>> {
            BufWriter::new(match file {
                Some(file) => Box::new(file),
                None => Box::new(io::stdout()),
            })
        };
        let mut out = sink(file);
        let mut failing = false;
        let mut flushed = Instant::now();
        loop {
            let line = self.queue.recv_timeout(FLUSH);
            if self.reopen.swap(false, Relaxed)
                && let Some(path) = &self.path
            {
                let _ = out.flush();
                match append_to(path) {
                    Ok(file) => out = sink(Some(file)),
                    Err(error) => {
                        tracing::error!(path = %path.display(), %error, "cannot reopen the access log")
                    }
                }
            }
            let result = match line {
                // In one piece: the buffer then never ends within a line, and a process that was taken over, or takes over, may
                // write to the same file.
                Ok(mut line) => {
                    line.push('\n');
                    out.write_all(line.as_bytes())
                }
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = out.flush();
                    return;
                }
            };
            let result = match flushed.elapsed() >= FLUSH {
                true => {
                    flushed = Instant::now();
                    result.and_then(|()| out.flush())
                }
                false => result,
            };
            match result {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    tracing::error!(%error, "cannot write the access log");
                    failing = true;
                }
                Err(_) => {}
            }
            let dropped = self.dropped.swap(0, Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "the access log does not keep up: lines dropped");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LogRecord<'static> {
        LogRecord {
            time: "2026-01-02T03:04:05.678Z".into(),
            listener: "databases",
            client: "192.0.2.1:5000".parse().unwrap(),
            sni: Some("app1.redis.example.com"),
            sni_outer: None,
            ech: None,
            alpn: None,
            tls_version: Some("1.3"),
            route: Some("redis-1"),
            pool: Some("redis-1"),
            server: Some("10.0.0.11:6379".into()),
            tier: Some("copy"),
            tier_reason: Some("packet_unavailable"),
            bytes_in: 10,
            bytes_out: 20,
            duration_ms: 30,
            close_reason: "client_closed",
            tls_error: None,
            client_certificate: None,
            ja4: None,
        }
    }

    #[test]
    fn json_leaves_absent_fields_out() {
        let line = record().line(LogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["bytes_out"], 20);
        assert_eq!(value["tier_reason"], "packet_unavailable");
        assert!(value.get("alpn").is_none() && value.get("ja4").is_none());
    }

    #[test]
    fn text_is_one_line_for_a_person() {
        assert_eq!(
            record().line(LogFormat::Text),
            "2026-01-02T03:04:05.678Z databases 192.0.2.1:5000 sni=app1.redis.example.com route=redis-1 \
             server=redis-1/10.0.0.11:6379 tier=copy(packet_unavailable) in=10 out=20 30ms client_closed"
        );
        let known = LogRecord { client_certificate: Some("CN=a b"), ..record() };
        assert!(known.line(LogFormat::Text).contains(" client_certificate=\"CN=a b\" in=10 "));
        let alpn = [printable(b"h2 in=0 \"")];
        let of_client = LogRecord { alpn: Some(&alpn), ..record() };
        assert!(of_client.line(LogFormat::Text).contains(" alpn=\"h2 in=0 \\\"\" in=10 "));
        let failed =
            LogRecord { close_reason: "tls_handshake_failed", tls_error: Some("unknown_ca"), ..record() };
        assert!(failed.line(LogFormat::Text).ends_with(" tls_handshake_failed(unknown_ca)"));
    }

    #[test]
    fn text_from_the_network_is_escaped_and_bounded() {
        assert_eq!(printable(b"h2"), "h2");
        assert_eq!(printable(b"\x1b[31m\xff\n"), "\\x1b[31m\\xff\\n");
        assert_eq!(printable(&[b'a'; 1000]).len(), 64);
    }

    #[test]
    fn every_line_reaches_the_file_also_after_a_rotation() {
        let dir = std::env::temp_dir().join(format!("snisplice-access-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (path, moved) = (dir.join("access.log"), dir.join("access.log.1"));
        let config = config::AccessLog { target: LogTarget::File(path.clone()), format: LogFormat::Text };
        let (log, thread) = AccessLog::open(&config).unwrap();
        log.write("before".into());
        while std::fs::read_to_string(&path).unwrap() != "before\n" {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::fs::rename(&path, &moved).unwrap();
        log.reopen();
        log.write("after".into());
        drop(log);
        thread.join().unwrap();
        let (first, second) = (std::fs::read_to_string(&moved), std::fs::read_to_string(&path));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!((first.unwrap().as_str(), second.unwrap().as_str()), ("before\n", "after\n"));
    }
}
