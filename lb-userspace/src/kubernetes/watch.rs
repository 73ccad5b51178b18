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

/// Keeps the store as the API server is, for as long as it is polled.
pub(super) async fn follow(client: Client, scope: Scope, store: Arc<Store>) {
    let mut absent_since: Option<Instant> = None;
    loop {
        match resource(&client, scope.kind).await {
            Ok(Some(resource)) => {
                absent_since = None;
                follow_resource(&client, &scope, &resource, &store).await;
            }
            Ok(None) => {
                let since = *absent_since.get_or_insert_with(Instant::now);
                if !store.has(&scope) || since.elapsed() > GONE_FOR {
                    store.listed(&scope, &HashSet::new());
                    store.works(&scope, true);
                }
            }
            Err(error) => {
                tracing::debug!(kind = scope.kind.name(), %error, "cannot ask for the kinds there are");
                store.works(&scope, false);
            }
        }
        sleep(ASK_AGAIN.mul_f64(jitter())).await;
    }
}

/// Returns when the kind is not there any more in this version, or may not be looked at.
async fn follow_resource(client: &Client, scope: &Scope, resource: &ApiResource, store: &Store) {
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
    while let Some(event) = events.next().await {
        store.works(scope, event.is_ok());
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                let (key, value) = stripped(scope.kind, resource, object);
                listed.insert(key.clone());
                store.put(key, value);
            }
            Ok(Event::InitDone) => store.listed(scope, &std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => {
                let (key, value) = stripped(scope.kind, resource, object);
                store.put(key, value);
            }
            Ok(Event::Delete(object)) => store.remove(key_of(scope.kind, &object)),
            Err(error) => {
                let kind = scope.kind.name();
                match code(&error) {
                    Some(404) => return,
                    Some(code @ (401 | 403)) => {
                        if store.deny(scope, code) {
                            tracing::warn!(
                                kind,
                                namespace = scope.namespace.as_deref(),
                                code,
                                "may not watch: {error}"
                            );
                        }
                        return;
                    }
                    _ => tracing::debug!(kind, %error, "a watch has ended; it begins again"),
                }
            }
        }
    }
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
