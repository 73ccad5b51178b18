//! Certificates, keys and authorities named by routes and pools: read, matched and dated, so that nothing about them fails
//! later.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::sign::SigningKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::client_auth::{Client, ClientPaths};
use super::pem::{date, pem_error, unusable};
use super::{crl, key, pem};
use crate::config::authorities::Authorities;
use crate::config::certificate::{Loaded, Part, Problems};
use crate::config::client_auth::ClientAuth;
use crate::config::diagnostic::{Problem, Report, quote};
use crate::config::draft::{CertificateDraft, CertificateFiles, Field};
use crate::config::files::Files;
use crate::config::model::Termination;
use crate::config::place::Place;
use crate::ech;

/// The files of a terminated route, or of the `certificate` of a pool's `tls`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Paths {
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    pub(super) passphrase: Option<PathBuf>,
    pub(super) client: Option<ClientPaths>,
}

/// The certificate of a route, or of a pool's `tls`, and where it is named.
pub(super) fn load_certificate<'r>(
    certificate: &'r Field<Box<CertificateDraft>>,
    client: Option<Client<'_>>,
    certificates: &mut Certificates<'_>,
    report: &mut Report,
) -> Option<(&'r Place, Arc<Loaded>)> {
    let certificate = certificate.given()?;
    let files = match (&*certificate.value, client) {
        (CertificateDraft::Held(held), client) => {
            let client = client.and_then(Client::held);
            return Some((&certificate.place, certificates.of_held(held, client)?));
        }
        (CertificateDraft::Files(files), client) => (files, client.and_then(Client::files)),
    };
    let (CertificateFiles { chain, key, passphrase_file: passphrase }, client) = files;
    let (chain, key) = (chain.given()?, key.given()?);
    if passphrase.is_invalid() {
        return None;
    }
    let passphrase = passphrase.given();
    let (client, places) = client.unzip();
    let paths = Paths {
        chain: chain.value.clone(),
        key: key.value.clone(),
        passphrase: passphrase.map(|path| path.value.clone()),
        client,
    };
    let at = |(part, problem): &(Part, Problem)| {
        let place = match part {
            Part::Chain => &chain.place,
            Part::Key => &key.place,
            Part::Passphrase => &passphrase?.place,
            Part::ClientCa(number) => places.as_ref()?.ca[*number],
            Part::ClientCrl(number) => places.as_ref()?.crl[*number],
        };
        Some(problem.clone().at(place))
    };
    match certificates.load(&paths) {
        Ok(loaded) => {
            let warnings = loaded.warnings.iter().filter_map(at);
            warnings.for_each(|warning| report.push(warning.into_warning()));
            Some((&certificate.place, loaded.clone()))
        }
        Err(problems) => {
            problems.iter().filter_map(at).for_each(|problem| report.push(problem));
            None
        }
    }
}

/// Or every problem with the files.
type Outcome = Result<Arc<Loaded>, Problems>;

/// Loads each set of files once, however many routes name it.
pub(super) struct Certificates<'a> {
    files: &'a dyn Files,
    now: UnixTime,
    provider: CryptoProvider,
    loaded: HashMap<Paths, Outcome>,
    clients: HashMap<ClientPaths, Result<(Arc<ClientAuth>, Problems), Problems>>,
    /// By the addresses of the certificates and of what is asked of clients, or 0.
    held: HashMap<Vec<usize>, Arc<Loaded>>,
    /// By their file; `None`: the system's.
    authorities: HashMap<Option<PathBuf>, Result<Arc<Authorities>, Problem>>,
}

impl<'a> Certificates<'a> {
    pub(super) fn new(files: &'a dyn Files, now: UnixTime) -> Self {
        let provider = aws_lc_rs::default_provider();
        Self {
            files,
            now,
            provider,
            loaded: HashMap::new(),
            clients: HashMap::new(),
            held: HashMap::new(),
            authorities: HashMap::new(),
        }
    }

    pub(super) fn load(&mut self, paths: &Paths) -> &Outcome {
        if let Some(client) = paths.client.as_ref().filter(|client| !self.clients.contains_key(client)) {
            let auth = self.client_auth(client);
            self.clients.insert(client.clone(), auth);
        }
        if !self.loaded.contains_key(paths) {
            let loaded = self.load_now(paths).map(Arc::new);
            self.loaded.insert(paths.clone(), loaded);
        }
        &self.loaded[paths]
    }

    fn load_now(&self, paths: &Paths) -> Result<Loaded, Problems> {
        let chain = self.chain(&paths.chain).map_err(|problem| (Part::Chain, problem));
        let passphrase = paths.passphrase.as_deref().map(|path| self.line(path, "passphrase")).transpose();
        let key = passphrase.map_err(|problem| (Part::Passphrase, problem)).and_then(|passphrase| {
            let passphrase = passphrase.as_ref().map(|line| &line[..]);
            self.key(&paths.key, passphrase).map_err(|problem| (Part::Key, problem))
        });
        let client_auth = paths.client.as_ref().map(|client| self.clients[client].clone()).transpose();
        let ((chain, leaf), key, client_auth) = match (chain, key, client_auth) {
            (Ok(chain), Ok(key), Ok(client_auth)) => (chain, key, client_auth),
            (chain, key, client_auth) => {
                let problems = [chain.err(), key.err()].into_iter().flatten();
                return Err(problems.chain(client_auth.err().into_iter().flatten()).collect());
            }
        };
        matches(&chain, &*key.signing, &paths.chain).map_err(|problem| vec![(Part::Key, problem)])?;
        let mut warnings: Vec<_> =
            leaf.out_of_date(self.now).map(|problem| (Part::Chain, problem)).into_iter().collect();
        if paths.passphrase.is_some() && !key.encrypted {
            let problem = Problem::new("`passphrase_file` has no effect: the private key is not encrypted");
            warnings.push((Part::Passphrase, problem.help("take it out, or encrypt the key")));
        }
        let client_auth = client_auth.map(|(client_auth, odd)| {
            warnings.extend(odd);
            client_auth
        });
        let termination = Termination {
            chain,
            key: key.der,
            client_auth,
            not_after: leaf.not_after,
            names: leaf.names,
            more: Vec::new(),
        };
        Ok(Loaded { termination: Arc::new(termination), is_held: false, warnings })
    }

    fn chain(&self, path: &Path) -> Result<(Vec<CertificateDer<'static>>, Leaf), Problem> {
        chain(path, &self.read(path)?)
    }

    fn key(&self, path: &Path, passphrase: Option<&[u8]>) -> Result<Key, Problem> {
        private_key(&self.provider, path, &self.read(path)?, passphrase)
    }

    /// Certificates that a source has in memory, with what is asked of clients. Routes with the same share it.
    fn of_held(&mut self, held: &[Arc<Loaded>], client: Option<Arc<ClientAuth>>) -> Option<Arc<Loaded>> {
        let (first, more) = held.split_first()?;
        if more.is_empty() && client.is_none() {
            return Some(first.clone());
        }
        let at = |loaded: &Arc<Loaded>| Arc::as_ptr(loaded).addr();
        let client_at = client.as_ref().map_or(0, |client| Arc::as_ptr(client).addr());
        let key = held.iter().map(at).chain([client_at]).collect();
        Some(self.held.entry(key).or_insert_with(|| Arc::new(combined(first, more, client))).clone())
    }

    /// The one line of a file, which holds a `secret`, without its end.
    pub(super) fn line(&self, path: &Path, secret: &str) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let mut line = self.read(path)?;
        for end in [b'\n', b'\r'] {
            line.pop_if(|last| *last == end);
        }
        let problem = |why| Err(unusable(path, why).help(format!("one line, with the {secret}")));
        match line.contains(&b'\n') {
            true => problem("it has several lines"),
            false if line.is_empty() => problem("it is empty"),
            false => Ok(line),
        }
    }

    /// What a route asks of clients' certificates, with what is odd about the files.
    fn client_auth(&self, client: &ClientPaths) -> Result<(Arc<ClientAuth>, Problems), Problems> {
        let (mut authorities, mut crls, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (number, path) in client.ca.iter().enumerate() {
            match self.client_ca(path) {
                Ok(more) => authorities.push(more),
                Err(problem) => problems.push((Part::ClientCa(number), problem)),
            }
        }
        for (number, path) in client.crl.iter().enumerate() {
            match self.read(path).and_then(|pem| crl::read(path, &pem)) {
                Ok(more) => crls.push(more),
                Err(problem) => problems.push((Part::ClientCrl(number), problem)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let (crl_expiry, odd) = crl::judge(&authorities, &crls, self.now);
        let auth = ClientAuth {
            authorities: authorities.concat(),
            crls: crls.concat(),
            crl_expiry,
            required: client.required,
            unverified: false,
            allowed: client.allowed.clone(),
        };
        Ok((Arc::new(auth), odd))
    }

    fn client_ca(&self, path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let pem = self.read(path)?;
        let help = match CertificateRevocationListDer::from_pem_slice(&pem) {
            Ok(_) if CertificateDer::from_pem_slice(&pem).is_err() => {
                "it holds a CRL: are `ca` and `crl` swapped?"
            }
            _ => "a PEM file with the certificates that sign those of clients",
        };
        authorities(path, &pem, help)
    }

    /// The keys for Encrypted ClientHello in a file.
    pub(super) fn ech_keys(&self, path: &Path) -> Result<Vec<ech::Key>, Problem> {
        let made = "`snisplice ech-key --public-name NAME` makes one";
        ech::Key::read(&self.read(path)?).map_err(|error| unusable(path, &error.to_string()).help(made))
    }

    /// Those who sign the certificates of servers: in the file, or without one the system's.
    pub(super) fn server_authorities(&mut self, path: Option<&Path>) -> Result<Arc<Authorities>, Problem> {
        let key = path.map(Path::to_owned);
        if let Some(known) = self.authorities.get(&key) {
            return known.clone();
        }
        let found = match path {
            Some(path) => {
                self.authorities_in(path, "a PEM file with the certificates that sign those of servers")
            }
            None => self.system_authorities(),
        };
        let found = found.map(Arc::new);
        self.authorities.insert(key, found.clone());
        found
    }

    /// `help`: what the file should be.
    fn authorities_in(&self, path: &Path, help: &str) -> Result<Authorities, Problem> {
        let certificates = certificates(path, &self.read(path)?)?;
        if certificates.is_empty() {
            return Err(unusable(path, "it holds no certificate").help(help));
        }
        let mut roots = RootCertStore::empty();
        for (number, authority) in (1..).zip(&certificates) {
            if roots.add(authority.clone()).is_err() {
                let why = format!("its certificate {number} is not X.509");
                return Err(unusable(path, &why).help(help));
            }
        }
        Ok(Authorities { certificates, roots })
    }

    fn system_authorities(&self) -> Result<Authorities, Problem> {
        let (found, fault) = self.files.system_authorities();
        let (mut certificates, mut roots) = (Vec::new(), RootCertStore::empty());
        // The system's may be old, or for purposes of its own: one that cannot be used is left out.
        for authority in found {
            if roots.add(authority.clone()).is_ok() {
                certificates.push(authority);
            }
        }
        if certificates.is_empty() {
            let why = fault.map(|fault| format!(": {fault}")).unwrap_or_default();
            let problem = Problem::new(format!("this system has no authorities{why}"));
            return Err(problem.help("install `ca-certificates`, or name a file: `ca = \"FILE\"`"));
        }
        Ok(Authorities { certificates, roots })
    }

    fn read(&self, path: &Path) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let content = self.files.read(path).map(Zeroizing::new).map_err(|error| {
            let problem = Problem::new(format!("cannot read {}: {error}", quote(&path.to_string_lossy())));
            match path.is_relative() {
                true => problem.help("a relative path starts at the directory of this file"),
                false => problem,
            }
        })?;
        pem::text(path, content)
    }
}

/// Reads a certificate and its key that are in memory, each with what it is called.
pub(in crate::config) fn of_memory(
    (chain_name, chain_pem): (&Path, &[u8]),
    (key_name, key_pem): (&Path, &[u8]),
) -> Result<Loaded, Problem> {
    let (chain, leaf) = chain(chain_name, chain_pem)?;
    let key = private_key(&aws_lc_rs::default_provider(), key_name, key_pem, None)?;
    matches(&chain, &*key.signing, chain_name)?;
    let termination = Termination {
        chain,
        key: key.der,
        client_auth: None,
        not_after: leaf.not_after,
        names: leaf.names,
        more: Vec::new(),
    };
    Ok(Loaded { termination: Arc::new(termination), is_held: true, warnings: Vec::new() })
}

/// Reads authorities that are in memory.
pub(in crate::config) fn authorities_of_memory(
    name: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, Problem> {
    authorities(name, pem, "certificates in PEM")
}

/// One that chooses among several, and asks clients for certificates.
fn combined(first: &Arc<Loaded>, more: &[Arc<Loaded>], client_auth: Option<Arc<ClientAuth>>) -> Loaded {
    let first = &first.termination;
    let more: Vec<_> = more.iter().map(|other| other.termination.clone()).collect();
    let termination = Termination {
        chain: first.chain.clone(),
        key: first.key.clone_key(),
        client_auth,
        not_after: more.iter().map(|other| other.not_after).fold(first.not_after, u64::min),
        names: first.names.clone(),
        more,
    };
    Loaded { termination: Arc::new(termination), is_held: true, warnings: Vec::new() }
}

fn chain(path: &Path, pem: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Leaf), Problem> {
    let chain = certificates(path, pem)?;
    let Some(first) = chain.first() else {
        let problem = unusable(path, "it holds no certificate");
        return Err(match PrivateKeyDer::from_pem_slice(pem) {
            Ok(_) => problem.help("it holds a private key: are `chain` and `key` swapped?"),
            Err(_) => problem.help(PEM_CERTIFICATE),
        });
    };
    match Leaf::parse(first) {
        Some(leaf) => Ok((chain, leaf)),
        None => Err(unusable(path, "its first certificate is not X.509").help(PEM_CERTIFICATE)),
    }
}

fn private_key(
    provider: &CryptoProvider,
    path: &Path,
    pem: &[u8],
    passphrase: Option<&[u8]>,
) -> Result<Key, Problem> {
    let (der, encrypted) = key::read(path, pem, passphrase)?;
    match provider.key_provider.load_private_key(der.clone_key()) {
        Ok(signing) => Ok(Key { der, signing, encrypted }),
        Err(_) => Err(unusable(path, "its private key is not one that can be used")
            .help("RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, or Ed25519")),
    }
}

/// A private key that can be used.
struct Key {
    der: PrivateKeyDer<'static>,
    signing: Arc<dyn SigningKey>,
    /// It was, before the passphrase.
    encrypted: bool,
}

/// Whether the key belongs to the first certificate. The certificates are looked at no further than clients would:
/// what version of X.509 they are is theirs to judge.
fn matches(chain: &[CertificateDer<'_>], key: &dyn SigningKey, chain_path: &Path) -> Result<(), Problem> {
    // A key that does not tell its public half is taken at its word.
    let Some(public) = key.public_key() else { return Ok(()) };
    let belongs = |certificate: &CertificateDer<'_>| {
        X509Certificate::from_der(certificate)
            .is_ok_and(|(_, certificate)| certificate.public_key().raw == &*public)
    };
    let help = match chain.iter().position(belongs) {
        Some(0) => return Ok(()),
        Some(other) => format!("it belongs to certificate {} of that file: put that one first", other + 1),
        None => {
            "compare `openssl pkey -pubout -in KEY` and `openssl x509 -pubkey -noout -in CHAIN`".to_owned()
        }
    };
    let chain_path = quote(&chain_path.to_string_lossy());
    Err(Problem::new(format!("this key does not belong to the certificate in {chain_path}")).help(help))
}

/// What is of interest in a server's certificate.
struct Leaf {
    /// Seconds since the Unix epoch.
    not_before: u64,
    /// Seconds since the Unix epoch.
    not_after: u64,
    /// See [`Termination::names`].
    names: BTreeSet<Box<str>>,
}

impl Leaf {
    fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        let names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
            _ => None,
        });
        // Before 1970 is as good as 1970 here.
        let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        Some(Self {
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
            names: names.collect(),
        })
    }

    fn out_of_date(&self, now: UnixTime) -> Option<Problem> {
        let now = now.as_secs();
        if now > self.not_after {
            let message = format!("this certificate expired on {}", date(self.not_after));
            return Some(Problem::new(message).help("it will be refused: renew it"));
        }
        if now < self.not_before {
            let message = format!("this certificate is not valid before {}", date(self.not_before));
            return Some(Problem::new(message).help("it will be refused until then; is the clock right?"));
        }
        None
    }
}

const PEM_CERTIFICATE: &str = "a PEM file with `BEGIN CERTIFICATE`, that of the key first";

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, pem_error(&error)).help(PEM_CERTIFICATE))
}

/// The certificates of a file that holds some, each of which can be an authority. `help`: what the file should be.
fn authorities(path: &Path, pem: &[u8], help: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let authorities = certificates(path, pem)?;
    if authorities.is_empty() {
        return Err(unusable(path, "it holds no certificate").help(help));
    }
    let mut roots = RootCertStore::empty();
    for (number, authority) in (1..).zip(&authorities) {
        if roots.add(authority.clone()).is_err() {
            let why = format!("its certificate {number} is not X.509");
            return Err(unusable(path, &why).help(help));
        }
    }
    Ok(authorities)
}
