//! Connections that processes before this one still carry. They count under every limit of this process, as its own do.

use super::message::{Carried, Id, Report};
use crate::running::RunningGateway;
use crate::serving::{Known, Limit, Permit, Permits, ServerGuard};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The address of a server whose name is no address: it is not dialled.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The connections of processes before this one.
#[derive(Default)]
pub(in crate::gateway) struct Elsewhere(Mutex<Held>);

#[derive(Default)]
struct Held {
    connections: HashMap<Id, HeldConnection>,
    /// Of clients without a route yet.
    waiting: Vec<[Permit; 2]>,
}

/// A connection, which counts until this is dropped.
struct HeldConnection {
    carried: Carried,
    _permits: Permits,
    _server: Option<ServerGuard>,
}

impl Elsewhere {
    /// Counts what has begun, and no longer what has ended.
    pub(in crate::gateway) fn follow(&self, gateway: &RunningGateway, report: Report) {
        let Report { opened, closed, waiting } = report;
        let snapshot = gateway.snapshot.load();
        let live = &gateway.books.stats.live;
        let known = (!opened.is_empty() || !waiting.is_empty()).then(|| Known::of(&snapshot));
        let mut held = self.lock();
        if let Some(known) = &known {
            for carried in opened {
                let listener = known.listener(&carried.listener);
                let route = known.route(&carried.route, &carried.listener, None, None);
                let permits = Permits::join(live, &listener, &route, carried.client);
                let server = carried
                    .upstream
                    .as_ref()
                    .map(|(pool, server)| ServerGuard::new(known.pool(pool).adopt(server, NOWHERE)));
                let connection = HeldConnection { _permits: permits, _server: server, carried };
                held.connections.insert(connection.carried.id, connection);
            }
        }
        for id in closed {
            held.connections.remove(&id);
        }
        held.waiting.clear();
        for (listener, clients) in waiting {
            let Some(listener) = known.as_ref().map(|known| known.listener(&listener)) else { continue };
            let permits = || [live, &listener.stats.live].map(Limit::join);
            held.waiting.extend((0..clients).map(|_| permits()));
        }
    }

    /// The process that has told of them is gone.
    pub(in crate::gateway) fn forget(&self) {
        let held = std::mem::take(&mut *self.lock());
        drop(held);
    }

    /// All of them, for the next process.
    pub(in crate::gateway) fn all(&self) -> Vec<Carried> {
        self.lock().connections.values().map(|connection| connection.carried.clone()).collect()
    }

    /// How many there are, with clients that have no route yet.
    pub(in crate::gateway) fn count(&self) -> usize {
        let held = self.lock();
        held.connections.len() + held.waiting.len()
    }

    /// How many each process has.
    pub(in crate::gateway) fn by_process(&self) -> BTreeMap<u32, usize> {
        let mut processes = BTreeMap::new();
        for id in self.lock().connections.keys() {
            *processes.entry(id.process).or_default() += 1;
        }
        processes
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Never left half-changed: what a panic may skip is not counted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the successor was told so far.
#[derive(Default)]
pub(in crate::gateway) struct Told {
    /// Whether it knows of a server.
    connections: HashMap<Id, bool>,
    waiting: BTreeMap<String, usize>,
}

impl Told {
    /// What it is to be told now, if anything. `carried`: all of the process's connections that it does not hand over.
    pub(in crate::gateway) fn news(
        &mut self,
        carried: Vec<Carried>,
        waiting: BTreeMap<String, usize>,
    ) -> Option<Report> {
        let present: HashSet<Id> = carried.iter().map(|carried| carried.id).collect();
        let mut report = Report { waiting, ..Report::default() };
        self.connections.retain(|id, _| {
            let is_there = present.contains(id);
            report.closed.extend((!is_there).then_some(*id));
            is_there
        });
        for carried in carried {
            let has_server = carried.upstream.is_some();
            if self.connections.insert(carried.id, has_server) != Some(has_server) {
                report.opened.push(carried);
            }
        }
        let is_news =
            !report.opened.is_empty() || !report.closed.is_empty() || report.waiting != self.waiting;
        self.waiting.clone_from(&report.waiting);
        is_news.then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(number: u64, has_server: bool) -> Carried {
        Carried {
            id: Id { process: 1, started_ms: 2, number },
            listener: "l".into(),
            route: "r".into(),
            upstream: has_server.then(|| ("p".into(), "10.0.0.1:6379".into())),
            client: Ipv4Addr::LOCALHOST.into(),
        }
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut told = Told::default();
        let nobody = BTreeMap::new;
        let numbers = |report: &Report| {
            let opened: Vec<_> = report.opened.iter().map(|carried| carried.id.number).collect();
            let closed: Vec<_> = report.closed.iter().map(|id| id.number).collect();
            (opened, closed)
        };
        assert_eq!(told.news(Vec::new(), nobody()), None);
        let report = told.news(vec![carried(1, true), carried(2, false)], nobody()).unwrap();
        assert_eq!(numbers(&report), (vec![1, 2], vec![]));
        assert_eq!(told.news(vec![carried(2, false), carried(1, true)], nobody()), None);
        // It has a server now.
        let report = told.news(vec![carried(1, true), carried(2, true)], nobody()).unwrap();
        assert_eq!(numbers(&report), (vec![2], vec![]));
        let report = told.news(vec![carried(2, true), carried(3, true)], nobody()).unwrap();
        assert_eq!(numbers(&report), (vec![3], vec![1]));
        let waiting = BTreeMap::from([("l".to_owned(), 1)]);
        let all = || vec![carried(2, true), carried(3, true)];
        assert_eq!(told.news(all(), waiting.clone()).unwrap().waiting, waiting);
        assert_eq!(told.news(all(), waiting), None);
        assert_eq!(told.news(all(), nobody()).unwrap().waiting, nobody());
    }
}
