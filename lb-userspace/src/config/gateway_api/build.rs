//! Builds: from the store to drafts and statuses.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::HashSet;

use super::attach::{self, Attached};
use super::backend_tls;
use super::context::Context;
use super::convert;
use super::gateways::{self, Gateways};
use super::index::{Built, Index, Used};
use super::key::Key;
use super::memo::Memo;
use super::pools;
use super::status::Statuses;
use super::target;
use super::view::View;
use super::virtual_services;
use crate::config::model::Server;

impl Index {
    /// What all objects make together. Parts that nothing has changed of since the last build are taken from that one.
    pub fn build(&mut self, context: &Context) -> Built {
        let memo = std::mem::take(&mut self.memo);
        let mut view = View::new(self, context, memo);
        let mut statuses = Statuses::new();
        let mut gateways = Gateways::new(&mut view, &mut statuses);
        let is_same = !view.reads.get_mut().iter().any(|read| self.differs.contains(read));
        view.memo.begin(context, is_same);
        let mut attached: Vec<Attached<'_>> = attach::routes(&mut view, &mut gateways, &mut statuses);
        attached.extend(virtual_services::routes(&mut view, &mut gateways, &mut statuses));
        let users = backend_tls::look(&mut view, &gateways, &attached);
        let mut built = convert::drafts(&mut view, &gateways, &attached);
        backend_tls::statuses(&mut view, &users, &mut statuses);
        gateways::statuses(&gateways, &mut statuses);
        virtual_services::rule_statuses(&mut view, &mut statuses);
        built.built.statuses = statuses;
        built.built.lacking = gateways::lacking(&gateways);
        built.built.made = view.memo.made;
        let View { mut memo, reads, named, .. } = view;
        memo.end();
        let read: HashSet<Key> = reads.into_inner().into_iter().collect();
        self.used_last = Some(Used::new(named.keys(), built.pools));
        (self.memo, self.read) = (memo, read);
        self.differs.clear();
        built.built
    }

    /// What was built last is served.
    pub fn in_force(&mut self) {
        if let Some(used) = self.used_last.take() {
            self.used = used;
            self.changed.clear();
        }
    }

    /// The pools of which endpoints have changed since the build that is in force, or since this was asked, with the servers that they
    /// have now.
    pub fn take_servers(&mut self, context: &Context) -> Vec<(String, Vec<Server>)> {
        let changed = std::mem::take(&mut self.changed);
        let mut view = View::new(self, context, Memo::default());
        let mut found = Vec::new();
        for service in changed {
            let parts = view.index.used.pools.get(&service).into_iter().flatten();
            for ((port, subset), labels) in parts {
                let servers = pools::servers(&mut view, &service, *port, labels);
                let servers = servers.into_iter().map(|server| pools::server(server.value)).collect();
                found.push((target::name(&service, *port, subset), servers));
            }
        }
        found
    }
}
