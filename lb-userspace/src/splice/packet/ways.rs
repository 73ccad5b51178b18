//! Which way packets leave toward an end, and by which devices they may come: asked of the routing table before a
//! connection is spliced, and again when routes change.

use crate::config;
use crate::kernel::Packet;
use crate::kernel::devices::devices;
use crate::kernel::ipsec::Policies;
use crate::kernel::pairs::PairEnds;
use crate::kernel::routes::{Exit, Routes, Unroutable};
use crate::reason::FallbackReason;
use lb_common::packet::inject::Way;
use lb_common::packet::{Flow, LOOPBACK, Path, exit};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// The mark of the gateway's sockets: none. Rules may select by it.
pub(super) const MARK: u32 = 0;

/// Refusals that are remembered until the next sweep.
pub(super) const MOST_REFUSED: usize = 4096;

/// Paths that are asked for again when routes change; more are forgotten, and allowed again one by one.
pub(super) const MOST_ASKED: usize = 1000;

/// Connections whose ways are looked at between two looks for events.
pub(super) const AT_ONCE: usize = 1000;

/// What the kernel says of ways.
pub(super) struct Ways {
    pub(super) routes: Routes,
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
    pub(super) generation: AtomicU64,
}

/// By which other devices packets may come.
#[derive(Default)]
pub(super) struct Paths {
    /// Each with the addresses that the kernel was asked for: the sender's, and ours.
    pub(super) allowed: HashMap<Path, (IpAddr, IpAddr)>,
    pub(super) refused: HashSet<Path>,
    /// Connections whose ways are yet to be looked at again.
    pub(super) behind: VecDeque<u64>,
    /// Something has changed since these were listed.
    pub(super) stale: bool,
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

    pub(super) fn is_encrypted(&self, local: SocketAddr, peer: SocketAddr) -> bool {
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

    pub(super) fn paths(&self) -> MutexGuard<'_, Paths> {
        // Never left half-changed.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way on which a flow's packets leave.
pub(super) fn way(flow: &Flow) -> Way {
    Way { ifindex: flow.ifindex, kind: flow.exit }
}
