//! Private keys in PEM: plain, or encrypted with a passphrase.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;

use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, SecretDocument};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::pem::{pem_error, unusable};
use crate::config::diagnostic::Problem;

/// Memory that scrypt may take to derive a key, in bytes: OpenSSL's own bound.
const MAX_SCRYPT: u64 = 32 << 20;

const PEM_KEY: &str = "a PEM file with `BEGIN PRIVATE KEY`";

/// The private key in a file, and whether `passphrase` was needed for it.
pub(super) fn read(
    path: &Path,
    pem: &[u8],
    passphrase: Option<&[u8]>,
) -> Result<(PrivateKeyDer<'static>, bool), Problem> {
    let error = match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => return Ok((key, false)),
        Err(error) => error,
    };
    if let Some(section) = encrypted_section(pem) {
        return match passphrase {
            Some(passphrase) => Ok((decrypt(path, section, passphrase)?, true)),
            None => Err(unusable(path, "its private key is encrypted").help(
                "name the file that holds the passphrase: `certificate = { …, passphrase_file = \"FILE\" }`; or decrypt \
                 it: `openssl pkey -in ENCRYPTED -out KEY`, and let only the gateway read that",
            )),
        };
    }
    // RFC 1421, section 4.6.1.1. Keys come from the passphrase by one round of MD5: as good as none.
    if contains(pem, b"Proc-Type: 4,ENCRYPTED") {
        return Err(unusable(path, "its private key is encrypted in the old form of PEM").help(
            "`openssl pkcs8 -topk8 -in KEY -out NEW` makes one that `passphrase_file` opens, \
             `openssl pkey -in KEY -out NEW` one without a passphrase",
        ));
    }
    Err(match error {
        pem::Error::NoItemsFound if CertificateDer::from_pem_slice(pem).is_ok() => {
            unusable(path, "it holds no private key")
                .help("it holds a certificate: are `chain` and `key` swapped?")
        }
        pem::Error::NoItemsFound => unusable(path, "it holds no private key").help(PEM_KEY),
        error => unusable(path, pem_error(&error)).help(PEM_KEY),
    })
}

/// The PEM section of a key in PKCS#8 that is encrypted; not its end, if that is missing.
fn encrypted_section(pem: &[u8]) -> Option<&[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    const END: &[u8] = b"-----END ENCRYPTED PRIVATE KEY-----";
    let section = &pem[position(pem, BEGIN)?..];
    Some(position(section, END).map_or(section, |end| &section[..end + END.len()]))
}

fn decrypt(path: &Path, section: &[u8], passphrase: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
    let broken = || unusable(path, "its encrypted private key cannot be read").help(PEM_KEY);
    let unsupported = || {
        unusable(path, "its private key is encrypted in a way that is not supported").help(
            "`openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEW` makes one that is: PBES2 with PBKDF2, or scrypt \
             of 32 MiB at most",
        )
    };
    let wrong = || {
        let problem = unusable(path, "the passphrase does not open its private key");
        problem.help("compare `openssl pkey -in KEY -passin file:PASSPHRASE -noout`")
    };
    let text = std::str::from_utf8(section).map_err(|_| broken())?;
    let (_, document) = SecretDocument::from_pem(text).map_err(|_| broken())?;
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(document.as_bytes()).map_err(|_| unsupported())?;
    let parameters = encrypted.encryption_algorithm.pbes2().ok_or_else(unsupported)?;
    if let Some(scrypt) = parameters.kdf.scrypt()
        && scrypt.cost_parameter.saturating_mul(128 * u64::from(scrypt.block_size)) > MAX_SCRYPT
    {
        return Err(unsupported());
    }
    let key = encrypted.decrypt(passphrase).map_err(|error| match error {
        // What comes of a wrong passphrase may by chance be padded as it should.
        pkcs8::Error::EncryptedPrivateKey(pkcs8::pkcs5::Error::DecryptFailed) | pkcs8::Error::Asn1(_) => {
            wrong()
        }
        _ => unsupported(),
    })?;
    PrivateKeyInfoRef::try_from(key.as_bytes()).map_err(|_| wrong())?;
    Ok(PrivateKeyDer::Pkcs8(key.as_bytes().to_vec().into()))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    position(text, part).is_some()
}

fn position(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}
