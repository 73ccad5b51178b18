//! Client certificates on terminated routes, made and revoked by OpenSSL's own authority.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::gateway::binary;
use snisplice_tests::{Gateway, Leaf};

use crate::certificates::Workshop;
use crate::config::{listener, pool, route};
use crate::openssl::SClient;
use crate::world::World;

const NAME: &str = "app.example.com";
const KEY: &str = "ec -pkeyopt ec_paramgen_curve:P-256";

/// An authority as `openssl ca` keeps one, in a directory of its own.
struct OpensslCa(Workshop);

impl OpensslCa {
    /// `crl_extensions`: whether its CRLs are version 2.
    fn new(name: &str, crl_extensions: bool) -> Result<Self> {
        let ca = Self(Workshop::new()?);
        let crl = if crl_extensions { "crlnumber = crlnumber\ncrl_extensions = of_crls" } else { "" };
        let config = format!(
            "[ca]\ndefault_ca = this\n[this]\ndatabase = index\nserial = serial\nnew_certs_dir = .\n\
             certificate = ca.crt\nprivate_key = ca.key\ndefault_md = sha256\ndefault_days = 2\n\
             default_crl_days = 2\npolicy = any\nunique_subject = no\nx509_extensions = of_leaves\ncopy_extensions = copy\n\
             {crl}\n[any]\norganizationName = optional\ncommonName = optional\n\
             [of_leaves]\nextendedKeyUsage = clientAuth\n[of_crls]\nauthorityKeyIdentifier = keyid\n"
        );
        for (file, content) in [("ca.cnf", &*config), ("index", ""), ("serial", "1000"), ("crlnumber", "01")]
        {
            fs::write(ca.file(file), content)?;
        }
        ca.0.openssl(&format!(
            "req -x509 -newkey {KEY} -noenc -days 2 -subj /CN={name} -keyout ca.key -out ca.crt"
        ))?;
        Ok(ca)
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.0.0.join(name)
    }

    fn issue(&self, stem: &str, subject: &str, san: &str) -> Result<Leaf> {
        let san = if san.is_empty() { String::new() } else { format!(" -addext subjectAltName={san}") };
        self.0.openssl(&format!(
            "req -new -newkey {KEY} -noenc -subj {subject}{san} -keyout {stem}.key -out {stem}.csr"
        ))?;
        self.0.openssl(&format!("ca -batch -config ca.cnf -notext -in {stem}.csr -out {stem}.crt"))?;
        Ok(self.0.leaf(stem))
    }

    fn revoke(&self, stem: &str) -> Result<()> {
        self.0.openssl(&format!("ca -config ca.cnf -revoke {stem}.crt")).map(drop)
    }

    /// Writes `clients.crl`, as a whole.
    fn write_crl(&self, dates: &str) -> Result<()> {
        self.0.openssl(&format!("ca -config ca.cnf -gencrl{dates} -out new.crl"))?;
        Ok(fs::rename(self.file("new.crl"), self.file("clients.crl"))?)
    }
}

fn configuration(world: &World, client_auth: &str) -> Result<String> {
    let own = world.authority.leaf(&[NAME])?;
    let terminate = format!("tls = 'terminate'\ncertificate = {}\nclient_auth = {client_auth}", own.toml());
    Ok("[gateway]\nwatch = true\n".to_owned()
        + &listener("")
        + &route("app", NAME, &terminate)
        + &pool("app", &[7001], ""))
}

/// A gateway with this `client_auth`, in front of a server that sends everything back.
struct Scene {
    gateway: Gateway,
    _backend: Backend,
    world: World,
}

impl Scene {
    fn new(client_auth: &str) -> Result<Self> {
        let world = World::new()?;
        let backend = Backend::start(&world.net.server, 7001, echo)?;
        let gateway = world.gateway(&configuration(&world, client_auth)?)?;
        Ok(Self { gateway, _backend: backend, world })
    }

    /// Connects with this certificate, and waits for the end: the line of the access log.
    fn visit(&self, leaf: Option<&Leaf>, arguments: &[&str], served: bool) -> Result<Value> {
        let before = self.gateway.access_log()?.len();
        let mut all: Vec<&str> = arguments.to_vec();
        if let Some(leaf) = leaf {
            all.extend(["-cert", utf8(&leaf.chain)?, "-key", utf8(&leaf.key)?]);
        }
        let mut openssl = SClient::start(&self.world, NAME, &all)?;
        if served {
            openssl.type_in("hello there\n")?;
            openssl.wait_for("hello there")?;
            openssl.finish()?;
        } else {
            let output = openssl.wait_end()?;
            ensure!(!output.contains("hello there"), "{output}");
        }
        let mut log = self.gateway.wait_access_log(before + 1)?;
        ensure!(log.len() == before + 1, "{log:?}");
        Ok(log.remove(before))
    }

    fn served(&self, leaf: Option<&Leaf>) -> Result<Value> {
        let line = self.visit(leaf, &[], true)?;
        ensure!(line["tls_error"].is_null() && line["bytes_out"] == 12, "{line}");
        Ok(line)
    }

    fn refused(&self, leaf: Option<&Leaf>, cause: &str) -> Result<()> {
        for version in ["-tls1_2", "-tls1_3"] {
            let line = self.visit(leaf, &[version], false)?;
            ensure!(line["tls_error"] == cause && line["close_reason"] == "tls_handshake_failed", "{line}");
        }
        Ok(())
    }
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("UTF-8")
}

#[test]
fn a_revoked_certificate_is_refused_as_soon_as_the_crl_says_so() -> Result<()> {
    let (first, second) = (OpensslCa::new("first", true)?, OpensslCa::new("second", true)?);
    first.write_crl("")?;
    second.write_crl("")?;
    let app1 = first.issue("app1", "/O=Example/CN=app1", "")?;
    let app2 = first.issue("app2", "/O=Example/CN=app2", "")?;
    let other = second.issue("other", "/CN=other", "")?;
    let file = |ca: &OpensslCa, name: &str| format!("{:?}", ca.file(name));
    let scene = Scene::new(&format!(
        "{{ ca = [{}, {}], crl = [{}, {}] }}",
        file(&first, "ca.crt"),
        file(&second, "ca.crt"),
        file(&first, "clients.crl"),
        file(&second, "clients.crl")
    ))?;
    let line = scene.served(Some(&app1))?;
    ensure!(line["client_certificate"] == "CN=app1,O=Example", "{line}");
    ensure!(scene.served(Some(&other))?["client_certificate"] == "CN=other");
    scene.refused(None, "certificate_required")?;
    // Who resumes a session shows no certificate, and could do so past its end.
    let session = first.file("session");
    for version in ["-tls1_2", "-tls1_3"] {
        scene.visit(Some(&app1), &[version, "-sess_out", utf8(&session)?], true)?;
        ensure!(!session.exists(), "a session to come back with: {version}");
    }

    first.revoke("app1")?;
    first.write_crl("")?;
    scene.gateway.wait_status("the reload", |status| status.number("/config_generation") == 2)?;
    scene.refused(Some(&app1), "certificate_revoked")?;
    scene.served(Some(&app2))?;
    scene.served(Some(&other))?;

    // A CRL that has expired says nothing of anybody: of its issuer's certificates none is good.
    first.write_crl(" -crl_lastupdate 20200101000000Z -crl_nextupdate 20210101000000Z")?;
    scene.gateway.wait_status("the reload", |status| status.number("/config_generation") == 3)?;
    scene.refused(Some(&app2), "crl_expired")?;
    scene.served(Some(&other))?;
    Ok(())
}

#[test]
fn a_listed_certificate_is_revoked_by_its_issuers_crl() -> Result<()> {
    let ca = OpensslCa::new("clients", true)?;
    let listed = ca.issue("listed", "/CN=listed", "")?;
    let revoked = ca.issue("revoked", "/CN=revoked", "")?;
    ca.revoke("revoked")?;
    ca.write_crl("")?;
    let scene = Scene::new(&format!(
        "{{ ca = [{:?}, {:?}], crl = [{:?}] }}",
        listed.chain,
        revoked.chain,
        ca.file("clients.crl")
    ))?;
    ensure!(scene.served(Some(&listed))?["client_certificate"] == "CN=listed");
    scene.refused(Some(&revoked), "certificate_revoked")
}

#[test]
fn where_certificates_are_optional_one_that_is_shown_must_be_good() -> Result<()> {
    let (ca, strangers) = (OpensslCa::new("clients", true)?, OpensslCa::new("strangers", true)?);
    let known = ca.issue("known", "/CN=known", "")?;
    let stranger = strangers.issue("stranger", "/CN=stranger", "")?;
    let scene = Scene::new(&format!("{{ ca = [{:?}], mode = 'optional' }}", ca.file("ca.crt")))?;
    ensure!(scene.served(None)?["client_certificate"].is_null());
    ensure!(scene.served(Some(&known))?["client_certificate"] == "CN=known");
    scene.refused(Some(&stranger), "unknown_ca")
}

#[test]
fn only_listed_names_are_let_in_and_the_log_says_which() -> Result<()> {
    let ca = OpensslCa::new("clients", true)?;
    let scene = Scene::new(&format!(
        "{{ ca = [{:?}], subjects = ['CN=alice,O=Example'], \
         sans = ['DNS:*.apps.example.com', 'URI:spiffe://example.org/ns/db/*', 'email:ops@example.com'] }}",
        ca.file("ca.crt")
    ))?;
    for (stem, subject, san, shown) in [
        ("alice", "/O=Example/CN=alice", "", "CN=alice,O=Example"),
        ("dns", "/CN=x", "DNS:a.apps.example.com", "DNS:a.apps.example.com"),
        ("uri", "/CN=x", "URI:spiffe://example.org/ns/db/sa/app", "URI:spiffe://example.org/ns/db/sa/app"),
        ("email", "/CN=x", "DNS:b.example.com,email:ops@EXAMPLE.com", "email:ops@EXAMPLE.com"),
    ] {
        let leaf = ca.issue(stem, subject, san)?;
        let line = scene.served(Some(&leaf)).with_context(|| stem.to_owned())?;
        ensure!(line["client_certificate"] == shown, "{line}");
        // The log has a subject as OpenSSL prints it.
        if let Some(subject) = shown.strip_prefix("CN=") {
            let printed = ca.0.openssl(&format!("x509 -in {stem}.crt -noout -subject -nameopt RFC2253"))?;
            ensure!(printed == format!("subject=CN={subject}\n"), "{printed}");
        }
    }
    for (stem, subject, san) in [
        ("alone", "/CN=alice", ""),
        ("more", "/O=Example/CN=alice/CN=bob", ""),
        ("bare", "/CN=x", "DNS:apps.example.com"),
        ("elsewhere", "/CN=x", "URI:spiffe://example.org/ns/web/sa/app"),
    ] {
        let leaf = ca.issue(stem, subject, san)?;
        scene.refused(Some(&leaf), "certificate_not_allowed").with_context(|| stem.to_owned())?;
    }
    Ok(())
}

#[test]
fn check_says_what_is_wrong_with_a_crl() -> Result<()> {
    let world = World::new()?;
    let (old, new) = (OpensslCa::new("old", false)?, OpensslCa::new("new", true)?);
    old.write_crl("")?;
    new.write_crl("")?;
    new.0.openssl("crl -in clients.crl -outform DER -out clients.der")?;
    let check = |ca: &OpensslCa, crl: &Path| -> Result<(Option<i32>, String)> {
        let file = new.file("snisplice.toml");
        fs::write(
            &file,
            configuration(&world, &format!("{{ ca = [{:?}], crl = [{crl:?}] }}", ca.file("ca.crt")))?,
        )?;
        let output = Command::new(binary()?).arg("check").arg("-c").arg(file).output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok((output.status.code(), text))
    };
    for (ca, crl, code, said) in [
        (&new, new.file("clients.crl"), 0, "good"),
        (&old, old.file("clients.crl"), 2, "its CRL 1 is version 1"),
        (&new, new.file("clients.der"), 2, "openssl crl -inform DER"),
        (&new, new.file("ca.crt"), 2, "are `ca` and `crl` swapped?"),
        (&old, new.file("clients.crl"), 0, "`crl` has none of certificate 1 in this file"),
    ] {
        let (status, text) = check(ca, &crl)?;
        ensure!(status == Some(code) && text.contains(said), "{said}: {text}");
    }
    Ok(())
}
