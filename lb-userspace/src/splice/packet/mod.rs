//! The packet tier: the kernel forwards the connection packet by packet; its sockets are closed without a word.
//!
//! `plan` looks at the client's handshake before a server is dialled, `begin` puts the flows in, `Begun::finish` carries
//! over what the sockets still hold; `Live` is all that is left of the connection in this process, and the sweeper ends
//! it. `terms` has the arithmetic.

mod grace;
mod handover;
mod live;
mod odd;
mod sweep;
pub(crate) mod terms;

pub(crate) use handover::Begun;
pub use live::Live;
use odd::OddThread;
pub use odd::{Loss, Losses};
use sweep::Lingering;
pub use sweep::Sweeper;

use crate::account::{Account, CloseReason, FallbackReason};
use crate::clock::now_ms;
use crate::config;
use crate::connect::ports::SourcePorts;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::devices::{self, Device};
use crate::kernel::packet::InsertError;
use crate::kernel::raw::Injector;
use crate::kernel::{Packet, tcp};
use crate::splice::Traffic;
use grace::Grace;
use lb_common::packet::inject::Way;
use lb_common::packet::{Flow, Sighting, TICK_SHIFT, Tuple, exit};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use terms::{Legs, Terms, tuple};
use tokio::net::TcpStream;

/// The index of the loopback device, in every network namespace.
const LOOPBACK: u32 = 1;

/// The packet tier of a gateway.
pub struct PacketTier {
    kernel: Packet,
    ports: SourcePorts,
    interfaces: config::Interfaces,
    /// How packets leave by a device that has a program.
    exits: RwLock<HashMap<u32, u8>>,
    grace: Grace,
    injector: Injector,
    odd: OddThread,
    conntrack: Option<Conntrack>,
    live: Mutex<HashMap<u64, Box<Live>>>,
    /// Connections whose sockets are not closed yet.
    handovers: AtomicUsize,
    lingering: Mutex<Lingering>,
    /// Flows at the last sweep.
    entries: AtomicU64,
}

/// A client whose handshake was sighted: its connection may be spliced.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    from_client: Tuple,
    sighting: Sighting,
}

/// A source port toward a server, taken until dropped.
pub struct SourcePort {
    tier: Arc<PacketTier>,
    /// The server's address and port: as a `SocketAddr` half as large again, in each idle connection.
    server: (IpAddr, u16),
    port: u16,
}

impl SourcePort {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.port
    }
}

impl Drop for SourcePort {
    fn drop(&mut self) {
        self.tier.ports.give_back(self.server.into(), self.port, now_ms());
    }
}

impl Plan {
    /// The largest segment that the client takes; `None` if it did not say.
    pub fn mss(&self) -> Option<u16> {
        (self.sighting.mss != 0).then_some(self.sighting.mss)
    }
}

impl PacketTier {
    /// Loads the programs, or adopts those of an earlier process, and attaches them to the devices there are.
    pub fn open(config: &config::Gateway) -> anyhow::Result<Self> {
        let kernel = Packet::open(&config.bpffs, config.flow_table)?;
        let odd = OddThread::start(&kernel)?;
        let tier = Self {
            kernel,
            ports: SourcePorts::new(config.source_ports.clone()),
            interfaces: config.interfaces.clone(),
            exits: RwLock::default(),
            grace: Grace::start()?,
            injector: Injector::open()?,
            odd,
            conntrack: Conntrack::open()?,
            live: Mutex::default(),
            handovers: AtomicUsize::new(0),
            lingering: Mutex::default(),
            entries: AtomicU64::new(0),
        };
        tier.follow_devices()?;
        Ok(tier)
    }

    /// Gives devices that have come their program.
    fn follow_devices(&self) -> io::Result<()> {
        let devices = devices::devices()?;
        for (device, error) in self.kernel.attach(&devices, &self.interfaces) {
            tracing::warn!(%device, %error, "no packet tier on this device");
        }
        let exits = devices.iter().filter(|device| self.kernel.is_attached(device.index));
        let exits = exits.map(|device| (device.index, exit_by(device))).collect();
        *self.exits.write().unwrap_or_else(PoisonError::into_inner) = exits;
        Ok(())
    }

    /// The ports of the listeners: handshakes toward them are sighted.
    pub fn listen(&self, addresses: impl Iterator<Item = SocketAddr>) -> anyhow::Result<()> {
        Ok(self.kernel.sight(addresses.map(|address| address.port()), self.ports.range())?)
    }

    /// Whether this client's connection can be spliced, as far as its handshake tells.
    pub fn plan(&self, client: &TcpStream) -> Result<Plan, FallbackReason> {
        let ends = client.peer_addr().and_then(|peer| Ok((peer, client.local_addr()?)));
        let (peer, local) = ends.map_err(|_| FallbackReason::Closing)?;
        let from_client = tuple(peer, local);
        let sighting = self.kernel.sighting(&from_client).ok_or(FallbackReason::NoSynSeen)?;
        Ok(Plan { from_client, sighting })
    }

    /// A port of our own toward the server, which no spliced connection has.
    pub fn source_port(self: &Arc<Self>, server: SocketAddr) -> Option<SourcePort> {
        let server = (server.ip(), server.port());
        let port = self.ports.take(server.into(), now_ms())?;
        Some(SourcePort { tier: self.clone(), server, port })
    }

    /// The port of a connection of an earlier process.
    fn known_port(self: &Arc<Self>, server: SocketAddr, port: u16) -> Option<SourcePort> {
        let server = (server.ip(), server.port());
        self.ports.reserve(server.into(), port);
        Some(SourcePort { tier: self.clone(), server, port })
    }

    /// Puts the flows of a connection in: from here on what arrives is forwarded, and both sockets are in repair mode.
    /// Refused, the sockets are as before. `held`: bytes read from the client and not written to the server.
    pub(crate) fn begin(
        &self,
        plan: &Plan,
        client: &TcpStream,
        server: &TcpStream,
        held: usize,
        account: &Account,
    ) -> Result<Begun, FallbackReason> {
        let ends = server.peer_addr().and_then(|peer| Ok((peer, server.local_addr()?)));
        let (peer, local) = ends.map_err(|_| FallbackReason::Closing)?;
        let from_server = tuple(peer, local);
        if terms::ends(&plan.from_client)[0].is_ipv4() != peer.is_ipv4() {
            return Err(FallbackReason::MixedFamily);
        }
        let sighting = self.kernel.sighting(&from_server).ok_or(FallbackReason::NoSynSeen)?;
        let sightings = [&plan.sighting, &sighting];
        let tuples = [plan.from_client, from_server];
        let exits = {
            let exits = self.exits.read().unwrap_or_else(PoisonError::into_inner);
            let exit = |sighting: &Sighting| exits.get(&sighting.ifindex).copied();
            let (Some(client), Some(server)) = (exit(&plan.sighting), exit(&sighting)) else {
                return Err(FallbackReason::DeviceUnsupported);
            };
            [client, server]
        };
        // Its acknowledgement would come from the socket after the other end's packets have overtaken it.
        for socket in [client, server] {
            let _ = tcp::flush_acknowledgement(socket.as_fd());
        }
        let connection = &account.connection;
        let begun = || -> Result<Begun, FallbackReason> {
            for socket in [client, server] {
                tcp::enter_repair(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused)?;
            }
            let read =
                |socket: &TcpStream| tcp::leg(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused);
            let (client, server) = (read(client)?, read(server)?);
            let at = Legs { legs: [&client, &server], sightings, tuples, exits, held };
            let terms = Terms::new(connection.id, now_tick(), &at).map_err(|refusal| {
                if let Some(mss) = refusal.clamp {
                    account.gateway.clamp_mss(&connection.listener, mss);
                }
                refusal.reason
            })?;
            let record = live::record(&self.kernel, account, tuples, sightings);
            let [request, response] = &terms.flows;
            let inserted = self.kernel.insert(&record, [request, response], &terms.handover);
            inserted.map_err(|error| match error {
                InsertError::Full => FallbackReason::FlowTableFull,
                InsertError::Taken => FallbackReason::FlowTaken,
                InsertError::Refused(error) => {
                    tracing::error!(%error, "the kernel refuses a flow");
                    FallbackReason::PacketRefused
                }
            })?;
            Ok(Begun { id: connection.id, tuples, terms })
        };
        begun().inspect_err(|_| {
            for socket in [client, server] {
                // Not in repair mode: nothing to leave.
                let _ = tcp::end_repair(socket.as_fd());
            }
        })
    }

    /// Carries over what the sockets still hold, and counts it, and closes them.
    pub(crate) async fn finish(
        &self,
        begun: Begun,
        [client, server]: [&TcpStream; 2],
        held: Vec<u8>,
        traffic: &Traffic,
    ) -> Result<(), CloseReason> {
        let _counted = Counted::new(&self.handovers);
        let [request, response] = &begun.terms.flows;
        let [from_client, from_server] = begun.tuples;
        // The legs, each as its handshake went.
        let legs = [(from_client, response.exit), (from_server.reversed(), request.exit)];
        begun.finish((&self.kernel, &self.grace, &self.injector), [client, server], held, traffic).await?;
        if let Some(conntrack) = &self.conntrack {
            // A leg to an end on this host goes on through netfilter, which sees its FINs.
            for (tuple, _) in legs.iter().filter(|(_, exit)| *exit != exit::LOCAL) {
                let [source, destination] = terms::ends(tuple);
                conntrack.forget(source, destination);
            }
        }
        Ok(())
    }

    /// The kernel's side.
    pub fn kernel(&self) -> &Packet {
        &self.kernel
    }

    /// Connections that go on without this process.
    pub fn independent(&self) -> usize {
        self.lock().len().saturating_sub(self.handovers.load(Relaxed))
    }

    /// Flows in the table at the last sweep, those of closed connections included that a new one may have removed.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Odd packets that were lost in this process.
    pub fn losses(&self) -> &Losses {
        self.odd.losses()
    }

    fn injector(&self) -> &Injector {
        &self.injector
    }

    fn lingering(&self) -> MutexGuard<'_, Lingering> {
        // The queue is never left half-changed.
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Box<Live>>> {
        // The map is never left half-changed.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn exit_by(device: &Device) -> u8 {
    match device {
        Device { index: LOOPBACK, .. } => exit::LOCAL,
        Device { peer_netns: true, .. } => exit::PEER,
        _ => exit::NEIGHBOUR,
    }
}

/// The way on which a flow's packets leave.
fn way(flow: &Flow) -> Way {
    Way { ifindex: flow.ifindex, kind: flow.exit }
}

/// One more, until dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The programs' clock.
fn now_tick() -> u32 {
    ((now_ms() * 1_000_000) >> TICK_SHIFT) as u32
}

/// [`now_ms`] at a tick of the programs' clock in the last 52 days.
fn ms_of_tick(tick: u32) -> u64 {
    let ago = now_tick().wrapping_sub(tick);
    // A tick that the other CPU has read a moment later than we did is not 52 days old.
    let ago = if ago > u32::MAX / 2 { 0 } else { u64::from(ago) };
    now_ms() - (ago << TICK_SHIFT) / 1_000_000
}

/// Adds to a counter that several may set, never backward.
fn raise(counter: &AtomicU64, value: u64) {
    counter.fetch_max(value, Relaxed);
}
