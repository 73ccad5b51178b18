//! The keys of ECH, and their files (RFC 9934): a private key in PKCS#8, and the ECHConfigList of its public half.

use super::config::{EchConfig, Unusable};
use pkcs8::der::Decode;
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::der::pem::{self, LineEnding};
use pkcs8::{ObjectIdentifier, PrivateKeyInfoRef};
use rustls::crypto::aws_lc_rs::hpke;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkeOpener, HpkePrivateKey, HpkePublicKey};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{EchConfigListBytes, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

// RFC 9180, section 7.
const DHKEM_X25519: u16 = 0x0020;
const HKDF_SHA256: u16 = 0x0001;
const AES_128_GCM: u16 = 0x0001;
const AES_256_GCM: u16 = 0x0002;
const CHACHA20_POLY1305: u16 = 0x0003;

/// RFC 8410, section 3.
const ID_X25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.110");

/// A private key and what clients know of it.
pub struct Key {
    config: EchConfig,
    secret: HpkePrivateKey,
    /// `info` of HPKE: "tls ech", a zero byte, the ECHConfig (RFC 9849, section 6.1).
    info: Vec<u8>,
}

/// The keys of a listener: several, so that an old one can be used on while clients still know it.
pub type Keys = [std::sync::Arc<Key>];

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Eq for Key {}

impl PartialEq for Key {
    /// Of the same private key as well, or one of them would not open what is meant for both.
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config && self.secret.secret_bytes() == other.secret.secret_bytes()
    }
}

/// Why a key file cannot be used. None of its content is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There is no such section.
    #[error("it has no section `PRIVATE KEY`")]
    NoPrivateKey,
    /// There is no such section.
    #[error("it has no section `ECHCONFIG`")]
    NoConfig,
    /// See [`Unusable`].
    #[error(transparent)]
    Config(#[from] Unusable),
    /// It is no PKCS#8 (RFC 5958).
    #[error("its private key cannot be read")]
    PrivateKeyMalformed,
    /// Not X25519, or without the functions that go with it here.
    #[error(
        "its key is of a kind that is not known here (known is X25519 with SHA-256 and AES-GCM or ChaCha20-Poly1305)"
    )]
    Unsupported,
    /// The two halves do not belong to each other.
    #[error("its private key is not that of its ECHCONFIG")]
    Mismatch,
}

impl Key {
    /// Reads a file. Its private key is that of one of the ECHConfigs, or of several: what of them it opens is given, at least one.
    pub fn read(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let list = EchConfigListBytes::from_pem_slice(pem).map_err(|_| KeyError::NoConfig)?;
        let private = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError::NoPrivateKey)?;
        let configs = EchConfig::all(&list)?;
        let secret = secret_of(private.secret_pkcs8_der())?;
        let (mut keys, mut failure) = (Vec::new(), None);
        for config in configs {
            match Self::new(config, secret.secret_bytes().to_vec().into()) {
                Ok(key) => keys.push(key),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.filter(|_| keys.is_empty()).map_or(Ok(keys), Err)
    }

    fn new(config: EchConfig, secret: HpkePrivateKey) -> Result<Self, KeyError> {
        let mut info = b"tls ech\0".to_vec();
        info.extend_from_slice(&config.encoded);
        let key = Self { config, secret, info };
        key.try_itself()?;
        Ok(key)
    }

    /// Seals something with the public key and opens it with the private one.
    fn try_itself(&self) -> Result<(), KeyError> {
        let known =
            self.config.suites.iter().find_map(|&numbers| Some((numbers, suite(self.config.kem, numbers)?)));
        let (numbers, suite) = known.ok_or(KeyError::Unsupported)?;
        let public = HpkePublicKey(self.config.public_key.clone());
        let (encapsulated, sealed) =
            suite.seal(&self.info, b"", b"snisplice", &public).map_err(|_| KeyError::Mismatch)?;
        let opened = self.open(numbers, &encapsulated.0, b"", &sealed);
        opened.filter(|(opened, _)| opened == b"snisplice").map(drop).ok_or(KeyError::Mismatch)
    }

    /// What clients know of it.
    pub fn config(&self) -> &EchConfig {
        &self.config
    }

    /// What was sealed for it with these functions, and what opens the next that is sealed with the same context; `None`: it
    /// was not.
    pub(super) fn open(
        &self,
        numbers: (u16, u16),
        encapsulated: &[u8],
        associated: &[u8],
        sealed: &[u8],
    ) -> Option<(Vec<u8>, Box<dyn HpkeOpener>)> {
        let encapsulated = EncapsulatedSecret(encapsulated.to_vec());
        let suite = suite(self.config.kem, numbers)?;
        let mut opener = suite.setup_opener(&encapsulated, &self.info, &self.secret).ok()?;
        Some((opener.open(associated, sealed).ok()?, opener))
    }
}

pub(super) fn suite(kem: u16, (kdf, aead): (u16, u16)) -> Option<&'static dyn Hpke> {
    Some(match (kem, kdf, aead) {
        (DHKEM_X25519, HKDF_SHA256, AES_128_GCM) => hpke::DH_KEM_X25519_HKDF_SHA256_AES_128,
        (DHKEM_X25519, HKDF_SHA256, AES_256_GCM) => hpke::DH_KEM_X25519_HKDF_SHA256_AES_256,
        (DHKEM_X25519, HKDF_SHA256, CHACHA20_POLY1305) => hpke::DH_KEM_X25519_HKDF_SHA256_CHACHA20_POLY1305,
        _ => return None,
    })
}

/// The 32 bytes of an X25519 key, which stand in an OCTET STRING of their own (RFC 8410, section 7).
fn secret_of(der: &[u8]) -> Result<HpkePrivateKey, KeyError> {
    let info = PrivateKeyInfoRef::try_from(der).map_err(|_| KeyError::PrivateKeyMalformed)?;
    if info.algorithm.oid != ID_X25519 {
        return Err(KeyError::Unsupported);
    }
    let secret: &OctetStringRef =
        Decode::from_der(info.private_key.as_bytes()).map_err(|_| KeyError::PrivateKeyMalformed)?;
    Ok(secret.as_bytes().to_vec().into())
}

/// A new key, of a random number unless one is given: the text of its file, and what clients are to know. `None`: the name
/// is too long, or there are no random numbers.
pub fn generate(config_id: Option<u8>, public_name: &str) -> Option<(Zeroizing<String>, EchConfig)> {
    let (public, secret) = hpke::DH_KEM_X25519_HKDF_SHA256_AES_128.generate_key_pair().ok()?;
    let suites = [AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305].map(|aead| (HKDF_SHA256, aead));
    let config_id = config_id.or(public.0.first().copied())?;
    let config = EchConfig::new(config_id, DHKEM_X25519, public.0, suites.into(), public_name)?;
    // PrivateKeyInfo, version 0, id-X25519, and an OCTET STRING of 34 bytes with one of 32 in it.
    const FRONT: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x6e\x04\x22\x04\x20";
    let mut der = Zeroizing::new(FRONT.to_vec());
    der.extend_from_slice(secret.secret_bytes());
    let section =
        |label, bytes: &[u8]| pem::encode_string(label, LineEnding::LF, bytes).ok().map(Zeroizing::new);
    let mut text = section("PRIVATE KEY", &der)?;
    text.push_str(&section("ECHCONFIG", &config.list())?);
    Some((text, config))
}
