//! Certificates of Secrets, and authorities of ConfigMaps: read when they come, so that a bad one is known before it is used.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::path::Path;
use std::sync::Arc;

use base64ct::{Base64, Encoding as _};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::refusal::Refusal;
use crate::config::certificate::Loaded;
use crate::config::check::certificate;
use crate::config::diagnostic::Problem;
use crate::config::files::Digest;

/// A Secret, as far as it is of interest. Its text is wiped from memory once it was read.
#[derive(Debug)]
pub(super) struct SecretSpec {
    /// Tells whether it is another than before.
    digest: Digest,
    is_of_type_tls: bool,
    /// Its certificate, or why it has none that can be used.
    pub(super) certificate: Result<Arc<Loaded>, Box<str>>,
    /// The authorities of clients' certificates, which only Istio's Gateways look for in a Secret.
    pub(super) authorities: Result<Vec<CertificateDer<'static>>, Box<str>>,
}

impl PartialEq for SecretSpec {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const CA: &str = "ca.crt";
/// What Istio takes for each of them in Secrets of the type `Opaque`.
const ISTIO: [&str; 3] = ["cert", "key", "cacert"];
/// Lists of revoked certificates, which are not read: without them more clients get in.
const REVOKED: [&str; 2] = ["ca.crl", "crl"];

/// The parts of a Secret that are read, by its type.
pub(crate) fn parts_of_secrets(kind: &str) -> impl Iterator<Item = &'static str> {
    let of_tls = kind == TYPE;
    let any = of_tls || kind == "Opaque";
    let names = [CHAIN, KEY, CA].into_iter().chain(REVOKED).filter(move |_| any);
    names.chain(ISTIO.into_iter().filter(move |_| any && !of_tls))
}

const TYPE: &str = "kubernetes.io/tls";

impl SecretSpec {
    /// Takes the data out of the object.
    pub(super) fn read(object: &mut Value) -> Result<Self, Refusal> {
        let mut named = |[first, second]: [&str; 2]| match part(object, first)? {
            Some(found) => Ok(Some(found)),
            None => part(object, second),
        };
        let [chain, key, ca] = [[CHAIN, ISTIO[0]], [KEY, ISTIO[1]], [CA, ISTIO[2]]].map(&mut named);
        let (chain, key, ca, revoked) = (chain?, key?, ca?, named(REVOKED)?);
        let is_of_type_tls = object["type"] == TYPE;
        let mut digest = Sha256::new();
        digest.update([u8::from(is_of_type_tls)]);
        for part in [&chain, &key, &ca, &revoked] {
            digest.update([u8::from(part.is_some())]);
            digest.update(Sha256::digest(part.as_deref().map_or(&[][..], |part| part)));
        }
        let certificate = match (chain, key) {
            (Some(chain), Some(key)) => {
                certificate::of_memory((Path::new(CHAIN), &chain), (Path::new(KEY), &key))
                    .map(Arc::new)
                    .map_err(|problem| shown(&problem))
            }
            _ => Err(format!("it lacks `{CHAIN}` or `{KEY}`").into()),
        };
        let authorities = match (ca, revoked) {
            (Some(_), Some(_)) => Err("its list of revoked certificates is not read".into()),
            (Some(ca), None) => {
                certificate::authorities_of_memory(Path::new(CA), &ca).map_err(|problem| shown(&problem))
            }
            (None, _) => Err(format!("it has no `{CA}`").into()),
        };
        Ok(Self { digest: digest.finalize().into(), is_of_type_tls, certificate, authorities })
    }

    /// Its certificate as the Gateway API has it: in a Secret of this type alone.
    pub(super) fn of_type_tls(&self) -> Result<Arc<Loaded>, Box<str>> {
        match self.is_of_type_tls {
            true => self.certificate.clone(),
            false => Err(format!("its type is not `{TYPE}`").into()),
        }
    }
}

/// The data with this name. `stringData`, which files may have, wins.
fn part(object: &mut Value, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Refusal> {
    let mut take = |field: &str| match object.get_mut(field).and_then(|data| data.get_mut(name)) {
        Some(Value::String(text)) => Ok(Some(Zeroizing::new(std::mem::take(text).into_bytes()))),
        Some(_) => Err(Refusal::new(format!("{field}.{name}"), "it is no text")),
        None => Ok(None),
    };
    let (encoded, plain) = (take("data")?, take("stringData")?);
    if plain.is_some() {
        return Ok(plain);
    }
    let Some(encoded) = encoded else { return Ok(None) };
    let not_base64 = || Refusal::new(format!("data.{name}"), "it is not base64");
    // YAML's block scalars have line ends in it.
    let packed: Zeroizing<Vec<u8>> =
        Zeroizing::new(encoded.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect());
    let packed = std::str::from_utf8(&packed).map_err(|_| not_base64())?;
    Base64::decode_vec(packed).map(|part| Some(Zeroizing::new(part))).map_err(|_| not_base64())
}

/// A ConfigMap, as far as it is of interest.
#[derive(Debug)]
pub(super) struct AuthoritySpec {
    digest: Digest,
    /// The authorities that it holds, or why it holds none.
    pub(super) authorities: Result<Vec<CertificateDer<'static>>, Box<str>>,
}

impl PartialEq for AuthoritySpec {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl AuthoritySpec {
    /// Takes the data out of the object.
    pub(super) fn read(object: &mut Value) -> Result<Self, Refusal> {
        let text = match object.get_mut("data").and_then(|data| data.get_mut(CA)) {
            Some(Value::String(text)) => Some(std::mem::take(text)),
            Some(_) => return Err(Refusal::new(format!("data[{CA}]"), "it is no text")),
            None => None,
        };
        let digest = Sha256::digest(text.as_deref().unwrap_or_default()).into();
        let authorities = match text {
            Some(text) => certificate::authorities_of_memory(Path::new(CA), text.as_bytes())
                .map_err(|problem| shown(&problem)),
            None => Err(format!("it has no `{CA}`").into()),
        };
        Ok(Self { digest, authorities })
    }
}

/// A problem in one line.
pub(super) fn shown(problem: &Problem) -> Box<str> {
    match &problem.help {
        Some(help) => format!("{}: {help}", problem.message).into(),
        None => problem.message.clone().into(),
    }
}
