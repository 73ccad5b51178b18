//! TLS toward the servers of a pool.

use super::server_auth::{Names, Verifier};
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

/// How long sessions with a server are resumed: rustls does not look at a certificate again that it has seen once, and servers may
/// renew tickets for ever. In milliseconds.
const KEEP_MS: u64 = 60 * 60 * 1000;

/// What it takes to speak TLS to the servers of a pool. Kept over a reload with its sessions, unless something about it has
/// changed.
pub struct ServerTls {
    source: Arc<UpstreamTls>,
    http2: bool,
    config: ClientConfig,
    /// The same configuration for each server, with the sessions of that server: the servers of a pool may go by one name,
    /// by which rustls would take a ticket of one for another's.
    servers: Mutex<HashMap<Address, Sessions>>,
}

/// The sessions with a server.
struct Sessions {
    config: Arc<ClientConfig>,
    /// When the first of them was begun.
    since_ms: u64,
}

impl ServerTls {
    /// `known`: that of the pool of the same name before a reload.
    /// `http2`: that is offered, unless the configuration says what is.
    pub fn new(
        source: &Arc<UpstreamTls>,
        http2: bool,
        known: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>, anyhow::Error> {
        if let Some(known) = known.filter(|known| known.is_of(source) && known.http2 == http2) {
            return Ok(known.clone());
        }
        let mut config = client_config(source)?;
        if http2 && source.alpn.is_empty() {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        Ok(Arc::new(ServerTls { source: source.clone(), http2, config, servers: Mutex::default() }))
    }

    /// Whether it would be made the same of this.
    pub fn is_of(&self, source: &Arc<UpstreamTls>) -> bool {
        self.source == *source
    }

    /// The configuration of a session with this server, and the name that is asked for. `now_ms`: by [`crate::clock::now_ms`].
    pub(crate) fn toward(
        &self,
        server: &Address,
        now_ms: u64,
    ) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let name = match (&self.source.server_name, &server.host) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(ip)) => ServerName::IpAddress((*ip).into()),
            // The two have the same rules for names. Certificates bear them without the dot at the end.
            (None, Host::Name(name)) => {
                ServerName::DnsName(DnsName::try_from(name.trim_end_matches('.').to_owned()).ok()?)
            }
        };
        // A panic leaves nothing half-changed.
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = servers.get(server).filter(|known| now_ms.saturating_sub(known.since_ms) < KEEP_MS);
        if let Some(known) = known {
            return Some((known.config.clone(), name));
        }
        if servers.len() >= SERVERS {
            servers.clear();
        }
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        let config = Arc::new(config);
        servers.insert(server.clone(), Sessions { config: config.clone(), since_ms: now_ms });
        Some((config, name))
    }
}

fn client_config(tls: &UpstreamTls) -> Result<ClientConfig, anyhow::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Verifier {
        authorities: Some(tls.authorities.clone()),
        names: if tls.san.is_empty() { Names::Called } else { Names::OneOf(tls.san.clone()) },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Authorities, MinVersion};
    use rustls::RootCertStore;

    fn tls(server_name: Option<&'static str>) -> UpstreamTls {
        UpstreamTls {
            authorities: Arc::new(Authorities { certificates: Vec::new(), roots: RootCertStore::empty() }),
            server_name: server_name.map(|name| ServerName::try_from(name).unwrap()),
            san: Vec::new(),
            certificate: None,
            alpn: Vec::new(),
            min_version: MinVersion::Tls12,
        }
    }

    #[test]
    fn a_server_is_called_by_the_configured_name_or_its_host() {
        let called = |tls: &UpstreamTls, address: &str| {
            let tls = ServerTls::new(&Arc::new(tls.clone()), false, None).unwrap();
            let (_, name) = tls.toward(&address.parse().unwrap(), 0).unwrap();
            name.to_str().into_owned()
        };
        assert_eq!(called(&tls(Some("redis.internal")), "10.0.0.1:1"), "redis.internal");
        assert_eq!(called(&tls(None), "10.0.0.1:1"), "10.0.0.1");
        assert_eq!(called(&tls(None), "redis_0.example.com.:1"), "redis_0.example.com");
    }

    #[test]
    fn each_server_has_sessions_of_its_own_and_a_reload_keeps_them() {
        let source = Arc::new(tls(Some("redis.internal")));
        let before = ServerTls::new(&source, false, None).unwrap();
        let at =
            |tls: &ServerTls, address: &str, now_ms| tls.toward(&address.parse().unwrap(), now_ms).unwrap().0;
        let sessions = |tls: &ServerTls, address: &str| at(tls, address, 0);
        let first = sessions(&before, "10.0.0.1:1");
        assert!(!Arc::ptr_eq(&first, &sessions(&before, "10.0.0.2:1")));
        let after = ServerTls::new(&Arc::new((*source).clone()), false, Some(&before)).unwrap();
        assert!(Arc::ptr_eq(&first, &sessions(&after, "10.0.0.1:1")));
        let changed = Arc::new(UpstreamTls { min_version: MinVersion::Tls13, ..(*source).clone() });
        let changed = ServerTls::new(&changed, false, Some(&before)).unwrap();
        assert!(!Arc::ptr_eq(&first, &sessions(&changed, "10.0.0.1:1")));
        for port in 2..2000 {
            sessions(&before, &format!("10.0.0.3:{port}"));
        }
        assert!(before.servers.lock().unwrap().len() <= SERVERS);
        // Its certificate is looked at again once in a while.
        let first = at(&after, "10.0.0.9:1", 1000);
        assert!(Arc::ptr_eq(&first, &at(&after, "10.0.0.9:1", 999 + KEEP_MS)));
        let second = at(&after, "10.0.0.9:1", 1000 + KEEP_MS);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &at(&after, "10.0.0.9:1", 1001 + KEEP_MS)));
    }
}
