//! How kinds of objects are asked for and written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource};
use kube::Client;
use kube::api::ApiResource;
use kube::error::DiscoveryError;
use std::time::Duration;

use crate::config::gateway_api::Kind;

/// Who we are to server-side apply.
pub(super) const MANAGER: &str = "snisplice";

/// How long the API server may take for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How a kind is asked for, in the best version that the API server has; `None`: it has none.
pub(super) async fn resource(client: &Client, kind: Kind) -> Result<Option<ApiResource>, kube::Error> {
    let group = kind.group();
    let plural = match kind {
        Kind::Namespace => Some("namespaces"),
        Kind::Service => Some("services"),
        Kind::EndpointSlice => Some("endpointslices"),
        Kind::Secret => Some("secrets"),
        Kind::ConfigMap => Some("configmaps"),
        Kind::Pod => Some("pods"),
        // These are defined in the cluster, or not.
        _ => None,
    };
    if let Some(plural) = plural {
        let gvk = kube::api::GroupVersionKind::gvk(group, "v1", kind.name());
        return Ok(Some(ApiResource::from_gvk_with_plural(&gvk, plural)));
    }
    let (mut absent, mut missing) = (Vec::new(), None);
    for version in kind.versions() {
        let group_version = format!("{group}/{version}");
        let list = match client.list_api_group_resources(&group_version).await {
            Ok(list) if list.group_version == group_version => list,
            Ok(_) => return Err(kube::Error::Discovery(DiscoveryError::EmptyApiGroup(group_version))),
            Err(error) if is_missing(&error) => {
                absent.push(*version);
                missing = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let is_it = |resource: &&APIResource| resource.kind == kind.name() && !resource.name.contains('/');
        if let Some(found) = list.resources.iter().find(is_it) {
            let gvk = kube::api::GroupVersionKind::gvk(group, version, kind.name());
            return Ok(Some(ApiResource::from_gvk_with_plural(&gvk, &found.name)));
        }
    }
    match missing {
        // It may be a proxy before the API server that has nothing at all.
        Some(missing) => match client.list_api_groups().await {
            Ok(groups) if !lack(&groups, group, &absent) => Err(missing),
            Ok(_) => Ok(None),
            // Who may not ask for all groups has to believe it.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
            Err(error) => Err(error),
        },
        None => Ok(None),
    }
}

/// Whether an answer is that there is no such thing.
pub(super) fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether these groups are those of an API server, and a group does not have any of these versions.
fn lack(groups: &APIGroupList, group: &str, versions: &[&str]) -> bool {
    let is_there = groups
        .groups
        .iter()
        .filter(|there| there.name == group)
        .any(|there| there.versions.iter().any(|version| versions.contains(&&*version.version)));
    !groups.groups.is_empty() && !is_there
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{StatusCode, Uri};
    use serde_json::{Value, json};

    /// A client of something that answers with JSON at these paths, and with 404 elsewhere.
    async fn client(answers: Vec<(&'static str, Value)>) -> Client {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let answer = async move |uri: Uri| match answers.iter().find(|(path, _)| *path == uri.path()) {
            Some((_, answer)) => (StatusCode::OK, answer.to_string()),
            None => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        };
        let router = Router::new().fallback(answer);
        tokio::spawn(crate::admin::http::serve_router(std::time::Duration::from_secs(60), listener, router));
        Client::try_from(kube::Config::new(server.parse().unwrap())).unwrap()
    }

    #[tokio::test]
    async fn a_kind_is_gone_only_if_the_api_server_says_so() {
        const GROUP: &str = "/apis/gateway.networking.k8s.io";
        let groups = |versions: &[&str]| {
            let version = |version: &&str| json!({"version": version, "groupVersion": format!("gateway.networking.k8s.io/{version}")});
            let versions: Vec<Value> = versions.iter().map(version).collect();
            let apps = json!({"name": "apps", "versions": [{"version": "v1", "groupVersion": "apps/v1"}]});
            let group = json!({"name": "gateway.networking.k8s.io", "versions": versions});
            let groups = if versions.is_empty() { json!([apps]) } else { json!([apps, group]) };
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        };
        let resources = |version: &str, kinds: Value| {
            json!({
                "kind": "APIResourceList", "apiVersion": "v1", "resources": kinds,
                "groupVersion": format!("gateway.networking.k8s.io/{version}"),
            })
        };
        let gateway = json!({"name": "gateways", "singularName": "", "namespaced": true, "kind": "Gateway", "verbs": []});
        let v1: &'static str = format!("{GROUP}/v1").leak();
        let of = async |answers| {
            let found = resource(&client(answers).await, Kind::Gateway).await;
            found.map(|found| found.map(|resource| resource.plural)).map_err(|error| error.to_string())
        };
        let found = of(vec![(v1, resources("v1", json!([gateway])))]).await;
        assert_eq!(found, Ok(Some("gateways".to_owned())));
        // The group is gone, or the version, or the kind is gone from it.
        assert_eq!(of(vec![("/apis", groups(&[]))]).await, Ok(None));
        assert_eq!(of(vec![("/apis", groups(&["v9"]))]).await, Ok(None));
        let kept = vec![("/apis", groups(&["v1"])), (v1, resources("v1", json!([])))];
        assert_eq!(of(kept).await, Ok(None));
        // Nothing is there, or what is no API server's, or it says both.
        let in_doubt =
            [vec![], vec![("/apis", json!({}))], vec![(v1, json!({}))], vec![("/apis", groups(&["v1"]))]];
        for answers in in_doubt {
            let said = format!("{answers:?}");
            assert!(of(answers).await.is_err(), "{said}");
        }
    }
}
