//! How the API server is reached, and as whom.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::client::proxy::matcher::Matcher;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use sha2::{Digest as _, Sha256};

/// A connection on which nothing arrives for so long is lost: on a watch there is a bookmark every minute.
const LONGEST_SILENCE: Duration = Duration::from_secs(180);

/// By a kubeconfig or, without one, as the service account of the pod. Nothing is asked yet.
pub(super) async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("gateway_api.kubeconfig: {}", path.display()))?;
            let names_proxy = names_proxy(&kubeconfig);
            let options = KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            // It comes from the environment, of which kube reads HTTPS_PROXY alone.
            if !names_proxy && Matcher::from_env().intercept(&config.cluster_url).is_none() {
                config.proxy_url = None;
            }
            config
        }
        None => kube::Config::incluster().context(
            "no API server: this is no pod with a service account, and gateway_api.kubeconfig names no file",
        )?,
    };
    config.read_timeout = Some(LONGEST_SILENCE);
    // Whoever asks does so again at a pace of its own. Within a request this would go on for minutes.
    config.default_retry = false;
    Client::try_from(config).context("the API server's configuration")
}

/// Whether the cluster that is asked has a `proxy-url`.
fn names_proxy(kubeconfig: &Kubeconfig) -> bool {
    let context = kubeconfig.contexts.iter().find(|it| Some(&it.name) == kubeconfig.current_context.as_ref());
    let Some(context) = context.and_then(|it| it.context.as_ref()) else { return false };
    let cluster = kubeconfig.clusters.iter().find(|it| it.name == context.cluster);
    let proxy = cluster.and_then(|it| it.cluster.as_ref()?.proxy_url.as_ref());
    proxy.is_some_and(|proxy| !proxy.is_empty())
}

/// A digest of a kubeconfig and of the certificates and keys that it names. Whoever reads it to follow it says what is wrong with it.
pub fn digest(kubeconfig: &Path) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut add = |path: &Path| digest.update(Sha256::digest(fs::read(path).unwrap_or_default()));
    add(kubeconfig);
    if let Ok(Kubeconfig { clusters, auth_infos, .. }) = Kubeconfig::read_from(kubeconfig) {
        // Files of tokens are read again by kube itself.
        let authorities = clusters.into_iter().filter_map(|it| it.cluster?.certificate_authority);
        let users = auth_infos.into_iter().filter_map(|it| it.auth_info);
        let pairs = users.flat_map(|user| [user.client_certificate, user.client_key]).flatten();
        authorities.chain(pairs).for_each(|path| add(path.as_ref()));
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fake::TempDir;
    use serde_json::json;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufStream};
    use tokio::net::TcpListener;

    /// One of a cluster and a user with these fields.
    fn kubeconfig(cluster: serde_json::Value, user: serde_json::Value) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "clusters": [{"name": "a", "cluster": cluster}], "users": [{"name": "a", "user": user}],
        })
        .to_string()
    }

    /// What a client hears that asks for the groups once, and the first lines of what it sends, each of which gets the next answer.
    async fn asked(
        cluster: serde_json::Value,
        answers: &'static [&str],
    ) -> (Result<usize, String>, Vec<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let by_server = seen.clone();
        tokio::spawn(async move {
            let mut stream = BufStream::new(listener.accept().await.unwrap().0);
            for answer in answers {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                by_server.lock().unwrap().push(line.trim().to_owned());
                while line != "\r\n" {
                    line.clear();
                    stream.read_line(&mut line).await.unwrap();
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
            }
            // Kept open.
            stream.read_line(&mut String::new()).await.unwrap();
        });
        let dir = TempDir::new();
        let file = dir.path().join("kubeconfig");
        fs::write(&file, kubeconfig(cluster, json!({})).replace("ADDRESS", &address)).unwrap();
        let groups = client(Some(&file)).await.unwrap().list_api_groups().await;
        let seen = seen.lock().unwrap().clone();
        (groups.map(|list| list.groups.len()).map_err(|error| error.to_string()), seen)
    }

    const GROUPS: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"groups\":[]}";

    #[tokio::test]
    async fn a_request_that_fails_is_left_to_who_asks() {
        const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";
        let (heard, seen) = asked(json!({"server": "http://ADDRESS"}), &[BUSY, GROUPS]).await;
        assert!(heard.is_err(), "{heard:?}");
        assert_eq!(seen, ["GET /apis HTTP/1.1"]);
    }

    #[tokio::test]
    async fn a_proxy_is_used_that_the_kubeconfig_names() {
        const TUNNEL: &str = "HTTP/1.1 200 OK\r\n\r\n";
        let cluster = json!({"server": "http://cluster.example:6443", "proxy-url": "http://ADDRESS"});
        let (heard, seen) = asked(cluster, &[TUNNEL, GROUPS]).await;
        assert_eq!(heard, Ok(0));
        assert_eq!(seen, ["CONNECT cluster.example:6443 HTTP/1.1", "GET /apis HTTP/1.1"]);
    }

    #[test]
    fn other_content_is_another_digest() {
        let dir = TempDir::new();
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
        let user = json!({"client-certificate": "certificate", "client-key": path("key")});
        write("kubeconfig", &kubeconfig(json!({"certificate-authority": "authority"}), user));
        let mut before = digest(&path("kubeconfig"));
        assert_eq!(digest(&path("kubeconfig")), before);
        for name in ["authority", "certificate", "key", "kubeconfig"] {
            write(name, "other");
            let after = digest(&path("kubeconfig"));
            assert_ne!(after, before, "{name}");
            before = after;
        }
    }
}
