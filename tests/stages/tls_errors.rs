//! `tls_error`: each cause of a failure of TLS, provoked.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use snisplice::reason::TlsError;
use snisplice_tests::tls::Client;
use snisplice_tests::{Authority, Gateway, Leaf};
use socket2::SockRef;

use crate::certificates::Workshop;
use crate::config::{listener, pool, route};
use crate::openssl::SClient;
use crate::tolerance::{Sample, metrics, name};
use crate::world::World;
use snisplice_tests::backend::{Backend, echo};

/// Anybody may come.
const OPEN: &str = "open.example.com";
/// Clients need a certificate.
const CLOSED: &str = "closed.example.com";
/// Clients need a certificate of a certain name that no CRL has.
const PICKY: &str = "picky.example.com";

/// The number of a certificate that its authority has revoked.
const REVOKED: u64 = 7;

/// Authorities of clients of [`PICKY`].
struct Authorities {
    /// Its CRL has [`REVOKED`].
    diligent: Authority,
    /// Its CRL has expired.
    late: Authority,
    /// It has no CRL.
    careless: Authority,
    /// Its CRL is that of a namesake.
    robbed: Authority,
    robber: Authority,
}

impl Authorities {
    fn new() -> Result<Self> {
        Ok(Self {
            diligent: Authority::new("diligent")?,
            late: Authority::new("late")?,
            careless: Authority::new("careless")?,
            robbed: Authority::new("robbed")?,
            robber: Authority::new("robbed")?,
        })
    }

    /// The value of `client_auth`.
    fn toml(&self) -> Result<String> {
        let ca = [&self.diligent, &self.late, &self.careless, &self.robbed].map(|authority| &authority.path);
        let crl =
            [self.diligent.crl(&[REVOKED], 4000)?, self.late.crl(&[], 2021)?, self.robber.crl(&[], 4000)?];
        Ok(format!("{{ ca = {ca:?}, crl = {crl:?}, subjects = ['CN=nobody'] }}"))
    }
}

struct Scene {
    gateway: Gateway,
    clients: Authority,
    picky: Authorities,
    workshop: Workshop,
    sample: Sample,
    _backend: Backend,
    world: World,
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let backend = Backend::start(&world.net.server, 7001, echo)?;
        let clients = Authority::new("clients")?;
        let own = world.authority.leaf(&[OPEN, CLOSED, PICKY])?;
        let picky = Authorities::new()?;
        let client_auth = format!("client_auth = {}\n", picky.toml()?);
        let terminate = format!("tls = 'terminate'\ncertificate = {}\nbackends = ['app']\n", own.toml());
        let client_ca = format!("client_ca = {:?}\n", clients.path);
        let gateway = world.gateway(
            &("[gateway]\nadmin = '127.0.0.1:9900'\n".to_owned()
                + &listener("hello_timeout = '1s'")
                + &route("open", OPEN, &terminate)
                + &route("closed", CLOSED, &(terminate.clone() + &client_ca))
                + &route("picky", PICKY, &(terminate.clone() + &client_auth))
                + &pool("app", &[7001], "")),
        )?;
        let (workshop, sample) = (Workshop::new()?, Sample::read()?);
        Ok(Self { gateway, clients, picky, workshop, sample, _backend: backend, world })
    }

    /// OpenSSL's handshake, which must fail.
    fn openssl(&self, sni: &str, arguments: &str) -> Result<()> {
        let output = SClient::start(&self.world, sni, arguments.split(' '))?.wait_end()?;
        if output.contains("alert") || output.contains("error") { Ok(()) } else { bail!("{output}") }
    }

    /// A handshake with this client certificate, made like any other but for a change.
    fn with_leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<()> {
        self.present(&self.clients.leaf_as(&["client"], change)?)
    }

    fn present(&self, leaf: &Leaf) -> Result<()> {
        self.present_to(CLOSED, leaf)
    }

    fn present_to(&self, sni: &str, leaf: &Leaf) -> Result<()> {
        self.openssl(sni, &format!("-cert {} -key {}", leaf.chain.display(), leaf.key.display()))
    }

    /// A connection on which this ClientHello was answered.
    fn answered(&self, hello: &[u8]) -> Result<TcpStream> {
        let mut stream = self.world.connect(443)?;
        stream.write_all(hello)?;
        stream.read_exact(&mut [0; 6])?;
        Ok(stream)
    }

    fn hello(&self) -> Vec<u8> {
        self.sample.with(&name(OPEN.as_bytes()))
    }

    /// The same, before TLS 1.3.
    fn old_hello(&self) -> Vec<u8> {
        self.sample.old(0x0303, &name(OPEN.as_bytes()))
    }

    /// A client that answers the server's first messages with this alert.
    fn alert(&self, description: u8) -> Result<()> {
        self.answer(&self.old_hello(), &[21, 3, 3, 0, 2, 2, description])
    }

    /// A client that answers the server's first messages with this.
    fn answer(&self, hello: &[u8], answer: &[u8]) -> Result<()> {
        let mut stream = self.answered(hello)?;
        stream.write_all(answer)?;
        // Until the gateway has closed.
        let _ = stream.read_to_end(&mut Vec::new());
        Ok(())
    }
}

/// Makes a connection fail for this cause. `false`: nobody can from outside.
fn provoke(scene: &Scene, cause: TlsError) -> Result<bool> {
    use TlsError as E;
    match cause {
        E::NoSharedVersion => scene.openssl(OPEN, "-tls1_1 -cipher DEFAULT@SECLEVEL=0")?,
        // Neither ECDHE nor AEAD.
        E::NoSharedSuite => scene.openssl(OPEN, "-tls1_2 -cipher AES128-SHA")?,
        E::NoSharedGroup => scene.openssl(OPEN, "-tls1_3 -groups X448")?,
        E::NoSharedSignature => scene.openssl(OPEN, "-tls1_3 -sigalgs RSA-PSS+SHA256")?,
        E::Incompatible => {
            // The only method of compression that every client has is replaced by another.
            let mut hello = scene.old_hello();
            let compression = 5 + 4 + scene.sample.front.len() + 2 + scene.sample.suites.len() + 1;
            hello[compression] = 1;
            scene.answer(&hello, b"")?;
        }
        E::CertificateRequired => scene.openssl(CLOSED, "-tls1_3")?,
        E::UnknownCa => scene.present(&Authority::new("strangers")?.leaf(&["client"])?)?,
        E::CertificateExpired => scene.with_leaf(|leaf| {
            (leaf.not_before, leaf.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        })?,
        E::CertificateNotYetValid => scene.with_leaf(|leaf| {
            (leaf.not_before, leaf.not_after) = (date_time_ymd(4000, 1, 1), date_time_ymd(4001, 1, 1));
        })?,
        E::CertificatePurpose => scene.with_leaf(|leaf| {
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })?,
        E::CertificateVersion => scene.present(&scene.workshop.version_1("old", "rsa:2048")?)?,
        E::CertificateInvalid => {
            let leaf = scene.clients.leaf(&["client"])?;
            let mut damaged = CertificateDer::from_pem_file(&leaf.chain)?.to_vec();
            *damaged.last_mut().context("a signature")? ^= 1;
            let file = scene.workshop.0.join("damaged.der");
            fs::write(&file, damaged)?;
            let (file, key) = (file.display(), leaf.key.display());
            scene.openssl(CLOSED, &format!("-certform DER -cert {file} -key {key}"))?;
        }
        E::CertificateRevoked => {
            let revoked = |leaf: &mut CertificateParams| leaf.serial_number = Some(REVOKED.into());
            scene.present_to(PICKY, &scene.picky.diligent.leaf_as(&["client"], revoked)?)?;
        }
        E::CertificateNotAllowed => scene.present_to(PICKY, &scene.picky.diligent.leaf(&["client"])?)?,
        E::CrlMissing => scene.present_to(PICKY, &scene.picky.careless.leaf(&["client"])?)?,
        E::CrlExpired => scene.present_to(PICKY, &scene.picky.late.leaf(&["client"])?)?,
        E::CrlInvalid => scene.present_to(PICKY, &scene.picky.robbed.leaf(&["client"])?)?,
        E::AlertUnknownCa => {
            let strangers = scene.clients.path.display();
            scene.openssl(OPEN, &format!("-verify_return_error -CAfile {strangers}"))?;
        }
        E::AlertBadCertificate => {
            scene.openssl(OPEN, "-verify_return_error -verify_hostname other.example.com")?;
        }
        E::AlertHandshakeFailure => scene.alert(40)?,
        E::AlertUnsupportedCertificate => scene.alert(43)?,
        E::AlertCertificateRevoked => scene.alert(44)?,
        E::AlertCertificateExpired => scene.alert(45)?,
        E::AlertCertificateUnknown => scene.alert(46)?,
        E::AlertProtocolVersion => scene.alert(70)?,
        E::AlertUnrecognizedName => scene.alert(112)?,
        E::AlertCertificateRequired => scene.alert(116)?,
        E::AlertOther => scene.alert(80)?,
        E::Closed => scene.answered(&scene.hello())?.shutdown(Shutdown::Write)?,
        E::Reset => SockRef::from(&scene.answered(&scene.hello())?).set_linger(Some(Duration::ZERO))?,
        E::Timeout => scene.answer(&scene.hello(), b"")?,
        // Application data before its time.
        E::ProtocolViolation => scene.answer(&scene.old_hello(), b"\x17\x03\x03\0\x05hello")?,
        E::Undecryptable => scene.answer(&scene.hello(), &[&b"\x17\x03\x03\0\x40"[..], &[7; 64]].concat())?,
        // The name is looked at in certificates of servers only. New keys end sessions in the kTLS tier, whose tests have that.
        E::CertificateName | E::KeyUpdate | E::Internal => return Ok(false),
    }
    Ok(true)
}

#[test]
fn each_failure_has_its_cause_in_the_log_and_in_the_metrics() -> Result<()> {
    let scene = Scene::new()?;
    let mut lines = 0;
    for cause in TlsError::ALL {
        if !provoke(&scene, *cause).with_context(|| cause.name())? {
            continue;
        }
        lines += 1;
        let line = scene.gateway.wait_access_log(lines).with_context(|| cause.name())?.remove(lines - 1);
        assert_eq!(line["tls_error"], cause.name(), "{line}");
        assert_eq!(line["close_reason"], "tls_handshake_failed", "{line}");
        let route = line["route"].as_str().context("a route")?.to_owned();
        let sample = format!("snisplice_tls_errors_total{{route=\"{route}\",error=\"{cause}\"}} 1\n");
        let metrics = metrics(&scene.world.net.gateway)?;
        assert!(metrics.contains(&sample), "{sample} in {metrics}");
    }
    assert_eq!(lines, TlsError::ALL.len() - 3);
    Ok(())
}

#[test]
fn a_client_without_a_modern_suite_is_told_apart_from_one_without_a_group() -> Result<()> {
    let scene = Scene::new()?;
    for (i, (arguments, cause)) in [
        // Without an AEAD; for a key of another kind; ECDHE, but not of our curves.
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", "no_shared_suite"),
        ("-tls1_2 -cipher ECDHE-RSA-AES128-GCM-SHA256", "no_shared_suite"),
        ("-tls1_2 -cipher DHE-RSA-AES128-GCM-SHA256", "no_shared_suite"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256 -groups X448", "no_shared_group"),
    ]
    .into_iter()
    .enumerate()
    {
        scene.openssl(OPEN, arguments)?;
        let line = scene.gateway.wait_access_log(i + 1)?.remove(i);
        assert_eq!(line["tls_error"], cause, "{arguments}: {line}");
    }
    Ok(())
}

#[test]
fn a_failure_after_the_handshake_has_a_cause_too() -> Result<()> {
    let scene = Scene::new()?;
    let client = Client::new(&scene.world.authority.path, rustls::ALL_VERSIONS, None)?;
    let mut duplex = client.connect(scene.world.connect(443)?, OPEN)?;
    duplex.writer.write_all(b"x")?;
    duplex.reader.read_exact(&mut [0])?;
    duplex.socket.write_all(&[&b"\x17\x03\x03\0\x40"[..], &[7; 64]].concat())?;
    let line = scene.gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["close_reason"], &line["tls_error"]), (&"tls_error".into(), &"undecryptable".into()));
    Ok(())
}
