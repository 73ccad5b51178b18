//! Answer: what a request of HTTP gets from the gateway itself.

use crate::scratch;
use crate::splice::transport::{Failure, Received, Transport};
use crate::traffic::{Traffic, add};
use std::future::poll_fn;
use std::task::{Poll, ready};

/// Bytes of a request's head; of a longer one no more is read.
const MAX_HEAD: usize = 16 * 1024;

const NOT_FOUND: &[u8] =
    b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot found";

/// Reads the head of a request and answers it with 404; `false`: the client has ended before. The caller bounds the time.
pub(crate) async fn not_found(mut near: impl Transport, traffic: &Traffic) -> Result<bool, Failure> {
    let mut head = Vec::new();
    while head.len() < MAX_HEAD && !is_whole(&head) {
        let end = poll_fn(|cx| {
            scratch::with(|buffers| {
                let Received { bytes, end } =
                    ready!(near.poll_read(cx, &mut buffers.input, &mut buffers.plaintext))?;
                add(&traffic.bytes_in, bytes.len());
                head.extend(bytes.iter().take(MAX_HEAD - head.len()));
                Poll::Ready(Ok::<_, Failure>(end))
            })
        });
        if end.await? && !is_whole(&head) {
            return Ok(false);
        }
    }
    scratch::with(|buffers| {
        near.write(NOT_FOUND, &mut buffers.records, &traffic.bytes_out)?;
        near.end(&mut buffers.records)
    })?;
    poll_fn(|cx| near.poll_flush(cx, &traffic.bytes_out)).await?;
    Ok(true)
}

/// RFC 9112, section 2.1: an empty line ends it; section 2.2 lets a bare LF pass for the end of a line.
fn is_whole(head: &[u8]) -> bool {
    let ends = |end: &[u8]| head.windows(end.len()).any(|window| window == end);
    ends(b"\r\n\r\n") || ends(b"\n\n")
}
