//! A gateway that ends TLS before a server in clear text, and clients that bring it to give their records to the kernel.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CipherSuite, ClientConnection, ContentType, ServerConfig, ServerConnection, StreamOwned};
use snisplice::kernel::version::KernelVersion;
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::process::checked_output;
use snisplice_tests::pump::{Duplex, HalfClose, Plan, exchange};
use snisplice_tests::tls::{Client, Sealer};
use snisplice_tests::topology::{self, Triangle};
use snisplice_tests::{Authority, Gateway, eventually, gateway};

const NAME: &str = "bulk.example.com";
const PORT: u16 = 7001;

/// What the server does.
pub(crate) enum Server {
    /// Its part in an exchange.
    Plan(Plan),
    /// It sends everything back.
    Echo,
    /// In TLS: it reads a number, sends so many bytes, and leaves without close_notify.
    CutsOff,
}

/// The scene.
pub(crate) struct Scene {
    pub(crate) gateway: Gateway,
    net: Triangle,
    authority: Authority,
    _server: Backend,
}

/// A client's session in one piece.
pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Whether a session may get new keys in the kernel.
pub(crate) fn kernel_takes_new_keys() -> bool {
    KernelVersion::running().is_some_and(|version| version >= KernelVersion::new(6, 14, 0))
}

/// A direction that ends only when it may.
struct Gated {
    writer: Box<dyn HalfClose + Send>,
    gate: Receiver<()>,
}

impl Write for Gated {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.writer.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl HalfClose for Gated {
    fn finish(&mut self) -> io::Result<()> {
        self.gate.recv().map_err(io::Error::other)?;
        self.writer.finish()
    }
}

impl Scene {
    pub(crate) fn new(server: Server) -> Result<Self> {
        gateway::PACKET_TIER.store(false, Ordering::Relaxed);
        let net = Triangle::new()?;
        let authority = Authority::new("snisplice test authority")?;
        let leaf = authority.leaf(&[NAME])?;
        let tls = match &server {
            Server::CutsOff => {
                format!("tls = {{ ca = '{}', server_name = '{NAME}' }}", authority.path.display())
            }
            Server::Plan(_) | Server::Echo => String::new(),
        };
        let config = format!(
            "[gateway]\nworkers = 2\ntiers = ['ktls', 'copy']\n\
             [[listener]]\nname = 'l'\nbind = ['0.0.0.0:443']\n\
             [[route]]\nname = 'r'\nlistener = 'l'\nsni = ['{NAME}']\nbackends = [{{ pool = 'p' }}]\n\
             tls = 'terminate'\ncertificate = {}\n\
             [[pool]]\nname = 'p'\nservers = [{{ address = '{}' }}]\n{tls}\n",
            leaf.toml(),
            topology::server(PORT),
        );
        let backend = match server {
            Server::Plan(plan) => Backend::start(&net.server, PORT, move |stream| {
                exchange(stream.try_into()?, &plan).map_err(io::Error::other)
            })?,
            Server::Echo => Backend::start(&net.server, PORT, echo)?,
            Server::CutsOff => {
                let chain = CertificateDer::pem_file_iter(&leaf.chain)?.collect::<Result<_, _>>()?;
                let key = PrivateKeyDer::from_pem_file(&leaf.key)?;
                let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
                let config = Arc::new(config);
                Backend::start(&net.server, PORT, move |stream| {
                    let tls = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
                    let mut stream = StreamOwned::new(tls, stream);
                    let mut bytes = [0; 8];
                    stream.read_exact(&mut bytes)?;
                    let bytes = usize::try_from(u64::from_be_bytes(bytes)).map_err(io::Error::other)?;
                    stream.write_all(&vec![b'x'; bytes])?;
                    stream.flush()
                })?
            }
        };
        let gateway = Gateway::start(&net.gateway, &config)?;
        Ok(Self { gateway, net, authority, _server: backend })
    }

    /// Of connections that are made from here on, little has room between the gateway and a client that does not read: the
    /// socket's room can end in the middle of a record.
    pub(crate) fn small_buffers(&self) -> Result<()> {
        self.net.gateway.ip("link set front gso_max_segs 1")?;
        for (ns, buffer) in [(&self.net.gateway, "wmem"), (&self.net.client, "rmem")] {
            let setting = format!("net.ipv4.tcp_{buffer}=4096 16384 32768");
            checked_output(ns.command("sysctl").args(["-qw", &setting]))?;
        }
        Ok(())
    }

    fn dial(&self) -> Result<TcpStream> {
        let stream = self.net.client.run(|| TcpStream::connect(topology::gateway(443)))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    }

    fn offering(&self, suite: CipherSuite) -> Result<Client> {
        Client::with_suite(&self.authority.path, suite)
    }

    /// A client that offers this suite alone.
    pub(crate) fn client(&self, suite: CipherSuite) -> Result<Duplex> {
        self.offering(suite)?.connect(self.dial()?, NAME)
    }

    /// Carries a plan out, as a client that offers this suite alone and ends its direction only when the kernel has the records.
    pub(crate) fn exchange(&self, suite: CipherSuite, plan: &Plan) -> Result<()> {
        let Duplex { reader, writer, socket } = self.client(suite)?;
        let (go, gate) = channel();
        let client = Duplex { reader, writer: Box::new(Gated { writer, gate }), socket };
        thread::scope(|scope| {
            let waiting = scope.spawn(move || self.wait_for_ktls().map(|()| go.send(())));
            let exchanged = exchange(client, plan);
            // Without the tier the exchange has failed, and that is why.
            let _ = waiting.join().expect("no panic while waiting")?;
            exchanged
        })
    }

    /// The same, in one piece.
    pub(crate) fn stream(&self, suite: CipherSuite) -> Result<Stream> {
        self.offering(suite)?.stream(self.dial()?, NAME)
    }

    /// A client of [`Server::Echo`] whose records are the kernel's by now.
    pub(crate) fn bulk(&self, suite: CipherSuite) -> Result<Duplex> {
        let mut client = self.client(suite)?;
        let mut heard = vec![0; 32 * 1024];
        for _ in 0..40 {
            client.writer.write_all(&vec![b'z'; heard.len()])?;
            client.reader.read_exact(&mut heard)?;
        }
        self.wait_for_ktls()?;
        Ok(client)
    }

    /// The same in TLS 1.3, with what seals further records. What comes back is read aside, until it ends.
    pub(crate) fn sealed_bulk(&self) -> Result<(Sealer, TcpStream, JoinHandle<()>)> {
        let mut socket = self.dial()?;
        let mut sealer = self.offering(CipherSuite::TLS13_AES_128_GCM_SHA256)?.sealer(&mut socket, NAME)?;
        let mut back = socket.try_clone()?;
        let reader = thread::spawn(move || {
            let _ = io::copy(&mut back, &mut io::sink());
        });
        let word = vec![b'z'; 16 * 1024];
        for _ in 0..80 {
            socket.write_all(&sealer.seal(ContentType::ApplicationData, &word)?)?;
        }
        self.wait_for_ktls()?;
        Ok((sealer, socket, reader))
    }

    /// Waits until the one connection is in the tier.
    pub(crate) fn wait_for_ktls(&self) -> Result<()> {
        eventually("the kTLS tier", || {
            let status = self.gateway.status().ok()?;
            (status.tier("ktls", "active") == 1 && status.tier("copy", "active") == 0).then_some(())
        })
        .context("its records stay the gateway's")
    }
}
