//! TLS toward servers, as their health checks speak it.

use super::server_auth::{Names, Verifier};
use crate::config::HealthTls;
use rustls::client::{ClientConfig, Resumption};
use std::sync::Arc;

/// Makes the TLS side of a health check.
pub(crate) fn client_config(tls: &HealthTls) -> Result<Arc<ClientConfig>, anyhow::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let names = match (&tls.ca, &tls.server_name) {
        // Whoever signs for itself may have any name.
        (None, None) => Names::Any,
        _ => Names::Called,
    };
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Verifier { authorities: tls.ca.clone(), names, algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // A resumed session shows no certificate, so that it would never expire.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
