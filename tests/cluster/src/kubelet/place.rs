//! A container of a pod, and how it fares.

use std::process::ExitStatus;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;

use super::container::Running;
use super::probe::Prober;

/// A container of the pod and how it fares.
pub(super) struct Place {
    pub(super) container: Container,
    pub(super) running: Option<Running>,
    pub(super) started: Option<Timestamp>,
    pub(super) ready: bool,
    pub(super) restarts: i32,
    pub(super) last_exit: Option<ExitStatus>,
    pub(super) refused: Option<String>,
    /// Until it succeeds, there is no other probe.
    pub(super) startup: Option<Prober>,
    pub(super) readiness: Option<Prober>,
    pub(super) liveness: Option<Prober>,
    /// It was asked to end, because a probe failed, and has until then.
    pub(super) kill_at: Option<Instant>,
    pub(super) again_at: Instant,
}

impl Place {
    /// Whether it runs, and its startup probe has nothing against it.
    pub(super) fn has_started(&self) -> bool {
        self.running.is_some() && self.startup.is_none()
    }

    /// Whether it has ended and is not to be started again.
    pub(super) fn is_over(&self, spec: &PodSpec) -> bool {
        match (spec.restart_policy.as_deref(), self.last_exit) {
            (_, None) => false,
            (Some("Never"), Some(_)) => true,
            (Some("OnFailure"), Some(exit)) => exit.success(),
            _ => false,
        }
    }
}
