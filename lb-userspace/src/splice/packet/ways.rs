//! Which way packets leave toward an end, and by which devices they may come: asked of the routing table before a
//! connection is spliced, and again when routes change.

use super::PacketTier;
use super::terms::ends;
use super::way;
use crate::account::{CloseReason, FallbackReason};
use crate::config;
use crate::kernel::Packet;
use crate::kernel::devices::devices;
use crate::kernel::ipsec::Policies;
use crate::kernel::pairs::PairEnds;
use crate::kernel::routes::{Exit, Routes, Unroutable};
use lb_common::packet::inject::Way;
use lb_common::packet::{Event, Flow, LOOPBACK, MAX_PATHS, Path, Tuple, exit};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// The mark of the gateway's sockets: none. Rules may select by it.
const MARK: u32 = 0;

/// Refusals that are remembered until the next sweep.
const MOST_REFUSED: usize = 4096;

/// Paths that are asked for again when routes change; more are forgotten, and allowed again one by one.
const MOST_ASKED: usize = 1000;

/// Connections whose ways are looked at between two looks for events.
const AT_ONCE: usize = 1000;

/// What the kernel says of ways.
pub(super) struct Ways {
    routes: Routes,
    /// `None`: nobody can say what is at the other end of a veth.
    pairs: Option<PairEnds>,
    /// `None`: the kernel has none.
    policies: Option<Policies>,
    interfaces: config::Interfaces,
    /// Devices that have a program.
    devices: RwLock<HashSet<u32>>,
    /// Held while devices are followed, which two threads do: an older list must not replace a newer one.
    following: Mutex<()>,
    paths: Mutex<Paths>,
    /// How many times something has changed.
    generation: AtomicU64,
}

/// By which other devices packets may come.
#[derive(Default)]
struct Paths {
    /// Each with the addresses that the kernel was asked for: the sender's, and ours.
    allowed: HashMap<Path, (IpAddr, IpAddr)>,
    refused: HashSet<Path>,
    /// Connections whose ways are yet to be looked at again.
    behind: VecDeque<u64>,
    /// Something has changed since these were listed.
    stale: bool,
}

impl Ways {
    /// A [`generation`](Self::generation) that no answer is of.
    pub(super) const NEVER: u64 = u64::MAX;

    pub(super) fn open(interfaces: config::Interfaces) -> io::Result<Self> {
        let pairs = PairEnds::open().inspect_err(|error| {
            tracing::warn!(%error, "cannot look behind veth devices: packets take the longer way into containers");
        });
        Ok(Self {
            routes: Routes::open()?,
            pairs: pairs.ok(),
            policies: Policies::open()?,
            interfaces,
            devices: RwLock::default(),
            following: Mutex::default(),
            paths: Mutex::default(),
            generation: AtomicU64::new(0),
        })
    }

    /// Gives devices that have come their program.
    pub(super) fn follow_devices(&self, kernel: &Packet) -> io::Result<()> {
        let _following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = devices()?;
        for (device, error) in kernel.attach(&devices, &self.interfaces) {
            tracing::warn!(%device, %error, "no packet tier on this device");
        }
        let attached = devices.iter().map(|device| device.index).filter(|index| kernel.is_attached(*index));
        *self.devices.write().unwrap_or_else(PoisonError::into_inner) = attached.collect();
        Ok(())
    }

    /// How packets leave from `local` to `peer`, whose own come by the device `from`.
    pub(super) fn way(&self, local: SocketAddr, peer: SocketAddr, from: u32) -> Result<Way, FallbackReason> {
        if self.is_encrypted(local, peer) {
            return Err(FallbackReason::IpsecPolicy);
        }
        let way = self.way_of(local, peer, from)?;
        // What this host's own stack has sent, in another's name (a SYN proxy), has passed no device.
        if (from == LOOPBACK) != (way.kind == exit::LOCAL) {
            return Err(FallbackReason::NoSynSeen);
        }
        Ok(way)
    }

    /// The same without a look at where packets come from, but for a peer whose address is of that link alone.
    pub(super) fn way_of(
        &self,
        local: SocketAddr,
        mut peer: SocketAddr,
        from: u32,
    ) -> Result<Way, FallbackReason> {
        if let SocketAddr::V6(peer) = &mut peer
            && peer.ip().is_unicast_link_local()
        {
            peer.set_scope_id(from);
        }
        let Exit { device, is_local } = self.routes.exit(local, peer, MARK).map_err(|error| match error {
            Unroutable::Encapsulated => FallbackReason::DeviceUnsupported,
            error => {
                tracing::debug!(%error, %local, %peer, "no way to an end");
                FallbackReason::NoRoute
            }
        })?;
        if is_local {
            return Ok(Way { ifindex: LOOPBACK, kind: exit::LOCAL });
        }
        if !self.devices.read().unwrap_or_else(PoisonError::into_inner).contains(&device) {
            return Err(FallbackReason::DeviceUnsupported);
        }
        // The routes of another namespace would have to be asked where the end is not the veth's own.
        let is_end = self.pairs.as_ref().is_some_and(|pairs| pairs.holds(device, peer.ip()));
        Ok(Way { ifindex: device, kind: if is_end { exit::PEER } else { exit::NEIGHBOUR } })
    }

    fn is_encrypted(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.policies.as_ref().is_some_and(|policies| policies.concern(local, peer))
    }

    /// What becomes readable when there is news.
    pub(super) fn news(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let [pairs, policies] = [
            self.pairs.as_ref().map(|pairs| pairs.as_fd()),
            self.policies.as_ref().map(|policies| policies.as_fd()),
        ];
        pairs.into_iter().chain(policies)
    }

    /// Takes what has become known since; whether ways, or what is at their ends, may have changed.
    pub(super) fn ends_changed(&self) -> io::Result<bool> {
        self.pairs.as_ref().map_or(Ok(false), PairEnds::changed)
    }

    /// The same of policies. After an error nobody knows which connections they concern: new ones stay out, and those that
    /// live must not be judged by it.
    pub(super) fn policies_changed(&self) -> io::Result<bool> {
        self.policies.as_ref().map_or(Ok(false), Policies::changed)
    }

    /// Of which answers are that are asked for from here on.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// A connection has come into the list of those that are looked at again, whose ways were asked for then.
    pub(super) fn entered(&self, id: u64, asked: u64) {
        let mut paths = self.paths();
        // Under the lock: what has changed before is counted, what changes after meets the connection in the list.
        if self.generation() != asked {
            paths.behind.push_back(id);
        }
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        // Never left half-changed.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PacketTier {
    /// A packet has come by another device than its connection's: if the kernel has such a route to its sender, those
    /// that follow may.
    pub(super) fn look_at_path(&self, event: &Event) {
        let Some(record) = self.kernel().record(event.id) else { return };
        let tuple = [&record.from_client, &record.from_server][event.from_server as usize & 1];
        let Some(flow) = self.kernel().flow(tuple).filter(|flow| flow.id == event.id) else { return };
        let path = Path { device: event.number, expected: flow.from, peer: tuple.source };
        let [peer, local] = ends(tuple).map(|end| end.ip());
        let mut paths = self.ways.paths();
        if path.device == path.expected || paths.refused.contains(&path) {
            return;
        }
        if self.admits(peer, local, path.device) {
            if paths.allowed.len() >= MAX_PATHS as usize {
                // Those that are still used are allowed again, a packet each later.
                self.forget_all(&mut paths);
            }
            self.kernel().set_path(path, true);
            paths.allowed.insert(path, (peer, local));
        } else if paths.refused.len() < MOST_REFUSED {
            paths.refused.insert(path);
        }
    }

    fn admits(&self, peer: IpAddr, local: IpAddr, device: u32) -> bool {
        self.ways.routes.admits(peer, local, MARK, device).unwrap_or_else(|error| {
            tracing::debug!(%error, %peer, device, "cannot ask for the reverse path");
            false
        })
    }

    /// What an earlier process has allowed, nobody knows why; what is still true will be allowed again.
    pub(super) fn forget_paths(&self) {
        for path in self.kernel().paths() {
            self.kernel().set_path(path, false);
        }
    }

    fn forget_all(&self, paths: &mut Paths) {
        for (path, _) in paths.allowed.drain() {
            self.kernel().set_path(path, false);
        }
    }

    /// Routes have changed: no path stays that is true no more, and every connection's ways are looked at again.
    pub(super) fn routes_changed(&self) {
        let mut paths = self.ways.paths();
        self.ways.generation.fetch_add(1, Relaxed);
        paths.stale = true;
        paths.refused.clear();
        if paths.allowed.len() > MOST_ASKED {
            return self.forget_all(&mut paths);
        }
        paths.allowed.retain(|path, (peer, local)| {
            let still = self.admits(*peer, *local, path.device);
            if !still {
                self.kernel().set_path(*path, false);
            }
            still
        });
    }

    /// Forgets refusals: a route may have come without a word.
    pub(super) fn forget_refusals(&self) {
        self.ways.paths().refused.clear();
    }

    /// Looks at some of the connections whose ways may have changed; whether there are more.
    pub(super) fn follow_routes(&self) -> bool {
        let (ids, more) = {
            let Paths { behind, stale, .. } = &mut *self.ways.paths();
            // Not before: changes that never cease would keep the last ones waiting for ever.
            if behind.is_empty() && std::mem::take(stale) {
                behind.extend(self.lock().keys());
            }
            let ids: Vec<u64> = behind.drain(..behind.len().min(AT_ONCE)).collect();
            (ids, !behind.is_empty() || *stale)
        };
        ids.into_iter().for_each(|id| self.follow_route(id));
        more
    }

    fn follow_route(&self, id: u64) {
        let Some(record) = self.kernel().record(id) else { return };
        let tuples = [&record.from_client, &record.from_server];
        let [Some(request), Some(response)] = self.kernel().flows_of(id, &record) else { return };
        // The way to an end is in the flow of the packets that come from the other.
        for (flow, back, from, to) in
            [(request, response, tuples[0], tuples[1]), (response, request, tuples[1], tuples[0])]
        {
            let [peer, local] = ends(to);
            if self.ways.is_encrypted(local, peer) {
                // In clear text it must not go on, and its sockets are gone.
                self.end(id, CloseReason::IpsecPolicy);
                return;
            }
            match self.ways.way_of(local, peer, back.from) {
                Ok(way) => self.lead(from, &flow, way),
                // As long as there is none, its packets are lost, as they would be anywhere.
                Err(reason) => tracing::debug!(id, %peer, %reason, "no way to an end any more"),
            }
        }
    }

    /// Has the packets of a flow leave by this way.
    fn lead(&self, tuple: &Tuple, flow: &Flow, new: Way) {
        if way(flow) != new {
            self.kernel().replace(tuple, &Flow { ifindex: new.ifindex, exit: new.kind, ..*flow });
        }
    }
}
