//! Reload: the configuration is read, checked and built on a thread of its own, and takes effect in one step.

use super::control::{Control, give_back_memory, open};
use super::watch::Watched;
use super::worker::Command;
use super::{Fault, ReloadRequest, drained, may_use_client_addresses};
use crate::admin::view;
use crate::config::{self, Sources};
use crate::connect::resolve::FirstAnswers;
use crate::reason::Tier;
use crate::serving::Snapshot;
use crate::words::with_causes;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::task::spawn_blocking;

/// What a file makes.
struct Built {
    snapshot: Snapshot,
    gateway: config::Gateway,
    warnings: Vec<String>,
}

impl Control {
    /// Puts the file's configuration in force, or changes nothing and says why. The answer waits for the names of servers;
    /// the configuration does not.
    pub(super) async fn reload(&mut self, cause: &str, answer: Option<ReloadRequest>) {
        let result = self.try_reload().await;
        let stats = &self.gateway.books.stats;
        match &result {
            Ok((reloaded, _)) => {
                stats.reloads_succeeded.fetch_add(1, Relaxed);
                for warning in &reloaded.warnings {
                    tracing::warn!("{warning}");
                }
                let generation = reloaded.config_generation;
                tracing::info!(generation, routes = reloaded.routes, "reloaded, asked for by {cause}");
            }
            Err(error) => {
                stats.reloads_failed.fetch_add(1, Relaxed);
                tracing::error!("not reloaded, nothing has changed (asked for by {cause}): {error}");
            }
        }
        let Some(answer) = answer else { return };
        tokio::spawn(async move {
            let result = match result {
                Ok((mut reloaded, names)) => {
                    reloaded.warnings.extend(names.missing().await);
                    Ok(reloaded)
                }
                Err(error) => Err(error),
            };
            // Whoever asked may have gone.
            let _ = answer.send(result);
        });
    }

    async fn try_reload(&mut self) -> Result<(view::Reloaded, FirstAnswers), String> {
        let (path, old) = (self.path.clone(), self.gateway.snapshot.load_full());
        let build = spawn_blocking(move || build(&path, &old));
        let (built, sources) = build.await.map_err(|panic| panic.to_string())?;
        if self.watched.is_some() {
            self.watched = Some(Watched::new(sources));
        }
        let Built { snapshot: new, gateway, mut warnings } = built?;
        warnings.extend(self.needs_restart(&gateway));

        let old = self.gateway.snapshot.load_full();
        let before: BTreeSet<SocketAddr> = old.addresses().collect();
        let after: BTreeSet<SocketAddr> = new.addresses().collect();
        let added = new.binds().filter(|bind| !before.contains(&bind.address));
        let sockets =
            open(added, self.workers.len(), &self.inherited).map_err(|fault| with_causes(&fault))?;

        let reloaded = new.reloaded(warnings);
        let new = Arc::new(new);
        self.gateway.snapshot.store(new.clone());
        self.prober.follow(&new);
        if let Ok(packet) = self.gateway.packet()
            && let Err(error) = packet.listen(new.addresses())
        {
            tracing::error!(%error, "new listeners stay out of the packet tier");
        }
        self.hand_out(sockets);
        for address in before.difference(&after) {
            self.gateway.listening().remove(address);
            for worker in &self.workers {
                let _ = worker.commands.send(Command::Unlisten(*address));
            }
        }
        drained::follow(&self.started.fixed.state_dir, &old, &new);
        self.removed.note(old, &new);
        let names = self.resolve();
        Ok((reloaded, names))
    }

    /// Ends connections of routes that are gone, and lets go of configurations that are not used any more.
    pub(super) fn look_after_removed(&mut self) {
        let unused = self.removed.look(&self.gateway);
        if !unused.is_empty() {
            // Not here: it takes as long as to build them.
            spawn_blocking(move || {
                drop(unused);
                give_back_memory();
            });
        }
    }

    /// What the new configuration asks for and only a restart can give.
    fn needs_restart(&self, new: &config::Gateway) -> Vec<String> {
        let started = &self.started;
        let is_new = |tier: &Tier| *tier != Tier::Copy && !started.live.tiers.contains(tier);
        let tiers = new.live.tiers.iter().any(is_new).then_some("tiers");
        let changed = started.fixed.differences(&new.fixed).chain(tiers);
        changed.map(|key| format!("gateway.{key} has changed: it takes effect at the next start")).collect()
    }
}

/// What the file at `path` makes, or why it makes nothing, and the files that were read.
fn build(path: &Path, old: &Snapshot) -> (Result<Built, String>, Sources) {
    let (checked, sources) = config::load(path);
    let built = checked.map_err(|errors| errors.render(false)).and_then(|(config, warnings)| {
        let snapshot =
            Snapshot::new(&config, Some(old)).map_err(|refused| with_causes(&Fault::from(refused)))?;
        may_use_client_addresses(&snapshot).map_err(|fault| with_causes(&fault))?;
        let warnings = warnings.iter().map(|warning| warning.message.clone()).collect();
        Ok(Built { snapshot, gateway: config.gateway, warnings })
    });
    give_back_memory();
    (built, sources)
}
