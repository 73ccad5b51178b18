//! The Lease whose holder writes statuses, as client-go's leader election has it: each change is made against the version that
//! was seen, and the clocks of the candidates need not agree. (The crate kube-leader-election does neither: two candidates can
//! acquire an expired Lease.)

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::refused::Refused;
use super::store::Store;

/// A holder that has not renewed for so long is not the holder any more.
pub(super) const DURATION: Duration = Duration::from_secs(15);
/// A holder that has not renewed for so long stops to write by itself. What is on its way then has the rest of `DURATION` to
/// arrive, before others may begin.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// The pause between two turns.
const TURN: Duration = Duration::from_secs(3);

/// Takes the Lease when it is free, and renews it; says in `leads` until when this process may write.
pub(super) async fn stand(
    api: Api<Lease>,
    name: String,
    identity: String,
    leads: watch::Sender<Option<Instant>>,
    store: Arc<Store>,
) {
    let (cannot, mut refused) = (format!("cannot take or renew the Lease {name}"), Refused::default());
    let mut candidate = Candidate { api, name, identity, seen: None, renewed: None };
    loop {
        match timeout(patience(candidate.renewed, Instant::now()), candidate.turn()).await {
            Ok(outcome) => _ = refused.tell(&outcome, &cannot),
            Err(_) => tracing::debug!("the API server does not answer for the Lease {}", candidate.name),
        }
        let until = candidate.renewed.map(until).filter(|until| Instant::now() < *until);
        let has_changed = leads.send_if_modified(|held| {
            let before = std::mem::replace(held, until);
            before.is_some() != until.is_some()
        });
        if has_changed {
            let does = if until.is_some() { "writes" } else { "does not write" };
            tracing::info!("this process {does} the statuses of objects");
            store.note_outside();
        }
        sleep(TURN.min(patience(candidate.renewed, Instant::now()))).await;
    }
}

/// Until when a holder may write that renewed the Lease then.
fn until(renewed: Instant) -> Instant {
    renewed + RENEW_WITHIN
}

/// How long a turn may take: that of a holder not longer than it may write, so that it is known when it may not.
fn patience(renewed: Option<Instant>, now: Instant) -> Duration {
    let left = renewed.map(|renewed| until(renewed).saturating_duration_since(now));
    left.filter(|left| !left.is_zero()).unwrap_or(RENEW_WITHIN)
}

/// Writes something, for as long as this process holds the Lease; `None`: it does not, or not any more, and what was written may
/// or may not be there.
pub(super) async fn while_held<T>(
    leads: &watch::Receiver<Option<Instant>>,
    write: impl Future<Output = T>,
) -> Option<T> {
    let until = (*leads.borrow())?;
    if Instant::now() >= until {
        return None;
    }
    timeout_at(until, write).await.ok()
}

struct Candidate {
    api: Api<Lease>,
    /// Of the Lease.
    name: String,
    identity: String,
    /// Another holder's Lease, and when this version of it was first seen.
    seen: Option<(String, Instant)>,
    /// When this process last took or renewed it.
    renewed: Option<Instant>,
}

impl Candidate {
    async fn turn(&mut self) -> Result<(), kube::Error> {
        let asked = Instant::now();
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await?;
            self.renewed = Some(asked);
            return Ok(());
        };
        let there = lease.spec.take().unwrap_or_default();
        let holder = there.holder_identity.as_deref().unwrap_or_default();
        let is_ours = holder == self.identity;
        if !is_ours && !holder.is_empty() && !self.has_expired(&lease, &there) {
            self.renewed = None;
            return Ok(());
        }
        let transitions = there.lease_transitions.unwrap_or(0);
        lease.spec = Some(match is_ours {
            true => LeaseSpec { renew_time: spec.renew_time, ..there },
            false => LeaseSpec { lease_transitions: Some(transitions.saturating_add(1)), ..spec },
        });
        // Against the version that was read: of two that find it expired, one gets it.
        self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        self.renewed = Some(asked);
        Ok(())
    }

    /// Whether the same version was there for longer than it says.
    fn has_expired(&mut self, lease: &Lease, spec: &LeaseSpec) -> bool {
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(DURATION, Duration::from_secs);
        self.seen.as_ref().is_some_and(|(_, since)| since.elapsed() > duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_turn_of_a_holder_outlasts_what_it_holds() {
        let renewed = Instant::now();
        for (after, expected) in [(0, 10_000), (3000, 7000), (9900, 100), (10_000, 10_000), (60_000, 10_000)]
        {
            let now = renewed + Duration::from_millis(after);
            assert_eq!(patience(Some(renewed), now), Duration::from_millis(expected), "{after} ms");
        }
        assert_eq!(patience(None, renewed), RENEW_WITHIN);
        assert!(until(renewed) < renewed + DURATION);
    }

    #[tokio::test]
    async fn nothing_is_written_without_the_lease_nor_longer() {
        let (leads, held) = watch::channel(None);
        assert_eq!(while_held(&held, async { panic!("it is not asked") }).await, None::<()>);
        leads.send_replace(Some(Instant::now() - Duration::from_secs(1)));
        assert_eq!(while_held(&held, async { panic!("it is not asked") }).await, None::<()>);
        leads.send_replace(Some(Instant::now() + Duration::from_secs(60)));
        assert_eq!(while_held(&held, async { 7 }).await, Some(7));
        leads.send_replace(Some(Instant::now() + Duration::from_millis(10)));
        assert_eq!(while_held(&held, std::future::pending::<()>()).await, None);
    }
}
