//! The server of bytes: each client says how many it wants to send, or to get.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::stream::{BUFFER, Direction, Header};
use super::tls::Buffered;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The port in clear text.
    #[arg(long)]
    port: u16,
    /// The port that speaks TLS, if one is to.
    #[arg(long)]
    tls_port: Option<u16>,
    #[arg(long)]
    chain: PathBuf,
    #[arg(long)]
    key: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(&args.chain)?.collect::<Result<_, _>>()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(&args.key)?)?;
    let config = Arc::new(config);
    let plain = TcpListener::bind((Ipv4Addr::UNSPECIFIED, args.port))?;
    let tls = args.tls_port.map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).transpose()?;
    thread::scope(|scope| {
        scope.spawn(|| each(&plain, serve));
        if let Some(tls) = &tls {
            scope.spawn(|| {
                each(tls, move |socket| {
                    serve(StreamOwned::new(
                        ServerConnection::new(Arc::clone(&config))?,
                        Buffered::new(socket),
                    ))
                })
            });
        }
    });
    Ok(())
}

/// A thread per connection. One that breaks off is the client's to report.
fn each(listener: &TcpListener, serve: impl Fn(TcpStream) -> Result<()> + Clone + Send + 'static) {
    for socket in listener.incoming().flatten() {
        let serve = serve.clone();
        thread::spawn(move || serve(socket));
    }
}

/// One transfer after another, until the client closes.
pub(super) fn serve(mut stream: impl Read + Write) -> Result<()> {
    let zeros = [0; BUFFER];
    let mut header = [0; Header::LENGTH];
    while stream.read(&mut header[..1])? == 1 {
        stream.read_exact(&mut header[1..])?;
        let header = Header::parse(header).context("not a header")?;
        match header.direction {
            Direction::Up => {
                super::stream::take(&mut stream, header.length)?;
                stream.write_all(&[1])?;
            }
            Direction::Down => super::stream::give(&mut stream, header.length, &zeros)?,
        }
        stream.flush()?;
    }
    Ok(())
}
