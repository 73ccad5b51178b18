//! TLS toward the servers of a pool.

use super::server_auth::Verifier;
use crate::config::{Address, Host, UpstreamTls};
use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::{DnsName, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// TLS 1.3 tickets that are kept of a server (each resumes one session); rustls counts in eights.
const TICKETS: usize = 8;

/// Servers of a pool whose sessions are kept. Of a service more may come and go in the course of time.
const SERVERS: usize = 1024;

/// What it takes to speak TLS to the servers of a pool. Kept over a reload with its sessions, unless something about it has
/// changed.
pub struct ServerTls {
    source: Arc<UpstreamTls>,
    config: ClientConfig,
    /// The same configuration for each server, with the sessions of that server: the servers of a pool may go by one name,
    /// by which rustls would take a ticket of one for another's.
    servers: Mutex<HashMap<Address, Arc<ClientConfig>>>,
}

impl ServerTls {
    /// `known`: that of the pool of the same name before a reload.
    pub fn new(source: &Arc<UpstreamTls>, known: Option<&Arc<Self>>) -> Result<Arc<Self>, anyhow::Error> {
        if let Some(known) = known.filter(|known| *known.source == **source) {
            return Ok(known.clone());
        }
        let config = client_config(source)?;
        Ok(Arc::new(ServerTls { source: source.clone(), config, servers: Mutex::default() }))
    }

    /// The configuration of a session with this server, and the name that is asked for.
    pub(crate) fn toward(&self, server: &Address) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let name = match (&self.source.server_name, &server.host) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(ip)) => ServerName::IpAddress((*ip).into()),
            // The two have the same rules for names.
            (None, Host::Name(name)) => ServerName::DnsName(DnsName::try_from(name.to_string()).ok()?),
        };
        // A panic leaves nothing half-changed.
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = servers.get(server) {
            return Some((config.clone(), name));
        }
        if servers.len() >= SERVERS {
            servers.clear();
        }
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        let config = Arc::new(config);
        servers.insert(server.clone(), config.clone());
        Some((config, name))
    }
}

fn client_config(tls: &UpstreamTls) -> Result<ClientConfig, anyhow::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier {
        authorities: tls.authorities.clone(),
        san: tls.san.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(tls.min_version.and_later())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &tls.certificate {
        None => builder.with_no_client_auth(),
        // Not `with_client_auth_cert`: that takes X.509 version 3 only. `check` has seen that they belong together.
        Some(certificate) => {
            let key = provider.key_provider.load_private_key(certificate.key.clone_key())?;
            let certificate = CertifiedKey::new(certificate.chain.clone(), key);
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)))
        }
    };
    config.alpn_protocols = tls.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}
