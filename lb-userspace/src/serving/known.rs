//! What connections of an earlier process belong to, by its name: what is configured, or what remembers its name.

use super::{Limit, Listener, Permits, Pool, Route, Snapshot};
use crate::config::Keepalive;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What is configured, by its name.
pub struct Known<'s> {
    listeners: HashMap<&'s str, &'s Arc<Listener>>,
    routes: HashMap<&'s str, &'s Arc<Route>>,
    pools: HashMap<&'s str, &'s Arc<Pool>>,
    keepalive: Keepalive,
}

impl<'s> Known<'s> {
    /// That of a configuration.
    pub fn of(snapshot: &'s Snapshot) -> Self {
        Known {
            listeners: snapshot.listeners.iter().map(|listener| (&*listener.name, listener)).collect(),
            routes: snapshot.routes.iter().map(|route| (route.name(), route)).collect(),
            pools: snapshot.pools.iter().map(|pool| (&*pool.name, pool)).collect(),
            keepalive: snapshot.gateway.keepalive,
        }
    }

    /// The listener of that name.
    pub fn listener(&self, name: &str) -> Arc<Listener> {
        let retired = || Arc::new(Listener::retired(name, self.keepalive));
        self.listeners.get(name).copied().cloned().unwrap_or_else(retired)
    }

    /// The route of that name. One that is not configured any more has these limits.
    pub fn route(
        &self,
        name: &str,
        listener: &str,
        idle_timeout: Option<Duration>,
        max_age: Option<Duration>,
    ) -> Arc<Route> {
        let retired = || Arc::new(Route::retired(name, listener, idle_timeout, max_age));
        self.routes.get(name).copied().cloned().unwrap_or_else(retired)
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Arc<Pool> {
        let retired = || Arc::new(Pool::retired(name, self.keepalive));
        self.pools.get(name).copied().cloned().unwrap_or_else(retired)
    }
}

impl Permits {
    /// Those of a connection that is there already, whatever the bounds. `gateway`: the gateway's limit.
    pub fn join(gateway: &Arc<Limit>, listener: &Listener, route: &Route, client: IpAddr) -> Self {
        Permits {
            connections: [gateway, &listener.stats.live, &route.stats.counting().live].map(Limit::join),
            clients: [listener.clients.as_ref(), route.clients()]
                .map(|limit| limit.map(|limit| limit.join(client))),
        }
    }
}
