//! The Service of a Gateway: a name inside the cluster, with the Gateway's addresses as its endpoints.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::kinds::MANAGER;
use crate::config::gateway_api::{GatewayStatus, Key, StatusAddress};

/// The label with the name of the Gateway.
pub(super) const LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// The label with the name of its class.
pub(super) const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";
/// The label by which kube-proxy, and what stands in for it, leaves a Service to somebody else.
pub(super) const PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// The label of an EndpointSlice with the name of its Service.
pub(super) const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// Who looks after the EndpointSlices.
pub(super) const MANAGED_BY: &str = "snisplice.dev";
/// Bytes of a Service's name at most: it is a label of DNS.
const LONGEST_NAME: usize = 63;

/// A Service and its EndpointSlices, one for each family.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Objects {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service: Value,
    slices: Vec<(String, Value)>,
}

impl Objects {
    /// Whether a Service that is there is for the same purpose.
    pub(super) fn is_like(&self, there: &Value) -> bool {
        let label = |service: &Value, label: &str| service["metadata"]["labels"][label].clone();
        let labels = [LABEL, CLASS_LABEL, PROXY_LABEL];
        labels.iter().all(|name| label(there, name) == label(&self.service, name))
    }

    /// Without EndpointSlices.
    pub(super) fn of_service(service: Value) -> Self {
        let text = |field: &str| service["metadata"][field].as_str().unwrap_or_default().to_owned();
        Self { name: text("name"), namespace: text("namespace"), slices: Vec::new(), service }
    }
}

/// What was written last, by the keys of the Services, and for the sake of which Gateway or class.
#[derive(Default)]
pub(super) struct Written(HashMap<Key, (Key, Objects)>);

impl Written {
    pub(super) fn owner(&self, service: &Key) -> Option<&Key> {
        self.0.get(service).map(|(owner, _)| owner)
    }

    pub(super) fn has(&self, service: &Key, objects: &Objects) -> bool {
        self.0.get(service).is_some_and(|(_, known)| known == objects)
    }

    pub(super) fn note(&mut self, service: Key, owner: Key, objects: Objects) {
        self.0.insert(service, (owner, objects));
    }

    /// A Service is gone, or for whose sake it was.
    pub(super) fn forget(&mut self, gone: &Key) {
        self.0.retain(|service, (owner, _)| service != gone && owner != gone);
    }
}

/// The name of a Service. Whoever edits a Gateway may write anything as its class.
pub(super) fn name_of(text: &str, end: &str) -> String {
    let name: String = text.chars().take(LONGEST_NAME - end.len()).collect();
    name.trim_end_matches(['-', '.']).replace('.', "-") + end
}

/// The labels and annotations of `spec.infrastructure`.
pub(super) fn infrastructure(gateway: &Value) -> (BTreeMap<String, Value>, BTreeMap<String, Value>) {
    let of = |field: &str| {
        let texts = gateway["spec"]["infrastructure"][field].as_object().into_iter().flatten();
        texts.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    (of("labels"), of("annotations"))
}

/// What goes with an object, and is removed with it.
pub(super) fn owner(key: &Key, object: &Value) -> Value {
    json!({
        "apiVersion": object["apiVersion"], "kind": key.kind.name(), "name": &*key.name.name,
        "uid": object["metadata"]["uid"],
    })
}

pub(super) fn ports<'p>(numbers: impl IntoIterator<Item = &'p u16>) -> Vec<Value> {
    let port = |number| json!({"name": format!("port-{number}"), "port": number, "protocol": "TCP"});
    numbers.into_iter().map(port).collect()
}

/// What a Gateway, as the API server has it, is to have.
pub(super) fn of(key: &Key, gateway: &Value, status: &GatewayStatus) -> Objects {
    let class = gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default();
    let name = name_of(&format!("{}-{class}", key.name.name), "");
    let (mut labels, annotations) = infrastructure(gateway);
    labels.insert(LABEL.into(), json!(&*key.name.name));
    labels.insert(CLASS_LABEL.into(), json!(class));
    let owner = json!([owner(key, gateway)]);
    let numbers = gateway["spec"]["listeners"].as_array().into_iter().flatten();
    let numbers: BTreeSet<u16> =
        numbers.filter_map(|listener| u16::try_from(listener["port"].as_u64()?).ok()).collect();
    let ports = ports(&numbers);
    let metadata = |name: &str, labels: &BTreeMap<String, Value>| {
        json!({
            "name": name, "namespace": &*key.name.namespace, "labels": labels, "annotations": annotations,
            "ownerReferences": owner,
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(&name, &labels),
        "spec": {"clusterIP": "None", "type": "ClusterIP", "ports": ports},
    });
    let slice = |family: &str| {
        let addresses = status.addresses.iter().filter_map(StatusAddress::ip);
        let addresses = addresses.filter(|address| address.is_ipv4() == (family == "IPv4"));
        let endpoints: Vec<Value> =
            addresses.map(|address| json!({"addresses": [address], "conditions": {"ready": true}})).collect();
        let slice_name = format!("{name}-{}", family.to_ascii_lowercase());
        let mut labels = labels.clone();
        labels.insert(SERVICE_LABEL.into(), json!(name));
        labels.insert("endpointslice.kubernetes.io/managed-by".into(), json!(MANAGED_BY));
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": metadata(&slice_name, &labels),
            "addressType": family, "endpoints": endpoints, "ports": ports,
        });
        (slice_name, slice)
    };
    let slices = ["IPv4", "IPv6"].map(slice).into();
    Objects { namespace: key.name.namespace.to_string(), service, slices, name }
}

/// Writes them.
pub(super) async fn write(client: &Client, objects: &Objects) -> Result<(), kube::Error> {
    let ours = PatchParams::apply(MANAGER).force();
    let services: Api<Service> = Api::namespaced(client.clone(), &objects.namespace);
    services.patch(&objects.name, &ours, &Patch::Apply(&objects.service)).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), &objects.namespace);
    for (name, slice) in &objects.slices {
        slices.patch(name, &ours, &Patch::Apply(slice)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gateway_api::Kind;

    #[test]
    fn what_was_written_is_forgotten_with_the_service_and_with_its_gateway() {
        let (service, gateway) = (Key::new(Kind::Service, "ns", "a"), Key::new(Kind::Gateway, "ns", "a"));
        for gone in [&service, &gateway] {
            let mut written = Written::default();
            written.note(service.clone(), gateway.clone(), Objects::of_service(json!({})));
            written.forget(&Key::new(Kind::Service, "ns", "b"));
            assert_eq!(written.owner(&service), Some(&gateway));
            written.forget(gone);
            assert!(written.0.is_empty());
        }
    }

    #[test]
    fn a_class_of_any_letters_makes_a_name() {
        assert_eq!(name_of("shop-edge.example", ""), "shop-edge-example");
        assert_eq!(name_of(&"é".repeat(100), "-lb").chars().count(), LONGEST_NAME);
    }
}
