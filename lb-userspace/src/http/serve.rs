//! A client's connection: HTTP/1.1 or HTTP/2, until it ends or goes over to another protocol.

use super::exec::Streams;
use super::leg::{Far, Io, Leg, Meter};
use super::link::{Due, Link, Upgraded};
use super::request;
use super::upstream::{PING, WINDOWS};
use super::watch::{self, close_reason};
use crate::reason::{CloseReason, HttpAnswer, TlsError};
use crate::socket::reset_on_close;
use crate::splice::relay::relay;
use crate::splice::transport::Failure;
use http::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use lb_common::packet::Side;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How HTTP/2 begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of the head of a request, and of the buffer in which a connection of HTTP/1.1 holds it. It has 100 headers at most:
/// hyper's own bound, for which alone it has room on the stack.
const MAX_HEAD: usize = 64 * 1024;

/// The same of HTTP/2, as RFC 9113, section 6.5.2, counts them.
const MAX_HEADER_LIST: u32 = 16 * 1024;

/// Requests under way on one connection of HTTP/2.
const MAX_STREAMS: u32 = 128;

/// Streams that the client may have reset before they were looked at (CVE-2023-44487).
const MAX_RESET: usize = 20;

/// How a connection ended, or the leg whose TLS failed and why.
type End = Result<CloseReason, (Side, TlsError)>;

/// Serves the requests of a connection. `client`: the socket of its leg.
pub(crate) async fn serve<L: Leg + Unpin>(leg: L, client: &TcpStream, link: Rc<Link>) -> End {
    watch::follow(&link.gateway);
    let mut io = Io::new(leg, link.clone());
    let is_http2 = match link.tls.as_ref() {
        Some(tls) => tls.alpn.as_deref() == Some(b"h2"),
        None => {
            let begins = poll_fn(|cx| io.poll_begins_with(cx, PREFACE));
            match timeout(link.connection.listener.hello_timeout, begins).await {
                Ok(Ok(Some(is_http2))) => is_http2,
                Ok(Ok(None)) => return Ok(CloseReason::ClientClosed),
                Ok(Err(_)) => return failed(&link),
                Err(_) => return Ok(CloseReason::IdleTimeout),
            }
        }
    };
    match is_http2 {
        true => serve_http2(io, client, &link).await,
        false => serve_http1(io, client, &link).await,
    }
}

async fn serve_http1<L: Leg + Unpin>(io: Io<L, Rc<Link>>, client: &TcpStream, link: &Rc<Link>) -> End {
    let service = service_fn(|request: Request<Incoming>| {
        // At once: hyper has not read on behind the head.
        let is_clear = link.has_head(request.body().size_hint().exact());
        request::serve(link.clone(), request, is_clear)
    });
    let mut connection = http1::Builder::new()
        // hyper does not see an end behind requests that it has read already; the link looks for it.
        .half_close(true)
        .max_buf_size(MAX_HEAD)
        .serve_connection(io, service);
    let end = loop {
        tokio::select! {
            biased;
            end = &mut connection => break end,
            cause = link.watch.broken_off() => return Ok(broken_off(client, cause)),
            due = link.due(client) => match due {
                Due::Leave => Pin::new(&mut connection).graceful_shutdown(),
                Due::Cut(reason) => {
                    // Of HTTP/1.0, the end of the connection is that of the answer. If it was told to leave and has not, hyper
                    // still has something that the client does not take, or has got a part of a head.
                    if link.has_requests() || link.is_leaving() {
                        reset_on_close(client);
                    }
                    return Ok(reason);
                }
            }
        }
    };
    let http1::Parts { mut io, read_buf, .. } = connection.into_parts();
    if let Some(to) = link.upgraded.take() {
        return upgraded(io.into_leg(&read_buf), client, to, link).await;
    }
    if let Some(cause) = link.watch.cause() {
        return Ok(broken_off(client, cause));
    }
    if matches!(link.ended.get(), Some(Err(_))) {
        return failed(link);
    }
    let is_refused = match end {
        Err(error) if error.is_parse() => {
            let reason = match error.is_parse_too_large() {
                true => HttpAnswer::HeadTooLarge,
                false => HttpAnswer::Malformed,
            };
            link.connection.route.stats.counting().counting_http().answers.add(reason as usize);
            true
        }
        // An answer that cannot be brought to its end: the client must not take it for whole.
        Err(error) if !error.is_incomplete_message() => {
            reset_on_close(io.leg().socket());
            return Ok(CloseReason::ServerReset);
        }
        Err(_) | Ok(()) => false,
    };
    if !finish(&mut io, link.connection.listener.hello_timeout).await {
        return Ok(CloseReason::IdleTimeout);
    }
    Ok(match (link.ended.get(), link.is_leaving()) {
        _ if is_refused => CloseReason::HttpError,
        (Some(_), _) => CloseReason::ClientClosed,
        (None, true) => CloseReason::Dismissed,
        (None, false) => CloseReason::ServerClosed,
    })
}

/// Says the last word to a client, for which it must have made room by then: nothing else bounds that any more. If it has not, it
/// is to be reset, and this is `false`.
async fn finish<L: Leg, M: Meter>(io: &mut Io<L, M>, bound: Duration) -> bool {
    // A failure: the client is gone.
    let is_said = timeout(bound, poll_fn(|cx| io.poll_finish(cx))).await.is_ok();
    if !is_said {
        reset_on_close(io.leg().socket());
    }
    is_said
}

async fn serve_http2<L: Leg + Unpin>(io: Io<L, Rc<Link>>, client: &TcpStream, link: &Rc<Link>) -> End {
    link.speaks_http2();
    // Boxed: hyper and tokio move it several times, and it has some kilobytes.
    let service =
        service_fn(|request: Request<Incoming>| Box::pin(request::serve(link.clone(), request, true)));
    let mut connection = pin!(
        http2::Builder::new(Streams)
            .timer(TokioTimer::new())
            .initial_connection_window_size(WINDOWS.0)
            .initial_stream_window_size(WINDOWS.1)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_pending_accept_reset_streams(MAX_RESET)
            .max_send_buf_size(WINDOWS.1 as usize)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .serve_connection(io, service)
    );
    let end = loop {
        tokio::select! {
            biased;
            end = connection.as_mut() => break end,
            due = link.due(client) => match due {
                Due::Leave => connection.as_mut().graceful_shutdown(),
                Due::Cut(reason) => return Ok(reason),
            }
        }
    };
    match (link.ended.get(), end) {
        (Some(Err(_)), _) => failed(link),
        (Some(Ok(())), _) => Ok(CloseReason::ClientClosed),
        (None, Ok(())) if link.is_leaving() => Ok(CloseReason::Dismissed),
        (None, Ok(())) => Ok(CloseReason::ClientClosed),
        (None, Err(error)) => {
            tracing::debug!(%error, "a client's HTTP/2 has failed");
            link.connection
                .route
                .stats
                .counting()
                .counting_http()
                .answers
                .add(HttpAnswer::Malformed as usize);
            Ok(CloseReason::HttpError)
        }
    }
}

/// The client's leg cannot go on.
fn failed(link: &Link) -> End {
    match link.ended.get() {
        Some(Err(Failure::Tls(cause))) => Err((Side::Client, cause)),
        Some(Err(Failure::Socket) | Ok(())) | None => Ok(CloseReason::ClientReset),
    }
}

/// The answer that is under way does not come to its end: the client must not take it for whole.
fn broken_off(client: &TcpStream, cause: HttpAnswer) -> CloseReason {
    reset_on_close(client);
    close_reason(cause)
}

/// Carries what follows HTTP, as long as the server and the route are there.
async fn upgraded<L: Leg>(near: L, client: &TcpStream, to: Upgraded, link: &Link) -> End {
    // The leg is dropped first.
    let Upgraded { _port, _guard, mut far } = to;
    let (traffic, idle) = (&link.connection.traffic, link.idle());
    let relayed = async {
        match &mut far {
            Far::Plain(far) => relay(near, far, traffic, idle).await,
            Far::Tls(far) => relay(near, &mut **far, traffic, idle).await,
        }
    };
    tokio::select! {
        biased;
        // The server's leg is not clean then, and reset as well.
        cause = link.watch.broken_off() => Ok(broken_off(client, cause)),
        end = relayed => {
            // If it has failed, the relay says so by a reset.
            far.clean();
            end
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::leg::Silent;
    use super::*;
    use crate::splice::transport::Plain;
    use hyper::rt::Write as _;
    use std::io::{ErrorKind, Read as _};
    use std::pin::Pin;
    use std::task::Poll;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_last_word_is_not_said_for_ever() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (client, _) = listener.accept().await.unwrap();
        let mut io = Io::new(Plain::new(&client, Vec::new()), Silent::default());
        // Until the sockets are full.
        poll_fn(|cx| {
            while Pin::new(&mut io).poll_write(cx, &[b'a'; 64 * 1024]).is_ready() {}
            Poll::Ready(())
        })
        .await;
        let said = timeout(Duration::from_secs(20), finish(&mut io, Duration::from_millis(50))).await;
        assert_eq!(said, Ok(false));
        drop(io);
        drop(client);
        let end = tokio::task::spawn_blocking(move || peer.read_to_end(&mut Vec::new())).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
