//! Servers inside of TLS that end their connections, with and without close_notify: a FIN alone can come from anybody on the way, to
//! cut off what they say (RFC 8446, section 6.1).

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Result, ensure};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use snisplice_tests::backend::Backend;
use snisplice_tests::{Authority, Leaf, eventually};

use super::echo::{next_request, own};
use super::scene::{ODD, Scene, VERSIONS};
use crate::config::pool;

const NAME: &str = "odd.example.com";

/// Until the end of the connection.
const UNTIL_THE_END: &str = "HTTP/1.1 200 OK\r\n\r\nhello";

fn config(leaf: &Leaf) -> Result<Arc<ServerConfig>> {
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(&leaf.chain)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(&leaf.key)?,
        )?;
    Ok(Arc::new(config))
}

/// `/odd/cut` and `/odd/whole` are answered until the end of the connection, which is without close_notify and with it; other
/// requests get their path, and `/odd/last` is the last one on its connection, which ends without close_notify.
struct Server {
    /// Connections that have ended.
    ended: Arc<AtomicUsize>,
    _backend: Backend,
    scene: Scene,
}

impl Server {
    fn start() -> Result<Self> {
        let authority = Authority::new("of the servers")?;
        let config = config(&authority.leaf(&[NAME])?)?;
        let tls = format!("tls = {{ ca = {:?}, server_name = '{NAME}' }}", authority.path);
        let scene = Scene::with("", "", &pool("odd", &[ODD], &tls))?;
        let ended = Arc::new(AtomicUsize::new(0));
        let count = ended.clone();
        let backend = Backend::start(&scene.world.net.server, ODD, move |stream| {
            let tls = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
            let mut requests = BufReader::new(StreamOwned::new(tls, stream));
            while let Some((method, path)) = next_request(&mut requests)? {
                let end = requests.get_mut();
                match path.as_str() {
                    "/odd/cut" => end.write_all(UNTIL_THE_END.as_bytes())?,
                    "/odd/whole" => {
                        end.write_all(UNTIL_THE_END.as_bytes())?;
                        end.conn.send_close_notify();
                    }
                    _ => own(end, &method, &path)?,
                }
                end.flush()?;
                if matches!(path.as_str(), "/odd/cut" | "/odd/whole" | "/odd/last") {
                    break;
                }
            }
            // What it has received and not read would make the end a reset.
            requests.consume(requests.buffer().len());
            drop(requests);
            count.fetch_add(1, Relaxed);
            Ok(())
        })?;
        Ok(Server { ended, _backend: backend, scene })
    }
}

#[test]
fn an_answer_until_the_end_is_whole_with_close_notify_and_cut_without() -> Result<()> {
    let server = Server::start()?;
    for version in VERSIONS {
        let got = server.scene.ask(version, "/odd/whole", &[])?;
        ensure!(got.status() == "200" && got.is_whole && got.body == b"hello", "{got:?}");
        server.scene.cut(version, "/odd/cut", b"hello")?;
        // What says its own length is whole however the connection ends.
        server.scene.own(version, "/odd/last")?;
    }
    server.scene.serves_others()
}

#[test]
fn a_kept_connection_that_ends_without_close_notify_fails_no_request() -> Result<()> {
    let server = Server::start()?;
    for turn in 1..=10 {
        server.scene.own(VERSIONS[turn % 2], "/odd/last")?;
        eventually("the end of the connection", || (server.ended.load(Relaxed) == turn).then_some(()))?;
    }
    ensure!(server.scene.failed()? == 0);
    Ok(())
}
