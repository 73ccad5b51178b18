//! What is left in this process of a connection that the kernel forwards: its account.

use super::terms::{address, ends, socket_address};
use super::{PacketTier, SourcePort, ms_of_tick, raise, way};
use crate::accept::{Limit, Permit};
use crate::account::{Account, CloseReason, Tier, Visitor};
use crate::clock::now_ms;
use crate::connect::{Pool, Server, ServerGuard};
use crate::gateway::{Gateway, Listener, Route, Snapshot};
use crate::kernel::Packet;
use crate::kernel::raw::{Kind, Segment};
use crate::splice::Choice;
use lb_common::packet::{Flow, Record, Sighting, State, Tuple, before, flag};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A spliced connection.
pub struct Live {
    pub(super) account: Account,
    pub(super) _server: ServerGuard,
    pub(super) _permits: [Permit; 3],
    pub(super) _port: Option<SourcePort>,
    /// The last sweep that saw one of its flows.
    pub(super) seen: u32,
    /// Probes that its ends (0: the client) have not answered.
    pub(super) probes: [u8; 2],
}

impl Live {
    /// A connection that is being handed over; the permits are the gateway's, the listener's and the route's.
    pub(crate) fn new(
        account: Account,
        server: ServerGuard,
        permits: [Permit; 3],
        port: Option<SourcePort>,
    ) -> Self {
        Self { account, _server: server, _permits: permits, _port: port, seen: 0, probes: [0, 0] }
    }

    /// Notes what a flow has counted.
    pub(super) fn note(&self, flow: &Flow) {
        let traffic = &self.account.connection.traffic;
        let bytes = if flow.has(flag::FROM_SERVER) { &traffic.bytes_out } else { &traffic.bytes_in };
        raise(bytes, flow.bytes);
        raise(&traffic.active_ms, ms_of_tick(flow.active));
    }

    /// Why it is to be ended, if it is: idle, or alive, for too long.
    pub(super) fn expired(&self, now_ms: u64) -> Option<CloseReason> {
        let connection = &self.account.connection;
        let since = |ms: u64| Duration::from_millis(now_ms.saturating_sub(ms));
        let idle = since(connection.traffic.active_ms.load(Relaxed));
        if connection.route.max_age.is_some_and(|max| since(connection.opened_ms) >= max) {
            Some(CloseReason::MaxAge)
        } else if connection.route.idle_timeout.is_some_and(|max| idle >= max) {
            Some(CloseReason::IdleTimeout)
        } else {
            None
        }
    }
}

/// The reason that a state stands for, if it is one of an end.
pub(super) fn reason_of(state: &State) -> Option<CloseReason> {
    match state.reset {
        _ if state.is_finished() && state.fin[0] == State::FIRST => Some(CloseReason::ClientClosed),
        _ if state.is_finished() => Some(CloseReason::ServerClosed),
        [0, 0] => None,
        [0, _] => Some(CloseReason::ServerReset),
        _ => Some(CloseReason::ClientReset),
    }
}

impl PacketTier {
    /// Takes a connection in whose flows are live.
    pub(crate) fn enter(&self, live: Live) {
        self.lock().insert(live.account.connection.id, Box::new(live));
    }

    /// Takes over the connections of an earlier process.
    pub fn adopt(self: &Arc<Self>, gateway: &Arc<Gateway>) {
        let snapshot = gateway.snapshot.load();
        let records = self.kernel().records();
        for (id, record) in &records {
            let flows = self.kernel().flows_of(*id, record);
            if flows.iter().flatten().next().is_none() {
                self.kernel().forget(*id);
                continue;
            }
            let live = self.remembered(gateway, &snapshot, *id, record);
            live.account.spliced(Choice { tier: Tier::Packet, reason: None });
            flows.iter().flatten().for_each(|flow| live.note(flow));
            let traffic = &live.account.connection.traffic;
            raise(&traffic.bytes_in, record.carried[0]);
            raise(&traffic.bytes_out, record.carried[1]);
            self.enter(live);
            // Its process has died in the middle. What its sockets had not got through is lost, and with it the
            // connection: better an end that both notice than a wait for ever.
            let whole = match (flows, self.kernel().handover(*id)) {
                ([Some(_), Some(_)], None) => true,
                ([Some(request), Some(response)], Some(handover)) => {
                    !before(request.ack, handover.await_ack[0])
                        && !before(response.ack, handover.await_ack[1])
                }
                _ => false,
            };
            if whole {
                self.kernel().end_handover(*id);
            } else {
                self.end(*id, CloseReason::Shutdown);
            }
        }
        self.kernel().end_old_handovers();
        // Flows of connections that are closed still carry the ids of their time, and so do events.
        let see = |tuple: &Tuple, flow: &Flow| {
            gateway.ledger.know_id(flow.id);
            if !self.lock().contains_key(&flow.id) {
                self.lingering().push(now_ms(), flow.id, [*tuple, flow.out.reversed()]);
            }
        };
        if let Err(error) = self.kernel().flows(see) {
            tracing::error!(%error, "cannot read the flow table");
        }
        while !self.kernel().events(usize::MAX).is_empty() {}
        if !records.is_empty() {
            tracing::info!(connections = self.lock().len(), "adopted the connections of an earlier process");
        }
    }

    /// The account of a connection of an earlier process. What is not configured any more keeps its name.
    fn remembered(
        self: &Arc<Self>,
        gateway: &Arc<Gateway>,
        snapshot: &Snapshot,
        id: u64,
        record: &Record,
    ) -> Live {
        let [listener, route, pool, server] =
            record.names.map(|key| self.kernel().name(key).unwrap_or_else(|| "unknown".into()));
        let seconds = |bound: u32| (bound != 0).then(|| Duration::from_secs(bound.into()));
        let route =
            snapshot.routes.iter().find(|known| *known.name == *route).cloned().unwrap_or_else(|| {
                Arc::new(Route::retired(
                    &route,
                    &listener,
                    seconds(record.idle_timeout),
                    seconds(record.max_age),
                ))
            });
        let known = snapshot.listeners.iter().find(|known| *known.name == *listener).cloned();
        let listener = known.unwrap_or_else(|| Arc::new(Listener::retired(&listener)));
        let known = snapshot.pools.iter().find(|known| *known.name == *pool).cloned();
        let pool = known.unwrap_or_else(|| Arc::new(Pool::retired(&pool)));
        let [address, local] = ends(&record.from_server);
        let known = pool.servers.iter().find(|known| known.address.to_string() == server).cloned();
        let server = known.unwrap_or_else(|| Arc::new(Server::retired(address)));
        let permits = [&gateway.stats.live, &listener.stats.live, &route.stats.live].map(Limit::join);

        let client = socket_address(&record.client, record.client_port);
        let facts = &record.facts[..usize::from(record.facts_length).min(record.facts.len())];
        let (visitor, sni) = Visitor::remembered(gateway, listener, client, record.opened_ms, facts);
        let account = Account::adopt(gateway.clone(), visitor, id, sni, route);
        let guard = ServerGuard::new(server);
        account.connected(&pool, &guard);
        Live::new(account, guard, permits, self.known_port(address, local.port()))
    }

    /// Leaves all connections to the next process.
    pub fn leave(&self) {
        for (_, live) in self.lock().drain() {
            live.account.leave();
        }
    }

    /// Ends a connection from outside, with a reset to both ends. `false`: it is not one of ours.
    pub fn end(&self, id: u64, reason: CloseReason) -> bool {
        let Some(live) = self.lock().remove(&id) else { return false };
        if let Some(record) = self.kernel().record(id) {
            let tuples = [record.from_client, record.from_server];
            let flows = self.kernel().flows_of(id, &record);
            for (tuple, (flow, twin)) in tuples.iter().zip([(flows[0], flows[1]), (flows[1], flows[0])]) {
                let Some(flow) = flow else { continue };
                live.note(&flow);
                let Some(twin) = twin else { continue };
                let [peer, local] = ends(tuple);
                // Its next number is what it has acknowledged. Should that be wrong by now, it answers, and the stack
                // that has no such socket resets it.
                let (seq, ack) = (flow.ack, flow.end());
                let reset = Segment { kind: Kind::Reset, seq, ack, window: 0, timestamps: None };
                if let Err(error) = self.injector().send(way(&twin), local, peer, &reset) {
                    tracing::debug!(%error, %peer, "cannot send a reset");
                }
            }
            for tuple in &tuples {
                self.kernel().remove(id, tuple);
            }
        }
        self.kernel().forget(id);
        self.kernel().end_handover(id);
        live.account.close(reason);
        true
    }

    /// Closes the account of a connection that has ended by itself. Its flows stay a while, for its last packets.
    pub(super) fn ended(&self, id: u64) {
        let Some(record) = self.kernel().record(id) else { return };
        self.close(id, &record, &self.kernel().flows_of(id, &record));
    }

    /// The same, of what was looked up.
    pub(super) fn close(&self, id: u64, record: &Record, flows: &[Option<Flow>; 2]) {
        let Some(reason) = flows.iter().flatten().find_map(|flow| reason_of(&flow.state)) else { return };
        let Some(live) = self.lock().remove(&id) else { return };
        flows.iter().flatten().for_each(|flow| live.note(flow));
        self.kernel().forget(id);
        self.lingering().push(now_ms(), id, [record.from_client, record.from_server]);
        live.account.close(reason);
    }

    /// Closes the account of a connection whose flows are gone, for this reason if it is known.
    pub(super) fn lost(&self, id: u64, reason: Option<CloseReason>) {
        let record = self.kernel().record(id);
        if record.is_some_and(|record| self.kernel().flows_of(id, &record).iter().flatten().next().is_some())
        {
            return;
        }
        let Some(live) = self.lock().remove(&id) else { return };
        self.kernel().forget(id);
        live.account.close(reason.unwrap_or(CloseReason::ClientClosed));
    }
}

/// What the next process must know of a connection.
pub(super) fn record(
    kernel: &Packet,
    account: &Account,
    tuples: [Tuple; 2],
    sightings: [&Sighting; 2],
) -> Record {
    let connection = &account.connection;
    let upstream = connection.upstream.get();
    let (facts, facts_length) = account.facts();
    let seconds = |bound: Option<Duration>| bound.map_or(0, |bound| bound.as_secs().max(1) as u32);
    let [from_client, from_server] = tuples;
    Record {
        opened_ms: connection.opened_ms,
        carried: [0; 2],
        names: [
            kernel.intern(&connection.listener.name),
            kernel.intern(&connection.route.name),
            upstream.map_or(0, |(pool, _)| kernel.intern(&pool.name)),
            upstream.map_or(0, |(_, server)| kernel.intern(&server.address.to_string())),
        ],
        from_client,
        from_server,
        // Back to where the handshake came from.
        ethernet: sightings.map(|sighting| {
            let mut addresses = sighting.ethernet;
            addresses.rotate_left(6);
            addresses
        }),
        client: address(connection.client.ip()),
        client_port: connection.client.port().to_be(),
        facts_length,
        idle_timeout: seconds(connection.route.idle_timeout),
        max_age: seconds(connection.route.max_age),
        facts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_after_both_fins_is_not_how_it_ended() {
        let reason = |fin, reset| reason_of(&State { fin, reset });
        assert_eq!(reason([0, 0], [0, 0]), None);
        assert_eq!(reason([State::FIRST, 0], [0, 0]), None);
        assert_eq!(reason([State::FIRST, State::SECOND], [0, 0]), Some(CloseReason::ClientClosed));
        assert_eq!(reason([State::SECOND, State::FIRST], [1, 0]), Some(CloseReason::ServerClosed));
        assert_eq!(reason([State::FIRST, 0], [0, 1]), Some(CloseReason::ServerReset));
        assert_eq!(reason([0, State::FIRST], [1, 0]), Some(CloseReason::ClientReset));
    }
}
