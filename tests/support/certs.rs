//! A certificate authority and leaf certificates, as PEM files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, RsaKeySize,
    date_time_ymd,
};

use crate::tempdir::TempDir;

/// The kind of a leaf's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on P-256: what a new deployment uses.
    EcdsaP256,
    /// RSA with 2048 bits: what old ones still use, and several times the work of the server.
    Rsa2048,
}

/// A certificate authority; it and the files of its leaves live in a directory of its own.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    files: TempDir,
    /// The authority's certificate, PEM.
    pub path: PathBuf,
}

/// A certificate and its key on disk, as long as their [`Authority`] lives.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate chain, PEM.
    pub chain: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The certificate of the authority that signed it, PEM.
    pub authority: PathBuf,
}

impl Authority {
    /// A new authority.
    pub fn new(name: &str) -> Result<Self> {
        let files = TempDir::new()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let path = files.join("ca.crt");
        fs::write(&path, issuer.pem())?;
        Ok(Self { issuer, files, path })
    }

    /// A certificate for these names, with an ECDSA P-256 key; the first is also the common name and the file name.
    pub fn leaf(&self, names: &[&str]) -> Result<Leaf> {
        self.leaf_with(KeyKind::EcdsaP256, names)
    }

    /// A certificate for these names with a key of this kind. Issued again for the same name, it replaces the files.
    pub fn leaf_with(&self, kind: KeyKind, names: &[&str]) -> Result<Leaf> {
        self.issue(kind, names, |_| {})
    }

    /// A certificate like [`Authority::leaf`]'s, but for a change.
    pub fn leaf_as(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Result<Leaf> {
        self.issue(KeyKind::EcdsaP256, names, change)
    }

    /// The path of a CRL with these serial numbers, which expires at the beginning of a year. It replaces the one before.
    pub fn crl(&self, revoked: &[u64], expires: i32) -> Result<PathBuf> {
        let this_update = date_time_ymd(2020, 1, 1);
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: this_update,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update,
            next_update: date_time_ymd(expires, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.files.join("revoked.crl");
        fs::write(&path, params.signed_by(&self.issuer)?.pem()?)?;
        Ok(path)
    }

    fn issue(
        &self,
        kind: KeyKind,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Leaf> {
        let key = match kind {
            KeyKind::EcdsaP256 => KeyPair::generate()?,
            KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)?,
        };
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names.clone())?;
        params.distinguished_name.push(DnType::CommonName, names[0].as_str());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer)?;

        let stem = names[0].replace('*', "wildcard");
        let leaf = Leaf {
            chain: self.files.join(format!("{stem}.crt")),
            key: self.files.join(format!("{stem}.key")),
            authority: self.path.clone(),
        };
        fs::write(&leaf.chain, certificate.pem())?;
        fs::write(&leaf.key, key.serialize_pem())?;
        Ok(leaf)
    }
}

impl Leaf {
    /// The `certificate = …` value of a route's configuration.
    pub fn toml(&self) -> String {
        format!("{{ chain = {:?}, key = {:?} }}", self.chain, self.key)
    }

    /// Copies chain and key to where (and with the owner and mode) a program insists to have them.
    pub fn copy_to(&self, directory: &Path) -> Result<Leaf> {
        let copy =
            Leaf { chain: directory.join("server.crt"), key: directory.join("server.key"), ..self.clone() };
        fs::copy(&self.chain, &copy.chain)?;
        fs::copy(&self.key, &copy.key)?;
        Ok(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::checked_output;
    use std::process::Command;

    #[test]
    fn openssl_verifies_leaves_of_both_kinds() {
        let authority = Authority::new("test authority").unwrap();
        for kind in [KeyKind::EcdsaP256, KeyKind::Rsa2048] {
            let leaf = authority.leaf_with(kind, &["app1.redis.example.com"]).unwrap();
            let mut verify = Command::new("openssl");
            verify.args(["verify", "-verify_hostname", "app1.redis.example.com", "-CAfile"]);
            verify.arg(&authority.path).arg(&leaf.chain);
            assert!(checked_output(&mut verify).unwrap().ends_with(": OK\n"));
        }
    }
}
