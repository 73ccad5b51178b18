//! The control side: start, reload, stop.

use super::ReloadRequest;
use super::aside::{Large, aside};
use super::attached::{Attached, Used, Wants};
use super::objects::ASK_AGAIN;
use super::prospect::Prospect;
use super::removed::Removed;
use super::report::AdminSide;
use super::source::{Source, What};
use super::take_over::{Heir, Succession};
use super::watch::{self, Watched};
use super::worker::{Command, Worker};
use crate::accept::{BACK_OFF, Inherited};
use crate::admin::Operations;
use crate::admin::http;
use crate::admin::socket::{self, AdminSocket, SharedSocket};
use crate::config::{self, Config};
use crate::connect::health::Prober;
use crate::connect::resolve::{FirstAnswers, Resolver};
use crate::reason::CloseReason;
use crate::running::RunningGateway;
use crate::splice::packet::Sweeper;
use sd_notify::NotifyState;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

/// How often it is looked whether connections still use an address that no Gateway has.
const RELEASE: Duration = Duration::from_secs(1);

/// How often it is looked whether a device has lost an address that a Gateway has.
const RESTORE: Duration = Duration::from_secs(2);

/// For so long clients may still come after load balancers were told to send no more: it takes them a moment.
const LEAVING: Duration = Duration::from_secs(1);

/// How often a stopping gateway checks whether its last connection has ended.
const POLL: Duration = Duration::from_millis(20);

pub(super) struct Control {
    pub(super) path: PathBuf,
    pub(super) gateway: Arc<RunningGateway>,
    pub(super) admin_side: Arc<AdminSide>,
    pub(super) workers: Vec<Worker>,
    pub(super) log_thread: Option<std::thread::JoinHandle<()>>,
    pub(super) requests: mpsc::UnboundedReceiver<ReloadRequest>,
    pub(super) inherited: Inherited,
    /// Of `gateway.admin`, and a second descriptor of it.
    pub(super) admin: Option<tokio::net::TcpListener>,
    pub(super) admin_listening: Option<TcpListener>,
    pub(super) socket: Option<(AdminSocket, UnixListener)>,
    /// Second descriptors of it, until another process has it.
    pub(super) shared_socket: Option<SharedSocket>,
    /// The tasks that answer operators. They end when the set is dropped.
    pub(super) admin_tasks: JoinSet<()>,
    /// Those that connections need to the end: the sockmap tier's, and the one that hears of the process before this one.
    pub(super) tasks: JoinSet<()>,
    pub(super) succession: Succession,
    /// Where nobody accepts any more for want of descriptors.
    pub(super) deaf: BTreeSet<SocketAddr>,
    pub(super) resolver: Resolver,
    /// `None`: at the end.
    pub(super) prober: Option<Prober>,
    /// The `[gateway]` table at the start.
    pub(super) started: config::Gateway,
    pub(super) watched: Option<Watched>,
    pub(super) source: Source,
    pub(super) attached: Arc<Attached>,
    /// Other reloads wait for it.
    pub(super) prospect: Option<Prospect>,
    pub(super) watched_objects: Option<Watched>,
    pub(super) removed: Removed,
    pub(super) sweeper: Option<Sweeper>,
}

impl Control {
    /// `config` is what it was made of.
    pub(super) async fn serve(
        mut self,
        config: Config,
        signals: Signals,
        serves: impl FnOnce(),
    ) -> anyhow::Result<()> {
        let Signals { mut stop, mut hangup } = signals;
        self.serve_admin();
        for address in self.gateway.snapshot.load().addresses() {
            tracing::info!(%address, "listening");
        }
        let routes = self.gateway.snapshot.load().routes.len();
        tracing::info!(
            workers = self.workers.len(),
            routes,
            "snisplice {} serves",
            env!("CARGO_PKG_VERSION")
        );
        tell_manager(NotifyState::Ready);
        serves();
        // Very many routes are not to be there twice; nobody is to wait until they are gone.
        let parts = config.routes.len() + config.pools.len();
        if let Err(error) = aside(move || drop(Large::new(Some(config), parts))) {
            tracing::warn!(%error, "cannot start a thread");
        }
        let mut heir = None;
        let mut is_stopping = false;
        // A second signal: nobody is waited for that is about to take over.
        let mut is_urgent = false;
        let mut rhythms = Rhythms::default();
        // A reload by SIGHUP that waits for the one that waits.
        let mut is_hung_up = false;
        // While another process is about to take over, it has the listening sockets of this configuration, and it counts on the
        // addresses that the device has.
        while heir.is_none() && (!is_stopping || self.succession.is_pending()) {
            let is_free = !self.succession.is_pending();
            let may_reload = is_free && self.prospect.is_none();
            if may_reload && std::mem::take(&mut is_hung_up) {
                self.reload(What::File, "SIGHUP", None).await;
                continue;
            }
            let has_surplus = self.has_surplus();
            if !has_surplus {
                rhythms.release.reset();
            }
            tokio::select! {
                () = stop.asked() => {
                    if is_stopping {
                        is_urgent = true;
                        break;
                    }
                    is_stopping = true;
                    if !is_free {
                        tracing::info!("stopping when the other process has taken over");
                    }
                }
                event = self.succession.next() => heir = self.follow_succession(event).await,
                _ = hangup.recv(), if is_free => {
                    if let Some(log) = &self.gateway.books.access_log {
                        log.reopen();
                    }
                    is_hung_up = true;
                }
                request = self.requests.recv(), if may_reload => {
                    self.reload(What::File, "the admin socket", request).await;
                }
                () = changed(&mut self.watched, &mut rhythms.file), if may_reload => {
                    self.reload(What::File, "a changed file", None).await;
                }
                informed = Prospect::informed(&mut self.prospect), if is_free => {
                    self.reload_informed(informed).await;
                }
                () = changed_objects(&mut self.watched_objects, &self.source, (&mut rhythms.object, &mut rhythms.port)), if is_free => {
                    self.follow_objects().await;
                }
                () = self.removed.due() => self.look_after_removed(),
                _ = rhythms.release.tick(), if is_free && has_surplus => self.release_addresses(),
                _ = rhythms.restore.tick(), if is_free => self.restore_addresses(),
                _ = rhythms.accept.tick(), if is_free && !self.deaf.is_empty() => drop(self.accept_again()),
                () = self.resolver.changed() => {
                    tracing::info!("the system's configuration of names has changed: all are looked up anew");
                    drop(self.resolve());
                }
            }
        }
        self.stop(stop, heir, is_urgent).await
    }

    /// Starts the tasks that answer operators, and the one that handles the sockmap tier's events.
    fn serve_admin(&mut self) {
        let operations: Arc<dyn Operations> = self.admin_side.clone();
        if self.gateway.sockmap().is_some() {
            let gateway = self.gateway.clone();
            self.tasks.spawn(async move {
                let Some(sockmap) = gateway.sockmap() else { return };
                if let Err(error) = sockmap.serve_events().await {
                    tracing::error!(%error, "the kernel's events are lost: restart to bound the sockmap tier again");
                }
            });
        }
        if let Some((socket, listener)) = self.socket.take() {
            self.admin_tasks.spawn(socket::serve(socket, listener, operations.clone()));
        }
        if let Some(listener) = self.admin.take() {
            self.admin_tasks.spawn(http::serve(listener, operations));
        }
    }

    /// Resolves every name of the present configuration.
    pub(super) fn resolve(&mut self) -> FirstAnswers {
        self.resolver.look_up(&self.gateway.snapshot.load().pools)
    }

    /// Keeps second descriptors of the listening sockets of an address.
    pub(super) fn listens(&self, address: SocketAddr, sockets: &[TcpListener]) -> std::io::Result<()> {
        let mss = self.gateway.snapshot.load().listener(address).and_then(|known| known.stats.mss());
        for socket in sockets {
            if let Some(mss) = mss {
                // An error: the kernel's own choice is smaller.
                let _ = crate::kernel::tcp::set_mss(socket.as_fd(), mss);
            }
        }
        let again: std::io::Result<Vec<_>> = sockets.iter().map(TcpListener::try_clone).collect();
        // Also if there are none: the workers accept there.
        let (again, done) = again.map_or_else(|error| (Vec::new(), Err(error)), |again| (again, Ok(())));
        self.gateway.listening().insert(address, again);
        done
    }

    /// Lets the workers accept on these sockets, which may be more than there are workers.
    pub(super) fn accept_on(&self, address: SocketAddr, sockets: Vec<TcpListener>) {
        for (worker, socket) in self.workers.iter().cycle().zip(sockets) {
            let _ = worker.commands.send(Command::Listen(address, socket));
        }
    }

    /// Stops accepting, waits up to `drain_timeout` for live connections, and resets the rest. `heir`: the process that has
    /// taken over. `is_urgent`: one that is about to is not waited for.
    async fn stop(mut self, mut stop: Stop, mut heir: Option<Heir>, is_urgent: bool) -> anyhow::Result<()> {
        if heir.is_none() {
            tell_manager(NotifyState::Stopping);
        }
        (self.prober, self.prospect) = (None, None);
        self.admin_side.stopping.store(true, Relaxed);
        // A process that was taken over has none any more: its heir serves, at the same addresses.
        if let Some((_, objects)) = &self.source
            && objects.leave().await
        {
            tokio::select! {
                () = sleep(LEAVING) => {}
                () = stop.asked() => {}
            }
        }
        self.gateway.listening().clear();
        for address in self.gateway.snapshot.load().addresses() {
            for worker in &self.workers {
                let _ = worker.commands.send(Command::Unlisten(address));
            }
        }
        self.gateway.notice.send_modify(|notice| notice.is_stopping = true);
        let live = |gateway: &RunningGateway| {
            let independent = gateway.packet().map_or(0, |packet| packet.independent());
            gateway.books.stats.live.active().saturating_sub(independent)
        };
        let bound = self.gateway.snapshot.load().gateway.drain_timeout;
        let deadline = Instant::now() + bound;
        if live(&self.gateway) > 0 {
            let live = live(&self.gateway);
            tracing::info!(live, ?bound, "stopping: waiting for live connections; a second signal cuts them");
        }
        // The first signal to a process that drains already asks for what it does.
        let mut may_be_asked = heir.is_some();
        // A process that has the sockets and has not taken over yet counts on what this one has: it is waited for, too, until it
        // has, or is given up.
        let mut is_cut = false;
        loop {
            let (is_late, is_awaited) =
                (Instant::now() >= deadline, self.succession.is_pending() && !is_urgent);
            if !is_awaited && (is_late || live(&self.gateway) == 0) {
                break;
            }
            if is_late && !std::mem::replace(&mut is_cut, true) {
                reset_live(&self.gateway, live(&self.gateway));
            }
            tokio::select! {
                () = sleep(POLL) => {}
                () = stop.asked() => {
                    if !std::mem::take(&mut may_be_asked) {
                        break;
                    }
                    tracing::info!("told to stop, which it does; another signal cuts the connections that are left");
                }
                event = self.succession.next(), if heir.is_none() => heir = self.follow_succession(event).await,
            }
            self.report_to(&mut heir).await;
        }
        if !is_cut {
            reset_live(&self.gateway, live(&self.gateway));
        }
        for worker in self.workers {
            let _ = worker.commands.send(Command::Exit);
            let _ = worker.thread.join();
        }
        drop(self.sweeper);
        if let Ok(packet) = self.gateway.packet() {
            let connections = packet.independent();
            if connections > 0 {
                tracing::info!(connections, "these go on in the kernel, for the next gateway to adopt");
            }
            packet.leave_finished();
            packet.leave();
        }
        // One that was not waited for to the end takes this process for dead, and goes on with its socket and its addresses.
        let is_pending = self.succession.is_pending();
        if is_pending && let Some(socket) = self.shared_socket.take() {
            socket.hand_over();
        }
        // What goes on in the kernel, or in processes before this one, goes on with the addresses that it has.
        if heir.is_none()
            && !is_pending
            && self.gateway.packet().map_or(0, |packet| packet.independent()) == 0
            && self.admin_side.elsewhere.count() == 0
        {
            let wants = self.source.as_ref().map(|(_, objects)| objects.wants()).unwrap_or_default();
            self.attached.release(&Wants { addresses: None, ..wants }, &Used::new());
        }
        // The access log's thread writes the last lines, and ends, when everything that can add a line was dropped.
        self.admin_tasks.shutdown().await;
        self.tasks.shutdown().await;
        drop((self.requests, self.succession));
        drop(self.admin_side);
        // To free very many routes, one by one, would take longer than all else of the end: the next process waits for it.
        std::mem::forget(self.gateway.snapshot.load_full());
        drop(self.gateway);
        if let Some(thread) = self.log_thread {
            // Not here: tasks that have been told to end, and have a share of the log, are dropped by this runtime.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        // Still to be asked, in a pod: if it ended by itself, the kubelet would start the program again, which would take over
        // from its heir.
        if may_be_asked && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            tracing::info!("nothing is left to do; waiting until the pod ends");
            stop.asked().await;
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Ends all connections that this process carries, of which so many are live.
fn reset_live(gateway: &RunningGateway, live: usize) {
    if live > 0 {
        tracing::warn!(live, "resetting the connections that are left");
        gateway.books.ledger.read(|connections| {
            for connection in connections {
                connection.end(CloseReason::Shutdown);
            }
        });
    }
}

/// Tells the service manager the state, if NOTIFY_SOCKET is set (sd_notify(3)).
pub(super) fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// When what tells of no change by itself is looked at again. They go on while other events are handled: a look that began
/// to wait anew after each of them would never come where they are frequent.
struct Rhythms {
    /// The files of the configuration.
    file: Interval,
    /// The files with objects.
    object: Interval,
    /// Addresses that no Gateway has.
    release: Interval,
    /// Addresses that a Gateway has.
    restore: Interval,
    /// Descriptors that were not to be had.
    accept: Interval,
    /// Ports that one could not have.
    port: Interval,
}

impl Default for Rhythms {
    fn default() -> Self {
        let every = |period| {
            let mut rhythm = interval(period);
            rhythm.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first is not at once.
            rhythm.reset();
            rhythm
        };
        Self {
            file: every(watch::EVERY),
            object: every(watch::EVERY),
            release: every(RELEASE),
            restore: every(RESTORE),
            accept: every(BACK_OFF),
            port: every(ASK_AGAIN),
        }
    }
}

/// What a process is told by signals. What comes before it is asked for is kept.
pub(super) struct Signals {
    pub(super) stop: Stop,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self { stop: Stop::new()?, hangup: signal(SignalKind::hangup())? })
    }
}

/// SIGTERM and SIGINT.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(super) async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Returns when the objects have changed, or are to be tried again, or a port that one of them could not have is to be asked for
/// again.
async fn changed_objects(
    watched: &mut Option<Watched>,
    source: &Source,
    (object, port): (&mut Interval, &mut Interval),
) {
    if let Some(at) = source.as_ref().and_then(|(_, objects)| objects.again_at()) {
        return sleep_until(at).await;
    }
    let lacks_ports = source.as_ref().is_some_and(|(_, objects)| objects.lacks_ports());
    if !lacks_ports {
        port.reset();
    }
    tokio::select! {
        () = changed(watched, object) => {}
        () = changed_there(source) => {}
        _ = port.tick(), if lacks_ports => {}
    }
}

/// Returns when the objects of an API server have changed.
async fn changed_there(source: &Source) {
    match source {
        Some((_, objects)) => objects.changed().await,
        None => std::future::pending().await,
    }
}

/// Returns when a watched file has changed.
async fn changed(watched: &mut Option<Watched>, rhythm: &mut Interval) {
    let Some(watched) = watched else { return std::future::pending().await };
    loop {
        rhythm.tick().await;
        if watched.changed() {
            return;
        }
    }
}
