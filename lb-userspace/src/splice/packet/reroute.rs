//! Spliced connections follow changes of routes, devices and IPsec policies.

use super::tier::PacketTier;
use super::ways::{AT_ONCE, MARK, MOST_ASKED, MOST_REFUSED, Paths, way};
use crate::kernel::tuples::ends;
use crate::reason::CloseReason;
use lb_common::packet::inject::Way;
use lb_common::packet::{Event, Flow, MAX_PATHS, Path, Side, Tuple};
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

impl PacketTier {
    /// A packet has come by another device than its connection's. If the kernel has a route to its sender by that device,
    /// packets that follow are accepted from there.
    pub(super) fn look_at_path(&self, event: &Event) {
        let Some(record) = self.kernel().record(event.id) else { return };
        let tuple = record.tuples().of(event.side());
        let Some(flow) = self.kernel().flow(&tuple).filter(|flow| flow.id == event.id) else { return };
        let path = Path { device: event.number, expected: flow.from, peer: tuple.source };
        let [peer, local] = ends(&tuple).map(|end| end.ip());
        let mut paths = self.ways.paths();
        if path.device == path.expected || paths.refused.contains(&path) {
            return;
        }
        if self.admits(peer, local, path.device) {
            if paths.allowed.len() >= MAX_PATHS as usize {
                // A path that is still used is allowed again after its next packet.
                self.forget_all(&mut paths);
            }
            self.kernel().set_path(path, true);
            paths.allowed.insert(path, (peer, local));
        } else if paths.refused.len() < MOST_REFUSED {
            paths.refused.insert(path);
        }
    }

    /// Whether packets of `peer` may come by the device: the kernel's reverse path.
    fn admits(&self, peer: IpAddr, local: IpAddr, device: u32) -> bool {
        self.ways.routes.admits(peer, local, MARK, device).unwrap_or_else(|error| {
            tracing::debug!(%error, %peer, device, "cannot ask for the reverse path");
            false
        })
    }

    /// Removes the paths that an earlier process has allowed: the routes may have changed since. What is still right is
    /// allowed again after its next packet.
    pub(super) fn forget_paths(&self) {
        for path in self.kernel().paths() {
            self.kernel().set_path(path, false);
        }
    }

    /// Removes all paths, whoever has allowed them.
    pub(super) fn forget_allowed(&self) {
        let mut paths = self.ways.paths();
        paths.allowed.clear();
        paths.refused.clear();
        self.forget_paths();
    }

    fn forget_all(&self, paths: &mut Paths) {
        for (path, _) in paths.allowed.drain() {
            self.kernel().set_path(path, false);
        }
    }

    /// Routes have changed, or may have since the last look: removes the paths that are no longer right, and lets [`follow_routes`](Self::follow_routes)
    /// look at every connection.
    pub(super) fn routes_changed(&self) {
        let mut paths = self.ways.paths();
        // Before the generation is counted: who sees the new one takes the lock in here later, and gets no older answer.
        self.ways.routes.forget();
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

    /// Forgets refusals: a route may have come without a notification.
    pub(super) fn forget_refusals(&self) {
        self.ways.paths().refused.clear();
    }

    /// Asks the routing table anew for some of the connections whose ways may have changed; whether there are more.
    pub(super) fn follow_routes(&self) -> bool {
        let (ids, more) = {
            let Paths { behind, stale, .. } = &mut *self.ways.paths();
            // Only now: if each change began the list anew, frequent changes would keep its end waiting for ever.
            if behind.is_empty() && std::mem::take(stale) {
                behind.extend(self.lock().ids());
            }
            let ids: Vec<u64> = behind.drain(..behind.len().min(AT_ONCE)).collect();
            (ids, !behind.is_empty() || *stale)
        };
        ids.into_iter().for_each(|id| self.follow_route(id));
        more
    }

    fn follow_route(&self, id: u64) {
        let Some(record) = self.kernel().record(id) else { return };
        let Some(flows) = self.kernel().flows_of(id, &record) else { return };
        // The way to an end is in the flow of the packets that come from the other end.
        for from in Side::BOTH {
            let to = from.other();
            let (flow, back) = (flows.get(from), flows.get(to));
            let [peer, local] = ends(record.tuples().get(to));
            if self.ways.is_encrypted(local, peer) {
                // It must not go on in clear text, and there is no socket left that could encrypt.
                self.end_at(id, CloseReason::IpsecPolicy, None);
                return;
            }
            match self.ways.way_of(local, peer, back.from) {
                Ok(way) => self.redirect(record.tuples().get(from), flow, way),
                // As long as there is no route, the packets are lost, as at any router.
                Err(reason) => tracing::debug!(id, %peer, %reason, "no way to an end any more"),
            }
        }
    }

    /// Lets the packets of a flow leave by this way.
    fn redirect(&self, tuple: &Tuple, flow: &Flow, new: Way) {
        if way(flow) != new {
            self.kernel().replace(tuple, &Flow { ifindex: new.ifindex, exit: new.kind, ..*flow });
        }
    }
}
