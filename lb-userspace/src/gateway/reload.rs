//! Reload: the configuration is read, checked and built on a thread of its own, and takes effect in one step.

use super::aside::{answer_aside, aside};
use super::control::{Control, open};
use super::objects::Objects;
use super::source::{Source, What};
use super::watch::Watched;
use super::worker::Command;
use super::{Fault, ReloadRequest, drained, may_use_client_addresses};
use crate::admin::view;
use crate::config::gateway_api::Change;
use crate::config::{self, Checked, Config, Diagnostics, File, Sources};
use crate::connect::resolve::FirstAnswers;
use crate::kubernetes::ApiServer;
use crate::reason::Tier;
use crate::serving::Snapshot;
use crate::words::with_causes;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::oneshot;

/// Those of each address, one for each worker.
type Sockets = Vec<(SocketAddr, Vec<TcpListener>)>;

/// What is made of them.
struct Built {
    snapshot: Snapshot,
    gateway: config::Gateway,
    warnings: Vec<String>,
}

impl Control {
    /// Puts the file's configuration in force, or changes nothing and says why. The answer waits for the names of servers;
    /// the configuration does not.
    pub(super) async fn reload(&mut self, what: What, cause: &str, answer: Option<ReloadRequest>) {
        let result = self.try_reload(what).await;
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

    async fn try_reload(&mut self, what: What) -> Result<(view::Reloaded, FirstAnswers), String> {
        // A file that is refused leaves the one that is in force, and its objects, as they are.
        let followed = self.source.as_ref().and_then(|(_, objects)| objects.api_server());
        let before = match what {
            What::File => None,
            What::Objects => self.source.take(),
        };
        let (path, old) = (self.path.clone(), self.gateway.snapshot.load_full());
        let (built, source, read) =
            answer_aside(move |answer| build(what, &path, before, followed, None, &old, answer)).await?;
        if self.watched.is_some()
            && let Some(files) = read.file
        {
            self.watched = Some(Watched::new(files));
        }
        let (sockets, source) = self.listen(built, source).await;
        if what == What::Objects {
            self.source = source;
            self.show_objects();
            let (built, sockets) = sockets?;
            return Ok(self.put_in_force(built, sockets));
        }
        let (built, sockets) = sockets?;
        self.source = source;
        self.watched_objects = read.objects.map(Watched::new);
        self.show_objects();
        let done = self.put_in_force(built, sockets);
        if let Some((_, objects)) = &mut self.source
            && let Err(error) = objects.connect().await
        {
            tracing::error!("the objects are not followed: {error:#}");
        }
        Ok(done)
    }

    /// Listens on what is new; a port that an object cannot have is left out.
    async fn listen(
        &mut self,
        built: Result<Built, String>,
        mut source: Source,
    ) -> (Result<(Built, Sockets), String>, Source) {
        let mut built = match built {
            Ok(built) => built,
            Err(why) => return (Err(why), source),
        };
        let old = self.gateway.snapshot.load_full();
        let before: BTreeSet<SocketAddr> = old.addresses().collect();
        if let Some((_, objects)) = &mut source {
            objects.attach();
        }
        loop {
            let added = built.snapshot.binds().filter(|bind| !before.contains(&bind.address));
            let fault = match open(added, self.workers.len(), &self.inherited) {
                Ok(sockets) => return (Ok((built, sockets)), source),
                Err(fault) => fault,
            };
            let (why, path, old) = (with_causes(&fault), self.path.clone(), old.clone());
            let again = answer_aside(move |answer| {
                build(What::Objects, &path, source, None, Some(fault), &old, answer);
            })
            .await;
            let (again, returned, _) = match again {
                Ok(again) => again,
                Err(panic) => return (Err(panic), None),
            };
            source = returned;
            built = match again {
                Ok(again) => Built { warnings: built.warnings, ..again },
                Err(_) => return (Err(why), source),
            };
        }
    }

    fn put_in_force(&mut self, built: Built, sockets: Sockets) -> (view::Reloaded, FirstAnswers) {
        let old = self.gateway.snapshot.load_full();
        let before: BTreeSet<SocketAddr> = old.addresses().collect();
        let Built { snapshot: new, gateway, mut warnings } = built;
        warnings.extend(self.needs_restart(&gateway));
        let after: BTreeSet<SocketAddr> = new.addresses().collect();

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
        if let Some((_, objects)) = &mut self.source {
            objects.in_force();
        }
        self.release_addresses();
        let names = self.resolve();
        (reloaded, names)
    }

    /// The objects have changed: other servers come into the pools that there are, and anything else makes a new
    /// configuration.
    pub(super) async fn follow_objects(&mut self) {
        let Some((file, mut objects)) = self.source.take() else { return };
        let read = answer_aside(move |answer| {
            let (sources, change) = objects.read();
            let _ = answer.send((file, objects, sources, change));
        });
        let (file, mut objects, sources, change) = match read.await {
            Ok(read) => read,
            Err(error) => return tracing::error!(%error, "the objects are lost: reload"),
        };
        self.watched_objects = Some(Watched::new(sources));
        let is_all = change == Change::All || objects.may_have_ports();
        if change == Change::Servers && !is_all {
            let snapshot = self.gateway.snapshot.load();
            for (name, servers) in objects.take_servers() {
                if let Some(pool) = snapshot.pools.iter().find(|pool| *pool.name == *name) {
                    tracing::info!(pool = name, servers = servers.len(), "other servers");
                    pool.reconfigure(&servers);
                }
            }
        }
        self.source = Some((file, objects));
        if is_all {
            self.reload(What::Objects, "changed objects", None).await;
        } else {
            if let Some((_, objects)) = &mut self.source {
                objects.in_force();
            }
            self.release_addresses();
            self.show_objects();
        }
    }

    /// Shows operators the objects as they are now.
    pub(super) fn show_objects(&self) {
        let shown = self.source.as_ref().map(|(_, objects)| objects.view()).unwrap_or_default();
        self.admin_side.objects.store(Arc::new(shown));
        let unready = self.source.as_ref().map(|(_, objects)| objects.unready()).unwrap_or_default();
        self.admin_side.unready.store(Arc::new(unready));
    }

    /// Takes addresses from their device that no Gateway has and no connection uses any more.
    pub(super) fn release_addresses(&mut self) {
        if let Some((_, objects)) = &mut self.source
            && objects.has_surplus()
        {
            let used: Option<BTreeSet<IpAddr>> = self.gateway.books.ledger.read(|connections| {
                let mut used = BTreeSet::new();
                for connection in connections {
                    let bind = &connection.listener.bind;
                    // One of an earlier process, whose listener is not there any more: of which address, nobody knows.
                    if bind.is_empty() {
                        return None;
                    }
                    used.extend(bind.iter().map(SocketAddr::ip));
                }
                Some(used)
            });
            if let Some(used) = used {
                objects.release(&used);
            }
        }
    }

    /// Ends connections of routes that are gone, and lets go of configurations that are not used any more.
    pub(super) fn look_after_removed(&mut self) {
        let unused = self.removed.look(&self.gateway);
        // Not here: it takes as long as to build them.
        if !unused.is_empty()
            && let Err(error) = aside(move || drop(unused))
        {
            tracing::warn!(%error, "cannot start a thread");
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

/// What was read for a build, as far as it was.
#[derive(Default)]
struct Read {
    file: Option<Sources>,
    objects: Option<Sources>,
}

/// A build: what it has made, or why nothing; of what; and what was read.
type Outcome = (Result<Built, String>, Source, Read);

/// Makes a configuration anew, and answers with it: of the file at `path` and what that names, or of `source` again. `followed`: the
/// API server that is followed already. `lacked`: where the last one could not listen; unless that is an object's port, it is an
/// error.
fn build(
    what: What,
    path: &Path,
    source: Source,
    followed: Option<Arc<ApiServer>>,
    lacked: Option<Fault>,
    old: &Snapshot,
    answer: oneshot::Sender<Outcome>,
) {
    let (checked, source, read) = check(what, path, source, followed, lacked);
    let mut made_of = None;
    let built = checked.and_then(|(config, warnings)| {
        let config = made_of.insert(config);
        let snapshot =
            Snapshot::new(config, Some(old)).map_err(|refused| with_causes(&Fault::from(refused)))?;
        may_use_client_addresses(&snapshot).map_err(|fault| with_causes(&fault))?;
        Ok(Built { snapshot, gateway: config.gateway.clone(), warnings })
    });
    // Whoever waits for it may have gone. Nobody waits until the configuration is freed.
    let _ = answer.send((built, source, read));
}

/// A configuration and what is odd about its file, or why there is none.
type Verdict = Result<(Config, Vec<String>), String>;

fn check(
    what: What,
    path: &Path,
    source: Source,
    followed: Option<Arc<ApiServer>>,
    lacked: Option<Fault>,
) -> (Verdict, Source, Read) {
    let rendered = |errors: Diagnostics| errors.render(false);
    let of_objects = |checked: Checked| checked.map(|(config, _)| (config, Vec::new())).map_err(rendered);
    match (what, source) {
        (What::Objects, Some((file, mut objects))) => {
            let checked = match lacked {
                Some(fault) => match objects.without(&fault, &file) {
                    Some(checked) => of_objects(checked),
                    None => Err(with_causes(&fault)),
                },
                None => of_objects(objects.assemble(&file)),
            };
            (checked, Some((file, objects)), Read::default())
        }
        (What::Objects, None) => {
            let why = lacked.map_or_else(|| "there are no objects".to_owned(), |fault| with_causes(&fault));
            (Err(why), None, Read::default())
        }
        (What::File, _) => {
            let (opened, sources) = File::open(path);
            let read = Read { file: Some(sources), objects: None };
            let (file, config, warnings) = match opened {
                Ok(opened) => opened,
                Err(errors) => return (Err(rendered(errors)), None, read),
            };
            let warnings = warnings.iter().map(|warning| warning.message.clone()).collect();
            let Some(mut objects) = Objects::of(&file, &config, followed) else {
                return (Ok((config, warnings)), None, read);
            };
            let (sources, _) = objects.read();
            let checked = objects.assemble(&file).map(|(config, _)| (config, warnings)).map_err(rendered);
            (checked, Some((file, objects)), Read { objects: Some(sources), ..read })
        }
    }
}
