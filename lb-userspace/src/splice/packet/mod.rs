//! The packet tier: the kernel forwards the connection packet by packet; its sockets are closed without a word.
//!
//! `plan` looks at the client's handshake before a server is dialled, `begin` puts the flows in, `Begun::finish` carries
//! over what the sockets still hold; `Live` is all that is left of the connection in this process, and the sweeper ends
//! it. `terms` has the arithmetic.

mod foreign;
mod grace;
mod handover;
mod live;
#[cfg(feature = "kernel-log")]
mod log;
mod odd;
mod sweep;
pub(crate) mod terms;
mod thread;
mod view;
mod ways;

pub(crate) use handover::Begun;
pub use live::Live;
use odd::OddThread;
pub use odd::{Loss, Losses};
pub use sweep::Sweeper;
use sweep::{Lingering, Pending};

use crate::account::{Account, CloseReason, FallbackReason};
use crate::clock::{now_ms, now_ns};
use crate::config;
use crate::connect::ports::SourcePorts;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::packet::InsertError;
use crate::kernel::raw::Injector;
use crate::kernel::{Packet, tcp};
use foreign::Foreign;
use grace::Grace;
use lb_common::packet::inject::Way;
use lb_common::packet::{Flow, Sighting, TICK_SHIFT, Tuple, exit};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use terms::{Legs, Terms, tuple};
use tokio::net::TcpStream;
use ways::Ways;

/// The packet tier of a gateway.
pub struct PacketTier {
    kernel: Packet,
    ports: SourcePorts,
    foreign: Foreign,
    ways: Ways,
    grace: Grace,
    injector: Injector,
    odd: OddThread,
    conntrack: Option<Conntrack>,
    live: Mutex<HashMap<u64, Box<Live>>>,
    /// Connections whose sockets are not closed yet, each with its slot if it is over all the same.
    handovers: Mutex<HashMap<u64, Option<u32>>>,
    lingering: Mutex<Lingering>,
    pending: Mutex<Pending>,
    /// Held by who follows the programs' events.
    following: Mutex<()>,
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
        #[cfg(feature = "kernel-log")]
        log::follow(&kernel)?;
        let odd = OddThread::start(&kernel)?;
        let tier = Self {
            kernel,
            ports: SourcePorts::new(config.source_ports.clone()),
            foreign: Foreign::new(config.bpffs.clone(), config.source_ports.clone()),
            ways: Ways::open(config.interfaces.clone())?,
            grace: Grace::start()?,
            injector: Injector::open()?,
            odd,
            conntrack: Conntrack::open()?,
            live: Mutex::default(),
            handovers: Mutex::default(),
            lingering: Mutex::default(),
            pending: Mutex::default(),
            following: Mutex::default(),
            entries: AtomicU64::new(0),
        };
        tier.ways.follow_devices(&tier.kernel)?;
        tier.forget_paths();
        Ok(tier)
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

    /// A port of our own toward the server, which no spliced connection has, be it another gateway's.
    pub fn source_port(self: &Arc<Self>, server: SocketAddr) -> Option<SourcePort> {
        let foreign = self.foreign.toward(server);
        let server = (server.ip(), server.port());
        let take = || {
            let port = self.ports.take(server.into(), now_ms())?;
            Some(SourcePort { tier: self.clone(), server, port })
        };
        // One that is passed over rests like one of ours, so each is looked at once.
        std::iter::from_fn(take).find(|port| !foreign.as_ref().is_some_and(|foreign| foreign.has(port.port)))
    }

    /// Nobody has answered a connection to the server: the next one is not from the next port.
    pub fn look_elsewhere(&self, server: SocketAddr) {
        self.ports.look_elsewhere((server.ip(), server.port()).into());
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
        let asked = self.ways.generation();
        let way = |tuple: &Tuple, sighting: &Sighting| {
            let [peer, local] = terms::ends(tuple);
            self.ways.way(local, peer, sighting.ifindex)
        };
        let ways = [way(&plan.from_client, &plan.sighting)?, way(&from_server, &sighting)?];
        // Its acknowledgement would come from the socket after the other end's packets have overtaken it.
        for socket in [client, server] {
            let _ = tcp::flush_acknowledgement(socket.as_fd());
        }
        let connection = &account.connection;
        // Before the sockets fall silent: should this process die with them, the next one finds that there was something.
        self.kernel.announce(connection.id, &live::record(&self.kernel, account, tuples)).map_err(refusal)?;
        let begun = || -> Result<Begun, FallbackReason> {
            for socket in [client, server] {
                tcp::enter_repair(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused)?;
            }
            let read =
                |socket: &TcpStream| tcp::leg(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused);
            let (client, server) = (read(client)?, read(server)?);
            let at = Legs { legs: [&client, &server], sightings, tuples, ways, held };
            let terms = Terms::new(connection.id, now_tick(), &at).map_err(|refusal| {
                if let Some(mss) = refusal.clamp {
                    account.gateway.clamp_mss(&connection.listener, mss);
                }
                refusal.reason
            })?;
            let [from_client, from_server] = &tuples;
            let inserted =
                self.kernel.insert([from_client, from_server], terms.flows, &terms.track, &terms.handover);
            let slot = inserted.map_err(refusal)?;
            self.handovers().insert(connection.id, None);
            Ok(Begun { id: connection.id, slot, tuples, terms, asked })
        };
        begun().inspect_err(|_| {
            for socket in [client, server] {
                // Not in repair mode: nothing to leave.
                let _ = tcp::end_repair(socket.as_fd());
            }
            self.kernel.forget(connection.id);
        })
    }

    /// Carries over what the sockets still hold, and counts it, and closes them.
    pub(crate) async fn finish(
        &self,
        begun: Begun,
        [client, server]: [&TcpStream; 2],
        held: Vec<u8>,
    ) -> Result<(), CloseReason> {
        let _handing_over = HandingOver { tier: self, id: begun.id };
        let [request, response] = &begun.terms.flows;
        let [from_client, from_server] = begun.tuples;
        // The legs, each as its handshake went.
        let legs = [(from_client, response.exit), (from_server.reversed(), request.exit)];
        begun.finish((&self.kernel, &self.grace, &self.injector), [client, server], held).await?;
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
        self.lock().len().saturating_sub(self.handovers().len())
    }

    /// Flows in the table at the last sweep, those of closed connections included that a new one may have removed.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Odd packets that were lost in this process.
    pub fn losses(&self) -> &Losses {
        self.odd.losses()
    }

    fn lingering(&self) -> MutexGuard<'_, Lingering> {
        // The queue is never left half-changed.
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back the slot of a connection whose flows are gone: to another connection only when nobody works on this one
    /// any more.
    fn release(&self, id: u64, slot: u32) {
        match self.handovers().get_mut(&id) {
            Some(over) => *over = Some(slot),
            None => self.free(slot),
        }
    }

    fn free(&self, slot: u32) {
        self.grace.then(self.kernel.release(slot));
    }

    fn handovers(&self) -> MutexGuard<'_, HashMap<u64, Option<u32>>> {
        // Each change is one call.
        self.handovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        // Nor are these.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Box<Live>>> {
        // The map is never left half-changed.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refusal(error: InsertError) -> FallbackReason {
    match error {
        InsertError::Full => FallbackReason::FlowTableFull,
        InsertError::Taken => FallbackReason::FlowTaken,
        InsertError::Refused(_) | InsertError::Unmapped(_) => {
            tracing::error!(%error, "the kernel refuses a flow");
            FallbackReason::PacketRefused
        }
    }
}

/// The way on which a flow's packets leave.
fn way(flow: &Flow) -> Way {
    Way { ifindex: flow.ifindex, kind: flow.exit }
}

/// A handover that is under way, until dropped.
struct HandingOver<'a> {
    tier: &'a PacketTier,
    id: u64,
}

impl Drop for HandingOver<'_> {
    fn drop(&mut self) {
        if let Some(Some(slot)) = self.tier.handovers().remove(&self.id) {
            self.tier.free(slot);
        }
    }
}

/// The programs' clock.
fn now_tick() -> u32 {
    (now_ns() >> TICK_SHIFT) as u32
}

/// The programs' clock at a time of [`now_ms`], or as long a time.
const fn tick_of_ms(ms: u64) -> u32 {
    ((ms * 1_000_000) >> TICK_SHIFT) as u32
}

/// [`now_ms`] at a tick of the programs' clock in the last 26 days; an older one is taken for now.
fn ms_of_tick(tick: u32) -> u64 {
    let ago = now_tick().wrapping_sub(tick);
    // A tick read on another CPU may be newer than ours: a difference above half the range is that, not an age.
    let ago = if ago > u32::MAX / 2 { 0 } else { u64::from(ago) };
    now_ms() - (ago << TICK_SHIFT) / 1_000_000
}

/// Raises a counter that several threads write to this value; never lowers it.
fn raise(counter: &AtomicU64, value: u64) {
    counter.fetch_max(value, Relaxed);
}
