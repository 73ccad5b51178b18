//! The clients' TLS: the one suite and key exchange that redis-benchmark is told to use, so that differing
//! preferences of the servers change nothing. Certificates are verified.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::exchange::Exchange;

/// Longer than any answer takes when nothing is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a client connects to, and what it asks for there.
#[derive(clap::Args, Clone)]
pub(super) struct Server {
    #[arg(long)]
    pub(super) target: SocketAddr,
    #[arg(long)]
    pub(super) sni: String,
    #[arg(long)]
    pub(super) authority: PathBuf,
}

/// A blocking TLS connection.
pub(super) type Stream = StreamOwned<ClientConnection, Buffered>;

/// A socket that is read in large pieces. rustls itself asks for 4 KiB at a time, or for more, depending on where records
/// begin in its buffer; of two equal streams one was twice as fast as the other for as long as they lived.
pub(super) struct Buffered(BufReader<TcpStream>);

impl Buffered {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self(BufReader::with_capacity(64 * 1024, socket))
    }

    pub(super) fn socket(&self) -> &TcpStream {
        self.0.get_ref()
    }
}

impl Read for Buffered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Buffered {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.get_mut().write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The settings of a client that resumes its sessions, or never does.
pub(super) fn config(authority: &Path, resume: bool) -> Result<Arc<ClientConfig>> {
    use rustls::crypto::aws_lc_rs as crypto;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let provider = rustls::crypto::CryptoProvider {
        cipher_suites: vec![crypto::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![crypto::kx_group::X25519],
        ..crypto::default_provider()
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = if resume { Resumption::in_memory_sessions(64) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

/// Connects; TLS begins with the first byte that is read or written.
pub(super) fn connect(config: &Arc<ClientConfig>, target: SocketAddr, sni: &str) -> Result<Stream> {
    let socket = TcpStream::connect_timeout(&target, PATIENCE).context("connecting")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let name = ServerName::try_from(sni.to_owned())?;
    Ok(StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, Buffered::new(socket)))
}

/// Connects, shakes hands and asks once.
pub(super) fn open(config: &Arc<ClientConfig>, target: SocketAddr, sni: &str) -> Result<Stream> {
    let mut stream = connect(config, target, sni)?;
    Exchange::ping().once(&mut stream)?;
    Ok(stream)
}

/// Says goodbye and closes.
pub(super) fn close(mut stream: Stream) {
    stream.conn.send_close_notify();
    // The other side may have closed first.
    let _ = stream.flush();
}
