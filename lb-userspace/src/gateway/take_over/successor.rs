//! The process that takes over.

use super::elsewhere::Elsewhere;
use super::message::{Descriptor, Id, Offer, Step, Word};
use super::wire::Wire;
use crate::accept::Inherited;
use crate::admin::protocol::{Reply, Request, TAKE_OVER_VERSION, socket_path};
use crate::admin::socket::AdminSocket;
use crate::running::RunningGateway;
use anyhow::{Context as _, bail, ensure};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// How long the process before this one may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process before this one.
pub(in crate::gateway) struct Predecessor {
    wire: Wire,
    process: u32,
    started_ms: u64,
    /// It has died: nobody else uses what it had.
    is_gone: bool,
    /// Connections that it still hands over to the packet tier, and their slots.
    kept: HashMap<u64, Option<u32>>,
}

/// What the process before this one hands over.
pub(in crate::gateway) struct HandedOver {
    pub admin: AdminSocket,
    /// The lock of the packet tier's pins.
    pub pins: Option<OwnedFd>,
    /// The listening sockets.
    pub sockets: Inherited,
}

impl Predecessor {
    /// Asks the gateway of this state directory for its sockets. `None`: no process serves.
    pub(in crate::gateway) async fn ask(state_dir: &Path) -> anyhow::Result<Option<(Self, HandedOver)>> {
        let path = socket_path(state_dir);
        let wire = match UnixStream::connect(&path).await {
            Ok(stream) => Wire::new(stream),
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused].contains(&error.kind()) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {}", path.display())),
        };
        let (us, user) = (rustix::process::geteuid().as_raw(), wire.user()?);
        ensure!(
            [us, 0].contains(&user) || us == 0,
            "the running gateway is of user {user}, this one of {us}"
        );
        let mut before = Self { wire, process: 0, started_ms: 0, is_gone: false, kept: HashMap::new() };
        // An error: it ends just now.
        let _ = before.wire.send(&Request::TakeOver { version: TAKE_OVER_VERSION }).await;
        match before.hear::<Reply<Offer>>().await? {
            None => return Ok(None),
            Some(Reply::Ok(Offer { program, process, started_ms })) => {
                tracing::info!(process, "taking over from snisplice {program}");
                (before.process, before.started_ms) = (process, started_ms);
            }
            Some(Reply::Error(reason)) => {
                bail!("the running gateway cannot be taken over, only restarted: {reason}")
            }
        }
        let mut handed = Vec::new();
        loop {
            match before.hear().await? {
                None => return Ok(None),
                Some(Word::Descriptors(all)) => {
                    for what in all {
                        let descriptor = before.wire.take_descriptor();
                        handed.push((what, descriptor.context("a descriptor did not come")?));
                    }
                }
                Some(Word::Offered {}) => break,
                Some(other) => return Err(unexpected(&other)),
            }
        }
        let handed = HandedOver::of(state_dir, handed)?;
        Ok(Some((before, handed)))
    }

    /// Makes it accept no more and leave the packet tier's connections alone. They are to be adopted, all but those that are
    /// [`kept`](Self::kept).
    pub(in crate::gateway) async fn freeze(
        &mut self,
        gateway: &RunningGateway,
        elsewhere: &Elsewhere,
    ) -> anyhow::Result<()> {
        self.step(Step::Freeze {}, gateway, elsewhere).await
    }

    /// Becomes the gateway in its place.
    pub(in crate::gateway) async fn relieve(
        &mut self,
        gateway: &RunningGateway,
        elsewhere: &Elsewhere,
    ) -> anyhow::Result<()> {
        self.step(Step::Serve {}, gateway, elsewhere).await
    }

    /// Connections that it still hands over to the packet tier, and their slots. `is_same_tier`: if not, they are no business of
    /// this process.
    pub(in crate::gateway) fn kept(&mut self, is_same_tier: bool) -> &mut HashMap<u64, Option<u32>> {
        if !is_same_tier {
            self.kept.clear();
        }
        &mut self.kept
    }

    async fn step(
        &mut self,
        step: Step,
        gateway: &RunningGateway,
        elsewhere: &Elsewhere,
    ) -> anyhow::Result<()> {
        // An error: it has ended, or refuses, which is read below.
        let _ = self.wire.send(&step).await;
        while !self.is_gone {
            match (self.hear().await?, &step) {
                (None, _) => {
                    tracing::warn!(process = self.process, "the process before this one has died meanwhile");
                    self.is_gone = true;
                    self.kept.clear();
                    elsewhere.forget();
                }
                (Some(Word::Carried(report)), _) => elsewhere.follow(gateway, report),
                (Some(Word::Frozen { kept }), Step::Freeze {}) => {
                    self.kept = kept.into_iter().collect();
                    return Ok(());
                }
                (Some(Word::Over {}), Step::Serve {}) => return Ok(()),
                (Some(other), _) => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Counts its connections until the last has ended, and takes over those that it has kept.
    pub(in crate::gateway) async fn follow(
        mut self,
        gateway: Arc<RunningGateway>,
        elsewhere: Arc<Elsewhere>,
    ) {
        let (process, started_ms) = (self.process, self.started_ms);
        loop {
            let heard = if self.is_gone { Ok(None) } else { self.wire.receive().await };
            match heard {
                Ok(Some(Word::Carried(report))) => {
                    let is_its = |id: &&Id| (id.process, id.started_ms) == (process, started_ms);
                    for Id { number, .. } in report.closed.iter().filter(is_its) {
                        if let Some(slot) = self.kept.remove(number) {
                            adopt_kept(&gateway, *number, slot);
                        }
                    }
                    elsewhere.follow(&gateway, report);
                }
                Ok(Some(other)) => tracing::warn!("the process before this one says {other:?}"),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(process, %error, "the process before this one cannot be understood");
                    break;
                }
            }
        }
        elsewhere.forget();
        // It died before their sockets were closed.
        for (number, slot) in std::mem::take(&mut self.kept) {
            adopt_kept(&gateway, number, slot);
        }
        tracing::info!(process, "the process before this one has ended");
    }

    async fn hear<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let heard = timeout(PATIENCE, self.wire.receive()).await;
        let heard = heard.map_err(|_| anyhow::anyhow!("no answer within {PATIENCE:?}"));
        heard.and_then(|heard| Ok(heard?)).context("the running gateway")
    }
}

fn unexpected(word: &Word) -> anyhow::Error {
    match word {
        Word::Refused(why) => anyhow::anyhow!("the running gateway goes on by itself: {why}"),
        other => anyhow::anyhow!("the running gateway says {other:?}"),
    }
}

fn adopt_kept(gateway: &RunningGateway, id: u64, slot: Option<u32>) {
    if let Ok(packet) = gateway.packet() {
        packet.adopt_kept(&gateway.snapshot.load(), &gateway.books, id, slot);
    }
}

impl HandedOver {
    fn of(state_dir: &Path, handed: Vec<(Descriptor, OwnedFd)>) -> anyhow::Result<Self> {
        let (mut listener, mut lock, mut pins, mut sockets) = (None, None, None, Inherited::default());
        for (what, descriptor) in handed {
            match what {
                Descriptor::AdminSocket => listener = Some(descriptor),
                Descriptor::AdminLock => lock = Some(descriptor),
                Descriptor::Pins => pins = Some(descriptor),
                Descriptor::Listening { address, is_managers } => {
                    let found = sockets.add(descriptor, is_managers)?;
                    ensure!(found == Some(address), "the socket of {address} listens on {found:?}");
                }
            }
        }
        let missing = "the running gateway has handed over no admin socket";
        let admin = AdminSocket::handed_over(state_dir, listener.context(missing)?, lock.context(missing)?);
        Ok(Self { admin, pins, sockets })
    }
}
