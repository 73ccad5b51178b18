//! What containers have written, for `kubectl logs`: the API server asks the kubelet over HTTPS.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use snisplice_tests::Leaf;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use super::node::{PORT, log_file};

/// Answers `GET /containerLogs/NAMESPACE/POD/CONTAINER`, to whoever asks: the segment has no strangers.
pub(super) async fn serve(directory: PathBuf, certificate: Leaf) -> Result<()> {
    fs::create_dir_all(&directory)?;
    let chain = CertificateDer::pem_file_iter(&certificate.chain)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&certificate.key)?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("::", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, directory) = (acceptor.clone(), directory.clone());
        tokio::task::spawn_local(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            // Whoever follows a log ends that by closing the connection.
            let _ = answer(stream, &directory).await;
        });
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, directory: &Path) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request).await?;
    let mut header = String::new();
    while stream.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let target = request.split(' ').nth(1).context("a request has a target")?;
    let Ok(asked) = Asked::parse(target, directory) else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?;
        return Ok(stream.shutdown().await?);
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n").await?;
    let mut sent = 0;
    loop {
        let log = fs::read_to_string(&asked.file).unwrap_or_default();
        // Only whole lines: the rest is still being written.
        let whole = log.rfind('\n').map_or(0, |end| end + 1);
        stream.write_all(asked.part(&log[sent..whole], sent == 0).as_bytes()).await?;
        stream.flush().await?;
        sent = whole;
        if !asked.follow || !asked.file.exists() {
            return Ok(stream.shutdown().await?);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What is asked for.
struct Asked {
    file: PathBuf,
    follow: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<usize>,
}

impl Asked {
    fn parse(target: &str, directory: &Path) -> Result<Self> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let words: Vec<&str> = path.split('/').collect();
        let ["", "containerLogs", namespace, pod, container] = words[..] else {
            anyhow::bail!("no path of a log: {path}");
        };
        let file = log_file(directory, namespace, pod, container);
        ensure!(file.is_file(), "no such log: {}", file.display());
        let get = |key: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|pair| pair.0 == key).map(|pair| pair.1.replace("%3A", ":"))
        };
        let since = get("sinceTime").and_then(|time| time.parse().ok());
        let ago = get("sinceSeconds").and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        Ok(Self {
            file,
            follow: get("follow").as_deref() == Some("true"),
            timestamps: get("timestamps").as_deref() == Some("true"),
            since: since.or_else(|| Some(Timestamp::now() - ago?)),
            tail: get("tailLines").and_then(|lines| lines.parse().ok()),
        })
    }

    /// Lines of the log, as they are wanted.
    fn part(&self, lines: &str, first: bool) -> String {
        let wanted = lines.split_inclusive('\n').filter_map(|line| {
            let (time, text) = line.split_once(' ')?;
            let late = self.since.is_none_or(|since| time.parse().is_ok_and(|time: Timestamp| time >= since));
            late.then_some(if self.timestamps { line } else { text })
        });
        let wanted: Vec<&str> = wanted.collect();
        let tail = self.tail.filter(|_| first).unwrap_or(usize::MAX);
        wanted[wanted.len().saturating_sub(tail)..].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snisplice_tests::TempDir;

    #[test]
    fn the_lines_that_are_asked_for_are_given() {
        let directory = TempDir::new().unwrap();
        let log = "2026-01-01T00:00:00Z one\n2026-01-01T00:00:01Z two\n2026-01-01T00:00:02Z three\n";
        fs::write(directory.join("n_p_c"), log).unwrap();
        let part = |query: &str| {
            let asked = Asked::parse(&format!("/containerLogs/n/p/c{query}"), directory.path()).unwrap();
            asked.part(log, true)
        };
        assert_eq!(part(""), "one\ntwo\nthree\n");
        assert_eq!(part("?tailLines=1&follow=true"), "three\n");
        assert_eq!(part("?sinceTime=2026-01-01T00%3A00%3A01Z"), "two\nthree\n");
        assert_eq!(part("?timestamps=true&tailLines=1"), "2026-01-01T00:00:02Z three\n");
        assert!(Asked::parse("/containerLogs/n/p/other", directory.path()).is_err());
    }
}
