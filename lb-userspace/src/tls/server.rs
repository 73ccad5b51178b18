//! What a terminated route needs of rustls.

use super::Verifiers;
use crate::config::Termination;
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::sync::Arc;

/// Makes the TLS side of a route. `alpn` is what may be selected, in order of preference; empty selects none.
pub fn server_config(
    termination: &Termination,
    verifiers: &mut Verifiers,
    alpn: impl Iterator<Item = Vec<u8>>,
) -> Result<Arc<ServerConfig>, anyhow::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &termination.client_auth {
        None => builder.with_no_client_auth(),
        Some(auth) => builder.with_client_cert_verifier(verifiers.of(auth, provider.clone())?),
    };
    // Not `with_single_cert`: that takes X.509 version 3 only. `check` has seen that they belong together.
    let key = provider.key_provider.load_private_key(termination.key.clone_key())?;
    let certificate = CertifiedKey::new(termination.chain.clone(), key);
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.alpn_protocols = alpn.collect();
    // Resumption without state: the ticket holds the session, under keys that rotate and never leave memory.
    // The keys are the route's own, so a session cannot be resumed past another route's `client_auth`, nor past
    // one that has changed, as when a CRL was replaced: this is a new configuration then.
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}
