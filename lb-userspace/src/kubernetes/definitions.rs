//! Of which version of the Gateway API the cluster's definitions are.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::sleep;

use super::store::Store;
use crate::config::gateway_api::{Definition, Definitions, GROUP};

/// Those of all kinds that are read. The rights of the deployment name each of them.
const NAMES: [&str; 9] = [
    "backendtlspolicies",
    "gatewayclasses",
    "gateways",
    "grpcroutes",
    "httproutes",
    "listenersets",
    "referencegrants",
    "tcproutes",
    "tlsroutes",
];
const VERSION: &str = "gateway.networking.k8s.io/bundle-version";
const CHANNEL: &str = "gateway.networking.k8s.io/channel";
/// How often they are asked for.
const TURN: Duration = Duration::from_secs(60);
/// The same while there is no answer.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Keeps `known` as the cluster's definitions are, for as long as it is polled.
pub(super) async fn follow(client: Client, known: watch::Sender<Definitions>, store: Arc<Store>) {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    loop {
        let pause = match look(&api).await {
            Ok(found) => {
                if *known.borrow() != found {
                    known.send_replace(found);
                    store.note_outside();
                }
                TURN
            }
            Err(error) => {
                tracing::debug!(%error, "cannot read the definitions of the Gateway API's kinds");
                ASK_AGAIN
            }
        };
        sleep(pause).await;
    }
}

async fn look(api: &Api<CustomResourceDefinition>) -> Result<Definitions, kube::Error> {
    let mut found = Definitions::new();
    for name in NAMES {
        // Their schemas are long, and of no interest.
        if let Some(definition) = api.get_metadata_opt(&format!("{name}.{GROUP}")).await? {
            let annotations = definition.annotations();
            let version = annotations.get(VERSION).map(|version| version.as_str().into());
            let is_experimental = annotations.get(CHANNEL).is_some_and(|channel| channel == "experimental");
            found.insert(name.into(), Definition { version, is_experimental });
        }
    }
    Ok(found)
}
