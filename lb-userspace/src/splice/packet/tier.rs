//! The packet tier, and a connection's way into it: `plan`, `begin`, `finish`.

use super::grace::Grace;
use super::handover::Begun;
use super::lingering::{Lingering, Pending};
use super::live::{self, Live};
use super::odd::{Losses, OddThread};
use super::terms::{Legs, Refusal, Terms};
use super::ticks::now_tick;
use super::ways::Ways;
use crate::account::Account;
use crate::clock::now_ms;
use crate::config;
use crate::connect::GatewayPorts;
use crate::kernel::conntrack::Conntrack;
use crate::kernel::packet::InsertError;
use crate::kernel::raw::Injector;
use crate::kernel::tuples::{self, tuple};
use crate::kernel::{Packet, tcp};
use crate::reason::{CloseReason, FallbackReason};
use lb_common::packet::{Sighting, Tuple, exit};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::net::TcpStream;

/// The packet tier of a gateway.
pub struct PacketTier {
    pub(super) kernel: Packet,
    pub(super) ports: Arc<GatewayPorts>,
    pub(super) ways: Ways,
    pub(super) grace: Grace,
    pub(super) injector: Injector,
    pub(super) odd: OddThread,
    pub(super) conntrack: Option<Conntrack>,
    pub(super) live: Mutex<HashMap<u64, Box<Live>>>,
    /// Connections whose sockets are not closed yet, each with its slot if it is over all the same.
    pub(super) handovers: Mutex<HashMap<u64, Option<u32>>>,
    pub(super) lingering: Mutex<Lingering>,
    pub(super) pending: Mutex<Pending>,
    /// Held by who follows the programs' events.
    pub(super) following: Mutex<()>,
    /// Flows at the last sweep.
    pub(super) entries: AtomicU64,
    /// Since when ([`now_ms`]) the devices have programs; `None`: they cannot have them. Not set: they are being loaded.
    pub(super) serving: OnceLock<Option<u64>>,
}

/// A client whose handshake was sighted: its connection may be spliced.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    from_client: Tuple,
    sighting: Sighting,
}

impl Plan {
    /// The largest segment that the client takes; `None` if it did not say.
    pub fn mss(&self) -> Option<u16> {
        (self.sighting.mss != 0).then_some(self.sighting.mss)
    }

    /// The family of the client's leg.
    pub fn is_ipv4(&self) -> bool {
        tuples::ends(&self.from_client)[0].is_ipv4()
    }
}

impl PacketTier {
    /// Makes the maps, or adopts those of an earlier process, with the programs that are pinned with them. What is missing
    /// is for [`load`](Self::load).
    pub fn open(config: &config::FixedGateway) -> anyhow::Result<Self> {
        let kernel = Packet::prepare(&config.bpffs, config.flow_table)?;
        // Before anything is served: following the log takes CAP_SYS_ADMIN, which the thread that loads aside does not have.
        #[cfg(feature = "kernel-log")]
        {
            kernel.load()?;
            super::log::follow(&kernel)?;
        }
        let odd = OddThread::start(&kernel)?;
        let tier = Self {
            kernel,
            ports: Arc::new(GatewayPorts::new(config.source_ports.clone(), config.bpffs.clone())),
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
            serving: OnceLock::new(),
        };
        if tier.kernel.has_programs() {
            tier.ways.follow_devices(&tier.kernel)?;
            tier.serve(Some(now_ms()));
        }
        tier.forget_paths();
        Ok(tier)
    }

    /// The ports of the listeners: handshakes toward them are sighted.
    pub fn listen(&self, addresses: impl Iterator<Item = SocketAddr>) -> anyhow::Result<()> {
        Ok(self.kernel.sight(addresses.map(|address| address.port()), self.ports.range())?)
    }

    /// Whether this client's connection can be spliced, as far as its handshake tells. `opened_ms`: when it was accepted
    /// ([`now_ms`]).
    pub fn plan(&self, client: &TcpStream, opened_ms: u64) -> Result<Plan, FallbackReason> {
        let since = match self.serving.get() {
            None => return Err(FallbackReason::PacketLoading),
            Some(None) => return Err(FallbackReason::PacketUnavailable),
            Some(Some(since)) => *since,
        };
        let ends = client.peer_addr().and_then(|peer| Ok((peer, client.local_addr()?)));
        let (peer, local) = ends.map_err(|_| FallbackReason::Closing)?;
        let from_client = tuple(peer, local);
        // Its handshake was earlier still.
        let is_early = opened_ms < since;
        let unseen = if is_early { FallbackReason::PacketLoading } else { FallbackReason::NoSynSeen };
        let sighting = self.kernel.sighting(&from_client).ok_or(unseen)?;
        Ok(Plan { from_client, sighting })
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
    ) -> Result<Begun, Refusal> {
        let ends = server.peer_addr().and_then(|peer| Ok((peer, server.local_addr()?)));
        let (peer, local) = ends.map_err(|_| FallbackReason::Closing)?;
        let from_server = tuple(peer, local);
        if plan.is_ipv4() != peer.is_ipv4() {
            return Err(FallbackReason::MixedFamily.into());
        }
        let sighting = self.kernel.sighting(&from_server).ok_or(FallbackReason::NoSynSeen)?;
        let sightings = [&plan.sighting, &sighting];
        let tuples = [plan.from_client, from_server];
        let asked = self.ways.generation();
        let way = |tuple: &Tuple, sighting: &Sighting| {
            let [peer, local] = tuples::ends(tuple);
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
        let begun = || -> Result<Begun, Refusal> {
            for socket in [client, server] {
                tcp::enter_repair(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused)?;
            }
            let read =
                |socket: &TcpStream| tcp::leg(socket.as_fd()).map_err(|_| FallbackReason::PacketRefused);
            let (client, server) = (read(client)?, read(server)?);
            let at = Legs { legs: [&client, &server], sightings, tuples, ways, held };
            let terms = Terms::new(connection.id, now_tick(), &at)?;
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
                let [source, destination] = tuples::ends(tuple);
                conntrack.forget(source, destination);
            }
        }
        Ok(())
    }

    /// Its source ports toward servers.
    pub fn ports(&self) -> &Arc<GatewayPorts> {
        &self.ports
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

    pub(super) fn lingering(&self) -> MutexGuard<'_, Lingering> {
        // The queue is never left half-changed.
        self.lingering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives back the slot of a connection whose flows are gone: to another connection only when nobody works on this one
    /// any more.
    pub(super) fn release(&self, id: u64, slot: u32) {
        match self.handovers().get_mut(&id) {
            Some(over) => *over = Some(slot),
            None => self.free(slot),
        }
    }

    pub(super) fn free(&self, slot: u32) {
        self.grace.then(self.kernel.release(slot));
    }

    fn handovers(&self) -> MutexGuard<'_, HashMap<u64, Option<u32>>> {
        // Each change is one call.
        self.handovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        // Nor are these.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<u64, Box<Live>>> {
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
