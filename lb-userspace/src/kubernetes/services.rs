//! The Service of a Gateway: a name inside the cluster, with the Gateway's addresses as its endpoints.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use super::kinds::MANAGER;
use crate::config::gateway_api::{GatewayStatus, Key};

/// The label with the name of the Gateway.
pub(super) const LABEL: &str = "gateway.networking.k8s.io/gateway-name";
/// Bytes of a Service's name at most: it is a label of DNS.
const LONGEST_NAME: usize = 63;

/// A Service and its EndpointSlices, one for each family.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Objects {
    pub(super) name: String,
    namespace: String,
    service: Value,
    slices: Vec<(String, Value)>,
}

/// What was written last.
#[derive(Default)]
pub(super) struct Written(HashMap<Key, Objects>);

impl Written {
    pub(super) fn has(&self, gateway: &Key, objects: &Objects) -> bool {
        self.0.get(gateway) == Some(objects)
    }

    pub(super) fn note(&mut self, gateway: &Key, objects: Objects) {
        self.0.insert(gateway.clone(), objects);
    }
}

/// Of its Service. Whoever edits a Gateway may write anything as its class.
fn name_of(gateway: &str, class: &str) -> String {
    let name: String = format!("{gateway}-{class}").chars().take(LONGEST_NAME).collect();
    name.trim_end_matches(['-', '.']).replace('.', "-")
}

/// What a Gateway, as the API server has it, is to have.
pub(super) fn of(key: &Key, gateway: &Value, status: &GatewayStatus) -> Objects {
    let class = gateway["spec"]["gatewayClassName"].as_str().unwrap_or_default();
    let name = name_of(&key.name.name, class);
    let infrastructure = &gateway["spec"]["infrastructure"];
    let texts = |field: &str| -> BTreeMap<String, Value> {
        infrastructure[field].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let mut labels = texts("labels");
    labels.insert(LABEL.into(), json!(&*key.name.name));
    labels.insert("gateway.networking.k8s.io/gateway-class-name".into(), json!(class));
    let annotations = texts("annotations");
    let owner = json!([{
        "apiVersion": gateway["apiVersion"], "kind": "Gateway", "name": &*key.name.name,
        "uid": gateway["metadata"]["uid"],
    }]);
    let numbers = gateway["spec"]["listeners"].as_array().into_iter().flatten();
    let mut numbers: Vec<u64> = numbers.filter_map(|listener| listener["port"].as_u64()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let port = |number: &u64| json!({"name": format!("port-{number}"), "port": number, "protocol": "TCP"});
    let ports: Vec<Value> = numbers.iter().map(port).collect();
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
        let addresses =
            status.addresses.iter().filter(|address| address.value.is_ipv4() == (family == "IPv4"));
        let endpoints: Vec<Value> = addresses
            .map(|address| json!({"addresses": [address.value], "conditions": {"ready": true}}))
            .collect();
        let slice_name = format!("{name}-{}", family.to_ascii_lowercase());
        let mut labels = labels.clone();
        labels.insert("kubernetes.io/service-name".into(), json!(name));
        labels.insert("endpointslice.kubernetes.io/managed-by".into(), json!("snisplice.dev"));
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

    #[test]
    fn a_class_of_any_letters_makes_a_name() {
        assert_eq!(name_of("shop", "edge.example"), "shop-edge-example");
        assert_eq!(name_of("a", &"é".repeat(100)).chars().count(), LONGEST_NAME);
    }
}
