//! What a terminated route needs of rustls.

use super::Verifiers;
use crate::config::Termination;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::collections::BTreeSet;
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
    let certified = |termination: &Termination| {
        let key = provider.key_provider.load_private_key(termination.key.clone_key())?;
        Ok::<_, rustls::Error>(CertifiedKey::new(termination.chain.clone(), key))
    };
    let certificate = certified(termination)?;
    let resolver: Arc<dyn ResolvesServerCert> = if termination.more.is_empty() {
        Arc::new(SingleCertAndKey::from(certificate))
    } else {
        let named = |of: &Termination, certificate| Named {
            names: of.names.clone(),
            certificate: Arc::new(certificate),
        };
        let mut list = vec![named(termination, certificate)];
        for other in &termination.more {
            list.push(named(other, certified(other)?));
        }
        Arc::new(ByName(list))
    };
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = alpn.collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if termination.client_auth.as_ref().is_none_or(|auth| auth.unverified) {
        // Resumption without state: the ticket holds the session, under keys that rotate and never leave memory. The keys are the
        // route's own.
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    } else {
        // A client that resumes shows no certificate, and gets new tickets: it would come in for ever, past the end of its
        // certificate, and of a CRL.
        config.send_tls13_tickets = 0;
    }
    // For kTLS. It only permits this process to ask rustls for them.
    config.enable_secret_extraction = true;
    Ok(Arc::new(config))
}

/// Certificates, of which the one with the longest name that covers the client's is shown; without one the first.
#[derive(Debug)]
struct ByName(Vec<Named>);

#[derive(Debug)]
struct Named {
    names: BTreeSet<Box<str>>,
    certificate: Arc<CertifiedKey>,
}

impl ByName {
    fn find(&self, sni: Option<&str>) -> Option<&Named> {
        // rustls leaves the dot at the end, which certificates do not have.
        let exact = sni.map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
        let wildcard =
            exact.as_deref().and_then(|name| name.split_once('.')).map(|(_, parent)| format!("*.{parent}"));
        // A name's own is longer than the wildcard over it, and of wildcards, which are one label, there is only one.
        let having = |name: &String| self.0.iter().find(|named| named.names.contains(name.as_str()));
        exact.iter().find_map(having).or_else(|| wildcard.iter().find_map(having)).or(self.0.first())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()).map(|named| named.certificate.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    fn named(names: &[&str]) -> Named {
        let certified = rcgen::generate_simple_self_signed(
            names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
        )
        .unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let certificate =
            CertifiedKey::new(vec![certified.cert.der().clone()], any_supported_type(&key).unwrap());
        Named {
            names: names.iter().map(|name| Box::from(*name)).collect(),
            certificate: Arc::new(certificate),
        }
    }

    #[test]
    fn the_longest_name_that_covers_the_clients_chooses() {
        let list =
            ByName(vec![named(&["first.example"]), named(&["*.example.com"]), named(&["a.example.com"])]);
        for (sni, index) in [
            (Some("a.example.com"), 2),
            (Some("A.Example.Com"), 2),
            (Some("a.example.com."), 2),
            (Some("b.example.com"), 1),
            (Some("b.example.com."), 1),
            (Some("c.b.example.com"), 0),
            (Some("first.example"), 0),
            (None, 0),
        ] {
            let found = list.find(sni).unwrap();
            assert!(Arc::ptr_eq(&found.certificate, &list.0[index].certificate), "{sni:?}");
        }
    }
}
