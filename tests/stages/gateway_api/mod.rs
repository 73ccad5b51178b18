//! Objects of the Gateway API: real deployments from a directory, and what changes while they are served.

mod changes;
mod deployments;
mod from_cluster;
mod http;
mod istio;
mod listeners;
mod refused;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use base64ct::{Base64, Encoding};
use serde_json::Value;
use snisplice_tests::certs::Leaf;
use snisplice_tests::{Gateway, Launch, TempDir, eventually};

use crate::world::World;

/// The class that all Gateways of these tests are of.
const CLASS: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: { name: edge }\n\
                     spec: { controllerName: snisplice.dev/gateway }\n";

/// A directory of manifests.
struct Manifests(TempDir);

impl Manifests {
    /// One with the class, and with a deployment's manifests as they stand.
    fn new(deployment: Option<&str>) -> Result<Self> {
        let manifests = Self(TempDir::new()?);
        manifests.write("0-class.yaml", CLASS)?;
        if let Some(name) = deployment {
            manifests.write(name, &deployed(name)?)?;
        }
        Ok(manifests)
    }

    /// Writes a file in one step.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let new = self.0.join(".new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.0.join(name))?)
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.0.join(name))?)
    }

    fn config(&self, more: &str) -> String {
        format!(
            "[gateway]\ntiers = ['copy']\n[gateway_api]\nfrom = 'directory'\ndirectory = '{}'\n{more}\n",
            self.0.path().display()
        )
    }

    fn serve(&self, world: &World) -> Result<Gateway> {
        world.gateway(&self.config(""))
    }

    fn serve_with(&self, world: &World, more: &str, launch: Launch) -> Result<Gateway> {
        Gateway::start_with(&world.net.gateway, &self.config(more), launch)
    }
}

/// The manifests of a deployment.
fn deployed(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/manifests").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// An EndpointSlice with a port of this name, and these endpoints in YAML's flow style.
fn slice(service: &str, name: &str, port: u16, endpoints: &[String]) -> String {
    let (namespace, service) = service.split_once('/').unwrap_or(("default", service));
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{port}\n  namespace: {namespace}\n  \
         labels: {{ kubernetes.io/service-name: {service} }}\naddressType: IPv4\nports: [{{ name: \"{name}\", port: {port} }}]\n\
         endpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// An endpoint that is ready.
fn ready(address: &str) -> String {
    format!("{{ addresses: [{address}] }}")
}

/// The server's own address.
const SERVER: &str = "10.0.2.2";

/// A Secret of the type `kubernetes.io/tls`.
fn secret(name: &str, leaf: &Leaf) -> Result<String> {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let encoded = |path: &Path| -> Result<String> { Ok(Base64::encode_string(&fs::read(path)?)) };
    Ok(format!(
        "---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
         data:\n  tls.crt: {}\n  tls.key: {}\n",
        encoded(&leaf.chain)?,
        encoded(&leaf.key)?
    ))
}

/// `snisplice objects --json`.
fn objects(gateway: &Gateway) -> Result<Vec<Value>> {
    let output = gateway.cli(["objects", "--json"])?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Waits until an object has a property.
fn wait_object(
    gateway: &Gateway,
    kind: &str,
    name: &str,
    what: &str,
    property: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = None;
    let found = eventually(&format!("{kind} {name}: {what}"), || {
        let objects = objects(gateway).ok()?;
        last = objects.into_iter().find(|object| object["kind"] == kind && object["name"] == name);
        last.clone().filter(&property)
    });
    found.with_context(|| format!("the last was {last:?}"))
}

/// `Accepted=True Accepted` and so on, of a list of conditions.
fn conditions(conditions: &Value) -> Vec<String> {
    let list = conditions.as_array().into_iter().flatten();
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    list.map(|each| format!("{}={} {}", text(each, "type"), text(each, "status"), text(each, "reason")))
        .collect()
}
