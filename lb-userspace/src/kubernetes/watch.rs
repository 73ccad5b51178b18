//! Watches: lists first, then changes, over and over; each for the objects of a kind.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::api::{Api, ApiResource, DynamicObject, PartialObjectMeta};
use kube::core::DynamicResourceScope;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::kinds::resource;
use super::scope::Scope;
use super::store::Store;
use crate::config::gateway_api::{Key, Kind, parts_of_secrets};

/// How often it is asked whether a kind is there that was not, or whether a watch is allowed that was not.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// For so long a kind must be gone before its objects are: an API server that has just started does not know all kinds yet.
const GONE_FOR: Duration = Duration::from_secs(20);
/// The pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A failure that comes after so long has nothing to do with the one before.
const LASTING: Duration = Duration::from_secs(60);

/// Keeps the store as the API server is, for as long as it is polled.
pub(super) async fn follow(client: Client, scope: Scope, store: Arc<Store>) {
    let kind = scope.kind.name();
    let mut absence = Absence::default();
    let mut pause = Duration::ZERO;
    loop {
        let began = Instant::now();
        let found = resource(&client, scope.kind).await;
        if !matches!(found, Ok(None)) {
            absence = Absence::default();
        }
        let wait = match found {
            Ok(None) => {
                if absence.lasts(began) || !store.has(&scope) {
                    store.works(&scope, true);
                    store.listed(&scope, &HashSet::new());
                }
                ASK_AGAIN
            }
            Ok(Some(resource)) => {
                let failure = follow_resource(&client, &scope, &resource, &store).await;
                store.works(&scope, false);
                let error = failure.as_ref().map(ToString::to_string).unwrap_or_default();
                match failure.as_ref().and_then(code) {
                    Some(404) => ASK_AGAIN,
                    Some(code @ (401 | 403)) => {
                        if store.deny(&scope, code) {
                            tracing::warn!(
                                kind,
                                namespace = scope.namespace.as_deref(),
                                code,
                                "may not watch: {error}"
                            );
                        }
                        ASK_AGAIN
                    }
                    _ => {
                        tracing::debug!(kind, error, "a watch has failed; its objects are listed anew");
                        pause = next_pause(pause, began.elapsed());
                        pause
                    }
                }
            }
            Err(error) => {
                tracing::debug!(kind, %error, "cannot ask for the kinds there are");
                store.works(&scope, false);
                pause = next_pause(pause, began.elapsed());
                pause
            }
        };
        sleep(wait.mul_f64(jitter())).await;
    }
}

/// For how long a kind has not been there, as far as it was heard without a break.
#[derive(Default)]
struct Absence(Option<Instant>);

impl Absence {
    /// It is not there now. Whether that is so for long enough.
    fn lasts(&mut self, now: Instant) -> bool {
        now.duration_since(*self.0.get_or_insert(now)) > GONE_FOR
    }
}

/// The pause after something has failed that has `lasted` for so long; `before` it there was this one.
fn next_pause(before: Duration, lasted: Duration) -> Duration {
    let pause = if lasted > LASTING { Duration::ZERO } else { before * 2 };
    pause.clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// Lists the objects and watches them, until that fails.
async fn follow_resource(
    client: &Client,
    scope: &Scope,
    resource: &ApiResource,
    store: &Store,
) -> Option<watcher::Error> {
    let config = match &scope.name {
        Some(name) => watcher::Config::default().fields(&format!("metadata.name={name}")),
        None => watcher::Config::default(),
    };
    // Of a pod nothing is read but its labels.
    let events = match scope.kind {
        Kind::Pod => {
            let api: Api<PartialObjectMeta<DynamicObject>> = api_of(client, scope, resource);
            watcher(api, config).map(|event| event.map(of_metadata)).left_stream()
        }
        _ => watcher(api_of::<DynamicObject>(client, scope, resource), config).right_stream(),
    };
    let mut events = std::pin::pin!(events.default_backoff());
    let mut listed = HashSet::new();
    let mut broken: Option<Instant> = None;
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                let (key, value) = stripped(scope.kind, resource, object);
                listed.insert(key.clone());
                store.put(key, value);
            }
            Ok(Event::InitDone) => {
                store.works(scope, true);
                store.listed(scope, &std::mem::take(&mut listed));
            }
            Ok(Event::Apply(object)) => {
                let (key, value) = stripped(scope.kind, resource, object);
                store.put(key, value);
            }
            Ok(Event::Delete(object)) => store.remove(key_of(scope.kind, &object)),
            // A connection has broken, as those to one of several API servers do when that is restarted. The stream begins the
            // watch again where it ended, after a pause, and without a word: of very many objects few are to be listed anew then.
            // If that fails too, there is another error.
            Err(error @ watcher::Error::WatchFailed(_))
                if code(&error).is_none() && broken.is_none_or(|at| at.elapsed() > LASTING) =>
            {
                tracing::debug!(kind = scope.kind.name(), %error, "a watch has broken; it begins again");
                broken = Some(Instant::now());
            }
            Err(error) => return Some(error),
        }
    }
    None
}

/// The status code of an answer that is an error.
fn code(error: &watcher::Error) -> Option<u16> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status.code),
        _ => None,
    }
}

fn api_of<K>(client: &Client, scope: &Scope, resource: &ApiResource) -> Api<K>
where
    K: Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>,
{
    match &scope.namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

fn of_metadata(event: Event<PartialObjectMeta<DynamicObject>>) -> Event<DynamicObject> {
    let object = |object: PartialObjectMeta<DynamicObject>| DynamicObject {
        types: object.types,
        metadata: object.metadata,
        data: Value::Null,
    };
    match event {
        Event::Apply(found) => Event::Apply(object(found)),
        Event::Delete(found) => Event::Delete(object(found)),
        Event::Init => Event::Init,
        Event::InitApply(found) => Event::InitApply(object(found)),
        Event::InitDone => Event::InitDone,
    }
}

fn key_of(kind: Kind, object: &DynamicObject) -> Key {
    Key::new(kind, &object.namespace().unwrap_or_default(), &object.name_any())
}

/// An object without what nobody here reads.
fn stripped(kind: Kind, resource: &ApiResource, object: DynamicObject) -> (Key, Value) {
    let key = key_of(kind, &object);
    let metadata = object.metadata;
    let mut value = object.data;
    if !value.is_object() {
        value = json!({});
    }
    let read: Vec<&str> = match kind {
        Kind::Secret => parts_of_secrets(value["type"].as_str().unwrap_or_default()).collect(),
        Kind::ConfigMap => vec!["ca.crt"],
        _ => Vec::new(),
    };
    if matches!(kind, Kind::Secret | Kind::ConfigMap)
        && let Some(fields) = value.as_object_mut()
    {
        // It is kept in memory and on the disk; whatever else is secret in there is none of this gateway's business.
        fields.remove("binaryData");
        if let Some(data) = fields.get_mut("data").and_then(Value::as_object_mut) {
            data.retain(|name, _| read.contains(&name.as_str()));
        }
    }
    value["apiVersion"] = json!(resource.api_version);
    value["kind"] = json!(resource.kind);
    if kind == Kind::Pod {
        // It changes often, and this seldom.
        value["metadata"] =
            json!({ "name": metadata.name, "namespace": metadata.namespace, "labels": metadata.labels });
        return (key, value);
    }
    value["metadata"] = json!({
        "name": metadata.name,
        "namespace": metadata.namespace,
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "generation": metadata.generation.unwrap_or(0),
        "creationTimestamp": metadata.creation_timestamp,
        "labels": metadata.labels.unwrap_or_default(),
    });
    (key, value)
}

/// Between 0.5 and 1.5, so that many nodes do not ask at once.
fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(0) % 1000;
    0.5 + f64::from(u32::try_from(random).unwrap_or(500)) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_while_it_fails() {
        let mut pause = Duration::ZERO;
        let mut pauses = |lasted: u64| {
            pause = next_pause(pause, Duration::from_secs(lasted));
            pause.as_secs()
        };
        assert_eq!([0, 0, 30, 0, 0, 60].map(&mut pauses), [1, 2, 4, 8, 10, 10]);
        assert_eq!([61, 0].map(&mut pauses), [1, 2]);
    }

    #[test]
    fn a_kind_is_absent_for_long_without_a_break() {
        let start = Instant::now();
        let mut absence = Absence::default();
        let mut lasts = |at: u64| absence.lasts(start + Duration::from_secs(at));
        assert_eq!([0, 5, 20, 21].map(&mut lasts), [false, false, false, true]);
    }
}
