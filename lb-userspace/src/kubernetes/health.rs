//! `healthCheckNodePort`: load balancers ask each node whether it takes connections of a Service. Answered as kube-proxy does
//! (pkg/proxy/healthcheck/service_health.go): 200 with the number of local endpoints, or 503 if there is none.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::accept::{Bind, ListenError, listen};
use crate::admin::http;
use crate::config::gateway_api::Name;

/// From accept to the last byte of the answer. Load balancers wait for a second or a few.
const DEADLINE: Duration = Duration::from_secs(5);

/// What is said of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Local {
    pub(super) service: Name,
    pub(super) is_ready: bool,
}

/// The ports at which it is said.
#[derive(Default)]
pub(super) struct HealthPorts(HashMap<u16, Served>);

/// The tasks end with it.
struct Served {
    answer: Arc<ArcSwap<Local>>,
    _tasks: JoinSet<()>,
}

impl HealthPorts {
    /// Answers at these ports and no others; whether all of them could be had.
    pub(super) fn follow(&mut self, wanted: BTreeMap<u16, Local>) -> bool {
        self.0.retain(|port, _| wanted.contains_key(port));
        let mut all = true;
        for (port, local) in wanted {
            if let Some(served) = self.0.get(&port) {
                served.answer.store(Arc::new(local));
                continue;
            }
            match Served::new(port, local) {
                Ok(served) => _ = self.0.insert(port, served),
                Err(error) => {
                    tracing::warn!(port, %error, "load balancers that ask for this node's health get no answer");
                    all = false;
                }
            }
        }
        all
    }
}

impl Served {
    fn new(port: u16, local: Local) -> io::Result<Self> {
        let answer = Arc::new(ArcSwap::from_pointee(local));
        let asked = answer.clone();
        // On every path, as kube-proxy.
        let router = Router::new().fallback(async move || {
            let local = asked.load();
            let status = if local.is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let count = u32::from(local.is_ready);
            let Name { namespace, name } = &local.service;
            let body = json!({
                "service": {"namespace": &**namespace, "name": &**name},
                "localEndpoints": count,
                "serviceProxyHealthy": true,
            });
            (
                status,
                [(CONTENT_TYPE.as_str(), "application/json"), ("x-content-type-options", "nosniff")],
                [("x-load-balancing-endpoint-weight", count.to_string())],
                body.to_string(),
            )
        });
        let mut tasks = JoinSet::new();
        for ip in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
            let bind = Bind { address: SocketAddr::new(ip, port), backlog: 64, freebind: false };
            let sockets = match listen(bind, 1) {
                Ok(sockets) => sockets,
                Err(ListenError::Io(error))
                    if ip.is_ipv6() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
                {
                    continue;
                }
                Err(error) => return Err(io::Error::other(error)),
            };
            for socket in sockets {
                tasks.spawn(http::serve_router(DEADLINE, TcpListener::from_std(socket)?, router.clone()));
            }
        }
        Ok(Self { answer, _tasks: tasks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET /anything HTTP/1.1\r\nHost: node\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn says_how_many_endpoints_are_here_as_long_as_it_is_asked_for() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let local =
            |is_ready| BTreeMap::from([(port, Local { service: Name::new("ns", "edge-lb"), is_ready })]);
        let mut ports = HealthPorts::default();
        assert!(ports.follow(local(true)));
        let answer = ask(port).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        assert_eq!(body["localEndpoints"], 1);
        assert_eq!(body["service"], json!({"namespace": "ns", "name": "edge-lb"}));

        assert!(ports.follow(local(false)));
        let answer = ask(port).await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

        assert!(ports.follow(BTreeMap::new()));
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
