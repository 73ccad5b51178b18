//! What changes of routes, devices and policies mean for spliced connections.

use super::tier::PacketTier;
use super::ways::{AT_ONCE, MARK, MOST_ASKED, MOST_REFUSED, Paths, way};
use crate::kernel::tuples::ends;
use crate::reason::CloseReason;
use lb_common::packet::inject::Way;
use lb_common::packet::{Event, Flow, MAX_PATHS, Path, Tuple};
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

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
