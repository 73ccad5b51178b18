//! The admin address: metrics, probes, and the status as JSON and as a page. It changes nothing.
//!
//! It may be reachable from more places than the socket. So each connection carries one request and has one deadline, the
//! number of connections is bounded, and so is the length of a request's head.

use super::clients::Clients;
use super::metrics::{CONTENT_TYPE, Metrics};
use super::{Operations, made};
use axum::Router;
use axum::extract::State;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE as TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Clients served at once: a few scrapers, probes and browsers.
const MAX_CLIENTS: usize = 64;

/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// From accept to the last byte of the response.
const DEADLINE: Duration = Duration::from_secs(15);

/// The page brings its style and script along and may fetch from its own address, nothing else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                           img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                           frame-ancestors 'none'";

/// Answers requests until it is dropped.
pub async fn serve(listener: TcpListener, gateway: Arc<dyn Operations>) {
    serve_within(DEADLINE, listener, gateway).await;
}

async fn serve_within(deadline: Duration, listener: TcpListener, gateway: Arc<dyn Operations>) {
    let metrics = Arc::new(Metrics::new(gateway.clone()));
    let router = Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/metrics", get(async move || text_of(&metrics)))
        .route("/healthz", get(async || plain(StatusCode::OK, "ok\n")))
        .route("/readyz", get(ready))
        .with_state(gateway);
    serve_router(deadline, listener, router).await;
}

/// Answers requests by a router until it is dropped. `deadline`: from accept to the last byte of the response.
pub(crate) async fn serve_router(deadline: Duration, listener: TcpListener, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(MAX_HEAD);

    let mut clients = Clients::new(MAX_CLIENTS);
    loop {
        clients.room().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = TowerToHyperService::new(router.clone());
                let connection = http.serve_connection(TokioIo::new(stream), service);
                // Clients that close early or are too slow are not logged.
                clients.serve(async move { _ = tokio::time::timeout(deadline, connection).await });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept requests of HTTP");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn page() -> Response {
    let headers = [(TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, PAGE_POLICY)];
    respond(StatusCode::OK, headers, include_str!("status.html"))
}

async fn status(State(gateway): State<Arc<dyn Operations>>) -> Response {
    match serde_json::to_vec(&gateway.status()) {
        Ok(json) => {
            made(json.len());
            respond(StatusCode::OK, [(TYPE, "application/json")], json)
        }
        Err(e) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

async fn ready(State(gateway): State<Arc<dyn Operations>>) -> Response {
    match gateway.ready() {
        Ok(notes) => {
            let lines: String = notes.iter().map(|note| format!("{note}\n")).collect();
            plain(StatusCode::OK, format!("ready\n{lines}"))
        }
        Err(reasons) => plain(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}

fn text_of(metrics: &Metrics) -> Response {
    match metrics.text() {
        Ok(text) => {
            made(text.len());
            respond(StatusCode::OK, [(TYPE, CONTENT_TYPE)], text)
        }
        Err(e) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
    }
}

fn plain(status: StatusCode, text: impl IntoResponse) -> Response {
    respond(status, [(TYPE, "text/plain; charset=utf-8")], text)
}

fn respond<const N: usize>(
    status: StatusCode,
    headers: [(HeaderName, &'static str); N],
    body: impl IntoResponse,
) -> Response {
    let always = [(CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, always, headers, body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::{self, Fake};
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::AbortHandle;

    /// The HTTP side of a gateway on a port of its own; it ends with the test's runtime.
    async fn served(deadline: Duration, gateway: Fake) -> (SocketAddr, AbortHandle) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(serve_within(deadline, listener, Arc::new(gateway)));
        (address, task.abort_handle())
    }

    /// Sends bytes and reads until the gateway closes; a reset ends the response as well.
    async fn raw(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        _ = stream.write_all(request).await;
        let mut response = Vec::new();
        _ = stream.read_to_end(&mut response).await;
        String::from_utf8(response).unwrap()
    }

    /// Head and body of one response of the usual fake gateway.
    async fn get(method: &str, path: &str) -> (String, String) {
        let (address, _) = served(DEADLINE, Fake::default()).await;
        split(&raw(address, format!("{method} {path} HTTP/1.1\r\nHost: gateway\r\n\r\n").as_bytes()).await)
    }

    fn split(response: &str) -> (String, String) {
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.into())
    }

    #[tokio::test]
    async fn health_is_ok_as_long_as_the_process_answers() {
        let (head, body) = get("GET", "/healthz").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert!(head.contains("\r\nconnection: close"), "{head}");
        assert_eq!(body, "ok\n");
    }

    #[tokio::test]
    async fn readiness_says_every_reason_why_not() {
        let (head, body) = get("GET", "/readyz").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, "ready\n");

        let not_ready = vec!["pool pg has no server".into(), "pool redis-1 has no server".into()];
        let (address, _) = served(DEADLINE, Fake { not_ready, ..Fake::default() }).await;
        let (head, body) = split(&raw(address, b"GET /readyz HTTP/1.1\r\nHost: g\r\n\r\n").await);
        assert!(head.starts_with("http/1.1 503 "), "{head}");
        assert_eq!(body, "pool pg has no server\npool redis-1 has no server\n");
    }

    #[tokio::test]
    async fn status_is_the_json_of_the_command() {
        let (head, body) = get("GET", "/status").await;
        assert!(head.contains("\r\ncontent-type: application/json"), "{head}");
        assert!(head.contains("\r\ncache-control: no-store"), "{head}");
        assert_eq!(body, serde_json::to_string(&fake::status()).unwrap());
    }

    #[tokio::test]
    async fn metrics_are_open_metrics() {
        let (head, body) = get("GET", "/metrics").await;
        assert!(head.contains(&format!("\r\ncontent-type: {CONTENT_TYPE}")), "{head}");
        assert!(body.ends_with("\n# EOF\n"), "{body}");
    }

    #[tokio::test]
    async fn the_page_may_load_nothing_from_elsewhere() {
        let (head, body) = get("GET", "/").await;
        assert!(head.contains("\r\ncontent-type: text/html; charset=utf-8"), "{head}");
        assert!(head.contains("\r\ncontent-security-policy: default-src 'none';"), "{head}");
        assert_eq!(body, include_str!("status.html"));
        // Nothing to load, and no way for a name to become markup.
        let forbidden =
            ["http:", "https:", "src=", "@import", "innerHTML", "outerHTML", "insertAdjacent", "eval("];
        for forbidden in forbidden {
            assert!(!body.contains(forbidden), "{forbidden}");
        }
    }

    #[tokio::test]
    async fn a_head_request_gets_the_head_only() {
        let (head, body) = get("HEAD", "/status").await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(body, "");
    }

    #[tokio::test]
    async fn no_method_but_get_and_head_is_allowed() {
        for path in ["/", "/status", "/metrics", "/healthz", "/readyz"] {
            for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
                let (head, _) = get(method, path).await;
                assert!(head.starts_with("http/1.1 405 "), "{method} {path}: {head}");
                assert!(head.contains("\r\nallow: get,head"), "{head}");
            }
        }
        assert!(get("GET", "/nothing").await.0.starts_with("http/1.1 404 "));
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_or_not_http_is_refused() {
        let (address, _) = served(DEADLINE, Fake::default()).await;
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
        let response = raw(address, long.as_bytes()).await;
        assert!(!response.contains(" 200 "), "{response}");
        let response = raw(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
        assert!(response.starts_with("HTTP/1.1 400 ") || response.is_empty(), "{response}");
    }

    #[tokio::test]
    async fn clients_that_say_nothing_are_let_go_and_others_wait_their_turn() {
        let (address, _) = served(Duration::from_millis(50), Fake::default()).await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CLIENTS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let response = raw(address, b"GET /healthz HTTP/1.1\r\nHost: g\r\n\r\n").await;
        assert!(response.ends_with("\r\n\r\nok\n"), "{response}");
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "closed without a word");
        }
    }

    #[tokio::test]
    async fn clients_end_with_the_server() {
        let (address, server) = served(DEADLINE, Fake::default()).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        tokio::task::yield_now().await;
        server.abort();
        assert!(matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
}
