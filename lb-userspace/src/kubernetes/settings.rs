//! What is asked for, and as whom.

use std::path::PathBuf;
use std::sync::Arc;

use super::balancers::Balancers;
use super::scope::Scope;
use crate::config::gateway_api::Kind;

/// What `[gateway_api]` and the environment say of the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Absent: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// What the kubeconfig says: its [`digest`](super::kubeconfig_digest).
    pub access: Option<[u8; 32]>,
    /// Our GatewayClasses' `controllerName`.
    pub controller: Arc<str>,
    /// Objects of these namespaces only; empty: of all.
    pub namespaces: Vec<Arc<str>>,
    /// The kinds of which every object is watched.
    pub kinds: Vec<Kind>,
    /// Where the last good objects are kept; absent: nowhere.
    pub keep: Option<PathBuf>,
    /// Mode `service`: the Services that Gateways get; absent: none.
    pub balancers: Option<Balancers>,
    /// Where the Leases are: the pod's namespace.
    pub lease_namespace: String,
    /// The name of this process among those that may hold the Lease: the pod's name.
    pub identity: String,
    /// The node that it runs on.
    pub node: String,
}

impl Settings {
    /// What is watched whoever names it.
    pub(super) fn scopes(&self) -> Vec<Scope> {
        let mut scopes = Scope::always(&self.kinds, &self.namespaces);
        if let Some(balancers) = self.balancers.as_ref().filter(|balancers| balancers.merge) {
            for kind in [Kind::Service, Kind::EndpointSlice] {
                let own = Scope { kind, namespace: Some((*balancers.namespace).into()), name: None };
                if !scopes
                    .iter()
                    .any(|scope| scope.kind == kind && (scope.namespace.is_none() || *scope == own))
                {
                    scopes.push(own);
                }
            }
        }
        scopes
    }

    /// The names that the pod's environment gives: `POD_NAMESPACE`, `POD_NAME`, `NODE_NAME`; outside a pod, those of the host.
    pub fn names_from_environment() -> (String, String, String) {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let namespace = variable("POD_NAMESPACE").unwrap_or_else(|| "snisplice-system".into());
        let identity = variable("POD_NAME").unwrap_or_else(|| format!("{host}-{}", std::process::id()));
        (namespace, identity, variable("NODE_NAME").unwrap_or(host))
    }
}
