//! The start of a gateway: alone, or in place of a process that serves.

use super::attached::Attached;
use super::control::{Control, Signals};
use super::objects::Objects;
use super::prospect::{INFORMED, LOOK, catch_up};
use super::removed::Removed;
use super::report::AdminSide;
use super::take_over::{Elsewhere, HandedOver, Predecessor, Succession};
use super::watch::Watched;
use super::worker::spawn;
use super::{Fault, aside, drained, may_use_client_addresses};
use crate::accept::{Bind, Inherited, ListenError, listen};
use crate::account::{AccessLog, Books};
use crate::admin::socket::AdminSocket;
use crate::config::{self, Config, File, FixedGateway, Sources};
use crate::connect::GatewayPorts;
use crate::connect::health::Prober;
use crate::connect::resolve::Resolver;
use crate::kernel::ktls;
use crate::kernel::needs::Lack;
use crate::kernel::packet::connections;
use crate::kernel::version::{KernelVersion, sockmap_sound};
use crate::kernel::{Kernel, KernelError, needs};
use crate::privileges;
use crate::reason::{FallbackReason, Tier};
use crate::running::RunningGateway;
use crate::serving::{Checked, Snapshot};
use crate::splice::packet::{PacketTier, Sweeper};
use crate::words::with_causes;
use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep};

/// Serves `config`, which was read from `path` and the files that it names, and what objects add to it, until SIGTERM or
/// SIGINT, which also end the start. `take_over`: in place of the process that serves now, if one does. Calls `serves` when it
/// does.
pub fn run(
    path: &Path,
    file: File,
    mut config: Config,
    sources: Sources,
    take_over: bool,
    serves: impl FnOnce(),
) -> anyhow::Result<()> {
    crate::clock::started_ms();
    let inherited = Inherited::from_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before all that takes time: by default SIGHUP ends a process, and the first one of a container gets no SIGTERM.
        let mut signals = Signals::new()?;
        let start = Start { path, file, sources, inherited, take_over };
        let prepared = tokio::select! {
            prepared = start.prepare(&mut config) => prepared?,
            () = signals.stop.asked() => {
                tracing::info!("told to stop before it has served");
                return Ok(());
            }
        };
        prepared.begin().await?.serve(config, signals, serves).await
    })
}

/// What a gateway is started with.
struct Start<'a> {
    path: &'a Path,
    file: File,
    sources: Sources,
    inherited: Inherited,
    /// In place of the process that serves now, if one does.
    take_over: bool,
}

/// A gateway that lacks nothing any more.
struct Prepared {
    control: Control,
    sockets: Vec<(SocketAddr, Vec<TcpListener>)>,
    /// Serves until it is relieved.
    before: Option<Predecessor>,
    /// The packet tier waits for it.
    taken_over: SyncSender<()>,
    added: Added,
}

/// The addresses that a device was given for the sake of a gateway that is to begin: if it does not, they go.
struct Added(Arc<Attached>);

impl Drop for Added {
    fn drop(&mut self) {
        self.0.remove_added();
    }
}

impl Start<'_> {
    /// Does everything that needs privileges or can fail, in such an order that a failure leaves as little as possible
    /// behind: if another process serves, it goes on. May be dropped: that is such a failure.
    async fn prepare(self, config: &mut Config) -> anyhow::Result<Prepared> {
        let Start { path, file, sources, mut inherited, take_over } = self;
        let limit = privileges::raise_open_files();
        let workers = match config.gateway.fixed.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        tell_open_files(limit, &config.gateway);
        let attached = Arc::new(Attached::found(&config.gateway.fixed.state_dir));
        let added = Added(attached.clone());
        let mut source = Objects::of(&file, config, &[], attached.clone()).map(|objects| (file, objects));
        let mut watched_objects = None;
        if let Some((file, objects)) = &mut source {
            let (sources, _) = objects.read();
            watched_objects = Some(Watched::new(sources));
            (*config, _) = objects.assemble(file)?;
        }
        let mut snapshot = aside::snapshot(config, None)?;
        // That may have taken seconds.
        yield_now().await;
        let settings = config.gateway.clone();
        let state_dir = &settings.fixed.state_dir;
        let (mut before, handed) = match take_over {
            true => Predecessor::ask(state_dir).await?.unzip(),
            false => (None, None),
        };
        if before.is_some()
            && let Some((file, objects)) = source.take_if(|(_, objects)| !objects.is_current())
        {
            let (file, mut objects) = brought_up_to_date(file, objects).await?;
            objects.read();
            (*config, _) = objects.assemble(&file)?;
            snapshot = aside::snapshot(config, None)?;
            source = Some((file, objects));
        }
        // Before the listening sockets: both fail if another gateway runs, which would lose new clients to our sockets.
        let (socket, lock) = match handed {
            Some(HandedOver { admin, pins, sockets }) => {
                inherited.extend(sockets);
                (admin, pins)
            }
            None => (AdminSocket::bind(state_dir)?, None),
        };
        attached.look_again();
        let FixedGateway { source_ports, bpffs, .. } = &settings.fixed;
        let ports = Arc::new(GatewayPorts::new(source_ports.clone(), bpffs.clone()));
        let had_packet_tier = lock.is_some();
        let packet = open_packet(&settings, &ports, lock, |packet| {
            if before.is_some() {
                return Ok(());
            }
            packet.take_odd_packets()?;
            packet.start(snapshot.addresses())
        })?;
        if had_packet_tier && packet.is_err() && settings.live.tiers.contains(&Tier::Packet) {
            bail!("the running gateway has a packet tier, and this one would have none");
        }
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
            snapshot = aside::snapshot(&config, Some(&snapshot))?;
            if let (Ok(packet), None) = (&packet, &before) {
                packet.listen(snapshot.addresses())?;
            }
        };
        let admin = settings.fixed.admin.map(|address| Bind { address, backlog: 64, freebind: false });
        let admin =
            open(admin.into_iter(), 1, &inherited)?.into_iter().flat_map(|(_, sockets)| sockets).next();
        let admin_listening = admin.as_ref().map(TcpListener::try_clone).transpose()?;
        let admin = admin.map(tokio::net::TcpListener::from_std).transpose()?;
        let shared_socket = socket.share().context("the admin socket")?;
        let watched_socket = socket.watch().context("the admin socket")?;
        inherited.keep_managers();
        for address in inherited.addresses().filter(|&address| snapshot.listener(address).is_none()) {
            tracing::warn!(%address, "an inherited socket belongs to no listener: its clients wait in vain");
        }
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
        look_for_ktls(&settings);
        let (taken_over, when) = std::sync::mpsc::sync_channel(1);
        if let Ok(packet) = &packet {
            packet.load_aside(before.is_some().then_some(when))?;
        }
        privileges::drop_privileges().context("cannot drop privileges")?;
        // With what is left of them.
        may_use_client_addresses(&snapshot)?;
        if let Some((_, objects)) = &mut source {
            objects.follow().await?;
        }

        let (reloads, requests) = mpsc::unbounded_channel();
        let (successors, asked) = mpsc::unbounded_channel();
        let books = Books::new(workers, access_log);
        let gateway = Arc::new(RunningGateway::new(snapshot, books, packet, sockmap, ports));
        let elsewhere = Arc::<Elsewhere>::default();
        let admin_side = Arc::new(AdminSide {
            gateway: gateway.clone(),
            workers,
            state_dir: state_dir.clone(),
            stopping: AtomicBool::new(false),
            reloads,
            objects: ArcSwap::default(),
            elsewhere: elsewhere.clone(),
            successors,
        });
        let gateway_of_prober = gateway.clone();
        let prober = Prober::start(move |down| gateway_of_prober.end_connections_to(down))
            .context("cannot start the thread of health checks")?;
        prober.follow(&gateway.snapshot.load());
        let workers =
            (0..workers).map(|index| spawn(gateway.clone(), index)).collect::<Result<Vec<_>, _>>()?;
        let mut resolver = Resolver::default();
        // Names that cannot be resolved are in the log.
        let names = resolver.look_up(&gateway.snapshot.load().pools);
        if let Some(before) = &mut before {
            names.missing().await;
            servers_known(&gateway.snapshot.load()).await;
            before.freeze(&gateway, &elsewhere).await?;
        }
        if let Ok(packet) = gateway.packet() {
            let mut kept = HashMap::new();
            let kept = match &mut before {
                Some(before) => {
                    packet.start(gateway.snapshot.load().addresses())?;
                    before.kept(packet.kernel().is_shared())
                }
                None => &mut kept,
            };
            packet.adopt(&gateway.snapshot.load(), &gateway.books, kept)?;
        }
        let sweeper = gateway.packet().ok().map(|packet| Sweeper::start(packet.clone())).transpose()?;
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
            admin_listening,
            socket: Some((socket, watched_socket)),
            shared_socket: Some(shared_socket),
            admin_tasks: JoinSet::new(),
            tasks: JoinSet::new(),
            succession: Succession::new(asked),
            deaf: BTreeSet::new(),
            resolver,
            prober: Some(prober),
            started: settings,
            watched,
            source,
            attached,
            prospect: None,
            watched_objects,
            removed: Removed::default(),
            sweeper,
        };
        for (address, sockets) in &sockets {
            control.listens(*address, sockets).context("the listening sockets")?;
        }
        Ok(Prepared { control, sockets, before, taken_over, added })
    }
}

impl Prepared {
    /// Becomes the gateway. Not to be dropped: once the process before this one has let go, nobody else serves. After that nothing
    /// fails.
    async fn begin(self) -> anyhow::Result<Control> {
        let Self { mut control, sockets, before, taken_over, added } = self;
        let (gateway, elsewhere) = (control.gateway.clone(), control.admin_side.elsewhere.clone());
        if let Some(mut before) = before {
            before.relieve(&gateway, &elsewhere).await?;
            if let Some((socket, _)) = &mut control.socket
                && let Err(error) = socket.keep()
            {
                tracing::warn!(%error, "the lock file beside the admin socket names another process");
            }
            // An error: there is no packet tier.
            let _ = taken_over.send(());
            control.tasks.spawn(before.follow(gateway.clone(), elsewhere));
            // It may have written what it knew of last.
            control.attached.note_again();
        }
        // Only now: until it was relieved, the process before this one has drained what an operator asked it to.
        drained::restore(&control.admin_side.state_dir, &gateway.snapshot.load());
        for (address, sockets) in sockets {
            control.accept_on(address, sockets);
        }
        if let Some((_, objects)) = &mut control.source {
            objects.in_force();
        }
        // None of them is for the sake of what is not in force.
        drop(added);
        control.show_objects();
        Ok(control)
    }
}

/// Says if fewer files may be open than connections need.
fn tell_open_files(limit: u64, gateway: &config::Gateway) {
    let max_connections = gateway.live.max_connections;
    let needed = max_connections as u64 * 2;
    if limit >= needed {
        return;
    }
    if gateway.live.tiers.contains(&Tier::Packet) {
        tracing::info!(
            limit,
            needed,
            max_connections,
            "the open-files limit is below two per connection; those of the packet tier have none open"
        );
    } else {
        tracing::warn!(limit, needed, max_connections, "the open-files limit is below two per connection");
    }
}

/// Lets objects of an API server be what that has now, as far as it answers: the process before this one may serve more than was
/// kept.
async fn brought_up_to_date(file: File, objects: Objects) -> anyhow::Result<(File, Objects)> {
    let (file, objects) = catch_up(file, objects).await?;
    if objects.is_awaited() {
        bail!(
            "the API server does not answer, and nothing was kept of its objects: the running gateway knows more"
        );
    }
    if !objects.is_current() {
        tracing::warn!("the API server does not answer: what was kept of its objects is served");
    }
    Ok((file, objects))
}

/// Waits until each server was checked once, and each MySQL listener knows how to greet; not for ever.
async fn servers_known(snapshot: &Snapshot) {
    let began = Instant::now();
    let is_known = || {
        let pools = snapshot.pools.iter().filter(|pool| pool.health.is_some());
        let mut servers = pools.flat_map(|pool| pool.servers().to_vec());
        let greets = |listener: &Arc<crate::serving::Listener>| {
            listener.mysql.as_ref().is_none_or(|reception| reception.announcement(&listener.name).is_some())
        };
        servers.all(|server| {
            server.addresses().is_empty() || server.state.health.checked() != Checked::Unchecked
        }) && snapshot.listeners.iter().all(greets)
    };
    while !is_known() && began.elapsed() < INFORMED {
        sleep(LOOK).await;
    }
}

/// Opens the packet tier, if the configuration names it or the kernel still forwards connections. If that fails, the
/// gateway logs why and goes on without it; every connection then counts the reason. The kernel programs may not be loaded
/// yet. `lock`: that of the process that still has the tier. `start`: what the tier does at once.
fn open_packet(
    config: &config::Gateway,
    ports: &Arc<GatewayPorts>,
    lock: Option<OwnedFd>,
    start: impl FnOnce(&PacketTier) -> anyhow::Result<()>,
) -> anyhow::Result<Result<Arc<PacketTier>, FallbackReason>> {
    let (bpffs, is_wanted) = (&config.fixed.bpffs, config.live.tiers.contains(&Tier::Packet));
    // Also if it is not configured: connections of an earlier process must still be ended and counted.
    if !is_wanted && lock.is_none() && connections(bpffs).unwrap_or(0) == 0 {
        return Ok(Err(FallbackReason::PacketUnavailable));
    }
    let opened = PacketTier::open(&config.fixed, ports.clone(), lock).and_then(|packet| {
        start(&packet)?;
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

/// Warns if the configuration names the kTLS tier and the kernel has no kTLS. Asking makes the kernel load the module, which it
/// would not do for a process without privileges.
fn look_for_ktls(config: &config::Gateway) {
    if !config.live.tiers.contains(&Tier::Ktls) {
        return;
    }
    let needs = needs::of(Tier::Ktls).requires;
    if let Some(lack) = Lack::first(needs, |need| need.ask(&config.fixed.bpffs)) {
        tracing::warn!("no kTLS tier: it requires {lack}");
    } else {
        // Now, and not when the first connection is in full flow.
        ktls::Suite::all().for_each(|suite| _ = ktls::support(suite));
    }
}

/// Opens one socket per worker for each address, or takes those that were inherited. Opens all or none.
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

fn listen_fault(address: SocketAddr) -> impl Fn(ListenError) -> Fault {
    move |source| Fault::Listen { address, source }
}
