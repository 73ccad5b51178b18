//! `client_auth`: which clients a terminated route lets in, by their certificates.

use super::san::San;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use std::fmt;

/// What clients' certificates are held against.
#[derive(PartialEq, Eq)]
pub struct ClientAuth {
    /// Those that issue them, and those that are trusted themselves; not empty.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Empty: nothing is revoked.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// When the first of them expires, in seconds since the Unix epoch.
    pub crl_expiry: Option<u64>,
    /// A client without a certificate is turned away.
    pub required: bool,
    /// Whoever has a certificate is let in, wherever it leads: who that is, nobody knows.
    pub unverified: bool,
    /// Who may come of those that have a certificate.
    pub allowed: Allowed,
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth")
            .field("authorities", &self.authorities.len())
            .field("crls", &self.crls.len())
            .field("required", &self.required)
            .field("allowed", &self.allowed)
            .finish()
    }
}

/// Names of certificates, of which one is enough; without any everybody may come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Allowed {
    /// Subjects, whole, as RFC 4514 writes them.
    pub subjects: Vec<Box<str>>,
    /// Subject alternative names.
    pub sans: Vec<San>,
}
