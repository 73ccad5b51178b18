//! The control side: start, reload, stop.

use super::aside::aside;
use super::objects::Objects;
use super::removed::Removed;
use super::report::AdminSide;
use super::source::{Source, What};
use super::watch::{self, Watched};
use super::worker::{Command, Worker, spawn};
use super::{Fault, ReloadRequest, drained, may_use_client_addresses};
use crate::accept::{Bind, Inherited, ListenError, listen};
use crate::account::{AccessLog, Books};
use crate::admin::Operations;
use crate::admin::http;
use crate::admin::socket::{self, AdminSocket};
use crate::config::{self, Config, File, FixedGateway, Sources};
use crate::connect::GatewayPorts;
use crate::connect::health::Prober;
use crate::connect::resolve::{FirstAnswers, Resolver};
use crate::kernel::packet::connections;
use crate::kernel::version::{KernelVersion, sockmap_sound};
use crate::kernel::{Kernel, KernelError, needs};
use crate::privileges;
use crate::reason::{CloseReason, FallbackReason, Tier};
use crate::running::RunningGateway;
use crate::serving::Snapshot;
use crate::splice::packet::{PacketTier, Sweeper};
use crate::words::with_causes;
use anyhow::Context;
use arc_swap::ArcSwap;
use sd_notify::NotifyState;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// After how long a port that the system has refused is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How often it is looked whether connections still use an address that no Gateway has.
const RELEASE: Duration = Duration::from_secs(1);

/// For so long clients may still come after load balancers were told to send no more: it takes them a moment.
const LEAVING: Duration = Duration::from_secs(1);

/// How often a stopping gateway checks whether its last connection has ended.
const POLL: Duration = Duration::from_millis(20);

/// Serves `config`, which was read from `path` and the files that it names, and what objects add to it, until SIGTERM or
/// SIGINT.
pub fn run(path: &Path, file: File, mut config: Config, sources: Sources) -> anyhow::Result<()> {
    crate::clock::uptime_ms();
    let inherited = Inherited::from_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(Control::start(path, file, &mut config, sources, inherited)?.serve(config))
}

pub(super) struct Control {
    pub(super) path: PathBuf,
    pub(super) gateway: Arc<RunningGateway>,
    pub(super) admin_side: Arc<AdminSide>,
    pub(super) workers: Vec<Worker>,
    log_thread: Option<std::thread::JoinHandle<()>>,
    requests: mpsc::UnboundedReceiver<ReloadRequest>,
    pub(super) inherited: Inherited,
    admin: Option<TcpListener>,
    socket: Option<AdminSocket>,
    resolver: Resolver,
    pub(super) prober: Prober,
    /// The `[gateway]` table at the start.
    pub(super) started: config::Gateway,
    pub(super) watched: Option<Watched>,
    pub(super) source: Source,
    pub(super) watched_objects: Option<Watched>,
    pub(super) removed: Removed,
    sweeper: Option<Sweeper>,
}

impl Control {
    /// Does everything that needs privileges or can fail, in such an order that a failure leaves as little as possible
    /// behind.
    fn start(
        path: &Path,
        file: File,
        config: &mut Config,
        sources: Sources,
        inherited: Inherited,
    ) -> anyhow::Result<Control> {
        let limit = privileges::raise_open_files();
        let workers = match config.gateway.fixed.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let needed = config.gateway.live.max_connections as u64 * 2;
        if limit < needed {
            let max_connections = config.gateway.live.max_connections;
            if config.gateway.live.tiers.contains(&Tier::Packet) {
                tracing::info!(
                    limit,
                    needed,
                    max_connections,
                    "the open-files limit is below two per connection; those of the packet tier have none open"
                );
            } else {
                tracing::warn!(
                    limit,
                    needed,
                    max_connections,
                    "the open-files limit is below two per connection"
                );
            }
        }
        let mut source = Objects::of(&file, config, None).map(|objects| (file, objects));
        let mut watched_objects = None;
        if let Some((file, objects)) = &mut source {
            let (sources, _) = objects.read();
            watched_objects = Some(Watched::new(sources));
            (*config, _) = objects.assemble(file)?;
        }
        let mut snapshot = Snapshot::new(config, None)?;
        let settings = config.gateway.clone();
        // Before the listening sockets: both fail if another gateway runs, which would lose new clients to our sockets.
        let socket = AdminSocket::bind(&settings.fixed.state_dir)?;
        drained::restore(&settings.fixed.state_dir, &snapshot);
        let FixedGateway { source_ports, bpffs, .. } = &settings.fixed;
        let ports = Arc::new(GatewayPorts::new(source_ports.clone(), bpffs.clone()));
        let packet = open_packet(&settings, &snapshot, &ports)?;
        if let Some((_, objects)) = &mut source {
            objects.attach();
        }
        let sockets = loop {
            let fault = match open(snapshot.binds(), workers, &inherited) {
                Ok(sockets) => break sockets,
                Err(fault) => fault,
            };
            // A port that a Gateway cannot have is no reason not to serve the others.
            let without = source.as_mut().and_then(|(file, objects)| objects.without(&fault, file));
            let (config, _) = without.ok_or(fault)??;
            snapshot = Snapshot::new(&config, Some(&snapshot))?;
            if let Ok(packet) = &packet {
                packet.listen(snapshot.addresses())?;
            }
        };
        for address in inherited.addresses().filter(|&address| snapshot.listener(address).is_none()) {
            tracing::warn!(%address, "an inherited socket belongs to no listener: its clients wait in vain");
        }
        let admin = settings.fixed.admin.map(|address| {
            let bind = Bind { address, backlog: 64, freebind: false };
            listen(bind, 1).map_err(listen_fault(address))
        });
        let admin = admin.transpose()?.into_iter().flatten().next();
        let (access_log, log_thread) = match &settings.fixed.access_log {
            None => (None, None),
            Some(log) => {
                let (log, thread) = AccessLog::open(log).map_err(|source| Fault::AccessLog {
                    path: match &log.target {
                        config::LogTarget::Stdout => "-".into(),
                        config::LogTarget::File(path) => path.clone(),
                    },
                    source,
                })?;
                (Some(log), Some(thread))
            }
        };
        let sockmap = open_sockmap(&settings)?;
        if let Ok(packet) = &packet {
            packet.load_aside()?;
        }
        privileges::drop_privileges().context("cannot drop privileges")?;
        // With what is left of them.
        may_use_client_addresses(&snapshot)?;

        let (reloads, requests) = mpsc::unbounded_channel();
        let books = Books::new(workers, access_log);
        let gateway = Arc::new(RunningGateway::new(snapshot, books, packet, sockmap, ports));
        let stopping = AtomicBool::new(false);
        let admin_side = Arc::new(AdminSide {
            gateway: gateway.clone(),
            workers,
            state_dir: settings.fixed.state_dir.clone(),
            stopping,
            reloads,
            objects: ArcSwap::default(),
            unready: ArcSwap::default(),
        });
        let sweeper = match gateway.packet() {
            Err(_) => None,
            Ok(packet) => {
                packet.adopt(&gateway.snapshot.load(), &gateway.books);
                Some(Sweeper::start(packet.clone())?)
            }
        };
        let gateway_of_prober = gateway.clone();
        let prober = Prober::start(move |down| gateway_of_prober.end_connections_to(down))
            .context("cannot start the thread of health checks")?;
        prober.follow(&gateway.snapshot.load());
        let workers =
            (0..workers).map(|index| spawn(gateway.clone(), index)).collect::<Result<Vec<_>, _>>()?;
        let watched = settings.fixed.watch.then(|| Watched::new(sources));
        let control = Control {
            path: path.to_path_buf(),
            gateway,
            admin_side,
            workers,
            log_thread,
            requests,
            inherited,
            admin,
            socket: Some(socket),
            resolver: Resolver::default(),
            prober,
            started: settings,
            watched,
            source,
            watched_objects,
            removed: Removed::default(),
            sweeper,
        };
        control.hand_out(sockets);
        control.show_objects();
        Ok(control)
    }

    /// `config` is what it was made of.
    async fn serve(mut self, config: Config) -> anyhow::Result<()> {
        // Names that cannot be resolved are in the log.
        drop(self.resolve());
        let admin = self.serve_admin()?;
        if let Some((_, objects)) = &mut self.source {
            objects.in_force();
            objects.connect().await?;
        }
        let mut hangup = signal(SignalKind::hangup())?;
        let mut stop = Stop::new()?;
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
        // Very many routes are not to be there twice; nobody is to wait until they are gone.
        aside(move || drop(config)).context("cannot start a thread")?;
        loop {
            let has_surplus = self.source.as_ref().is_some_and(|(_, objects)| objects.has_surplus());
            tokio::select! {
                () = stop.asked() => break,
                _ = hangup.recv() => {
                    if let Some(log) = &self.gateway.books.access_log {
                        log.reopen();
                    }
                    self.reload(What::File, "SIGHUP", None).await;
                }
                request = self.requests.recv() => self.reload(What::File, "the admin socket", request).await,
                () = changed(&mut self.watched) => self.reload(What::File, "a changed file", None).await,
                () = changed_objects(&mut self.watched_objects, &self.source) => self.follow_objects().await,
                () = self.removed.due() => self.look_after_removed(),
                () = sleep(RELEASE), if has_surplus => self.release_addresses(),
                () = self.resolver.changed() => {
                    tracing::info!("the system's configuration of names has changed: all are looked up anew");
                    drop(self.resolve());
                }
            }
        }
        self.stop(stop, admin).await
    }

    /// Starts the tasks that answer operators and handle the sockmap tier's events. They end when the set is dropped.
    fn serve_admin(&mut self) -> std::io::Result<JoinSet<()>> {
        let operations: Arc<dyn Operations> = self.admin_side.clone();
        let mut admin = JoinSet::new();
        if self.gateway.sockmap().is_some() {
            let gateway = self.gateway.clone();
            admin.spawn(async move {
                let Some(sockmap) = gateway.sockmap() else { return };
                if let Err(error) = sockmap.serve_events().await {
                    tracing::error!(%error, "the kernel's events are lost: restart to bound the sockmap tier again");
                }
            });
        }
        if let Some(socket) = self.socket.take() {
            let operations = operations.clone();
            admin.spawn(async move {
                if let Err(error) = socket::serve(socket, operations).await {
                    tracing::error!(%error, "the admin socket is gone");
                }
            });
        }
        if let Some(listener) = self.admin.take() {
            admin.spawn(http::serve(tokio::net::TcpListener::from_std(listener)?, operations));
        }
        Ok(admin)
    }

    /// Resolves every name of the present configuration.
    pub(super) fn resolve(&mut self) -> FirstAnswers {
        self.resolver.look_up(&self.gateway.snapshot.load().pools)
    }

    /// Gives each worker a listening socket of every address.
    pub(super) fn hand_out(&self, sockets: Vec<(SocketAddr, Vec<TcpListener>)>) {
        for (address, sockets) in sockets {
            let mss = self.gateway.snapshot.load().listener(address).and_then(|known| known.stats.mss());
            let mut again = Vec::new();
            for socket in &sockets {
                if let Some(mss) = mss {
                    // An error: the kernel's own choice is smaller.
                    let _ = crate::kernel::tcp::set_mss(socket.as_fd(), mss);
                }
                again.extend(socket.try_clone());
            }
            self.gateway.listening().insert(address, again);
            for (worker, socket) in self.workers.iter().zip(sockets) {
                let _ = worker.commands.send(Command::Listen(address, socket));
            }
        }
    }

    /// Stops accepting, waits up to `drain_timeout` for live connections, and resets the rest.
    async fn stop(self, mut stop: Stop, mut admin: JoinSet<()>) -> anyhow::Result<()> {
        tell_manager(NotifyState::Stopping);
        drop(self.prober);
        self.admin_side.stopping.store(true, Relaxed);
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
        let independent = || self.gateway.packet().map_or(0, |packet| packet.independent());
        let live = || self.gateway.books.stats.live.active().saturating_sub(independent());
        let bound = self.gateway.snapshot.load().gateway.drain_timeout;
        let deadline = Instant::now() + bound;
        if live() > 0 {
            let live = live();
            tracing::info!(live, ?bound, "stopping: waiting for live connections; a second signal cuts them");
        }
        while live() > 0 && Instant::now() < deadline {
            tokio::select! {
                () = sleep(POLL) => {}
                () = stop.asked() => break,
            }
        }
        if live() > 0 {
            tracing::warn!(live = live(), "resetting the connections that are left");
            self.gateway.books.ledger.read(|connections| {
                for connection in connections {
                    connection.end(CloseReason::Shutdown);
                }
            });
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
            packet.leave();
        }
        // What goes on in the kernel goes on with the addresses that it has.
        if let Some((_, mut objects)) = self.source
            && self.gateway.packet().map_or(0, |packet| packet.independent()) == 0
        {
            objects.detach();
        }
        // The access log's thread writes the last lines, and ends, when everything that can add a line was dropped.
        admin.shutdown().await;
        drop(self.requests);
        drop(self.admin_side);
        // To free very many routes, one by one, would take longer than all else of the end: the next process waits for it.
        std::mem::forget(self.gateway.snapshot.load_full());
        drop(self.gateway);
        if let Some(thread) = self.log_thread {
            let _ = thread.join();
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Opens the packet tier, if the configuration names it or the kernel still forwards connections. If that fails, the
/// gateway logs why and goes on without it; every connection then counts the reason. The kernel programs may not be loaded
/// yet.
fn open_packet(
    config: &config::Gateway,
    snapshot: &Snapshot,
    ports: &Arc<GatewayPorts>,
) -> anyhow::Result<Result<Arc<PacketTier>, FallbackReason>> {
    let (bpffs, is_wanted) = (&config.fixed.bpffs, config.live.tiers.contains(&Tier::Packet));
    // Also if it is not configured: connections of an earlier process must still be ended and counted.
    if !is_wanted && connections(bpffs).unwrap_or(0) == 0 {
        return Ok(Err(FallbackReason::PacketUnavailable));
    }
    let opened = PacketTier::open(&config.fixed, ports.clone()).and_then(|packet| {
        packet.listen(snapshot.addresses())?;
        // Somebody has removed the programs' pins, and without programs the connections hang.
        if packet.kernel().has_connections() && !packet.kernel().has_programs() {
            packet.load();
        }
        Ok(packet)
    });
    match opened {
        Ok(packet) => Ok(Ok(Arc::new(packet))),
        // Two gateways would sweep each other's flows.
        Err(error) if is_wanted && matches!(error.downcast_ref(), Some(KernelError::InUse { .. })) => {
            Err(error)
        }
        Err(error) => {
            let error = needs::explained(error, needs::of(Tier::Packet).requires, bpffs);
            tracing::warn!("no packet tier: {}", with_causes(error.as_ref()));
            Ok(Err(FallbackReason::PacketUnavailable))
        }
    }
}

/// Opens the sockmap tier, if the configuration names it and this kernel's sockmap is sound. If its programs cannot be
/// loaded, the gateway does not start; on an unsound kernel it logs why and goes on without the tier.
fn open_sockmap(config: &config::Gateway) -> anyhow::Result<Result<Kernel, FallbackReason>> {
    let bpffs = &config.fixed.bpffs;
    if !config.live.tiers.contains(&Tier::Sockmap) {
        return Ok(Err(FallbackReason::SockmapUnavailable));
    }
    let sound = KernelVersion::running().context("cannot tell the kernel's version")?;
    if let Err(fault) = sockmap_sound(&sound) {
        tracing::warn!("no sockmap tier: this kernel's sockmap {fault}");
        return Ok(Err(FallbackReason::SockmapKernel));
    }
    let sockets = u32::try_from(config.live.max_connections * 2).unwrap_or(u32::MAX);
    let opened = Kernel::open(bpffs, sockets);
    let explained =
        |error: KernelError| needs::explained(error.into(), needs::of(Tier::Sockmap).requires, bpffs);
    Ok(Ok(opened.map_err(explained)?))
}

/// Opens one socket per worker for each address, or takes those of the service manager. Opens all or none.
pub(super) fn open(
    binds: impl Iterator<Item = Bind>,
    workers: usize,
    inherited: &Inherited,
) -> Result<Vec<(SocketAddr, Vec<TcpListener>)>, Fault> {
    let open = |bind: Bind| {
        let sockets = inherited.sockets(bind, workers).unwrap_or_else(|| listen(bind, workers));
        Ok((bind.address, sockets.map_err(listen_fault(bind.address))?))
    };
    binds.map(open).collect()
}

/// Tells the service manager the state, if NOTIFY_SOCKET is set (sd_notify(3)).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

fn listen_fault(address: SocketAddr) -> impl Fn(ListenError) -> Fault {
    move |source| Fault::Listen { address, source }
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Returns when the objects have changed, or a port that one of them could not have is to be asked for again.
async fn changed_objects(watched: &mut Option<Watched>, source: &Source) {
    let lacks_ports = source.as_ref().is_some_and(|(_, objects)| objects.lacks_ports());
    tokio::select! {
        () = changed(watched) => {}
        () = changed_there(source) => {}
        () = sleep(ASK_AGAIN), if lacks_ports => {}
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
async fn changed(watched: &mut Option<Watched>) {
    let Some(watched) = watched else { return std::future::pending().await };
    loop {
        sleep(watch::EVERY).await;
        if watched.changed() {
            return;
        }
    }
}
