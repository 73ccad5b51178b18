//! A TLS client with its two directions apart, and real ClientHellos for any name.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use base64ct::{Base64, Encoding as _};
use rustls::client::EchConfig;
use rustls::crypto::aws_lc_rs::{default_provider, hpke};
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, NamedGroup,
    ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::certs::Leaf;
use crate::pump::{Duplex, HalfClose};

fn roots(authority: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    Ok(roots)
}

/// What a client offers and trusts.
pub struct Client {
    config: ClientConfig,
}

impl Client {
    /// A client that trusts this authority and offers these versions ([`rustls::ALL_VERSIONS`]).
    pub fn new(
        authority: &Path,
        versions: &[&'static SupportedProtocolVersion],
        certificate: Option<&Leaf>,
    ) -> Result<Self> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)?
            .with_root_certificates(roots(authority)?);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder.with_client_auth_cert(
                CertificateDer::pem_file_iter(&leaf.chain)?.collect::<Result<_, _>>()?,
                PrivateKeyDer::from_pem_file(&leaf.key)?,
            )?,
        };
        Ok(Self { config })
    }

    /// A client that encrypts its ClientHello for this key (an ECHConfigList in base64).
    pub fn encrypting(authority: &Path, ech: &str) -> Result<Self> {
        let list = Base64::decode_vec(ech).context("an ECHConfigList in base64")?;
        let ech = EchConfig::new(list.into(), hpke::ALL_SUPPORTED_SUITES)?;
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_ech(ech.into())?
            .with_root_certificates(roots(authority)?)
            .with_no_client_auth();
        Ok(Self { config })
    }

    /// A client that shows a certificate with a key that need not belong to it.
    pub fn stealing(
        authority: &Path,
        versions: &[&'static SupportedProtocolVersion],
        certificate: &Leaf,
    ) -> Result<Self> {
        let mut client = Self::new(authority, versions, None)?;
        let key = PrivateKeyDer::from_pem_file(&certificate.key)?;
        let key = client.config.crypto_provider().key_provider.load_private_key(key)?;
        let chain = CertificateDer::pem_file_iter(&certificate.chain)?.collect::<Result<_, _>>()?;
        client.config.client_auth_cert_resolver =
            Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        Ok(client)
    }

    /// A client that trusts this authority and offers this cipher suite alone.
    pub fn with_suite(authority: &Path, suite: CipherSuite) -> Result<Self> {
        let mut provider = default_provider();
        provider.cipher_suites.retain(|known| known.suite() == suite);
        let version = provider.cipher_suites.first().context("a suite that rustls has")?.version();
        let builder = ClientConfig::builder_with_provider(Arc::new(provider));
        let builder = builder.with_protocol_versions(&[version])?.with_root_certificates(roots(authority)?);
        Ok(Self { config: builder.with_no_client_auth() })
    }

    /// The ClientHello that it sends.
    pub fn hello(&self, sni: &str) -> Result<Vec<u8>> {
        let name = ServerName::try_from(sni.to_owned())?;
        let mut hello = Vec::new();
        ClientConnection::new(Arc::new(self.config.clone()), name)?.write_tls(&mut hello)?;
        Ok(hello)
    }

    /// Handshakes on a connected socket.
    pub fn connect(&self, socket: TcpStream, sni: &str) -> Result<Duplex> {
        self.connect_sending(socket, sni, |socket, hello| socket.write_all(hello))
    }

    /// Handshakes on a connected socket; the session in one piece.
    pub fn stream(&self, socket: TcpStream, sni: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let name = ServerName::try_from(sni.to_owned())?;
        let connection = ClientConnection::new(Arc::new(self.config.clone()), name)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).context("TLS handshake")?;
        }
        Ok(stream)
    }

    /// Handshakes on a connected socket, with the ClientHello sent in a way of the caller's own.
    pub fn connect_sending(
        &self,
        mut socket: TcpStream,
        sni: &str,
        send_hello: impl FnOnce(&mut TcpStream, &[u8]) -> io::Result<()>,
    ) -> Result<Duplex> {
        let name = ServerName::try_from(sni.to_owned())?;
        let mut connection = ClientConnection::new(Arc::new(self.config.clone()), name)?;
        let mut hello = Vec::new();
        connection.write_tls(&mut hello)?;
        send_hello(&mut socket, &hello)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).context("TLS handshake")?;
        }
        let shared =
            Arc::new(Shared { connection: Mutex::new(connection), output: Mutex::new(socket.try_clone()?) });
        Ok(Duplex {
            reader: Box::new(Reader {
                socket: socket.try_clone()?,
                shared: shared.clone(),
                sealed: Vec::new(),
                taken: 0,
            }),
            writer: Box::new(Writer { shared }),
            socket,
        })
    }

    /// Handshakes and gives what seals the client's further TLS 1.3 records, to say what rustls would not.
    pub fn sealer(&self, socket: &mut TcpStream, sni: &str) -> Result<Sealer> {
        let mut config = self.config.clone();
        config.enable_secret_extraction = true;
        let name = ServerName::try_from(sni.to_owned())?;
        let mut connection = ClientConnection::new(Arc::new(config), name)?;
        while connection.is_handshaking() || connection.wants_write() {
            connection.complete_io(socket).context("TLS handshake")?;
        }
        let suite =
            connection.negotiated_cipher_suite().and_then(|suite| suite.tls13()).context("TLS 1.3")?;
        let (sequence, secrets) = connection.dangerous_extract_secrets()?.tx;
        let encrypter = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv }
            | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
            | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => suite.aead_alg.encrypter(key, iv),
            _ => anyhow::bail!("keys of an unknown kind"),
        };
        Ok(Sealer { encrypter, sequence })
    }

    /// Handshakes and tells which group the keys came from.
    pub fn key_exchange_group(&self, mut socket: TcpStream, sni: &str) -> Result<Option<NamedGroup>> {
        let name = ServerName::try_from(sni.to_owned())?;
        let mut connection = ClientConnection::new(Arc::new(self.config.clone()), name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket).context("TLS handshake")?;
        }
        Ok(connection.negotiated_key_exchange_group().map(|group| group.name()))
    }
}

/// What seals the records of a client.
pub struct Sealer {
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl Sealer {
    /// The next record, of this type.
    pub fn seal(&mut self, typ: ContentType, payload: &[u8]) -> Result<Vec<u8>> {
        let payload = OutboundChunks::from(payload);
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let sealed = self.encrypter.encrypt(message, self.sequence)?;
        self.sequence += 1;
        Ok(sealed.encode())
    }
}

/// The ClientHello (a TLS record) that a real client sends for this name and these protocols.
pub fn client_hello(sni: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("the provider has every version")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Client { config }.hello(sni).expect("a valid name and configuration")
}

/// The connection's state, and the socket in the order in which records were made: the lock on `output` is
/// taken while `connection` is held, so that records leave in sequence.
struct Shared {
    connection: Mutex<ClientConnection>,
    output: Mutex<TcpStream>,
}

impl Shared {
    /// Changes the state, then sends the records that came of it.
    fn drive<T>(&self, change: impl FnOnce(&mut ClientConnection) -> io::Result<T>) -> io::Result<T> {
        let mut records = Vec::new();
        let mut connection = self.connection.lock().expect("no panic while locked");
        let result = change(&mut connection)?;
        while connection.wants_write() {
            connection.write_tls(&mut records)?;
        }
        if !records.is_empty() {
            let mut output = self.output.lock().expect("no panic while locked");
            // Reading must go on while the socket's buffer is full, or two such ends wait for each other.
            drop(connection);
            output.write_all(&records)?;
        }
        Ok(result)
    }
}

struct Reader {
    socket: TcpStream,
    shared: Arc<Shared>,
    /// Received; `sealed[taken..]` is still to be given to rustls.
    sealed: Vec<u8>,
    taken: usize,
}

impl Read for Reader {
    /// 0 after a close_notify; an end of the stream without one is the error `UnexpectedEof`.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let plain = self.shared.drive(|connection| connection.reader().read(buffer));
            match plain {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.taken == self.sealed.len() {
                self.sealed.resize(16 * 1024, 0);
                let n = self.socket.read(&mut self.sealed)?;
                self.sealed.truncate(n);
                self.taken = 0;
            }
            // One step, then the plaintext: rustls takes no more while its own buffer is full. An empty read is
            // how it learns of the end of the stream.
            let mut rest = &self.sealed[self.taken..];
            self.shared.drive(|connection| {
                connection.read_tls(&mut rest)?;
                connection.process_new_packets().map_err(io::Error::other)
            })?;
            self.taken = self.sealed.len() - rest.len();
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
}

impl Write for Writer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.shared.drive(|connection| connection.writer().write(data))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HalfClose for Writer {
    /// close_notify, then FIN.
    fn finish(&mut self) -> io::Result<()> {
        self.shared.drive(|connection| {
            connection.send_close_notify();
            Ok(())
        })?;
        self.shared.output.lock().expect("no panic while locked").shutdown(Shutdown::Write)
    }
}
