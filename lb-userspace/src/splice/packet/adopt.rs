//! Adoption: a gateway takes over the spliced connections of the process before it. The kernel has forwarded them meanwhile.

use super::spliced::{SplicedConnection, last_heard_ms, raise};
use super::tier::PacketTier;
use super::ways::Ways;
use crate::account::{Account, Books, Visitor};
use crate::clock::now_ms;
use crate::kernel::KernelError;
use crate::kernel::tuples::{ends, socket_address};
use crate::reason::{CloseReason, Tier};
use crate::serving::{Known, Permits, ServerGuard, Snapshot};
use crate::tier::Choice;
use lb_common::packet::{Flow, PerDirection, PerLeg, Record, Tuple};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The flows of a connection of an earlier process, each with its tuple; `None`: that flow is not in the table.
type Found = PerDirection<Option<(Tuple, Flow)>>;

impl PacketTier {
    /// Takes over the connections of an earlier process. `kept`: those that it still hands over, and their slots as far as they
    /// are known; they are left to it.
    pub fn adopt(
        &self,
        snapshot: &Snapshot,
        books: &Arc<Books>,
        kept: &mut HashMap<u64, Option<u32>>,
    ) -> Result<(), KernelError> {
        let mut found = HashMap::<u64, Found>::new();
        for (tuple, flow) in self.kernel().adopt(kept.values().copied().flatten())? {
            books.ledger.know_id(flow.id);
            *found.entry(flow.id).or_default().get_mut(flow.side()) = Some((tuple, flow));
        }
        for (id, slot) in kept.iter_mut() {
            let flows = found.remove(id).unwrap_or_default();
            *slot = slot.or_else(|| flows.iter().flatten().next().map(|(_, flow)| flow.slot));
        }
        let mut records = self.kernel().records();
        records.retain(|(id, _)| !kept.contains_key(id));
        let known = Known::of(snapshot);
        for (id, record) in &records {
            self.adopt_one(books, &known, *id, record, found.remove(id).unwrap_or_default());
        }
        self.kernel().end_old_handovers(|id| kept.contains_key(&id));
        for (id, flows) in found {
            let Some((tuple, flow)) = flows.iter().flatten().next() else { continue };
            let other = flow.out.reversed();
            let tuples = PerLeg::from_fn(|side| if side == flow.side() { *tuple } else { other });
            self.lingering().push(now_ms(), id, flow.slot, tuples);
        }
        while !self.kernel().events(usize::MAX).is_empty() {}
        if !records.is_empty() {
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
        let found = |tuple| Some((tuple, self.kernel().flow(&tuple).filter(|flow| flow.id == id)?));
        let flows = PerDirection { request: found(record.from_client), response: found(record.from_server) };
        self.adopt_one(books, &Known::of(snapshot), id, &record, flows);
    }

    fn adopt_one(&self, books: &Arc<Books>, known: &Known<'_>, id: u64, record: &Record, flows: Found) {
        let PerDirection { request: Some((_, request)), response: Some((_, response)) } = flows else {
            // Its process died when the sockets were in repair mode already and not both flows were entered.
            self.abandon(id, record);
            if let Some((_, flow)) = flows.iter().flatten().next() {
                self.release(id, flow.slot);
            }
            return;
        };
        let track = self.kernel().track(request.slot);
        let origin = PerDirection { request: request.origin, response: response.origin };
        let live = self.remembered(books, known, id, record, (request.slot, origin));
        live.account.spliced(Choice { tier: Tier::Packet, reason: None });
        live.note(&track);
        raise(&live.account.connection.traffic.active_ms, last_heard_ms(&track));
        // Routes may have changed while no process ran.
        self.enter(live, Ways::NEVER);
        // Its process died during the handover. What its sockets still had to deliver is lost, and maybe also bytes that
        // passed the programs just before the flows were entered. A reset, which both ends notice, is better than a
        // connection that hangs.
        if self.kernel().handover(id).is_some() {
            self.end_at(id, CloseReason::Shutdown, None);
        }
    }

    /// A connection of an earlier process, with an account. A listener, route or pool that is no longer configured keeps its
    /// name there. `at`: the slot of its track, and [`Flow::origin`] of both flows.
    fn remembered(
        &self,
        books: &Arc<Books>,
        known: &Known<'_>,
        id: u64,
        record: &Record,
        at: (u32, PerDirection<u64>),
    ) -> SplicedConnection {
        let [listener, route, pool, server] =
            record.names.map(|key| self.kernel().name(key).unwrap_or_else(|| "unknown".into()));
        let seconds = |bound: u32| (bound != 0).then(|| Duration::from_secs(bound.into()));
        let route = known.route(&route, &listener, seconds(record.idle_timeout), seconds(record.max_age));
        let (listener, pool) = (known.listener(&listener), known.pool(&pool));
        let [address, local] = ends(&record.from_server);
        let server = pool.adopt(&server, address);
        let client = socket_address(&record.client, record.client_port);
        let permits = Permits::join(&books.stats.live, &listener, &route, client.ip());
        let facts = &record.facts[..usize::from(record.facts_length).min(record.facts.len())];
        let (visitor, sni) = Visitor::remembered(books, listener, client, record.opened_ms, facts);
        let account = Account::adopt(books.clone(), visitor, id, sni, route);
        let guard = ServerGuard::new(server);
        account.connected(&pool, guard.server());
        SplicedConnection::new(account, guard, permits, Some(self.ports.reserve(address, local.port())), at)
    }
}
