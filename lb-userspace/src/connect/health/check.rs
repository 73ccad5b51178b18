//! One check of one server: dials, and carries the probe's bytes.

use super::probe::{Failure, MAX_RECEIVED, Step, Verdict};
use super::probes::probe;
use crate::config::{Check, Health, Host, ProxyVersion};
use crate::connect::dial::open_server;
use crate::connect::preamble::own_proxy_header;
use crate::reason::DownReason;
use crate::serving::{Pool, Server};
use crate::socket::reset_on_close;
use crate::tls;
use bytes::BytesMut;
use rustls::CertificateError as C;
use rustls::pki_types::{DnsName, ServerName};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// How the servers of a pool are checked.
pub(super) struct Checker {
    pub(super) health: Arc<Health>,
    send_proxy: Option<ProxyVersion>,
    tls: Option<TlsConnector>,
}

impl Checker {
    /// rustls does not take every certificate that is X.509.
    pub(super) fn new(health: Arc<Health>, send_proxy: Option<ProxyVersion>) -> anyhow::Result<Self> {
        let tls = health.tls.as_ref().map(tls::client_config).transpose()?;
        Ok(Checker { health, send_proxy, tls: tls.map(TlsConnector::from) })
    }

    /// Whether the servers of this pool are checked in this way.
    pub(super) fn is_of(&self, pool: &Pool) -> bool {
        pool.health.as_ref() == Some(&self.health) && pool.send_proxy == self.send_proxy
    }

    /// Whether the server works.
    pub(super) async fn check(&self, server: &Server) -> Verdict {
        let within = tokio::time::timeout(self.health.timeout, self.ask(server)).await;
        if matches!(self.health.check, Check::Mysql { .. }) {
            server.state.mysql.tried();
        }
        within.unwrap_or_else(|_| Err(DownReason::Timeout.into()))
    }

    async fn ask(&self, server: &Server) -> Verdict {
        let known = server.addresses();
        let elsewhere = self.health.port.filter(|port| *port != server.address.port);
        let opened = match elsewhere {
            Some(port) => open_server(&known.at_port(port), self.health.timeout, None, false).await,
            None => open_server(&known, self.health.timeout, None, false).await,
        };
        let (mut stream, _) = opened.map_err(|error| failure(&error))?;
        // What listens elsewhere is not what connections go to, and expects none.
        if let (Some(version), None) = (self.send_proxy, elsewhere) {
            let sent = stream.write_all(own_proxy_header(version)).await;
            sent.map_err(|error| failure(&error))?;
        }
        if self.health.check == Check::Tcp {
            // Nothing was said that could be lost; and no socket waits for a minute after each check.
            reset_on_close(&stream);
        }
        let mut probe = probe(&self.health, &server.address.to_string());
        let mut talk = Talk { received: BytesMut::new() };
        let said = talk.converse(&mut stream, |received| probe.step(received)).await;
        if let (Some(greeting), None) = (probe.greeting(), elsewhere) {
            server.state.mysql.hear(greeting);
        }
        if let Some(verdict) = said? {
            return verdict;
        }
        let Some(connector) = &self.tls else { return Err(DownReason::BadAnswer.into()) };
        let connect = connector.connect(self.server_name(&server.address.host), stream);
        let mut stream = connect.await.map_err(|error| failure(&error))?;
        let verdict = talk.converse(&mut stream, |received| probe.step(received)).await?;
        // A server that does not wait for it misses nothing.
        let _ = stream.shutdown().await;
        verdict.unwrap_or_else(|| Err(DownReason::BadAnswer.into()))
    }

    fn server_name(&self, host: &Host) -> ServerName<'static> {
        let configured = self.health.tls.as_ref().and_then(|tls| tls.server_name.clone());
        configured.unwrap_or_else(|| match host {
            Host::Ip(ip) => ServerName::IpAddress((*ip).into()),
            Host::Name(name) => match DnsName::try_from(name.trim_end_matches('.').to_owned()) {
                Ok(name) => ServerName::DnsName(name),
                // Both have the same rules; should they come to differ, no certificate is for this.
                Err(_) => ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into()),
            },
        })
    }
}

/// Bytes on their way to the probe.
struct Talk {
    received: BytesMut,
}

impl Talk {
    /// Carries bytes until the probe has its verdict; `None`: it wants TLS.
    async fn converse(
        &mut self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        mut step: impl FnMut(&mut BytesMut) -> Step,
    ) -> Result<Option<Verdict>, Failure> {
        loop {
            match step(&mut self.received) {
                Step::Write(bytes) => {
                    stream.write_all(&bytes).await.map_err(|error| failure(&error))?;
                    stream.flush().await.map_err(|error| failure(&error))?;
                }
                Step::StartTls => return Ok(None),
                Step::Done { verdict, farewell } => {
                    // It has been judged: what becomes of this does not matter.
                    if !farewell.is_empty() && stream.write_all(&farewell).await.is_ok() {
                        let _ = stream.flush().await;
                    }
                    return Ok(Some(verdict));
                }
                Step::Read if self.received.len() >= MAX_RECEIVED => {
                    return Err(Failure::said(DownReason::BadAnswer, &self.received));
                }
                Step::Read => match stream.read_buf(&mut self.received).await {
                    Ok(0) => return Err(DownReason::Closed.into()),
                    Ok(_) => {}
                    Err(error) => return Err(failure(&error)),
                },
            }
        }
    }
}

/// What an error of a socket, or of TLS on it, says of the server.
fn failure(error: &io::Error) -> Failure {
    const EXHAUSTED: [i32; 6] =
        [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL, libc::EADDRINUSE];
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return Failure::said(reason_of_tls(error), error.to_string().as_bytes());
    }
    let reason = match error.kind() {
        _ if error.raw_os_error().is_some_and(|code| EXHAUSTED.contains(&code)) => DownReason::Resource,
        io::ErrorKind::ConnectionRefused => DownReason::Refused,
        io::ErrorKind::TimedOut => DownReason::Timeout,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => DownReason::Reset,
        io::ErrorKind::UnexpectedEof => DownReason::Closed,
        _ => DownReason::Unreachable,
    };
    Failure::said(reason, error.to_string().as_bytes())
}

fn reason_of_tls(error: &rustls::Error) -> DownReason {
    let rustls::Error::InvalidCertificate(error) = error else { return DownReason::TlsFailed };
    match error {
        C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
            DownReason::CertificateExpired
        }
        C::NotValidForName | C::NotValidForNameContext { .. } => DownReason::CertificateName,
        C::UnknownIssuer => DownReason::UnknownCa,
        _ => DownReason::CertificateInvalid,
    }
}
