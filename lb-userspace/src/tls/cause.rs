//! Why TLS with a peer failed: rustls' many errors as the closed set that operators see.

use crate::reason::TlsError;
use crate::sniff::{self, TlsVersion};
use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

const TLS_1_2: TlsVersion = TlsVersion(0x0303);

/// The cause of an error. `received`: what rustls has not consumed; the ClientHello, if that was at fault. (A server's
/// messages are none, and are not looked at.)
pub(crate) fn cause(error: &Error, received: &[u8]) -> TlsError {
    use TlsError as E;
    match error {
        Error::PeerIncompatible(lacking) => incompatible(lacking, received),
        Error::NoCertificatesPresented => E::CertificateRequired,
        Error::InvalidCertificate(error) => certificate(error),
        Error::InvalidCertRevocationList(_) => E::CrlInvalid,
        Error::AlertReceived(description) => alert(*description),
        Error::DecryptError => E::Undecryptable,
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord => E::ProtocolViolation,
        // The routes have chosen by ALPN: only a second ClientHello can differ. A server may not choose what was not offered.
        Error::NoApplicationProtocol => E::ProtocolViolation,
        // Names and ECH are of clients; the others are faults of ours.
        Error::UnsupportedNameType
        | Error::InvalidEncryptedClientHello(_)
        | Error::EncryptError
        | Error::General(_)
        | Error::FailedToGetCurrentTime
        | Error::FailedToGetRandomBytes
        | Error::HandshakeNotComplete
        | Error::BadMaxFragmentSize
        | Error::InconsistentKeys(_)
        | Error::Other(_) => E::Internal,
        // rustls may grow more.
        _ => E::Internal,
    }
}

fn incompatible(lacking: &PeerIncompatible, received: &[u8]) -> TlsError {
    use PeerIncompatible as P;
    use TlsError as E;
    let offer = sniff::offer(received);
    let offers_our_version = offer.as_ref().is_none_or(|(version, _)| *version >= TLS_1_2);
    let offers_our_suite = offer.is_none_or(|(_, suites)| {
        let mut ours = aws_lc_rs::ALL_CIPHER_SUITES.iter().map(|suite| u16::from(suite.suite()));
        ours.any(|suite| suites.contains(&suite))
    });
    match lacking {
        // What else an old client lacks, rustls may look at first.
        _ if !offers_our_version => E::NoSharedVersion,
        P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled
        | P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig
        | P::SupportedVersionsExtensionRequired => E::NoSharedVersion,
        P::NoCipherSuitesInCommon => E::NoSharedSuite,
        // A client without a suite that uses a group names none.
        P::NoKxGroupsInCommon if !offers_our_suite => E::NoSharedSuite,
        P::NoKxGroupsInCommon
        | P::NamedGroupsExtensionRequired
        | P::KeyShareExtensionRequired
        | P::EcPointsExtensionRequired
        | P::NoEcPointFormatsInCommon
        | P::UncompressedEcPointsRequired => E::NoSharedGroup,
        P::NoSignatureSchemesInCommon
        | P::NoCertificateRequestSignatureSchemesInCommon
        | P::SignatureAlgorithmsExtensionRequired => E::NoSharedSignature,
        _ => E::Incompatible,
    }
}

fn certificate(error: &CertificateError) -> TlsError {
    use CertificateError as C;
    use TlsError as E;
    match error {
        C::UnknownIssuer => E::UnknownCa,
        C::Expired | C::ExpiredContext { .. } => E::CertificateExpired,
        C::NotValidForName | C::NotValidForNameContext { .. } => E::CertificateName,
        C::NotValidYet | C::NotValidYetContext { .. } => E::CertificateNotYetValid,
        C::Revoked => E::CertificateRevoked,
        C::ApplicationVerificationFailure => E::CertificateNotAllowed,
        C::UnknownRevocationStatus => E::CrlMissing,
        C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => E::CrlExpired,
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => E::CertificatePurpose,
        C::Other(error) => match error.0.downcast_ref() {
            Some(webpki::Error::UnsupportedCertVersion) => E::CertificateVersion,
            Some(webpki::Error::CaUsedAsEndEntity) => E::CertificatePurpose,
            _ => E::CertificateInvalid,
        },
        _ => E::CertificateInvalid,
    }
}

/// RFC 8446, section 6.
fn alert(description: AlertDescription) -> TlsError {
    use AlertDescription as A;
    use TlsError as E;
    match description {
        A::CloseNotify => E::Closed,
        A::UnknownCA => E::AlertUnknownCa,
        A::BadCertificate => E::AlertBadCertificate,
        A::UnsupportedCertificate => E::AlertUnsupportedCertificate,
        A::CertificateRevoked => E::AlertCertificateRevoked,
        A::CertificateExpired => E::AlertCertificateExpired,
        A::CertificateUnknown => E::AlertCertificateUnknown,
        A::CertificateRequired => E::AlertCertificateRequired,
        A::UnrecognisedName => E::AlertUnrecognizedName,
        A::HandshakeFailure => E::AlertHandshakeFailure,
        A::ProtocolVersion => E::AlertProtocolVersion,
        _ => E::AlertOther,
    }
}
