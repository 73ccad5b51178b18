//! The certificates and keys that people have: old ones, self-made ones, encrypted ones.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use snisplice_tests::gateway::binary;
use snisplice_tests::process::checked_output;
use snisplice_tests::tls::Client;
use snisplice_tests::{Authority, Gateway, Leaf, TempDir, eventually};

use crate::config::{listener, pool, route};
use crate::openssl::SClient;
use crate::tolerance::metrics;
use crate::world::World;
use snisplice_tests::backend::{Backend, echo};

const NAME: &str = "app.example.com";
const PASSPHRASE: &str = "correct horse battery";

/// A directory in which `openssl` is run.
pub(crate) struct Workshop(pub(crate) TempDir);

impl Workshop {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(TempDir::new()?))
    }

    pub(crate) fn openssl(&self, arguments: &str) -> Result<String> {
        let mut openssl = Command::new("openssl");
        checked_output(openssl.current_dir(self.0.path()).args(arguments.split(' ')))
    }

    /// A certificate of X.509 version 1 that its own key has signed.
    pub(crate) fn version_1(&self, stem: &str, key: &str) -> Result<Leaf> {
        self.openssl(&format!(
            "req -new -newkey {key} -noenc -subj /CN={NAME} -keyout {stem}.key -out {stem}.csr"
        ))?;
        self.openssl(&format!("x509 -req -in {stem}.csr -signkey {stem}.key -days 2 -out {stem}.crt"))?;
        let text = self.openssl(&format!("x509 -in {stem}.crt -noout -text"))?;
        ensure!(text.contains("Version: 1 "), "{text}");
        Ok(self.leaf(stem))
    }

    pub(crate) fn leaf(&self, stem: &str) -> Leaf {
        let file = |ending: &str| self.0.join(format!("{stem}.{ending}"));
        Leaf { chain: file("crt"), key: file("key"), authority: file("crt") }
    }
}

const RSA: &str = "rsa:2048";
const EC: &str = "ec -pkeyopt ec_paramgen_curve:P-256";

fn terminated(certificate: &str, extra: &str) -> String {
    listener("")
        + &route("app", NAME, &format!("tls = 'terminate'\ncertificate = {certificate}\n{extra}"))
        + &pool("app", &[7001], "")
}

/// Bytes reach the server and come back.
fn is_served(world: &World, authority: &Path, arguments: &[&str]) -> Result<String> {
    let authority = authority.to_str().context("UTF-8")?;
    let arguments = [&["-verify_return_error", "-CAfile", authority][..], arguments].concat();
    let mut openssl = SClient::start(world, NAME, &arguments)?;
    openssl.type_in("hello there\n")?;
    // What it types is not in its output.
    openssl.wait_for("hello there")?;
    openssl.finish()
}

fn client(leaf: &Leaf) -> [&str; 4] {
    ["-cert", leaf.chain.to_str().expect("UTF-8"), "-key", leaf.key.to_str().expect("UTF-8")]
}

#[test]
fn a_version_1_certificate_is_served() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let workshop = Workshop::new()?;
    for (stem, key) in [("rsa", RSA), ("ec", EC)] {
        let leaf = workshop.version_1(stem, key)?;
        let _gateway = world.gateway(&terminated(&leaf.toml(), ""))?;
        for version in ["-tls1_2", "-tls1_3"] {
            let output = is_served(&world, &leaf.chain, &[version])?;
            assert!(output.contains("Verification: OK"), "{output}");
        }
    }
    Ok(())
}

#[test]
fn a_client_certificate_that_is_listed_itself_is_served() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let workshop = Workshop::new()?;
    // An authority of its own, as `openssl req -x509` makes them; and one whose authority is not listed.
    workshop.openssl(&format!(
        "req -x509 -newkey {EC} -noenc -days 2 -subj /CN=x -keyout self.key -out self.crt"
    ))?;
    let strangers = Authority::new("strangers")?;
    let listed = [
        workshop.version_1("rsa", RSA)?,
        workshop.version_1("ec", EC)?,
        workshop.leaf("self"),
        strangers.leaf(&["client"])?,
    ];
    // One whose authority is listed, as ever.
    let clients = Authority::new("clients")?;
    let led = clients.leaf(&["client"])?;
    let mut pem = fs::read(&clients.path)?;
    for leaf in &listed {
        pem.extend(fs::read(&leaf.chain)?);
    }
    fs::write(workshop.0.join("clients.pem"), pem)?;

    let own = world.authority.leaf(&[NAME])?;
    let client_ca = format!("client_ca = {:?}", workshop.0.join("clients.pem"));
    let gateway = world.gateway(&terminated(&own.toml(), &client_ca))?;
    for version in ["-tls1_2", "-tls1_3"] {
        for leaf in listed.iter().chain([&led]) {
            let arguments = [&[version][..], &client(leaf)].concat();
            is_served(&world, &world.authority.path, &arguments)
                .with_context(|| format!("{version} {}", leaf.chain.display()))?;
        }
    }
    // Version 1 and not listed.
    let before = gateway.wait_access_log(10)?.len();
    let other = workshop.version_1("other", EC)?;
    SClient::start(&world, NAME, client(&other))?.wait_end()?;
    let line = gateway.wait_access_log(before + 1)?.remove(before);
    assert_eq!(line["tls_error"], "certificate_version", "{line}");
    Ok(())
}

#[test]
fn nobody_is_served_for_a_listed_certificate_without_its_key() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let workshop = Workshop::new()?;
    let listed = workshop.version_1("listed", EC)?;
    let own = world.authority.leaf(&[NAME])?;
    let gateway = world.gateway(&terminated(&own.toml(), &format!("client_ca = {:?}", listed.chain)))?;
    // rustls does not compare what it is given.
    let thief = Leaf { key: workshop.version_1("thief", EC)?.key, ..listed };
    for (i, version) in rustls::ALL_VERSIONS.iter().enumerate() {
        let client = Client::stealing(&world.authority.path, &[version], &thief)?;
        let answer = client.connect(world.connect(443)?, NAME).and_then(|mut duplex| {
            duplex.writer.write_all(b"hello")?;
            Ok(duplex.reader.read(&mut [0])?)
        });
        assert!(answer.is_err(), "{answer:?}");
        let line = gateway.wait_access_log(i + 1)?.remove(i);
        assert_eq!(line["tls_error"], "certificate_invalid", "{line}");
    }
    Ok(())
}

#[test]
fn byte_order_marks_are_skipped_wherever_they_are() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let workshop = Workshop::new()?;
    let leaf = world.authority.leaf(&[NAME])?;
    let marked = |files: &[&Path], name: &str| -> Result<PathBuf> {
        let mut text = Vec::new();
        for file in files {
            text.extend([&b"\xef\xbb\xbf"[..], &fs::read(file)?].concat());
        }
        let path = workshop.0.join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let chain = marked(&[&leaf.chain, &world.authority.path], "chain.pem")?;
    let key = marked(&[&leaf.key], "key.pem")?;
    let strangers = Authority::new("strangers")?;
    let client_ca = marked(&[&strangers.path, &world.authority.path], "clients.pem")?;
    let certificate = Leaf { chain, key, ..leaf.clone() }.toml();
    let _gateway = world.gateway(&terminated(&certificate, &format!("client_ca = {client_ca:?}")))?;
    let arguments = [&["-showcerts"][..], &client(&leaf)].concat();
    let output = is_served(&world, &world.authority.path, &arguments)?;
    assert_eq!(output.matches("BEGIN CERTIFICATE").count(), 2, "{output}");
    Ok(())
}

#[test]
fn an_encrypted_key_is_opened_with_its_passphrase() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let workshop = Workshop::new()?;
    let leaf = world.authority.leaf(&[NAME])?;
    let source = leaf.key.to_str().context("UTF-8")?;
    // A file from Windows is as good.
    fs::write(workshop.0.join("passphrase"), format!("{PASSPHRASE}\n"))?;
    fs::write(workshop.0.join("passphrase.dos"), format!("\u{feff}{PASSPHRASE}\r\n"))?;
    for (i, form) in [
        "-v2 aes-256-cbc",
        "-v2 aes-128-cbc -v2prf hmacWithSHA512",
        "-v2 aes-256-cbc -v2prf hmacWithSHA1",
        "-v2 des3",
        "-scrypt",
    ]
    .into_iter()
    .enumerate()
    {
        workshop.openssl(&format!("pkcs8 -topk8 -in {source} {form} -passout file:passphrase -out key"))?;
        let passphrase = ["passphrase", "passphrase.dos"][i % 2];
        let certificate = with_passphrase(&workshop, &leaf, passphrase);
        let _gateway = world.gateway(&terminated(&certificate, "")).context(form)?;
        is_served(&world, &world.authority.path, &[]).context(form)?;
    }
    Ok(())
}

/// The file `key` of the workshop for this certificate, and a file with its passphrase.
fn with_passphrase(workshop: &Workshop, leaf: &Leaf, passphrase: &str) -> String {
    let file = |name: &str| workshop.0.join(name);
    format!(
        "{{ chain = {:?}, key = {:?}, passphrase_file = {:?} }}",
        leaf.chain,
        file("key"),
        file(passphrase)
    )
}

#[test]
fn a_key_that_cannot_be_opened_is_an_error_at_its_place() -> Result<()> {
    let authority = Authority::new("authority")?;
    let leaf = authority.leaf_with(snisplice_tests::certs::KeyKind::Rsa2048, &[NAME])?;
    let workshop = Workshop::new()?;
    // Beside the configuration file: short names, which are shown whole.
    fs::copy(&leaf.chain, workshop.0.join("chain"))?;
    fs::write(workshop.0.join("right"), PASSPHRASE)?;
    fs::write(workshop.0.join("wrong"), "incorrect horse\n")?;
    fs::write(workshop.0.join("empty"), "\n")?;
    fs::write(workshop.0.join("several"), format!("{PASSPHRASE}\nand more\n"))?;
    let source = leaf.key.to_str().context("UTF-8")?;
    let modern = "pkcs8 -topk8 -v2 aes-256-cbc";
    let check = |form: &str, passphrase: &str| -> Result<(Option<i32>, String)> {
        match form {
            GREEDY => fs::write(workshop.0.join("key"), greedy_key(&workshop, source)?)?,
            "" => _ = fs::copy(source, workshop.0.join("key"))?,
            _ => _ = workshop.openssl(&format!("{form} -in {source} -passout file:right -out key"))?,
        }
        let passphrase = match passphrase {
            "" => String::new(),
            _ => format!(", passphrase_file = '{passphrase}'"),
        };
        let certificate = format!("{{ chain = 'chain', key = 'key'{passphrase} }}");
        let file = workshop.0.join("snisplice.toml");
        fs::write(&file, terminated(&certificate, ""))?;
        let output = Command::new(binary()?).arg("check").arg("-c").arg(file).output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!text.contains("horse"), "the passphrase shows: {text}");
        Ok((output.status.code(), text))
    };
    for (form, passphrase, problem, place) in [
        (GREEDY, "right", "encrypted in a way that is not supported", "key"),
        (modern, "", "its private key is encrypted\n", "key"),
        (modern, "wrong", "the passphrase does not open its private key", "key"),
        (modern, "empty", "it is empty", "empty"),
        (modern, "several", "it has several lines", "several"),
        (modern, "none", "cannot read", "none"),
        ("rsa -aes256 -traditional", "", "its private key is encrypted in the old form of PEM", "key"),
        ("rsa -aes256 -traditional", "right", "its private key is encrypted in the old form of PEM", "key"),
        ("pkcs8 -topk8 -v1 PBE-SHA1-3DES", "right", "encrypted in a way that is not supported", "key"),
    ] {
        let (code, text) = check(form, passphrase)?;
        assert_eq!(code, Some(2), "{form} {passphrase}: {text}");
        assert!(text.contains(problem), "{form} {passphrase}: {text}");
        // The line and column of the file's name, and it underlined.
        let line = text.lines().find(|line| line.contains("certificate = {")).context(text.clone())?;
        let marks = text.lines().find(|line| line.contains('^')).context(text.clone())?;
        assert_eq!(marks.find('^'), line.find(&format!("'{place}'")), "{form} {passphrase}: {text}");
    }
    let (code, text) = check(modern, "right")?;
    assert_eq!((code, text.contains("warning")), (Some(0), false), "{text}");
    let (code, text) = check("", "right")?;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("warning: `passphrase_file` has no effect"), "{text}");
    Ok(())
}

/// Stands for [`greedy_key`].
const GREEDY: &str = "greedy";

/// A key whose passphrase goes through an scrypt that wants 254 MiB; OpenSSL makes none above 32.
fn greedy_key(workshop: &Workshop, source: &str) -> Result<String> {
    workshop.openssl(&format!(
        "pkcs8 -topk8 -scrypt -in {source} -passout file:right -outform DER -out greedy.der"
    ))?;
    let mut der = fs::read(workshop.0.join("greedy.der"))?;
    // N (16384), r (8) and p (1).
    let parameters = [2, 2, 0x40, 0, 2, 1, 8, 2, 1, 1];
    let at = der.windows(parameters.len()).position(|window| window == parameters).context("parameters")?;
    der[at + 6] = 127;
    fs::write(workshop.0.join("greedy.der"), der)?;
    let base64 = workshop.openssl("base64 -in greedy.der")?;
    Ok(format!("-----BEGIN ENCRYPTED PRIVATE KEY-----\n{base64}-----END ENCRYPTED PRIVATE KEY-----\n"))
}

#[test]
fn a_changed_passphrase_is_watched() -> Result<()> {
    let world = World::new()?;
    let _backend = Backend::start(&world.net.server, 7001, echo)?;
    let workshop = Workshop::new()?;
    let leaf = world.authority.leaf(&[NAME])?;
    let source = leaf.key.to_str().context("UTF-8")?;
    let encrypt = |passphrase: &str| {
        workshop.openssl(&format!("pkcs8 -topk8 -in {source} -passout pass:{passphrase} -out key"))
    };
    encrypt("first")?;
    fs::write(workshop.0.join("passphrase"), "first")?;
    let config = "[gateway]\nwatch = true\nadmin = '127.0.0.1:9900'\n".to_owned()
        + &terminated(&with_passphrase(&workshop, &leaf, "passphrase"), "");
    let gateway: Gateway = world.gateway(&config)?;

    encrypt("another")?;
    eventually("the reload to fail", || {
        let failed = "snisplice_config_reloads_total{result=\"failure\"} 1\n";
        metrics(&world.net.gateway).ok()?.contains(failed).then_some(())
    })?;
    is_served(&world, &world.authority.path, &[])?;
    fs::write(workshop.0.join("passphrase"), "another")?;
    gateway.wait_status("the reload", |status| status.number("/config_generation") == 2)?;
    is_served(&world, &world.authority.path, &[])?;
    Ok(())
}
