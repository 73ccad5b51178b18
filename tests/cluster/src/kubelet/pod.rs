//! The life of one pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::container::{Running, Sandbox};
use super::node::{ThisNode, log_file};
use super::place::Place;
use super::probe::{Prober, Target};
use super::{status, volumes};

/// How often a pod's processes, probes and files are looked after.
const TURN: Duration = Duration::from_millis(100);
/// How often volumes follow the objects they come from.
const RENEW: Duration = Duration::from_secs(5);
/// The pause before a container is started again for the second time; it doubles up to [`LONGEST_PAUSE`]. The first time there is none.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Runs a pod until it is deleted, or its program has ended for good.
pub(super) async fn live(node: Rc<ThisNode>, changes: watch::Receiver<Pod>) {
    let pod = changes.borrow().clone();
    let mut life = Life {
        api: Api::namespaced(node.client.clone(), &pod.namespace().unwrap_or_default()),
        host: None,
        places: Vec::new(),
        waits_for: Some("ContainerCreating".into()),
        written: pod.status.clone().unwrap_or_default(),
        node,
        pod,
        changes,
    };
    let name = life.pod.name_any();
    if let Err(error) = life.run().await {
        eprintln!("kubelet: pod {name}: {error:#}");
    }
    life.places.clear();
    if let Some(host) = life.host {
        life.node.hosts.borrow_mut().push_back(host);
    }
    let _ = fs::remove_dir_all(life.node.pod_directory(&life.pod));
}

struct Life {
    node: Rc<ThisNode>,
    api: Api<Pod>,
    /// As it was at the start: what can change later does not concern a kubelet, but for the deletion.
    pod: Pod,
    changes: watch::Receiver<Pod>,
    /// Its number among the node's pods.
    host: Option<u8>,
    places: Vec<Place>,
    /// Why no container runs yet.
    waits_for: Option<String>,
    written: PodStatus,
}

impl Life {
    async fn run(&mut self) -> Result<()> {
        let spec = self.pod.spec.clone().context("a pod has a spec")?;
        let sandbox = self.sandbox(&spec)?;
        let addresses = sandbox.addresses.map(|address| address.to_string());
        let mut volumes = loop {
            if self.is_to_end() {
                return self.delete().await;
            }
            match volumes::prepare(&self.node, &self.pod).await {
                Ok(volumes) => break volumes,
                Err(error) => self.waits_for = Some(format!("{error:#}")),
            }
            self.tell(&sandbox, &addresses).await;
            sleep(Duration::from_millis(300)).await;
        };
        self.waits_for = None;
        let place = |container: &Container| Place {
            container: container.clone(),
            running: None,
            started: None,
            ready: false,
            restarts: 0,
            last_exit: None,
            refused: None,
            startup: None,
            readiness: None,
            liveness: None,
            kill_at: None,
            again_at: Instant::now(),
        };
        self.places = spec.containers.iter().map(place).collect();
        let mut renewed = Instant::now();
        while !self.is_to_end() {
            if renewed.elapsed() > RENEW {
                // An error: the API server is away, or an object is; the files stay.
                if let Ok(now) = volumes::prepare(&self.node, &self.pod).await {
                    volumes = now;
                }
                renewed = Instant::now();
            }
            self.look_after(&spec, &sandbox, &volumes).await?;
            self.tell(&sandbox, &addresses).await;
            sleep(TURN).await;
        }
        self.end(&spec, &sandbox, &addresses).await
    }

    fn sandbox(&mut self, spec: &PodSpec) -> Result<Sandbox> {
        let machine = &self.node.machine;
        let node_addresses = machine.addresses();
        let directory = self.node.pod_directory(&self.pod);
        fs::create_dir_all(&directory)?;
        let (ns, addresses) = if spec.host_network == Some(true) {
            (machine.ns.again()?, node_addresses)
        } else {
            let host = self.node.hosts.borrow_mut().pop_front().context("the node is full")?;
            self.host = Some(host);
            (machine.pod(&self.pod.name_any(), host)?, machine.pod_addresses(host))
        };
        Ok(Sandbox { ns, addresses, node_addresses, directory })
    }

    /// Starts what does not run, and probes what runs.
    async fn look_after(
        &mut self,
        spec: &PodSpec,
        sandbox: &Sandbox,
        volumes: &BTreeMap<String, PathBuf>,
    ) -> Result<()> {
        let log_directory = self.node.log_directory();
        let name = |container: &Container| {
            log_file(
                &log_directory,
                &self.pod.namespace().unwrap_or_default(),
                &self.pod.name_any(),
                &container.name,
            )
        };
        for place in &mut self.places {
            if let Some(exit) = place.running.as_mut().and_then(Running::ended) {
                place.running = None;
                place.ready = false;
                place.last_exit = Some(exit);
                let pause = match place.restarts {
                    0 => Duration::ZERO,
                    again => FIRST_PAUSE * 2_u32.saturating_pow(again.cast_unsigned().min(8) - 1),
                };
                place.again_at = Instant::now() + pause.min(LONGEST_PAUSE);
            }
            let Some(running) = &place.running else {
                if place.is_over(spec) || Instant::now() < place.again_at {
                    continue;
                }
                place.restarts += i32::from(place.last_exit.is_some());
                match Running::start(sandbox, &self.pod, &place.container, volumes, &name(&place.container)) {
                    Ok(running) => {
                        place.started = Some(Timestamp::now());
                        place.kill_at = None;
                        place.startup = place.container.startup_probe.as_ref().map(Prober::new);
                        place.readiness = place.container.readiness_probe.as_ref().map(Prober::new);
                        place.liveness = place.container.liveness_probe.as_ref().map(Prober::new);
                        place.ready = place.startup.is_none() && place.readiness.is_none();
                        place.refused = None;
                        place.running = Some(running);
                    }
                    Err(error) => {
                        place.refused = Some(format!("{error:#}"));
                        place.again_at = Instant::now() + FIRST_PAUSE;
                    }
                }
                continue;
            };
            let target = Target { address: sandbox.addresses[0], container: &place.container, running };
            if place.kill_at.is_some_and(|at| at <= Instant::now()) {
                running.signal(Signal::SIGKILL);
            }
            let lives = if let Some(prober) = &mut place.startup {
                let started = prober.turn(&target).await;
                if started == Some(true) {
                    place.startup = None;
                    place.ready = place.readiness.is_none();
                }
                started
            } else {
                if let Some(prober) = &mut place.readiness
                    && let Some(ready) = prober.turn(&target).await
                {
                    place.ready = ready;
                }
                match &mut place.liveness {
                    Some(prober) => prober.turn(&target).await,
                    None => None,
                }
            };
            if lives == Some(false) && place.kill_at.is_none() {
                running.signal(Signal::SIGTERM);
                place.kill_at = Some(Instant::now() + grace(spec.termination_grace_period_seconds));
            }
        }
        Ok(())
    }

    /// Runs the hooks, asks the programs to end, kills them after the grace period, and lets the API server forget the pod.
    async fn end(&mut self, spec: &PodSpec, sandbox: &Sandbox, addresses: &[String]) -> Result<()> {
        let asked = self.changes.borrow().metadata.deletion_grace_period_seconds;
        let deadline = Instant::now() + grace(asked.or(spec.termination_grace_period_seconds));
        for place in &self.places {
            let Some(running) = &place.running else { continue };
            let hook = place.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
            if let Some(hook) = hook {
                let target = Target { address: sandbox.addresses[0], container: &place.container, running };
                // An error: the hook took longer than the grace period.
                let _ = tokio::time::timeout_at(deadline, target.hook(hook)).await;
            }
            running.signal(Signal::SIGTERM);
        }
        while Instant::now() < deadline && self.places.iter().any(|place| place.running.is_some()) {
            for place in &mut self.places {
                if let Some(exit) = place.running.as_mut().and_then(Running::ended) {
                    (place.running, place.ready, place.last_exit) = (None, false, Some(exit));
                }
            }
            self.probe_readiness(sandbox).await;
            self.tell(sandbox, addresses).await;
            sleep(TURN).await;
        }
        for place in &mut self.places {
            (place.running, place.ready) = (None, false);
        }
        self.delete().await
    }

    /// A pod that ends is probed until it has ended: an endpoint that still serves is told from one that does not.
    async fn probe_readiness(&mut self, sandbox: &Sandbox) {
        for place in &mut self.places {
            let (Some(running), Some(prober)) = (&place.running, &mut place.readiness) else { continue };
            let target = Target { address: sandbox.addresses[0], container: &place.container, running };
            if let Some(ready) = prober.turn(&target).await {
                place.ready = ready;
            }
        }
    }

    fn is_to_end(&self) -> bool {
        self.changes.has_changed().is_err() || self.changes.borrow().metadata.deletion_timestamp.is_some()
    }

    /// Removes the pod from the API server, as often as it takes.
    async fn delete(&self) -> Result<()> {
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: self.pod.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        while self.changes.has_changed().is_ok() {
            match self.api.delete(&self.pod.name_any(), &now).await {
                Ok(_) => break,
                Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409 => break,
                Err(_) => sleep(Duration::from_millis(500)).await,
            }
        }
        Ok(())
    }

    /// Writes the status if it has changed; without an API server, the next turn tries again.
    async fn tell(&mut self, sandbox: &Sandbox, addresses: &[String]) {
        if self.changes.has_changed().is_err() {
            return;
        }
        let spec = self.pod.spec.as_ref();
        let waits = self.waits_for.as_deref();
        let mut status = status::of(&self.written, spec, &self.places, waits, sandbox.node_addresses);
        if waits.is_none() {
            status.pod_ip = addresses.first().cloned();
            let ip = |ip: &String| k8s_openapi::api::core::v1::PodIP { ip: ip.clone() };
            status.pod_ips = Some(addresses.iter().map(ip).collect());
        }
        if status == self.written {
            return;
        }
        let patch = json!({"metadata": {"uid": self.pod.uid()}, "status": status});
        let name = self.pod.name_any();
        if self.api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
            self.written = status;
        }
    }
}

/// How long a program may take to end.
fn grace(seconds: Option<i64>) -> Duration {
    Duration::from_secs(seconds.unwrap_or(30).max(0).cast_unsigned())
}
