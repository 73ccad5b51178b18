//! What a server may be told of the TLS that the gateway has ended for its client.

use super::session::{Serving, Session};
use rustls::{CipherSuite, HandshakeKind, ProtocolVersion};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The longest common name that is told, in bytes: X.520 allows 64 characters. A longer one is left out: a part of it might
/// be another's name.
const MAX_COMMON_NAME: usize = 256;

/// The TLS of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// As OpenSSL names it: `TLSv1.3`.
    pub version: Option<&'static str>,
    /// As OpenSSL names it: `TLS_AES_128_GCM_SHA256`, `ECDHE-RSA-AES128-GCM-SHA256`.
    pub cipher: Option<&'static str>,
    /// The protocol that was agreed on.
    pub alpn: Option<Vec<u8>>,
    /// Present: it has shown one, which was verified.
    pub certificate: Option<ClientCertificate>,
}

/// The certificate of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The common name of its subject.
    pub common_name: Option<String>,
    /// It was not shown on this connection, but on one whose session this one resumes.
    pub resumed: bool,
}

impl Session<Serving> {
    /// What a server may be told of it.
    pub fn facts(&self) -> ClientTls {
        let tls = self.connection();
        let certificate = tls.peer_certificates().and_then(|chain| chain.first());
        ClientTls {
            version: tls.protocol_version().and_then(version),
            cipher: tls.negotiated_cipher_suite().and_then(|suite| cipher(suite.suite())),
            alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
            certificate: certificate.map(|certificate| ClientCertificate {
                common_name: common_name(certificate),
                resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
            }),
        }
    }
}

fn version(version: ProtocolVersion) -> Option<&'static str> {
    match version {
        ProtocolVersion::TLSv1_2 => Some("TLSv1.2"),
        ProtocolVersion::TLSv1_3 => Some("TLSv1.3"),
        _ => None,
    }
}

fn cipher(suite: CipherSuite) -> Option<&'static str> {
    use CipherSuite as C;
    Some(match suite {
        C::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        C::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        C::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        C::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        C::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        C::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        C::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        C::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        C::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

/// The first common name of the subject.
fn common_name(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    (name.len() <= MAX_COMMON_NAME).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};
    use rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;

    #[test]
    fn every_suite_of_ours_has_a_name() {
        for suite in ALL_CIPHER_SUITES {
            assert!(cipher(suite.suite()).is_some(), "{:?}", suite.suite());
        }
    }

    #[test]
    fn a_common_name_is_told_whole_or_not_at_all() {
        let certificate = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.self_signed(&KeyPair::generate().unwrap()).unwrap()
        };
        assert_eq!(common_name(certificate("grüße").der()).as_deref(), Some("grüße"));
        assert_eq!(common_name(certificate(&"a".repeat(257)).der()), None);
        assert_eq!(common_name(b"no certificate"), None);
    }
}
