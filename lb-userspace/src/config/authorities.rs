//! Those who sign certificates.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;

/// Those who sign servers' certificates. Pools with the same file share them.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// Not empty.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The same, for the verification of chains.
    pub roots: RootCertStore,
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for Authorities {}
