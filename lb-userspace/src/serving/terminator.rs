//! The end of TLS at the gateway.

use crate::config::{self, ClientAuth, Protocol, Termination};
use crate::sniff::POSTGRES_ALPN;
use crate::tls::{self, Verifiers, server_config};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;

/// rustls does not take a certificate.
#[derive(Debug, thiserror::Error)]
#[error("{kind} {name}: rustls does not take its certificate")]
pub struct CertificateRefused {
    /// A route or a pool.
    pub(super) kind: &'static str,
    /// Its name.
    pub(super) name: Arc<str>,
    /// What is wrong.
    pub(super) source: anyhow::Error,
}

/// What it takes to end TLS for a route.
pub struct Terminator {
    /// rustls' side of it.
    config: Arc<ServerConfig>,
    source: Arc<Termination>,
    alpn: Vec<Vec<u8>>,
}

impl Terminator {
    /// The one of `known`, that of the route of the same name before a reload, is kept with its tickets unless something about
    /// it has changed.
    pub(super) fn new(
        source: &Arc<Termination>,
        route: &config::Route,
        protocol: Protocol,
        verifiers: &mut Verifiers,
        known: Option<&Terminator>,
    ) -> Result<Self, CertificateRefused> {
        let alpn = alpn_of(route, protocol);
        let config = match known {
            Some(old) if *old.source == **source && old.alpn == alpn => old.config.clone(),
            _ => server_config(source, verifiers, alpn.iter().cloned())
                .map_err(|source| CertificateRefused { kind: "route", name: route.name.clone(), source })?,
        };
        Ok(Terminator { config, source: source.clone(), alpn })
    }

    /// Whether it would be made the same of this.
    pub(super) fn is_of(&self, source: &Arc<Termination>, route: &config::Route, protocol: Protocol) -> bool {
        self.source == *source && self.alpn == alpn_of(route, protocol)
    }

    /// What clients' certificates are held against; `None`: they are not asked for any.
    pub(super) fn client_auth(&self) -> Option<&ClientAuth> {
        self.source.client_auth.as_deref()
    }

    /// rustls' side of it. A PostgreSQL client that negotiates TLS directly insists on its protocol (PostgreSQL 17, "SSL
    /// Session Encryption"); others would be refused if only that could be selected.
    pub fn config(&self, is_postgres: bool) -> Arc<ServerConfig> {
        if !is_postgres || !self.alpn.is_empty() {
            return self.config.clone();
        }
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![POSTGRES_ALPN.to_vec()];
        Arc::new(config)
    }

    /// When the certificate expires, in Unix seconds.
    pub fn not_after(&self) -> u64 {
        self.source.not_after
    }

    /// When the first CRL of its clients' certificates expires, in Unix seconds.
    pub fn crl_expiry(&self) -> Option<u64> {
        self.source.client_auth.as_ref()?.crl_expiry
    }

    /// Who a client is that was let in with this certificate.
    pub fn client_name(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        let auth = self.source.client_auth.as_ref().filter(|auth| !auth.unverified)?;
        tls::client_name(certificate, &auth.allowed)
    }
}

/// The protocols that a terminated route selects from.
fn alpn_of(route: &config::Route, protocol: Protocol) -> Vec<Vec<u8>> {
    match route.alpn.as_slice() {
        [] if protocol == Protocol::Postgres => vec![POSTGRES_ALPN.to_vec()],
        [] if route.http.is_some() => [&b"h2"[..], b"http/1.1"].map(<[u8]>::to_vec).into(),
        given => given.iter().map(|name| name.as_bytes().to_vec()).collect(),
    }
}
