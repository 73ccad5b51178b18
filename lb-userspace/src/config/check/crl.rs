//! Certificate revocation lists (RFC 5280, section 5) of clients' certificates.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use webpki::OwnedCertRevocationList;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::pem::{date, pem_error, unusable};
use crate::config::certificate::{Part, Problems};
use crate::config::diagnostic::Problem;

const PEM_CRL: &str = "a PEM file with `BEGIN X509 CRL`";

/// The CRLs of a file with this content; at least one.
pub(super) fn read(path: &Path, pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Problem> {
    let crls: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, pem_error(&error)).help(PEM_CRL))?;
    if crls.is_empty() {
        let (why, help) = match CertificateDer::from_pem_slice(pem) {
            // A SEQUENCE whose length takes more than one byte.
            _ if matches!(pem, [0x30, 0x81..=0x84, ..]) => {
                ("it is DER", "`openssl crl -inform DER -in FILE -out NEW` makes it PEM")
            }
            Ok(_) => ("it holds no CRL", "it holds a certificate: are `ca` and `crl` swapped?"),
            Err(_) => ("it holds no CRL", PEM_CRL),
        };
        return Err(unusable(path, why).help(help));
    }
    for (number, crl) in (1..).zip(&crls) {
        let problem = |why: &str| unusable(path, &format!("its CRL {number} {why}"));
        // Which version 1 does not tell.
        if CertificateRevocationList::from_der(crl).is_ok_and(|(_, crl)| crl.version().is_none()) {
            return Err(problem("is version 1").help(
                "version 2 is needed: with `openssl ca`, set `crl_extensions` to a section with \
                 `authorityKeyIdentifier = keyid`, and `crlnumber` to a file",
            ));
        }
        OwnedCertRevocationList::from_der(crl).map_err(|error| match error {
            webpki::Error::UnsupportedDeltaCrl => problem("lists changes only").help("use the complete CRL"),
            webpki::Error::UnsupportedIndirectCrl => problem("is about certificates of other issuers")
                .help("use the CRLs of these issuers themselves"),
            error => problem(&format!("is not one that can be used: {error}")).help(PEM_CRL),
        })?;
    }
    Ok(crls)
}

/// When the first of the CRLs of these files expires, in seconds since the Unix epoch; and what of these files, each with
/// its certificates or CRLs, keeps clients out that somebody may want in.
pub(super) fn judge(
    authorities: &[Vec<CertificateDer<'static>>],
    crls: &[Vec<CertificateRevocationListDer<'static>>],
    now: UnixTime,
) -> (Option<u64>, Problems) {
    if crls.is_empty() {
        return (None, Vec::new());
    }
    let parsed = crls.iter().enumerate().flat_map(|(file, crls)| crls.iter().map(move |crl| (file, crl)));
    let parsed =
        parsed.filter_map(|(file, crl)| Some((file, CertificateRevocationList::from_der(crl).ok()?.1)));
    let parsed: Vec<_> = parsed.collect();
    let expiry = |crl: &CertificateRevocationList<'_>| u64::try_from(crl.next_update()?.timestamp()).ok();
    let first = parsed.iter().filter_map(|(_, crl)| expiry(crl)).min();
    let mut odd = Vec::new();
    for (file, crl) in &parsed {
        if let Some(expiry) = expiry(crl).filter(|expiry| now.as_secs() > *expiry) {
            let problem = Problem::new(format!("this CRL expired on {}", date(expiry)));
            let help = "all certificates of its issuer are refused until it is renewed";
            odd.push((Part::ClientCrl(*file), problem.help(help)));
        }
    }
    let is_covered = |authority: &X509Certificate<'_>| {
        parsed.iter().any(|(_, crl)| crl.issuer().as_raw() == authority.subject().as_raw())
    };
    for (file, authorities) in authorities.iter().enumerate() {
        for (number, authority) in (1..).zip(authorities) {
            let Ok((_, authority)) = X509Certificate::from_der(authority) else { continue };
            // Others are listed for themselves.
            if authority.is_ca() && !is_covered(&authority) {
                let problem = Problem::new(format!("`crl` has none of certificate {number} in this file"));
                let help = "all certificates that it has issued are refused: add its CRL, or take it out";
                odd.push((Part::ClientCa(file), problem.help(help)));
            }
        }
    }
    (first, odd)
}
