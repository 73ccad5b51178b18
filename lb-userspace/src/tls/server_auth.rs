//! Certificates of servers, as pools with `tls` and health checks ask for them.
//!
//! A certificate must lead to one of the authorities, and be for a name of the server. One that is itself listed as an
//! authority is trusted by its bytes, as OpenSSL does: those that servers have signed themselves.

use super::certificate::{check_dates, check_listed, verify_tls12, verify_tls13};
use super::identity::has_san;
use crate::config::{Authorities, San};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;

/// Judges the certificates of servers.
#[derive(Debug)]
pub(super) struct Verifier {
    /// Whom a certificate must lead to; `None`: whoever has signed it.
    pub(super) authorities: Option<Arc<Authorities>>,
    pub(super) names: Names,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

/// Names that a certificate must have.
#[derive(Debug)]
pub(super) enum Names {
    /// It may have any.
    Any,
    /// The one that is asked for in the handshake.
    Called,
    /// One of these.
    OneOf(Vec<San>),
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // webpki parses certificates of X.509 version 3 only.
        let parsed = || ParsedCertificate::try_from(end_entity);
        match self.authorities.as_deref() {
            None => check_dates(end_entity, now)?,
            Some(Authorities { certificates, .. }) if certificates.contains(end_entity) => {
                check_listed(end_entity, now, |purposes| purposes.server_auth)?;
            }
            Some(Authorities { roots, .. }) => {
                let algorithms = self.algorithms.all;
                verify_server_cert_signed_by_trust_anchor(&parsed()?, roots, intermediates, now, algorithms)?;
            }
        }
        match &self.names {
            Names::Any => {}
            Names::Called => verify_server_name(&parsed()?, server_name)?,
            Names::OneOf(sans) if sans.iter().any(|san| is_for(end_entity, san)) => {}
            Names::OneOf(_) => return Err(CertificateError::NotValidForName.into()),
        }
        Ok(ServerCertVerified::assertion())
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

/// A server's certificate may have a wildcard for its host names.
fn is_for(certificate: &CertificateDer<'_>, san: &San) -> bool {
    let San::Dns(name) = san else { return has_san(certificate, san) };
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(certificate), DnsName::try_from(&**name))
    else {
        return false;
    };
    verify_server_name(&parsed, &ServerName::DnsName(name)).is_ok()
}
