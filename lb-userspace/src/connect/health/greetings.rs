//! How the servers greet to which MySQL's clients go: asked of those that were not heard yet.

use super::check::Checker;
use crate::clock::now_ms;
use crate::config::{Check, Health};
use crate::serving::Pool;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// For one server.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks servers.
#[derive(Default)]
pub(super) struct Greetings {
    /// Dropped, they end.
    tasks: JoinSet<()>,
}

impl Greetings {
    /// Asks those of the pools that are to be asked now, each with one of the `permits`. Those for which there is none stay due.
    pub(super) fn ask(&mut self, pools: &[Arc<Pool>], permits: &Arc<Semaphore>) {
        while self.tasks.try_join_next().is_some() {}
        for pool in pools {
            for server in pool.servers().iter() {
                if server.addresses().is_empty() {
                    continue;
                }
                let Ok(permit) = permits.clone().try_acquire_owned() else { return };
                if !server.state.mysql.is_due(now_ms()) {
                    continue;
                }
                let health = Health { timeout: TIMEOUT, ..Health::new(Check::Mysql { login: None }) };
                // Without TLS there is no `ca` to be wrong.
                let Ok(checker) = Checker::new(Arc::new(health), pool.send_proxy) else { continue };
                let (server, pool) = (server.clone(), pool.name.clone());
                self.tasks.spawn_local(async move {
                    let _permit = permit;
                    if let Err(failure) = checker.check(&server).await {
                        tracing::debug!(%pool, server = %server.address, %failure, "not heard");
                    }
                });
            }
        }
    }
}
