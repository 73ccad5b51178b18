//! What is asked of a peer's certificate by itself, whether a client or a server shows it: its dates, its purpose, and that
//! the peer has its key. Whom it leads to, `client_auth` and `server_auth` ask.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error};
use std::time::Duration;
use x509_parser::prelude::{ExtendedKeyUsage, FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// A certificate that is trusted itself has no issuer to be asked for; its dates and its purpose (RFC 5280, sections 4.1.2.5
/// and 4.2.1.12) still hold. `serves`: whether it may be used for what it is shown for.
pub(super) fn check_listed(
    certificate: &CertificateDer<'_>,
    now: UnixTime,
    serves: impl FnOnce(&ExtendedKeyUsage<'_>) -> bool,
) -> Result<(), Error> {
    check_dates(certificate, now)?;
    let purposes = parsed(certificate)?;
    let purposes = purposes.extended_key_usage().map_err(|_| CertificateError::BadEncoding)?;
    if purposes.is_some_and(|purposes| !serves(purposes.value) && !purposes.value.any) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    Ok(())
}

/// Whether a certificate is valid at this time (RFC 5280, section 4.1.2.5).
pub(super) fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let parsed = parsed(certificate)?;
    let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let validity = parsed.validity();
    let (not_before, not_after) = (seconds(validity.not_before), seconds(validity.not_after));
    let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    if now.as_secs() < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before: time(not_before) }.into());
    }
    if now.as_secs() > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after: time(not_after) }.into());
    }
    Ok(())
}

/// Whether the peer has signed the handshake with the key of this certificate, in TLS 1.2 (RFC 5246, section 7.4.8). Also of
/// an X.509 version that webpki does not take.
pub(super) fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let bad = || Error::from(CertificateError::BadSignature);
    let key = key(certificate)?;
    let key = webpki::RawPublicKeyEntity::try_from(&key).map_err(|_| bad())?;
    // Before TLS 1.3 a scheme leaves the curve open, so that several algorithms may be meant.
    let scheme = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme);
    let (_, meant) = scheme.ok_or_else(bad)?;
    let verifies = |algorithm: &&dyn SignatureVerificationAlgorithm| {
        key.verify_signature(*algorithm, message, signed.signature()).is_ok()
    };
    meant.iter().any(verifies).then(HandshakeSignatureValid::assertion).ok_or_else(bad)
}

/// The same in TLS 1.3 (RFC 8446, section 4.4.3).
pub(super) fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &key(certificate)?, signed, algorithms)
}

fn key(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    Ok(SubjectPublicKeyInfoDer::from(parsed(certificate)?.public_key().raw.to_vec()))
}

fn parsed<'c>(certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(parsed)
}
