//! How kinds of objects are asked for and written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::api::ApiResource;

use crate::config::gateway_api::Kind;

/// Who we are to server-side apply.
pub(super) const MANAGER: &str = "snisplice";

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
    for version in kind.versions() {
        let list = match client.list_api_group_resources(&format!("{group}/{version}")).await {
            Ok(list) => list,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        let is_it = |resource: &&APIResource| resource.kind == kind.name() && !resource.name.contains('/');
        if let Some(found) = list.resources.iter().find(is_it) {
            let gvk = kube::api::GroupVersionKind::gvk(group, version, kind.name());
            return Ok(Some(ApiResource::from_gvk_with_plural(&gvk, &found.name)));
        }
    }
    Ok(None)
}
