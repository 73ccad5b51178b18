//! Client certificates on terminated routes: those that lead to an authority of `client_auth`, and those that are listed
//! there.
//!
//! webpki takes X.509 version 3 only, and no certificate for its own issuer. What an operator lists itself is
//! trusted as it is, by its bytes: the certificates of old devices, and those that clients have signed
//! themselves.

use super::certificate::{check_listed, verify_tls12, verify_tls13};
use super::identity::client_name;
use crate::config::{Allowed, ClientAuth};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use std::collections::HashMap;
use std::sync::Arc;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

/// One verifier for all routes that ask the same of their clients' certificates: CRLs may be long.
#[derive(Default)]
pub struct Verifiers(HashMap<*const ClientAuth, Arc<dyn ClientCertVerifier>>);

impl Verifiers {
    /// The verifier for this.
    pub(super) fn of(
        &mut self,
        auth: &Arc<ClientAuth>,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ClientCertVerifier>, anyhow::Error> {
        let key = Arc::as_ptr(auth);
        if let Some(known) = self.0.get(&key) {
            return Ok(known.clone());
        }
        let verifier: Arc<dyn ClientCertVerifier> = match auth.unverified {
            true => Arc::new(Unverified(provider.signature_verification_algorithms)),
            false => Arc::new(Verifier::new(auth, provider)?),
        };
        self.0.insert(key, verifier.clone());
        Ok(verifier)
    }
}

#[derive(Debug)]
struct Verifier {
    webpki: Arc<dyn ClientCertVerifier>,
    listed: Vec<Listed>,
    allowed: Allowed,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A certificate that the operator has listed.
#[derive(Debug)]
struct Listed {
    certificate: CertificateDer<'static>,
    revoked: bool,
}

impl Verifier {
    fn new(auth: &ClientAuth, provider: Arc<CryptoProvider>) -> Result<Self, anyhow::Error> {
        let mut roots = RootCertStore::empty();
        for authority in &auth.authorities {
            roots.add(authority.clone())?;
        }
        let algorithms = provider.signature_verification_algorithms;
        // Fails closed, as nginx and HAProxy do: with CRLs, each certificate of a chain needs one that has not expired.
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .with_crls(auth.crls.iter().cloned())
            .enforce_revocation_expiration();
        let builder = if auth.required { builder } else { builder.allow_unauthenticated() };
        let crls = auth.crls.iter().map(|crl| Ok(CertificateRevocationList::from_der(crl)?.1));
        let crls: Vec<_> = crls.collect::<Result<_, anyhow::Error>>()?;
        let listed = auth.authorities.iter().map(|authority| Listed {
            certificate: authority.clone(),
            revoked: is_revoked(authority, &crls),
        });
        let (listed, allowed) = (listed.collect(), auth.allowed.clone());
        Ok(Verifier { webpki: builder.build()?, listed, allowed, algorithms })
    }

    fn listed(&self, certificate: &CertificateDer<'_>) -> Option<&Listed> {
        self.listed.iter().find(|listed| listed.certificate == *certificate)
    }

    /// Turns away whose certificate is good, and whom nobody has named.
    fn check_allowed(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if client_name(certificate, &self.allowed).is_some() {
            return Ok(());
        }
        let client_certificate = client_name(certificate, &Allowed::default());
        tracing::debug!(client_certificate, "not allowed");
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

/// Whether a CRL of this certificate's issuer names it. The operator has given both: no signature is looked at.
fn is_revoked(certificate: &CertificateDer<'_>, crls: &[CertificateRevocationList<'_>]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let mut of_issuer = crls.iter().filter(|crl| crl.issuer().as_raw() == certificate.issuer().as_raw());
    of_issuer.any(|crl| {
        crl.iter_revoked_certificates().any(|revoked| revoked.raw_serial() == certificate.raw_serial())
    })
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.webpki.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = match self.listed(end_entity) {
            Some(Listed { revoked: true, .. }) => return Err(CertificateError::Revoked.into()),
            Some(Listed { certificate, .. }) => {
                check_listed(certificate, now, |purposes| purposes.client_auth)?;
                ClientCertVerified::assertion()
            }
            None => self.webpki.verify_client_cert(end_entity, intermediates, now)?,
        };
        self.check_allowed(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Takes any certificate of whoever has its key, and clients without one.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for Unverified {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
