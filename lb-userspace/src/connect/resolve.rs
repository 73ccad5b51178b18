//! Names of servers: resolved by DNS (and /etc/hosts) at start, and again when their TTL is over.

use crate::config::Host;
use crate::serving::{Server, ServerRecord};
use hickory_resolver::TokioResolver;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Bounds on the time between two look-ups of a name: a TTL of 0 must not flood the name server, a long one must
/// not outlive the administrator's patience.
const REFRESH: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Longest pause after failures.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Resolves the names of servers on the control runtime.
pub struct Resolver(Option<Arc<TokioResolver>>);

impl Resolver {
    /// Reads the system's configuration. Without one (no resolv.conf) names stay unresolved, which is said.
    pub fn system() -> Self {
        match TokioResolver::builder_tokio().and_then(|builder| builder.build()) {
            Ok(resolver) => Resolver(Some(Arc::new(resolver))),
            Err(error) => {
                tracing::warn!(%error, "no DNS: servers given by name stay unresolved");
                Resolver(None)
            }
        }
    }

    /// Keeps the server's addresses up to date for as long as anything refers to it. Once a server.
    pub fn watch(&self, server: &Server) {
        let Host::Name(name) = &server.address.host else { return };
        let Some(resolver) = self.0.clone() else { return };
        if server.state.claim_resolution() {
            tokio::spawn(watch(resolver, name.clone(), server.address.port, Arc::downgrade(&server.state)));
        }
    }
}

async fn watch(resolver: Arc<TokioResolver>, name: Box<str>, port: u16, state: Weak<ServerRecord>) {
    let mut retry = REFRESH.0;
    loop {
        let looked_up = resolver.lookup_ip(&*name).await;
        let Some(state) = state.upgrade() else { return };
        let pause = match looked_up {
            Ok(answer) => {
                let mut addresses: Vec<_> = answer.iter().map(|ip| SocketAddr::new(ip, port)).collect();
                // A stable order: which address is tried first must not change with the name server's rotation.
                addresses.sort();
                addresses.dedup();
                tracing::debug!(%name, ?addresses, "resolved");
                state.resolved(addresses);
                retry = REFRESH.0;
                answer.valid_until().saturating_duration_since(Instant::now()).clamp(REFRESH.0, REFRESH.1)
            }
            Err(error) => {
                tracing::warn!(%name, %error, "cannot resolve; the addresses known stay in use");
                retry = (retry * 2).min(RETRY_MAX);
                retry
            }
        };
        drop(state);
        tokio::time::sleep(pause).await;
    }
}
