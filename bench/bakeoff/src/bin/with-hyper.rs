//! hyper, rustls and tokio in the way of snisplice: a thread has a listening socket and a runtime of its own, nothing is shared, and
//! connections to servers are kept by the thread that has opened them.

use bakeoff::{Args, MOST_IDLE, Rules, WORKERS};
use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Socket, Type};
use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio_rustls::TlsAcceptor;

type Answer = Response<Either<Incoming, Empty<Bytes>>>;

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(async move { _ = future.await });
    }
}

struct Worker {
    rules: Rules,
    idle: RefCell<HashMap<SocketAddr, Vec<SendRequest<Incoming>>>>,
}

impl Worker {
    async fn serve(self: Rc<Self>, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let Some(server) = self.rules.server(request.uri().path()) else {
            return Ok(own(StatusCode::NOT_FOUND));
        };
        Ok(self.forward(server, request).await.unwrap_or_else(|_| own(StatusCode::BAD_GATEWAY)))
    }

    async fn forward(
        self: &Rc<Self>,
        server: SocketAddr,
        mut request: Request<Incoming>,
    ) -> hyper::Result<Answer> {
        let authority = request.uri().authority().map(|authority| HeaderValue::from_str(authority.as_str()));
        if let Some(Ok(host)) = authority {
            request.headers_mut().insert(HOST, host);
        }
        for name in [CONNECTION, TE, TRANSFER_ENCODING, UPGRADE] {
            request.headers_mut().remove(name);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map(Uri::from).unwrap_or_default();
        *request.version_mut() = Version::HTTP_11;
        let mut sender = match self.kept(server) {
            Some(sender) => sender,
            None => match open(server).await {
                Ok(sender) => sender,
                Err(_) => return Ok(own(StatusCode::BAD_GATEWAY)),
            },
        };
        let mut response = sender.send_request(request).await?;
        response.headers_mut().remove(CONNECTION);
        // It takes the next request as soon as this answer is there.
        let worker = self.clone();
        spawn_local(async move {
            if sender.ready().await.is_ok() {
                let mut idle = worker.idle.borrow_mut();
                let idle = idle.entry(server).or_default();
                if idle.len() < MOST_IDLE {
                    idle.push(sender);
                }
            }
        });
        Ok(response.map(Either::Left))
    }

    fn kept(&self, server: SocketAddr) -> Option<SendRequest<Incoming>> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&server)?;
        std::iter::from_fn(|| idle.pop()).find(|sender| sender.is_ready())
    }
}

fn own(status: StatusCode) -> Answer {
    let mut answer = Response::new(Either::Right(Empty::new()));
    *answer.status_mut() = status;
    answer
}

async fn open(server: SocketAddr) -> Result<SendRequest<Incoming>, Box<dyn std::error::Error>> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    spawn_local(async move { _ = connection.await });
    Ok(sender)
}

async fn run(args: &Args, tls: Arc<ServerConfig>) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(args.listen), Type::STREAM, None)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&args.listen.into())?;
    socket.listen(8192)?;
    let listener = TcpListener::from_std(socket.into())?;
    let acceptor = TlsAcceptor::from(tls);
    let worker = Rc::new(Worker { rules: Rules::new(args.server), idle: RefCell::default() });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, worker) = (acceptor.clone(), worker.clone());
        spawn_local(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let (io, service) =
                (TokioIo::new(stream), service_fn(move |request| worker.clone().serve(request)));
            let _ = match is_http2 {
                true => http2::Builder::new(Local).serve_connection(io, service).await,
                false => http1::Builder::new().serve_connection(io, service).await,
            };
        });
    }
}

fn main() {
    let args = Args::parse();
    let chain = CertificateDer::pem_file_iter(&args.chain)
        .expect("the chain")
        .collect::<Result<_, _>>()
        .expect("the chain");
    let key = PrivateKeyDer::from_pem_file(&args.key).expect("the key");
    let mut tls =
        ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).expect("a certificate");
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let tls = Arc::new(tls);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                LocalSet::new().block_on(&runtime, run(&args, tls.clone())).expect("it listens");
            });
        }
    });
}
