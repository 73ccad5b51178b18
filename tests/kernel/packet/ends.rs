//! The programs at both ends: sockets with the options a test wants, and the opening words of each protocol.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use snisplice_tests::backend::read_record;
use snisplice_tests::pump::{Duplex, HalfClose};
use snisplice_tests::tls::client_hello;
use snisplice_tests::{NetNs, eventually, proxy, topology};
use socket2::{Domain, Socket, Type};

use crate::dialogues::Dialogue;

/// Far more than any step takes, lost packets included; a wait that meets it is a failed test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// The only name there is.
pub(crate) const SNI: &str = "app1.example.com";
/// Where the server listens.
pub(crate) const SERVER_PORT: u16 = 7001;

/// What the gateway's listener speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Speech {
    #[default]
    Tls,
    Tcp,
    Postgres,
    Starttls(&'static Dialogue),
}

/// The client that a proxy in front of the gateway speaks for.
pub(crate) const PROXIED: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 7), 5555);

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// How a client comes to the gateway.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Opening {
    pub(crate) speech: Speech,
    pub(crate) v6: bool,
    /// The ClientHello in so many segments; one if 0.
    pub(crate) pieces: usize,
    /// The length of the block of a PROXY header in front of it.
    pub(crate) proxied: Option<u16>,
    /// The ClientHello in the same write as what follows it.
    pub(crate) early_data: bool,
    pub(crate) socket: SocketOptions,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SocketOptions {
    pub(crate) receive_buffer: Option<usize>,
    /// A port of the client's own, also while the last connection from it is still remembered.
    pub(crate) port: Option<u16>,
}

impl SocketOptions {
    fn socket(&self, domain: Domain) -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(socket)
    }

    pub(crate) fn listen(&self, ns: &NetNs) -> Result<TcpListener> {
        ns.run(|| {
            let socket = self.socket(Domain::IPV6)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, SERVER_PORT)).into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })
    }

    pub(crate) fn dial(&self, ns: &NetNs, target: SocketAddr) -> Result<TcpStream> {
        let connect = || {
            let socket = self.socket(Domain::for_address(target))?;
            if let Some(port) = self.port {
                let any: IpAddr = match target {
                    SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                    SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
                };
                socket.bind(&SocketAddr::new(any, port).into())?;
            }
            socket.connect_timeout(&target.into(), PATIENCE)?;
            io::Result::Ok(socket.into())
        };
        // The last connection from the same port may still wait for the acknowledgement of its FIN.
        let stream: TcpStream = ns.run(|| {
            eventually("a free port", || match connect() {
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => None,
                result => Some(result),
            })
        })??;
        patient(&stream)?;
        Ok(stream)
    }
}

/// No answer within [`PATIENCE`] is an error, and small writes leave at once.
fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

impl Opening {
    /// The gateway's port for this protocol.
    pub(crate) fn port(&self) -> u16 {
        match self.speech {
            Speech::Tls => 443,
            Speech::Tcp => 444,
            Speech::Postgres => 5432,
            Speech::Starttls(dialogue) => dialogue.port,
        }
    }

    /// Where the client connects to.
    pub(crate) fn target(&self) -> SocketAddr {
        if self.v6 { topology::gateway6(self.port()) } else { topology::gateway(self.port()) }
    }

    /// Connects and says what has to be said before the bytes of the exchange; how many bytes of that go to the
    /// server as they are.
    pub(crate) fn open(&self, client: &NetNs) -> Result<(Duplex, u64)> {
        let mut stream = self.socket.dial(client, self.target())?;
        if let Some(block) = self.proxied {
            let [client, local] = [PROXIED, SocketAddrV4::new(topology::GATEWAY, self.port())];
            stream.write_all(&proxy::header(client, local, block))?;
        }
        if self.speech == Speech::Tcp {
            return Ok((stream.try_into()?, 0));
        }
        if self.speech == Speech::Postgres {
            stream.write_all(&SSL_REQUEST)?;
            let mut answer = [0];
            stream.read_exact(&mut answer)?;
            ensure!(&answer == b"S", "the gateway answered {answer:?} to the SSLRequest");
        }
        if let Speech::Starttls(dialogue) = self.speech {
            for [heard, say] in dialogue.client {
                read_until(&mut stream, heard)?;
                stream.write_all(say)?;
            }
        }
        let hello = client_hello(SNI, &[]);
        let said = hello.len() as u64;
        if self.early_data {
            let mut duplex = Duplex::try_from(stream.try_clone()?)?;
            duplex.writer = Box::new(Preceded { first: hello, stream });
            return Ok((duplex, said));
        }
        for piece in hello.chunks(hello.len().div_ceil(self.pieces.max(1))) {
            stream.write_all(piece)?;
            if self.pieces > 1 {
                // Long enough that the gateway reads each piece alone, now and then.
                thread::sleep(Duration::from_millis(5));
            }
        }
        Ok((stream.try_into()?, said))
    }

    /// The server's part: takes what comes before the bytes of the exchange.
    pub(crate) fn greet(&self, stream: &mut TcpStream, send_proxy: Option<&str>) -> io::Result<()> {
        patient(stream)?;
        match send_proxy {
            Some("v1") => while read_array::<1>(stream)? != *b"\n" {},
            Some(_) => {
                let header: [u8; 16] = read_array(stream)?;
                if !header.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
                    return Err(io::Error::other(format!("no PROXY header: {header:?}")));
                }
                let length = u16::from_be_bytes([header[14], header[15]]);
                stream.read_exact(&mut vec![0; usize::from(length)])?;
            }
            None => {}
        }
        match self.speech {
            Speech::Tcp => return Ok(()),
            Speech::Tls => {}
            Speech::Postgres => {
                if read_array(stream)? != SSL_REQUEST {
                    return Err(io::Error::other("no SSLRequest"));
                }
                stream.write_all(b"S")?;
            }
            Speech::Starttls(dialogue) => {
                for [say, heard] in dialogue.server {
                    stream.write_all(say)?;
                    read_until(stream, heard)?;
                }
            }
        }
        read_record(stream).map(drop)
    }
}

/// Reads up to these bytes, and no further.
fn read_until(stream: &mut TcpStream, end: &[u8]) -> io::Result<()> {
    let mut heard = Vec::new();
    while !heard.ends_with(end) {
        heard.push(read_array::<1>(stream)?[0]);
    }
    Ok(())
}

fn read_array<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A stream whose first write carries something else in front.
struct Preceded {
    first: Vec<u8>,
    stream: TcpStream,
}

impl Write for Preceded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.first.is_empty() {
            return self.stream.write(data);
        }
        let mut all = std::mem::take(&mut self.first);
        all.extend(data);
        self.stream.write_all(&all)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl HalfClose for Preceded {
    fn finish(&mut self) -> io::Result<()> {
        self.stream.finish()
    }
}
