//! The body of an answer, on its way from a server to the client.

use super::account::Request;
use super::hop;
use super::kept;
use super::sent::{BodyError, Upload};
use super::upstream::{H1, Stream};
use super::watch::Watched;
use crate::serving::ServerGuard;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a request's body may still be sent when its answer is there.
const LINGER: Duration = Duration::from_secs(15);

/// A part in a connection of HTTP/2.
pub(super) struct Share {
    pub(super) stream: Stream,
    pub(super) guard: ServerGuard,
    /// The rest of the request, if its answer began before that was sent.
    pub(super) upload: Option<Upload>,
}

impl Share {
    /// The answer is there. The stream is open until all of the request is sent.
    fn release(self) {
        if let Share { upload: Some(upload), stream, guard } = self
            && upload.is_under_way()
        {
            tokio::task::spawn_local(async move {
                let _place = (stream, guard);
                upload.ends_within(LINGER).await;
            });
        }
    }
}

/// What moves the body of an answer, and counts as a connection of its server meanwhile.
pub(super) enum Driver {
    /// Whoever waits for it.
    Own { h1: Box<H1>, _guard: ServerGuard },
    /// A task. It is told when the answer is there; if this is dropped before, it gives up.
    Apart(oneshot::Sender<()>),
    /// The task of the connection that the request shares.
    Shared(Share),
    /// It is there.
    Done,
}

impl Driver {
    /// Of an answer on `h1`. `is_under_way`: more of the request is to be sent, even if nobody takes the answer.
    pub(super) fn new(h1: Box<H1>, guard: ServerGuard, is_under_way: bool) -> Self {
        if !is_under_way {
            return Driver::Own { h1, _guard: guard };
        }
        let (answered, is_answered) = oneshot::channel();
        let mut h1 = h1;
        let watch = Watched::new();
        watch.has_server(guard.server().clone(), h1.key().epoch);
        tokio::task::spawn_local(async move {
            let _guard = guard;
            let mut over =
                poll_fn(
                    |cx| {
                        if h1.poll(cx).is_ready() || h1.is_idle() { Poll::Ready(()) } else { Poll::Pending }
                    },
                );
            let is_over = tokio::select! {
                biased;
                _ = watch.broken_off() => false,
                () = &mut over => true,
                answered = is_answered => answered.is_ok() && timeout(LINGER, over).await.is_ok(),
            };
            if is_over {
                kept::keep(h1);
            }
        });
        Driver::Apart(answered)
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) {
        if let Driver::Own { h1, .. } = self {
            let _ = h1.poll(cx);
        }
    }

    /// The answer is there: the connection may carry another request.
    pub(super) fn release(&mut self, cx: &mut Context<'_>) {
        match std::mem::replace(self, Driver::Done) {
            Driver::Own { mut h1, .. } => {
                let _ = h1.poll(cx);
                kept::keep(h1);
            }
            Driver::Apart(answered) => _ = answered.send(()),
            Driver::Shared(share) => share.release(),
            Driver::Done => {}
        }
    }
}

/// The body of an answer to a client.
pub(super) enum Answered {
    /// The gateway's own.
    Own(Bytes),
    /// A server's.
    Relayed(Relayed),
}

/// The body of a server's answer.
pub(super) struct Arriving {
    pub(super) incoming: Incoming,
    /// What moves it.
    pub(super) driver: Driver,
}

impl Arriving {
    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_pending() {
            // What it waits for comes by the connection, which nobody else polls.
            self.driver.poll(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        // The reason stays here: hyper would give a server's code of HTTP/2 to the client, who may ask again for it.
        let mut frame = ready!(polled).map(|frame| frame.map_err(|_| BodyError::CutShort));
        // To hyper, a stream of HTTP/2 that is reset without an error is one that has ended.
        if frame.is_none() && matches!(self.driver, Driver::Shared(_)) && !self.has_ended() {
            frame = Some(Err(BodyError::CutShort));
        }
        if let Some(trailers) = frame.as_mut().and_then(|frame| frame.as_mut().ok()?.trailers_mut()) {
            hop::strip_trailers(trailers);
        }
        if frame.is_none() || self.has_ended() {
            self.driver.release(cx);
        }
        Poll::Ready(frame)
    }

    /// Nothing is to come any more.
    pub(super) fn has_ended(&self) -> bool {
        self.incoming.is_end_stream()
    }
}

/// One that is empty is never polled.
impl Drop for Arriving {
    fn drop(&mut self) {
        if self.has_ended() {
            self.driver.release(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// The body of a server's answer, on its way to the client.
pub(super) struct Relayed {
    pub(super) body: Arriving,
    pub(super) request: Request,
}

impl Relayed {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.body.poll_next(cx));
        match &frame {
            Some(Ok(frame)) => self.request.sent(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => self.request.broken(),
            None => {}
        }
        if frame.is_none() || self.body.has_ended() {
            self.request.complete();
        }
        Poll::Ready(frame)
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Answered::Own(bytes) => {
                let bytes = mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Answered::Relayed(relayed) => relayed.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answered::Own(bytes) => bytes.is_empty(),
            Answered::Relayed(relayed) => relayed.body.has_ended(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answered::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Answered::Relayed(relayed) => relayed.body.incoming.size_hint(),
        }
    }
}
