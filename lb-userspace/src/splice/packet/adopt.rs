//! Adoption: a gateway takes over the spliced connections of the process before it. The kernel has forwarded them meanwhile.

use super::spliced::{SplicedConnection, last_heard_ms, raise};
use super::tier::PacketTier;
use super::ways::Ways;
use crate::account::{Account, Books, Visitor};
use crate::clock::now_ms;
use crate::config::Keepalive;
use crate::kernel::tuples::{ends, socket_address};
use crate::reason::{CloseReason, Tier};
use crate::serving::{Limit, Listener, Permits, Pool, Route, ServerGuard, Snapshot};
use crate::tier::Choice;
use lb_common::packet::{Flow, PerDirection, PerLeg, Record, Tuple};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// The flows of a connection of an earlier process, each with its tuple; `None`: that flow is not in the table.
type Found = PerDirection<Option<(Tuple, Flow)>>;

/// What is configured, by its name.
struct Known<'s> {
    listeners: HashMap<&'s str, &'s Arc<Listener>>,
    routes: HashMap<&'s str, &'s Arc<Route>>,
    pools: HashMap<&'s str, &'s Arc<Pool>>,
    keepalive: Keepalive,
}

impl<'s> Known<'s> {
    fn of(snapshot: &'s Snapshot) -> Self {
        Known {
            listeners: snapshot.listeners.iter().map(|listener| (&*listener.name, listener)).collect(),
            routes: snapshot.routes.iter().map(|route| (&*route.name, route)).collect(),
            pools: snapshot.pools.iter().map(|pool| (&*pool.name, pool)).collect(),
            keepalive: snapshot.gateway.keepalive,
        }
    }
}

impl PacketTier {
    /// Takes over the connections of an earlier process.
    pub fn adopt(&self, snapshot: &Snapshot, books: &Arc<Books>) {
        let mut found = HashMap::<u64, Found>::new();
        for (tuple, flow) in self.kernel().take_found() {
            books.ledger.know_id(flow.id);
            *found.entry(flow.id).or_default().get_mut(flow.side()) = Some((tuple, flow));
        }
        let records = self.kernel().records();
        let known = Known::of(snapshot);
        for (id, record) in &records {
            let flows = found.remove(id).unwrap_or_default();
            let PerDirection { request: Some((_, request)), response: Some((_, response)) } = flows else {
                // Its process died when the sockets were in repair mode already and not both flows were entered.
                self.abandon(*id, record);
                if let Some((_, flow)) = flows.iter().flatten().next() {
                    self.release(*id, flow.slot);
                }
                continue;
            };
            let track = self.kernel().track(request.slot);
            let origin = PerDirection { request: request.origin, response: response.origin };
            let live = self.remembered(books, &known, *id, record, (request.slot, origin));
            live.account.spliced(Choice { tier: Tier::Packet, reason: None });
            live.note(&track);
            raise(&live.account.connection.traffic.active_ms, last_heard_ms(&track));
            // Routes may have changed while no process ran.
            self.enter(live, Ways::NEVER);
            // Its process died during the handover. What its sockets still had to deliver is lost, and maybe also bytes that
            // passed the programs just before the flows were entered. A reset, which both ends notice, is better than a
            // connection that hangs.
            if self.kernel().handover(*id).is_some() {
                self.end(*id, CloseReason::Shutdown);
            }
        }
        self.kernel().end_old_handovers();
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
        let route = known.routes.get(&*route).copied().cloned().unwrap_or_else(|| {
            Arc::new(Route::retired(&route, &listener, seconds(record.idle_timeout), seconds(record.max_age)))
        });
        let retired = || Arc::new(Listener::retired(&listener, known.keepalive));
        let listener = known.listeners.get(&*listener).copied().cloned().unwrap_or_else(retired);
        let retired = || Arc::new(Pool::retired(&pool, known.keepalive));
        let pool = known.pools.get(&*pool).copied().cloned().unwrap_or_else(retired);
        let [address, local] = ends(&record.from_server);
        let server = pool.adopt(&server, address);
        let client = socket_address(&record.client, record.client_port);
        let permits = Permits {
            connections: [&books.stats.live, &listener.stats.live, &route.stats.counting().live]
                .map(Limit::join),
            clients: [&listener.clients, &route.clients]
                .map(|limit| limit.as_ref().map(|limit| limit.join(client.ip()))),
        };
        let facts = &record.facts[..usize::from(record.facts_length).min(record.facts.len())];
        let (visitor, sni) = Visitor::remembered(books, listener, client, record.opened_ms, facts);
        let account = Account::adopt(books.clone(), visitor, id, sni, route);
        let guard = ServerGuard::new(server);
        account.connected(&pool, guard.server());
        SplicedConnection::new(account, guard, permits, Some(self.ports.reserve(address, local.port())), at)
    }

    /// Leaves all connections to the next process, with their accounts open.
    pub fn leave(&self) {
        for (_, live) in self.lock().drain() {
            live.account.leave();
        }
    }
}
