//! Ways: by which device packets leave toward an end, and by which devices its packets may come. The routing table is asked
//! before a connection is spliced, and again when routes change.

use crate::config;
use crate::kernel::Packet;
use crate::kernel::devices::{devices, vrf_of};
use crate::kernel::ipsec::Policies;
use crate::kernel::pairs::PairEnds;
use crate::kernel::routes::{Exit, Routes, Unroutable};
use crate::reason::FallbackReason;
use lb_common::packet::inject::Way;
use lb_common::packet::{FOR_SOCKET_MARK, Flow, LOOPBACK, Path, exit};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// The packet mark of the gateway's sockets, by which routing rules may select: none.
pub(super) const MARK: u32 = 0;

/// Refused paths that are remembered until the next sweep.
pub(super) const MOST_REFUSED: usize = 4096;

/// If no more paths than this are allowed, each is checked again when routes change. If there are more, all are removed, and
/// each is allowed again after its next packet.
pub(super) const MOST_ASKED: usize = 1000;

/// Connections whose ways are asked for between two reads of the events.
pub(super) const AT_ONCE: usize = 1000;

/// What is known of ways.
pub(super) struct Ways {
    pub(super) routes: Routes,
    /// `None`: what is at the far end of a veth cannot be asked for.
    pairs: Option<PairEnds>,
    /// `None`: the kernel has no IPsec.
    policies: Option<Policies>,
    interfaces: config::Interfaces,
    /// Devices that have a program, each with the VRF that it is in.
    devices: RwLock<HashMap<u32, Option<u32>>>,
    /// Held while the list of devices is updated, by one of two threads: an older list must not replace a newer one.
    following: Mutex<()>,
    paths: Mutex<Paths>,
    /// How often all connections were to be looked at because routes, devices or policies had changed.
    pub(super) generation: AtomicU64,
}

/// The paths: by which other devices packets may come.
#[derive(Default)]
pub(super) struct Paths {
    /// Each with the addresses of the question to the kernel: the sender's, and ours.
    pub(super) allowed: HashMap<Path, (IpAddr, IpAddr)>,
    pub(super) refused: HashSet<Path>,
    /// Connections whose ways are yet to be asked for anew.
    pub(super) behind: VecDeque<u64>,
    /// Something has changed since this list was made.
    pub(super) stale: bool,
}

impl Ways {
    /// A [`generation`](Self::generation) that never occurs.
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

    /// Attaches the programs to new devices.
    pub(super) fn follow_devices(&self, kernel: &Packet) -> io::Result<()> {
        let _following = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let devices = devices()?;
        for (device, error) in kernel.attach(&devices, &self.interfaces) {
            tracing::warn!(%device, %error, "no packet tier on this device");
        }
        let attached = devices
            .iter()
            .filter(|device| kernel.is_attached(device.index))
            .map(|device| (device.index, vrf_of(device, &devices)));
        *self.devices.write().unwrap_or_else(PoisonError::into_inner) = attached.collect();
        Ok(())
    }

    /// The way of packets from `local` to `peer`, whose own packets come by the device `from`.
    pub(super) fn way(&self, local: SocketAddr, peer: SocketAddr, from: u32) -> Result<Way, FallbackReason> {
        if self.is_encrypted(local, peer) {
            return Err(FallbackReason::IpsecPolicy);
        }
        let way = self.way_of(local, peer, from)?;
        // The loopback device and another way: this host's own stack has sent the packet in another's name (a SYN proxy).
        if (from == LOOPBACK) != (way.kind == exit::LOCAL) {
            return Err(FallbackReason::NoSynSeen);
        }
        Ok(way)
    }

    /// Whether this host's own sockets get what is replayed to them ([`Injector::acknowledge`]) if they have a client's
    /// address.
    ///
    /// [`Injector::acknowledge`]: crate::kernel::raw::Injector::acknowledge
    pub(super) fn replays_reach(&self, client: IpAddr) -> bool {
        self.routes.takes(client, FOR_SOCKET_MARK)
    }

    /// As [`way`](Self::way), without the checks. `from` only tells the VRF, and the link of a link-local peer; 0: none.
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
        // The socket of a connection that came by a device in a VRF is in that VRF.
        let vrf = self.vrf_of(from);
        let Exit { device, is_local } =
            self.routes.exit(local, peer, MARK, vrf).map_err(|error| match error {
                Unroutable::Encapsulated => FallbackReason::DeviceUnsupported,
                error => {
                    tracing::debug!(%error, %local, %peer, "no route to an end");
                    FallbackReason::NoRoute
                }
            })?;
        if is_local && vrf.is_none() {
            return Ok(Way { ifindex: LOOPBACK, kind: exit::LOCAL });
        }
        // By the loopback device nothing reaches an end on this host that is in a VRF.
        if is_local || !self.devices.read().unwrap_or_else(PoisonError::into_inner).contains_key(&device) {
            return Err(FallbackReason::DeviceUnsupported);
        }
        // The far device of a veth pair gets the packet directly only if it has the address itself. Otherwise the routes of
        // its namespace decide.
        let is_end = self.pairs.as_ref().is_some_and(|pairs| pairs.holds(device, peer.ip()));
        Ok(Way { ifindex: device, kind: if is_end { exit::PEER } else { exit::NEIGHBOUR } })
    }

    /// The VRF that a device is in.
    fn vrf_of(&self, device: u32) -> Option<u32> {
        *self.devices.read().unwrap_or_else(PoisonError::into_inner).get(&device)?
    }

    /// Whether an IPsec policy concerns the packets between these two.
    pub(super) fn is_encrypted(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        self.policies.as_ref().is_some_and(|policies| policies.concern(local, peer))
    }

    /// The descriptors that become readable after a change.
    pub(super) fn news(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let [pairs, policies] = [
            self.pairs.as_ref().map(|pairs| pairs.as_fd()),
            self.policies.as_ref().map(|policies| policies.as_fd()),
        ];
        pairs.into_iter().chain(policies)
    }

    /// Reads the notifications about veth pairs; whether ways may have changed.
    pub(super) fn ends_changed(&self) -> io::Result<bool> {
        self.pairs.as_ref().map_or(Ok(false), PairEnds::changed)
    }

    /// Reads the notifications about IPsec policies; whether any has changed. After an error it is unknown which
    /// connections they concern: new ones are not spliced, and live ones must not be ended for it.
    pub(super) fn policies_changed(&self) -> io::Result<bool> {
        self.policies.as_ref().map_or(Ok(false), Policies::changed)
    }

    /// The generation of answers that are asked for from here on.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// A connection was entered, so that later changes meet it. If something has changed since its ways were asked for
    /// (generation `asked`), they are asked for anew.
    pub(super) fn entered(&self, id: u64, asked: u64) {
        let mut paths = self.paths();
        // Under the lock: an earlier change is in the generation, and a later one finds the connection entered.
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
