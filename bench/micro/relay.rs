//! A connection in the copy tier, between sockets of the loopback device: what userspace does for each message.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use snisplice::config::Termination;
use snisplice::splice::relay::relay;
use snisplice::splice::tls::Tls;
use snisplice::splice::transport::Plain;
use snisplice::tls::{Session, Verifiers, server_config};
use snisplice::traffic::Traffic;
use tokio::runtime::{Builder, Runtime};

/// Bytes of a message.
const SIZE: usize = 1024;

/// More than a message is long, as a record of TLS 1.3: header, content type and tag (RFC 8446, section 5.2).
const RECORD: usize = 5 + 1 + 16;

/// How often a case may be asked for: its messages are sealed before.
pub(crate) const TIMES: u32 = 200;

/// One message of plain bytes to the server, and one back.
pub(crate) fn plain() -> Box<dyn FnMut()> {
    let runtime = runtime();
    let ((client, near), (far, server)) = (pair(), pair());
    let (near, far) = (watched(&runtime, near), watched(&runtime, far));
    runtime.spawn(async move {
        let (near, far) = (Plain::new(&near, Vec::new()), Plain::new(&far, Vec::new()));
        relay(near, far, &Traffic::default(), None).await
    });
    exchange(runtime, client, server, vec![vec![7; SIZE]; TIMES as usize], SIZE)
}

/// One message in TLS 1.3 to the server, and one back.
pub(crate) fn terminated() -> Box<dyn FnMut()> {
    let runtime = runtime();
    let ((mut client, near), (far, mut server)) = (pair(), pair());
    let (near, far) = (watched(&runtime, near), watched(&runtime, far));
    let certified = rcgen::generate_simple_self_signed([NAME.to_owned()]).expect("a key");
    let certificate = certified.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let termination = Termination {
        chain: vec![certificate.clone()],
        key,
        client_auth: None,
        not_after: u64::MAX,
        names: [].into(),
        more: Vec::new(),
    };
    let config = server_config(&termination, &mut Verifiers::default(), std::iter::empty())
        .expect("they belong together");
    let carried = async move {
        let session = Session::accept(&near, Vec::new(), config).await.expect("a handshake");
        relay(Tls::new(session, &near), Plain::new(&far, Vec::new()), &Traffic::default(), None).await
    };
    let task = runtime.spawn(carried);
    let serving = std::thread::spawn(move || {
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a certificate");
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from(NAME).expect("a name");
        let mut tls = ClientConnection::new(Arc::new(config), name).expect("a configuration");
        let mut stream = rustls::Stream::new(&mut tls, &mut client);
        stream.write_all(&[7; SIZE]).expect("a handshake");
        server.read_exact(&mut [0; SIZE]).expect("the message");
        server.write_all(&[7; SIZE]).expect("it takes an answer");
        stream.read_exact(&mut [0; SIZE]).expect("the answer, behind the session tickets");
        let sealed = (0..TIMES).map(|_| {
            let mut record = Vec::new();
            tls.writer().write_all(&[7; SIZE]).expect("it seals");
            tls.write_tls(&mut record).expect("a Vec takes everything");
            record
        });
        let sealed = sealed.collect();
        (client, server, sealed)
    });
    while !serving.is_finished() {
        turn(&runtime);
    }
    assert!(!task.is_finished());
    let (client, server, sealed) = serving.join().expect("the client does not panic");
    exchange(runtime, client, server, sealed, SIZE + RECORD)
}

const NAME: &str = "terminated.example.com";

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_io().build().expect("a runtime")
}

/// Two ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let one = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    let (other, _) = listener.accept().expect("it is connected");
    for socket in [&one, &other] {
        socket.set_nodelay(true).expect("TCP");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a time");
    }
    (one, other)
}

fn watched(runtime: &Runtime, socket: TcpStream) -> tokio::net::TcpStream {
    let _entered = runtime.enter();
    socket.set_nonblocking(true).expect("a socket");
    tokio::net::TcpStream::from_std(socket).expect("it is watched")
}

/// Sends the next message and gets the answer, which is so long for the client.
fn exchange(
    runtime: Runtime,
    mut client: TcpStream,
    mut server: TcpStream,
    messages: Vec<Vec<u8>>,
    answer: usize,
) -> Box<dyn FnMut()> {
    let mut messages = messages.into_iter();
    let mut buffer = vec![0; answer];
    turn(&runtime);
    Box::new(move || {
        let message = messages.next().expect("not asked for more often");
        client.write_all(&message).expect("the relay takes it");
        turn(&runtime);
        server.read_exact(&mut buffer[..SIZE]).expect("the relay passes it on");
        server.write_all(&[7; SIZE]).expect("the relay takes the answer");
        turn(&runtime);
        client.read_exact(&mut buffer).expect("the relay passes the answer on");
    })
}

/// Lets the relay see what has come, and carry it: loopback delivers within the call that sends.
fn turn(runtime: &Runtime) {
    runtime.block_on(async {
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
    });
}
