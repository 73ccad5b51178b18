//! What the process that is taken over knows of its successor.

use super::elsewhere::Told;
use super::message::Step;
use super::wire::Wire;
use crate::words::with_causes;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

/// A successor that has not said within this time that it lacks nothing is given up: reloads wait for it.
const PREPARE: Duration = Duration::from_secs(120);

/// Who wants to take over.
pub(in crate::gateway) struct Succession {
    asked: mpsc::UnboundedReceiver<UnixStream>,
    /// The one that has the sockets.
    pub successor: Option<Candidate>,
}

/// A process that has the sockets, and until when it may prepare.
pub(in crate::gateway) struct Candidate {
    pub wire: Wire,
    pub until: Instant,
}

/// What has happened.
pub(in crate::gateway) enum Event {
    /// A process asks for the sockets.
    Asked(UnixStream),
    /// The one that has them lacks nothing any more.
    Prepared,
    /// It is gone, or to be given up, and why.
    Gone(String),
}

/// The process that has taken over.
pub(in crate::gateway) struct Heir {
    pub wire: Wire,
    /// What it knows.
    pub told: Told,
    /// When it is told again.
    pub next: Instant,
}

impl Succession {
    pub(in crate::gateway) fn new(asked: mpsc::UnboundedReceiver<UnixStream>) -> Self {
        Self { asked, successor: None }
    }

    /// A process has the sockets from now on.
    pub(in crate::gateway) fn offered(&mut self, wire: Wire) {
        self.successor = Some(Candidate { wire, until: Instant::now() + PREPARE });
    }

    /// Whether a process has the sockets and has not taken over yet.
    pub(in crate::gateway) fn is_pending(&self) -> bool {
        self.successor.is_some()
    }

    /// The next thing that happens. May be dropped and called again.
    pub(in crate::gateway) async fn next(&mut self) -> Event {
        let asked = self.asked.recv();
        let Some(Candidate { wire, until }) = &mut self.successor else {
            return match asked.await {
                Some(stream) => Event::Asked(stream),
                None => std::future::pending().await,
            };
        };
        tokio::select! {
            Some(stream) = asked => Event::Asked(stream),
            step = timeout_at(*until, wire.receive::<Step>()) => match step {
                Ok(Ok(Some(Step::Freeze {}))) => Event::Prepared,
                Ok(Ok(Some(Step::Serve {}))) => Event::Gone("it left out a step".into()),
                Ok(Ok(None)) => Event::Gone("it has ended".into()),
                Ok(Err(error)) => Event::Gone(with_causes(&error)),
                Err(_) => Event::Gone(format!("it was not ready within {PREPARE:?}")),
            }
        }
    }
}
