//! Adoption: a gateway takes over the spliced connections of the process before it. The kernel has forwarded them meanwhile.

use super::spliced::{SplicedConnection, last_heard_ms, raise};
use super::tier::PacketTier;
use super::ways::Ways;
use crate::account::{Account, Books, ById, Visitor};
use crate::clock::now_ms;
use crate::kernel::KernelError;
use crate::kernel::tuples::{ends, socket_address};
use crate::reason::{CloseReason, Tier};
use crate::serving::{Known, Listener, Permits, Pool, Route, Server, ServerGuard, Snapshot};
use crate::tier::Choice;
use lb_common::packet::{Flow, PerDirection, PerLeg, Record, Tuple};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What the flow table has of a connection of an earlier process.
struct Found {
    /// Of its track.
    slot: u32,
    /// Of each leg's packets as they arrive.
    tuples: PerLeg<Tuple>,
    /// [`Flow::origin`] of each flow; `None`: that flow is not in the table.
    origins: PerDirection<Option<u64>>,
}

impl Found {
    /// Of one of the flows, which is yet to be added.
    fn of(tuple: &Tuple, flow: &Flow) -> Self {
        let other = flow.out.reversed();
        let tuples = PerLeg::from_fn(|side| if side == flow.side() { *tuple } else { other });
        Self { slot: flow.slot, tuples, origins: PerDirection::default() }
    }

    fn add(&mut self, flow: &Flow) {
        *self.origins.get_mut(flow.side()) = Some(flow.origin);
    }
}

impl PacketTier {
    /// Takes over the connections of an earlier process. `kept`: those that it still hands over, and their slots as far as they
    /// are known; they are left to it.
    pub fn adopt(
        &self,
        snapshot: &Snapshot,
        books: &Arc<Books>,
        kept: &mut HashMap<u64, Option<u32>>,
    ) -> Result<(), KernelError> {
        let mut found = ById::<Found>::default();
        self.kernel().adopt(kept.values().copied().flatten(), |tuple, flow| {
            books.ledger.know_id(flow.id);
            found.entry(flow.id).or_insert_with(|| Found::of(tuple, flow)).add(flow);
        })?;
        leave_kept(kept, &mut found, |id| self.kernel().record(id).is_some());
        let mut adoption = Adoption::new(self, books, snapshot);
        let (handovers, mut any) = (self.kernel().handovers(), false);
        self.kernel().for_each_record(|id, record| {
            if !kept.contains_key(&id) {
                any = true;
                adoption.adopt(id, record, found.remove(&id), handovers.contains(&id));
            }
        })?;
        self.kernel().end_old_handovers(|id| kept.contains_key(&id));
        for (id, Found { slot, tuples, .. }) in found {
            self.lingering().push(now_ms(), id, slot, tuples);
        }
        while !self.kernel().events(usize::MAX).is_empty() {}
        if any {
            tracing::info!(connections = self.lock().len(), "adopted the connections of an earlier process");
        }
        Ok(())
    }

    /// Takes over a connection that another process has kept until now, or frees its slot.
    pub fn adopt_kept(&self, snapshot: &Snapshot, books: &Arc<Books>, id: u64, slot: Option<u32>) {
        let Some(record) = self.kernel().record(id) else {
            return if let Some(slot) = slot {
                self.free(slot)
            };
        };
        let mut found = None;
        for tuple in record.tuples().iter() {
            if let Some(flow) = self.kernel().flow(tuple).filter(|flow| flow.id == id) {
                found.get_or_insert_with(|| Found::of(tuple, &flow)).add(&flow);
            }
        }
        let is_handed_over = self.kernel().handover(id).is_some();
        let is_known = found.is_some();
        Adoption::new(self, books, snapshot).adopt(id, &record, found, is_handed_over);
        // Whose flows are gone does not know its slot.
        if !is_known && let Some(slot) = slot {
            self.free(slot);
        }
    }
}

/// Leaves the connections that an earlier process has `kept` to it, and notes their slots. One without a record is over, and
/// its account closed: its flows stay in `found`, and with them its slot.
fn leave_kept(
    kept: &mut HashMap<u64, Option<u32>>,
    found: &mut ById<Found>,
    has_record: impl Fn(u64) -> bool,
) {
    for (id, slot) in kept {
        if has_record(*id)
            && let Some(found) = found.remove(id)
        {
            slot.get_or_insert(found.slot);
        }
    }
}

/// Connections that are being taken over.
struct Adoption<'a> {
    tier: &'a PacketTier,
    books: &'a Arc<Books>,
    known: Known<'a>,
    belongings: HashMap<Names, Belonging>,
}

/// What says to what a connection belongs: the keys of its names, the limits of a route that is no longer configured, and the
/// server's address.
type Names = ([u64; 4], [u32; 2], SocketAddr);

/// What a connection belongs to. Most have it in common with many others.
#[derive(Clone)]
struct Belonging {
    listener: Arc<Listener>,
    route: Arc<Route>,
    pool: Arc<Pool>,
    server: Arc<Server>,
}

impl<'a> Adoption<'a> {
    fn new(tier: &'a PacketTier, books: &'a Arc<Books>, snapshot: &'a Snapshot) -> Self {
        Self { tier, books, known: Known::of(snapshot), belongings: HashMap::new() }
    }

    /// Takes over a connection. `found`: what the flow table has of it. `is_handed_over`: its handover was under way.
    fn adopt(&mut self, id: u64, record: &Record, found: Option<Found>, is_handed_over: bool) {
        let tier = self.tier;
        let origins = found.as_ref().map(|found| (found.slot, found.origins));
        let Some((slot, PerDirection { request: Some(request), response: Some(response) })) = origins else {
            // Its process died when the sockets were in repair mode already and not both flows were entered.
            tier.abandon(id, record);
            if let Some(found) = found {
                tier.release(id, found.slot);
            }
            return;
        };
        let track = tier.kernel().track(slot);
        let live = self.remembered(id, record, (slot, PerDirection { request, response }));
        live.account.spliced(Choice { tier: Tier::Packet, reason: None });
        live.note(&track);
        raise(&live.account.connection.traffic.active_ms, last_heard_ms(&track));
        // Routes may have changed while no process ran.
        tier.enter(live, Ways::NEVER);
        // Its process died during the handover. What its sockets still had to deliver is lost, and maybe also bytes that
        // passed the programs just before the flows were entered. A reset, which both ends notice, is better than a
        // connection that hangs.
        if is_handed_over {
            tier.end_at(id, CloseReason::Shutdown, None);
        }
    }

    /// A connection of an earlier process, with an account. `at`: the slot of its track, and [`Flow::origin`] of both flows.
    fn remembered(&mut self, id: u64, record: &Record, at: (u32, PerDirection<u64>)) -> SplicedConnection {
        let Belonging { listener, route, pool, server } = self.belonging(record);
        let (books, ports) = (self.books, &self.tier.ports);
        let client = socket_address(&record.client, record.client_port);
        let permits = Permits::join(&books.stats.live, &listener, &route, client.ip());
        let facts = &record.facts[..usize::from(record.facts_length).min(record.facts.len())];
        let (visitor, sni) = Visitor::remembered(books, listener, client, record.opened_ms, facts);
        let account = Account::adopt(books.clone(), visitor, id, sni, route);
        let guard = ServerGuard::new(server);
        account.connected(&pool, guard.server());
        let [address, local] = ends(&record.from_server);
        SplicedConnection::new(account, guard, permits, Some(ports.reserve(address, local.port())), at)
    }

    /// A listener, route or pool that is no longer configured keeps its name there.
    fn belonging(&mut self, record: &Record) -> Belonging {
        let [address, _] = ends(&record.from_server);
        let names = (record.names, [record.idle_timeout, record.max_age], address);
        let known = self.belongings.entry(names).or_insert_with(|| {
            let [listener, route, pool, server] =
                record.names.map(|key| self.tier.kernel().name(key).unwrap_or_else(|| "unknown".into()));
            let seconds = |bound: u32| (bound != 0).then(|| Duration::from_secs(bound.into()));
            let limits = [record.idle_timeout, record.max_age].map(seconds);
            let route = self.known.route(&route, &listener, limits[0], limits[1]);
            let (listener, pool) = (self.known.listener(&listener), self.known.pool(&pool));
            let server = pool.adopt(&server, address);
            Belonging { listener, route, pool, server }
        });
        known.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flows_of_a_kept_connection_that_is_over_are_not_left_to_the_process_that_ends() {
        let found = |slot| Found { slot, tuples: PerLeg::default(), origins: PerDirection::default() };
        let mut flows: ById<Found> = [(1, found(11)), (2, found(12)), (3, found(13))].into_iter().collect();
        // 1: begins just now. 2: its handover is under way. 3: closed, and its flows linger. 4: reset, and its flows are gone.
        let mut kept = HashMap::from([(1, None), (2, Some(12)), (3, None), (4, Some(14))]);
        leave_kept(&mut kept, &mut flows, |id| id < 3);
        assert_eq!(kept, HashMap::from([(1, Some(11)), (2, Some(12)), (3, None), (4, Some(14))]));
        assert_eq!(flows.keys().collect::<Vec<_>>(), [&3]);
    }
}
