//! What every Redis with TLS needs in the cluster.

use std::fs;

use anyhow::Result;
use snisplice_tests::Leaf;

/// The Secret `redis` with a certificate, and the Service `redis` of the pods with the label `app: redis`.
pub fn secret_and_service(leaf: &Leaf) -> Result<String> {
    let block = |path| -> Result<String> { Ok(fs::read_to_string(path)?.replace('\n', "\n    ")) };
    Ok(format!(
        r#"
apiVersion: v1
kind: Secret
metadata: {{name: redis, namespace: default}}
type: kubernetes.io/tls
stringData:
  tls.crt: |
    {}
  tls.key: |
    {}
---
apiVersion: v1
kind: Service
metadata: {{name: redis, namespace: default}}
spec:
  selector: {{app: redis}}
  ports: [{{name: redis, port: 6379}}]
---
"#,
        block(&leaf.chain)?,
        block(&leaf.key)?
    ))
}
