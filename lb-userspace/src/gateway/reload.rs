//! Reload: the configuration is read, checked and built on a thread of its own, and takes effect in one step.

use super::aside::{Large, aside, lend_aside, snapshot};
use super::attached::Attached;
use super::control::Control;
use super::objects::Objects;
use super::prospect::{Informed, Prospect};
use super::source::{Source, What};
use super::start::open;
use super::watch::Watched;
use super::worker::Command;
use super::{Fault, ReloadRequest, drained, may_use_client_addresses};
use crate::accept::{Bind, listen_again};
use crate::admin::view;
use crate::config::gateway_api::Change;
use crate::config::{self, Checked, Config, Diagnostics, File, Sources};
use crate::connect::resolve::FirstAnswers;
use crate::kubernetes::ApiServer;
use crate::reason::Tier;
use crate::serving::{Pool, Snapshot};
use crate::words::with_causes;
use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

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
    pub(super) async fn reload(&mut self, what: What, cause: &'static str, answer: Option<ReloadRequest>) {
        self.reload_with(what, None, cause, answer).await;
    }

    /// The same. `informed`: an API server that was waited for.
    async fn reload_with(
        &mut self,
        what: What,
        informed: Option<Arc<ApiServer>>,
        cause: &'static str,
        answer: Option<ReloadRequest>,
    ) {
        match self.try_reload(what, informed).await {
            Ok(done) => self.end_reload(Ok(done), cause, answer),
            Err(Undone::Refused(why)) => self.end_reload(Err(why), cause, answer),
            Err(Undone::Awaits(source)) => {
                tracing::info!("the reload waits for the API server's objects (asked for by {cause})");
                let before = self.api_server();
                self.prospect = Some(Prospect::new(*source, before, cause, answer));
            }
        }
    }

    /// Goes on with a reload that has waited for an API server.
    pub(super) async fn reload_informed(&mut self, Informed { api, cause, answer }: Informed) {
        match api {
            Ok(api) => self.reload_with(What::File, Some(api), cause, answer).await,
            Err(why) => self.end_reload(Err(why), cause, answer),
        }
    }

    /// Says what became of it.
    fn end_reload(
        &mut self,
        result: Result<(view::Reloaded, FirstAnswers), String>,
        cause: &str,
        answer: Option<ReloadRequest>,
    ) {
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

    /// The API server that the objects in force come from.
    fn api_server(&self) -> Option<Arc<ApiServer>> {
        self.source.as_ref().and_then(|(_, objects)| objects.api_server())
    }

    async fn try_reload(
        &mut self,
        what: What,
        informed: Option<Arc<ApiServer>>,
    ) -> Result<(view::Reloaded, FirstAnswers), Undone> {
        // A file that is refused leaves the one that is in force, and its objects, as they are.
        let followed: Vec<_> = self.api_server().into_iter().chain(informed).collect();
        let attached = self.attached.clone();
        let source = match what {
            What::File => None,
            What::Objects => self.source.take(),
        };
        let (path, old) = (self.path.clone(), self.gateway.snapshot.load_full());
        let (mut source, built) =
            lend_aside(source, move |source| build(what, &path, source, (&followed, attached), None, &old))
                .await;
        let sockets = match built {
            Ok((built, read)) => {
                if self.watched.is_some()
                    && let Some(files) = read.file
                {
                    self.watched = Some(Watched::new(files));
                }
                if let Some(unread) = source.take_if(|(_, objects)| !objects.is_followed()) {
                    return Err(Undone::Awaits(Box::new(unread)));
                }
                let (sockets, listened) = self.listen(built, source).await;
                source = listened;
                if sockets.is_ok() && what == What::File {
                    self.watched_objects = read.objects.map(Watched::new);
                }
                sockets
            }
            Err(panic) => {
                source.iter_mut().for_each(|(_, objects)| objects.start_over());
                Err(panic)
            }
        };
        if sockets.is_err()
            && let Some((_, objects)) = &mut source
        {
            objects.give_up();
        }
        if sockets.is_ok() || what == What::Objects {
            self.source = source;
        }
        let (built, sockets) = match sockets {
            Ok(made) => made,
            Err(why) => {
                // What is in force still follows its endpoints.
                self.take_servers();
                self.show_objects();
                return Err(Undone::Refused(why));
            }
        };
        let done = self.put_in_force(built, sockets);
        self.show_objects();
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
            let attached = self.attached.clone();
            let (returned, again) = lend_aside(source, move |source| {
                build(What::Objects, &path, source, (&[], attached), Some(fault), &old)
            })
            .await;
            source = returned;
            built = match again {
                Ok((Ok(again), _)) => Built { warnings: built.warnings, ..again },
                Ok((Err(_), _)) => return (Err(why), source),
                Err(panic) => {
                    source.iter_mut().for_each(|(_, objects)| objects.start_over());
                    return (Err(panic), source);
                }
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
        // First, so that nobody of the new configuration waits for the servers of the old one.
        new.pools.iter().for_each(Pool::comes_into_force);
        self.gateway.snapshot.store(new.clone());
        if let Some(prober) = &self.prober {
            prober.follow(&new);
        }
        if let Ok(packet) = self.gateway.packet()
            && let Err(error) = packet.listen(new.addresses())
        {
            tracing::error!(%error, "new listeners stay out of the packet tier");
        }
        for (address, sockets) in sockets {
            if let Err(error) = self.listens(address, &sockets) {
                tracing::error!(%address, %error, "the next process cannot take over the socket");
            }
            self.accept_on(address, sockets);
        }
        self.follow_backlogs(&old, &new);
        for address in before.difference(&after) {
            self.gateway.listening().remove(address);
            self.deaf.remove(address);
            for worker in &self.workers {
                let _ = worker.commands.send(Command::Unlisten(*address));
            }
        }
        drained::follow(&self.started.fixed.state_dir, &old, &new);
        if old.routes.iter().any(|route| route.http().is_some()) {
            self.gateway.notice.send_modify(|_| {});
        }
        self.removed.note(old, &new);
        if let Some((_, objects)) = &mut self.source {
            objects.in_force();
        }
        self.release_addresses();
        let names = self.resolve();
        (reloaded, names)
    }

    /// Where one listened before, too, the queue may be another.
    fn follow_backlogs(&self, old: &Snapshot, new: &Snapshot) {
        let before: HashMap<SocketAddr, u32> = old.binds().map(|bind| (bind.address, bind.backlog)).collect();
        let listening = self.gateway.listening();
        for Bind { address, backlog, .. } in new.binds() {
            if before.get(&address).is_none_or(|before| *before == backlog) {
                continue;
            }
            for socket in listening.get(&address).into_iter().flatten() {
                if let Err(error) = listen_again(socket, backlog) {
                    tracing::warn!(%address, %error, "keeps its backlog");
                }
            }
        }
    }

    /// The objects have changed: other servers come into the pools that there are, and anything else makes a new
    /// configuration.
    pub(super) async fn follow_objects(&mut self) {
        let Some((file, objects)) = self.source.take() else { return };
        let is_again = objects.again_at().is_some();
        let (mut objects, read) = lend_aside(objects, |objects| (objects.read(), ())).await;
        let (sources, change) = match read {
            Ok(read) => read,
            Err(error) => {
                objects.start_over();
                self.source = Some((file, objects));
                return tracing::error!("the objects are not read, nothing has changed: {error}");
            }
        };
        self.watched_objects = Some(Watched::new(sources));
        let is_all = change == Change::All || is_again || objects.may_have_ports();
        self.source = Some((file, objects));
        if is_all {
            return self.reload(What::Objects, "changed objects", None).await;
        }
        if change == Change::Servers {
            self.take_servers();
        }
        if let Some((_, objects)) = &mut self.source {
            objects.in_force();
        }
        self.release_addresses();
        self.show_objects();
    }

    /// Other servers come into the pools that there are.
    fn take_servers(&mut self) {
        let Some((_, objects)) = &mut self.source else { return };
        let snapshot = self.gateway.snapshot.load();
        for (name, servers) in objects.take_servers() {
            if let Some(pool) = snapshot.pools.iter().find(|pool| *pool.name == *name) {
                tracing::info!(pool = name, servers = servers.len(), "other servers");
                pool.reconfigure(&servers);
            }
        }
    }

    /// Shows operators the objects as they are now.
    pub(super) fn show_objects(&self) {
        let shown = self.source.as_ref().map(|(_, objects)| objects.shown()).unwrap_or_default();
        self.admin_side.objects.store(Arc::new(shown));
    }

    /// Ends connections of routes that are gone, and lets go of configurations that are not used any more.
    pub(super) fn look_after_removed(&mut self) {
        let (unused, parts) = self.removed.look(&self.gateway);
        // Not here: it takes as long as to build them.
        if !unused.is_empty()
            && let Err(error) = aside(move || drop(Large::new(Some(unused), parts)))
        {
            tracing::warn!(%error, "cannot start a thread");
        }
    }

    /// What the new configuration asks for and only a restart can give.
    fn needs_restart(&self, new: &config::Gateway) -> Vec<String> {
        let started = &self.started;
        let has_programs = |tier: &Tier| matches!(tier, Tier::Packet | Tier::Sockmap);
        let is_new = |tier: &Tier| has_programs(tier) && !started.live.tiers.contains(tier);
        let tiers = new.live.tiers.iter().any(is_new).then_some("tiers");
        let changed = started.fixed.differences(&new.fixed).chain(tiers);
        changed.map(|key| format!("gateway.{key} has changed: it takes effect at the next start")).collect()
    }
}

/// Why nothing has changed.
enum Undone {
    Refused(String),
    /// The file names an API server that is not followed yet.
    Awaits(Box<(File, Objects)>),
}

/// What a file's objects begin with: the API servers that are followed already, and the addresses that devices have.
type Known<'a> = (&'a [Arc<ApiServer>], Arc<Attached>);

/// What was read for a build, as far as it was.
#[derive(Default)]
struct Read {
    file: Option<Sources>,
    objects: Option<Sources>,
}

/// A build: what it has made, or why nothing; and what was read.
type Outcome = (Result<Built, String>, Read);

/// Makes a configuration anew: of the file at `path` and what that names, or of `source` again, which is the one that it is made
/// of afterwards. `lacked`: where the last one could not listen; unless that
/// is an object's port, it is an error. Also the configuration, which takes time to be freed.
fn build(
    what: What,
    path: &Path,
    source: &mut Source,
    known: Known<'_>,
    lacked: Option<Fault>,
    old: &Snapshot,
) -> (Outcome, Large<Config>) {
    let (checked, read) = check(what, path, source, known, lacked);
    let mut made_of = None;
    let built = checked.and_then(|(config, warnings)| {
        let config = made_of.insert(config);
        let snapshot = snapshot(config, Some(old)).map_err(|refused| with_causes(&Fault::from(refused)))?;
        may_use_client_addresses(&snapshot).map_err(|fault| with_causes(&fault))?;
        Ok(Built { snapshot, gateway: config.gateway.clone(), warnings })
    });
    let parts = match (what, source) {
        (What::Objects, Some((_, objects))) => objects.parts(),
        _ => made_of.as_ref().map_or(0, |config| config.routes.len() + config.pools.len()),
    };
    ((built, read), Large::new(made_of, parts))
}

/// A configuration and what is odd about its file, or why there is none.
type Verdict = Result<(Config, Vec<String>), String>;

fn check(
    what: What,
    path: &Path,
    source: &mut Source,
    known: Known<'_>,
    lacked: Option<Fault>,
) -> (Verdict, Read) {
    let rendered = |errors: Diagnostics| errors.render(false);
    let of_objects = |checked: Checked| checked.map(|(config, _)| (config, Vec::new())).map_err(rendered);
    match (what, source) {
        (What::Objects, Some((file, objects))) => {
            let checked = match lacked {
                Some(fault) => match objects.without(&fault, file) {
                    Some(checked) => of_objects(checked),
                    None => Err(with_causes(&fault)),
                },
                None => of_objects(objects.assemble(file)),
            };
            (checked, Read::default())
        }
        (What::Objects, None) => {
            let why = lacked.map_or_else(|| "there are no objects".to_owned(), |fault| with_causes(&fault));
            (Err(why), Read::default())
        }
        (What::File, source) => {
            let (opened, sources) = File::open(path);
            let read = Read { file: Some(sources), objects: None };
            let (file, config, warnings) = match opened {
                Ok(opened) => opened,
                Err(errors) => return (Err(rendered(errors)), read),
            };
            let warnings = warnings.iter().map(|warning| warning.message.clone()).collect();
            let Some(objects) = Objects::of(&file, &config, known.0, known.1) else {
                return (Ok((config, warnings)), read);
            };
            let (file, objects) = source.insert((file, objects));
            if !objects.is_followed() {
                return (Err("the API server was not asked yet".to_owned()), read);
            }
            let (sources, _) = objects.read();
            let checked = objects.assemble(file).map(|(config, _)| (config, warnings)).map_err(rendered);
            (checked, Read { objects: Some(sources), ..read })
        }
    }
}
