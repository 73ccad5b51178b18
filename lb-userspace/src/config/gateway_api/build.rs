//! Builds: from the store to drafts and statuses.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::attach::{self, Attached};
use super::backend_tls;
use super::convert;
use super::gateways::{self, Gateways};
use super::index::{Built, Context, Index, Used, View};
use super::pools;
use super::status::Statuses;
use super::virtual_services;
use crate::config::model::Server;

impl Index {
    /// What all objects make together.
    pub fn build(&mut self, context: &Context) -> Built {
        let mut view = View::new(self, context);
        let mut statuses = Statuses::new();
        let mut gateways = Gateways::new(&mut view, &mut statuses);
        let mut attached: Vec<Attached<'_>> = attach::routes(&mut view, &mut gateways, &mut statuses);
        attached.extend(virtual_services::routes(&mut view, &mut gateways, &mut statuses));
        let mut built = convert::drafts(&mut view, &gateways, &attached);
        backend_tls::statuses(&mut view, &gateways, &attached, &mut statuses);
        gateways::statuses(&gateways, &mut statuses);
        virtual_services::rule_statuses(&view, &mut statuses);
        built.built.statuses = statuses;
        built.built.lacking = gateways::lacking(&gateways);
        let (asked, all_services, pools) = (view.asked, view.asked_for_all_services, built.pools);
        let built = built.built;
        self.used_last = Some(Used::new(asked, all_services, pools));
        built
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
        let mut view = View::new(self, context);
        let mut found = Vec::new();
        for service in changed {
            let parts = view.index.used.pools.get(&service).into_iter().flatten();
            for ((port, subset), labels) in parts {
                let servers = pools::servers(&mut view, &service, *port, labels);
                let servers = servers.into_iter().map(|server| pools::server(server.value)).collect();
                found.push((pools::name(&service, *port, subset), servers));
            }
        }
        found
    }
}
