//! ECHConfigs: what clients know of a key (RFC 9849, section 4).

use super::wire::{Reader, put_vector16};

/// The version of ECHConfigs that RFC 9849 defines; others are for other keys.
const VERSION: u16 = 0xfe0d;

/// Bit of an extension's number without which it may be ignored.
const MANDATORY: u16 = 0x8000;

/// An ECHConfig.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EchConfig {
    /// By which clients say which key they have used; not unique in the world.
    pub config_id: u8,
    /// The key encapsulation mechanism (RFC 9180, section 7.1).
    pub kem: u16,
    /// In the form of its mechanism.
    pub public_key: Vec<u8>,
    /// Pairs of a key derivation function and an AEAD (RFC 9180, sections 7.2 and 7.3).
    pub suites: Vec<(u16, u16)>,
    /// Names up to this length are padded to it.
    pub maximum_name_length: u8,
    /// The name in the outer ClientHello.
    pub public_name: String,
    /// As it stands in the list, with version and length: a part of what the encryption vouches for.
    pub encoded: Vec<u8>,
}

/// Why a list of ECHConfigs cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A length in it lies.
    #[error("its ECHCONFIG is malformed")]
    Malformed,
    /// All are of other versions, or have mandatory extensions that are not known.
    #[error("its ECHCONFIG is of no version that is known here")]
    Unknown,
}

impl EchConfig {
    /// Those of an ECHConfigList that are of our version: at least one.
    pub fn all(list: &[u8]) -> Result<Vec<Self>, Unusable> {
        let mut reader = Reader(list);
        let mut configs = Reader(reader.vector16().filter(|_| reader.is_empty()).ok_or(Unusable::Malformed)?);
        let mut known = Vec::new();
        while !configs.is_empty() {
            let at = configs.0;
            let (version, contents) = configs.u16().zip(configs.vector16()).ok_or(Unusable::Malformed)?;
            if version == VERSION {
                let encoded = &at[..at.len() - configs.0.len()];
                known.extend(Self::read(contents, encoded).ok_or(Unusable::Malformed)?);
            }
        }
        if known.is_empty() { Err(Unusable::Unknown) } else { Ok(known) }
    }

    /// `Some(None)`: it has a mandatory extension.
    fn read(contents: &[u8], encoded: &[u8]) -> Option<Option<Self>> {
        let mut reader = Reader(contents);
        let (config_id, kem) = (reader.u8()?, reader.u16()?);
        let public_key = reader.vector16().filter(|key| !key.is_empty())?.to_vec();
        let mut list = Reader(reader.vector16().filter(|suites| !suites.is_empty())?);
        let mut suites = Vec::new();
        while !list.is_empty() {
            suites.push((list.u16()?, list.u16()?));
        }
        let maximum_name_length = reader.u8()?;
        let public_name = std::str::from_utf8(reader.vector8()?).ok()?;
        // RFC 9849, section 4: a name in DNS, in ASCII.
        crate::sniff::ServerName::parse(public_name.as_bytes()).ok()?;
        let mut extensions = Reader(reader.vector16()?);
        let mut is_known = true;
        while !extensions.is_empty() {
            let (kind, _) = (extensions.u16()?, extensions.vector16()?);
            is_known &= kind & MANDATORY == 0;
        }
        if !reader.is_empty() {
            return None;
        }
        Some(is_known.then(|| Self {
            config_id,
            kem,
            public_key,
            suites,
            maximum_name_length,
            public_name: public_name.to_owned(),
            encoded: encoded.to_vec(),
        }))
    }

    /// An ECHConfig of these values, `encoded` among them; `None`: one of them is too long.
    pub(super) fn new(
        config_id: u8,
        kem: u16,
        public_key: Vec<u8>,
        suites: Vec<(u16, u16)>,
        public_name: &str,
    ) -> Option<Self> {
        let maximum_name_length = 0;
        let mut contents = vec![config_id];
        contents.extend(kem.to_be_bytes());
        put_vector16(&mut contents, &public_key)?;
        let pairs: Vec<u8> =
            suites.iter().flat_map(|(kdf, aead)| [kdf.to_be_bytes(), aead.to_be_bytes()]).flatten().collect();
        put_vector16(&mut contents, &pairs)?;
        contents.push(maximum_name_length);
        contents.push(u8::try_from(public_name.len()).ok()?);
        contents.extend_from_slice(public_name.as_bytes());
        // No extensions.
        contents.extend([0, 0]);
        let mut encoded = VERSION.to_be_bytes().to_vec();
        put_vector16(&mut encoded, &contents)?;
        let public_name = public_name.to_owned();
        Some(Self { config_id, kem, public_key, suites, maximum_name_length, public_name, encoded })
    }

    /// The list of this one alone: what the HTTPS record has as `ech`, in base64.
    pub fn list(&self) -> Vec<u8> {
        let mut list = Vec::new();
        // It came from such a list, or was measured when it was made.
        let _ = put_vector16(&mut list, &self.encoded);
        list
    }
}
