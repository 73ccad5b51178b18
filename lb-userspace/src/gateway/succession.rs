//! The process that is taken over: it offers its sockets, lets go of its connections in the packet tier, and drains.

use super::control::{Control, tell_manager};
use super::take_over::{
    Candidate, Carried, Descriptor, Event, Heir, Id, MAX_DESCRIPTORS, Offer, Step, Told, Wire, Word,
};
use super::worker::Command;
use crate::account::Connection;
use crate::admin::protocol::Reply;
use crate::admin::socket::SharedSocket;
use crate::clock::started_ms;
use crate::reason::Tier;
use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// A successor that has not adopted the connections within this time is given up: clients wait for it in the backlog.
const ADOPT: Duration = Duration::from_secs(10);

/// How long clients that were accepted last are given to reach a server before the packet tier is closed to them, and then
/// handovers under way to finish. Meanwhile nobody is accepted.
const ARRIVE: Duration = Duration::from_millis(200);
const FINISH: Duration = Duration::from_millis(300);
const LOOK: Duration = Duration::from_millis(5);

/// How often the successor is told what has changed.
const REPORT: Duration = Duration::from_millis(250);

/// What is reported of the packet tier's connections. `kept`: those that the successor is not to adopt yet.
#[derive(Clone, Copy)]
enum InPacketTier<'a> {
    /// All are this process's.
    All { kept: &'a HashSet<u64> },
    /// All others are the successor's.
    Left { kept: &'a HashSet<u64> },
}

fn is_spliced(connection: &Connection) -> bool {
    connection.choice().is_some_and(|choice| choice.tier == Tier::Packet)
}

impl Control {
    /// Does what is next. The process that has taken over, if one has.
    pub(super) async fn follow_succession(&mut self, event: Event) -> Option<Heir> {
        match event {
            Event::Asked(stream) => {
                let wire = Wire::new(stream);
                if self.succession.is_pending() {
                    let busy = Reply::<()>::Error("another process is taking over".into());
                    // It may have gone.
                    let _ = wire.send(&busy).await;
                    return None;
                }
                match self.offer(&wire).await {
                    Ok(()) => {
                        self.succession.offered(wire);
                    }
                    Err(error) => tracing::warn!("not taken over: {error:#}"),
                }
                None
            }
            Event::Gone(why) => {
                if let Some(Candidate { wire, .. }) = self.succession.successor.take() {
                    // If it lives, it must not take this process for dead.
                    let _ = wire.send(&Word::Refused(why.clone())).await;
                }
                tracing::warn!("not taken over, this process goes on: {why}");
                None
            }
            Event::Prepared => {
                let Candidate { mut wire, .. } = self.succession.successor.take()?;
                let mut told = Told::default();
                let let_go = self.let_go(&mut wire, &mut told).await;
                match let_go {
                    Ok(()) => Some(Heir { wire, told, next: Instant::now() }),
                    Err(error) => {
                        // It may have gone.
                        let _ = wire.send(&Word::Refused(format!("{error:#}"))).await;
                        tracing::warn!("not taken over, this process goes on: {error:#}");
                        self.resume().await;
                        None
                    }
                }
            }
        }
    }

    /// Sends a successor all descriptors that it needs.
    async fn offer(&self, wire: &Wire) -> anyhow::Result<()> {
        tracing::info!(process = wire.process(), "a process wants to take over");
        let program = env!("CARGO_PKG_VERSION").to_owned();
        let offer = Reply::Ok(Offer { program, process: std::process::id(), started_ms: started_ms() });
        wire.send(&offer).await.context("the offer")?;
        let all = self.descriptors().context("a descriptor")?;
        for some in all.chunks(MAX_DESCRIPTORS) {
            let what = Word::Descriptors(some.iter().map(|(what, _)| what.clone()).collect());
            let with: Vec<_> = some.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
            wire.send_with(&what, &with).await.context("the sockets")?;
        }
        wire.send(&Word::Offered {}).await.context("the offer")
    }

    fn descriptors(&self) -> std::io::Result<Vec<(Descriptor, OwnedFd)>> {
        let mut all = Vec::new();
        if let Some(SharedSocket { listener, lock, .. }) = &self.shared_socket {
            all.push((Descriptor::AdminSocket, listener.try_clone()?));
            all.push((Descriptor::AdminLock, lock.try_clone()?));
        }
        if let Ok(packet) = self.gateway.packet() {
            all.push((Descriptor::Pins, packet.kernel().share_lock()?));
        }
        let listening = |address, is_managers| Descriptor::Listening { address, is_managers };
        for socket in self.inherited.of_manager() {
            if let Some(address) = socket.local_addr()?.as_socket() {
                all.push((listening(address, true), socket.try_clone()?.into()));
            }
        }
        let of_manager: HashSet<SocketAddr> = self.inherited.addresses().collect();
        for (address, sockets) in &*self.gateway.listening() {
            for socket in sockets.iter().filter(|_| !of_manager.contains(address)) {
                all.push((listening(*address, false), socket.try_clone()?.into()));
            }
        }
        if let Some(admin) = &self.admin_listening {
            all.push((listening(admin.local_addr()?, false), admin.try_clone()?.into()));
        }
        Ok(all)
    }

    /// Lets go of everything but the connections that this process carries itself. An error: the successor has not taken over,
    /// and [`resume`](Self::resume) is to be called.
    async fn let_go(&mut self, wire: &mut Wire, told: &mut Told) -> anyhow::Result<()> {
        // Most of it before anybody has to wait.
        self.report(wire, told, InPacketTier::All { kept: &HashSet::new() }).await?;
        self.pause().await;
        let began = Instant::now();
        while self.arriving() > 0 && began.elapsed() < ARRIVE {
            sleep(LOOK).await;
        }
        let mut kept = Vec::new();
        if let Ok(packet) = self.gateway.packet() {
            packet.freeze();
            let began = Instant::now();
            kept = packet.kept();
            while !kept.is_empty() && began.elapsed() < FINISH {
                sleep(LOOK).await;
                kept = packet.kept();
            }
        }
        let ids = kept.iter().map(|(id, _)| *id).collect();
        self.report(wire, told, InPacketTier::All { kept: &ids }).await?;
        wire.send(&Word::Frozen { kept }).await.context("the packet tier")?;
        match timeout(ADOPT, wire.receive::<Step>()).await {
            Ok(Ok(Some(Step::Serve {}))) => {}
            Ok(Ok(Some(step))) => bail!("it says {step:?}"),
            Ok(Ok(None)) => bail!("it has ended"),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                // What it has begun, it must not go on with.
                if let Some(process) = wire.process().and_then(Pid::from_raw) {
                    let _ = kill_process(process, Signal::KILL);
                }
                bail!("it has adopted nothing within {ADOPT:?}");
            }
        }
        self.give_up().await;
        if let Some(process) = wire.process() {
            tell_manager(NotifyState::MainPid(process.unsigned_abs()));
        }
        // If it has died since, that is as if it had died a moment later.
        let _ = wire.send(&Word::Over {}).await;
        // Nobody waits for this. Statuses are written no more.
        (self.source, self.prospect, self.watched, self.watched_objects) = (None, None, None, None);
        // What is shown holds the API server, too.
        self.show_objects();
        tracing::info!(process = wire.process(), "taken over: this process drains");
        Ok(())
    }

    /// This process is no longer the gateway.
    async fn give_up(&mut self) {
        self.sweeper = None;
        if let Ok(packet) = self.gateway.packet() {
            packet.leave();
            packet.kernel().unlock();
        }
        if let Some(socket) = self.shared_socket.take() {
            socket.hand_over();
        }
        self.admin_tasks.shutdown().await;
        self.admin_listening = None;
        self.gateway.listening().clear();
        self.inherited = Default::default();
    }

    /// Goes on as if nobody had asked.
    async fn resume(&mut self) {
        // If that has not been done.
        self.pause().await;
        if let Ok(packet) = self.gateway.packet()
            && let Err(error) = packet.thaw(self.gateway.snapshot.load().addresses())
        {
            tracing::error!("the packet tier is closed to new connections: {error:#}");
        }
        self.deaf = self.gateway.listening().keys().copied().collect();
        if let Some(error) = self.accept_again() {
            tracing::error!(addresses = ?self.deaf, %error, "cannot accept: waiting for a resource");
        }
    }

    /// Accepts again where nobody does. An error: not everywhere, and why.
    pub(super) fn accept_again(&mut self) -> Option<io::Error> {
        let mut failed = None;
        for address in std::mem::take(&mut self.deaf) {
            let again = |sockets: &Vec<TcpListener>| sockets.iter().map(TcpListener::try_clone).collect();
            let again: Option<io::Result<Vec<_>>> = self.gateway.listening().get(&address).map(again);
            match again {
                Some(Ok(sockets)) => self.accept_on(address, sockets),
                Some(Err(error)) => {
                    self.deaf.insert(address);
                    failed = Some(error);
                }
                None => {}
            }
        }
        failed
    }

    /// Stops accepting. Clients wait in the backlog.
    async fn pause(&self) {
        let addresses: Vec<_> = self.gateway.listening().keys().copied().collect();
        let mut paused = Vec::new();
        for worker in &self.workers {
            for address in &addresses {
                let _ = worker.commands.send(Command::Unlisten(*address));
            }
            let (done, is_done) = oneshot::channel();
            let _ = worker.commands.send(Command::Answer(done));
            paused.push(is_done);
        }
        for worker in paused {
            // An error: the worker is gone.
            let _ = worker.await;
        }
    }

    /// How many clients were accepted and are not spliced yet.
    fn arriving(&self) -> usize {
        let stats = &self.gateway.books.stats;
        let spliced: u64 = stats.tiers.iter().map(|tier| tier.active.load(Relaxed)).sum();
        let others = self.admin_side.elsewhere.count();
        stats.live.active().saturating_sub(usize::try_from(spliced).unwrap_or(usize::MAX) + others)
    }

    /// Tells the successor of the connections that this process carries itself, as far as it does not know.
    async fn report(&self, wire: &Wire, told: &mut Told, packet: InPacketTier<'_>) -> anyhow::Result<()> {
        let (process, started_ms) = (std::process::id(), started_ms());
        let carried = |connection: &Connection| Carried {
            id: Id { process, started_ms, number: connection.id },
            listener: connection.listener.name.to_string(),
            route: connection.route.name().to_owned(),
            upstream: connection
                .upstream
                .get()
                .map(|(pool, server)| (pool.name.to_string(), server.address.to_string())),
            client: connection.client.ip(),
        };
        let mut all = self.admin_side.elsewhere.all();
        let mut routed = HashMap::<String, usize>::new();
        for other in &all {
            *routed.entry(other.listener.clone()).or_default() += 1;
        }
        // Connections of the packet tier that were left are still in the ledger, and count no more.
        let counts = |connection: &Connection| match packet {
            InPacketTier::Left { kept } => !is_spliced(connection) || kept.contains(&connection.id),
            InPacketTier::All { .. } => true,
        };
        let (InPacketTier::Left { kept } | InPacketTier::All { kept }) = packet;
        for connection in self.gateway.books.ledger.find(usize::MAX, counts) {
            *routed.entry(connection.listener.name.to_string()).or_default() += 1;
            if !is_spliced(&connection) || kept.contains(&connection.id) {
                all.push(carried(&connection));
            }
        }
        let snapshot = self.gateway.snapshot.load();
        let waiting = snapshot.listeners.iter().filter_map(|listener| {
            let routed = routed.get(&*listener.name).copied().unwrap_or(0);
            let clients = listener.stats.live.active().saturating_sub(routed);
            (clients > 0).then(|| (listener.name.to_string(), clients))
        });
        if let Some(report) = told.news(all, waiting.collect()) {
            for word in report.in_lines() {
                wire.send(&word).await.context("the connections")?;
            }
        }
        Ok(())
    }

    /// Tells the process that has taken over what has changed, from time to time.
    pub(super) async fn report_to(&self, heir: &mut Option<Heir>) {
        let Some(Heir { wire, told, next }) = heir else { return };
        if Instant::now() < *next {
            return;
        }
        *next = Instant::now() + REPORT;
        let kept = self.gateway.packet().map(|packet| packet.leave_finished()).unwrap_or_default();
        if let Err(error) = self.report(wire, told, InPacketTier::Left { kept: &kept }).await {
            tracing::warn!("the process that has taken over does not listen: {error:#}");
            *heir = None;
        }
    }
}
