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
    pub(super) readiness: Option<Prober>,
    pub(super) liveness: Option<Prober>,
    pub(super) again_at: Instant,
}

impl Place {
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
