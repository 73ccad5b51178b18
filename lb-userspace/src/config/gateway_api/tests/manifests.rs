use super::*;
use serde_json::Value;
use std::fs;

struct TempDir(std::path::PathBuf);

impl TempDir {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("snisplice-manifests-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

fn read(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let dir = TempDir::new();
    for (name, text) in files {
        fs::write(dir.0.join(name), text).unwrap();
    }
    let Manifests { objects, problems, .. } = Manifests::read(&dir.0, &Settings::default());
    let plain = |text: String| text.replace(&format!("{}/", dir.0.display()), "");
    let objects = objects.iter().map(|(object, at)| plain(format!("{at}: {}", object.key))).collect();
    (objects, problems.iter().map(|problem| plain(problem.to_string())).collect())
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: { name: a }\n";

#[test]
fn documents_lists_and_json() {
    let (objects, problems) = read(&[
        (
            "a.yaml",
            &format!(
                "# a comment\n\n---\n{NAMESPACE}---\n# nothing but this\n--- \n{}",
                NAMESPACE.replace("name: a", "name: b")
            ),
        ),
        ("b.json", r#"{ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "c" } }"#),
        (
            "c.yml",
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: d}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: e}}\n",
        ),
        ("other.txt", "not read"),
        (".hidden.yaml", "not: read"),
        ("kinds.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: { name: x }\n"),
    ]);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(
        objects,
        [
            "a.yaml:4: Namespace a",
            "a.yaml:10: Namespace b",
            "b.json:1: Namespace c",
            "c.yml:1: Namespace d",
            "c.yml:1: Namespace e"
        ]
    );
}

#[test]
fn one_wrong_object_is_left_out_alone() {
    let gateway = |port: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: g, namespace: n }}\nspec:\n  gatewayClassName: edge\n  listeners: [{{ name: l, protocol: TCP, port: {port} }}]\n"
        )
    };
    for (text, expected) in [
        (gateway("x"), "Gateway n/g: spec.listeners[0].port: invalid type: string \\\"x\\\", expected a nonzero u16"),
        (gateway("1").replace("name: l", "name: \"l\\n\""), "Gateway n/g: spec.listeners[0].name: a name has 1 to 253"),
        (gateway("0"), "Gateway n/g: spec.listeners[0].port: invalid value: integer `0`, expected a nonzero u16"),
        ("a: [1\nb: 2\n".to_owned(), "it is not YAML: "),
        ("just text".to_owned(), "it is no object: `apiVersion`, `kind` and `metadata` are missing"),
        ("kind: Namespace\nmetadata: {}\n".to_owned(), ""),
        (NAMESPACE.replace("v1", "v9"), "Namespace a: apiVersion: version `v9` of Namespace is not known, but v1"),
        (NAMESPACE.replace("name: a", "name: A/B"), "Namespace A/B: metadata.name: a name has 1 to 253 lower-case letters, digits, `-` and `.`"),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: r }\nspec: { rules: [] }\n".to_owned(),
            "TLSRoute r: spec.hostnames: a TLSRoute of version v1 has one at least",
        ),
    ] {
        let first = NAMESPACE.replace("name: a", "name: first");
        let (objects, problems) = read(&[("b.yaml", &format!("{first}---\n{text}\n---\n{NAMESPACE}"))]);
        assert_eq!(objects.len(), 2, "{text}: {problems:?}");
        let [problem] = problems.as_slice() else { panic!("{text}: {problems:?}") };
        let (at, said) = problem.split_once(": ").unwrap();
        assert!(said.starts_with(expected), "{said} is not {expected}");
        // A line of the text that is not YAML; of an object its first.
        let line: usize = at.strip_prefix("b.yaml:").unwrap().parse().unwrap();
        assert!(if expected.contains("YAML") { (5..=7).contains(&line) } else { line == 5 }, "{problem}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_stays_one() {
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: { name: p }\n\
                  spec: { targetRefs: [{ group: \"\", kind: Service, name: shop }], validation: { hostname: a.example }, x: 1 }\n";
    for (text, stays) in [
        (policy.replace("targetRefs: [", "targetRefs: [7, "), true),
        (policy.replace("/v1", "/v9"), true),
        // Nobody knows which, or for whom.
        (policy.replace("/v1", "/v9").replace("name: p", "name: P"), false),
        (policy.replace("/v1", "/v9").replace("name: p", "name: p, namespace: 7"), false),
        (policy.replace("{ group: \"\", kind: Service, name: shop }", "7"), false),
    ] {
        let (objects, problems) = read(&[("a.yaml", &text)]);
        let expected: &[&str] = if stays { &["a.yaml:1: BackendTLSPolicy default/p"] } else { &[] };
        assert_eq!(
            (objects.as_slice(), problems.len()),
            (&expected.iter().map(|text| text.to_string()).collect::<Vec<_>>()[..], 1),
            "{text}"
        );
    }
}

#[test]
fn a_secret_is_in_no_message() {
    let text = secret("n", "s");
    let key_line = CERTIFICATE.1.lines().nth(1).unwrap().to_owned();
    for broken in [
        text.replace("tls.key: |", "tls.key:\n    - |"),
        text.replace("kind: Secret", "kind: Secret\n   bad indentation"),
        text.replace("stringData", "data"),
        text.replace("type: kubernetes.io/tls", "type: [kubernetes.io/tls"),
        text.replace("kind: Secret", "kind: Gateway"),
    ] {
        let (_, problems) = read(&[("s.yaml", &broken)]);
        for problem in problems {
            assert!(!problem.contains(&key_line) && !problem.contains("PRIVATE"), "{problem}");
        }
    }
    let object = format!("{:?}", objects(&text).remove(0));
    assert!(!object.contains(&key_line), "{object}");
}

#[test]
fn of_two_objects_with_one_name_the_first_counts() {
    let (objects, problems) = read(&[("a.yaml", NAMESPACE), ("b.yaml", NAMESPACE)]);
    assert_eq!(objects, ["a.yaml:1: Namespace a"]);
    assert_eq!(problems, ["b.yaml:1: Namespace a: it is already in a.yaml:1"]);
}

#[test]
fn a_bomb_does_not_go_off() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (before, name) in "abcdefghijklmn".chars().zip("bcdefghijklmno".chars()) {
        text += &format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 10].join(", "));
    }
    let (objects, problems) = read(&[("a.yaml", &text)]);
    assert_eq!((objects.len(), problems.len()), (0, 1));
}

#[test]
fn what_is_gone_is_forgotten() {
    let dir = TempDir::new();
    let file = dir.0.join("a.yaml");
    fs::write(&file, BASE).unwrap();
    let mut index = Index::new(Settings::default());
    let (places, change) = Manifests::read(&dir.0, &Settings::default()).put_into(&mut index);
    assert_eq!((places.len(), change), (3, Change::All));
    assert_eq!(Manifests::read(&dir.0, &Settings::default()).put_into(&mut index).1, Change::Nothing);
    fs::remove_file(&file).unwrap();
    assert_eq!(Manifests::read(&dir.0, &Settings::default()).put_into(&mut index).1, Change::All);
    assert_eq!(index.keys().count(), 0);
    let missing = Manifests::read(&dir.0.join("missing"), &Settings::default());
    assert_eq!(missing.problems.len(), 1);
}

/// The paths of everything in a value.
fn pointers(value: &Value, path: &str, into: &mut Vec<String>) {
    into.push(path.to_owned());
    match value {
        Value::Object(fields) => fields
            .iter()
            .for_each(|(name, value)| pointers(value, &format!("{path}/{}", name.replace('/', "~1")), into)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| pointers(value, &format!("{path}/{n}"), into))
        }
        _ => {}
    }
}

/// Puts something else into every field of every object, and builds; how many of the objects were read, and refused.
pub(super) fn with_every_field_changed(text: &str, mut index: Index) -> (usize, usize) {
    let documents = || text.split("\n---").filter(|document| !document.trim().is_empty());
    let values: Vec<Value> = documents().map(|document| files::parse(document).unwrap().unwrap()).collect();
    let (mut taken, mut refused) = (0, 0);
    for value in &values {
        let mut all = Vec::new();
        pointers(value, "", &mut all);
        for pointer in all {
            for other in [
                "null",
                "0",
                "-1",
                "65536",
                "true",
                "\"\"",
                "\"x y\"",
                "\"\\u0000\\n\"",
                "[]",
                "[null]",
                "{}",
                "{\"a\":{}}",
            ] {
                let mut value = value.clone();
                *value.pointer_mut(&pointer).unwrap() = serde_json::from_str(other).unwrap_or(Value::Null);
                match Object::read(value) {
                    Ok(Some(object)) => {
                        taken += 1;
                        index.apply(object);
                    }
                    Ok(None) => {}
                    Err(_) => refused += 1,
                }
            }
            made(&mut index);
        }
    }
    (taken, refused)
}

#[test]
fn whatever_stands_in_a_field_nothing_falls_over() {
    let text = BASE.to_owned()
        + &secret("db", "cert")
        + &grant("db", ("Gateway", "db"), "Secret")
        + r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: gw, namespace: db, generation: 3, creationTimestamp: "2026-01-01T00:00:00Z" }
spec:
  gatewayClassName: edge
  addresses: [{ type: IPAddress, value: 192.0.2.1 }]
  allowedListeners: { namespaces: { from: All } }
  tls: { frontend: { default: { validation: { caCertificateRefs: [{ group: "", kind: ConfigMap, name: ca }] } } } }
  listeners:
    - { name: tls, protocol: TLS, port: 443, hostname: "*.example.com", tls: { mode: Terminate, certificateRefs: [{ name: cert }] } }
    - { name: pass, protocol: TLS, port: 443, hostname: a.example.org, tls: { mode: Passthrough }, allowedRoutes: { kinds: [{ kind: TLSRoute }], namespaces: { from: Selector, selector: { matchExpressions: [{ key: a, operator: NotIn, values: [b] }] } } } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: ListenerSet
metadata: { name: set, namespace: db }
spec: { parentRef: { name: gw }, listeners: [{ name: http, protocol: HTTP, port: 80 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: { name: r, namespace: db }
spec:
  parentRefs: [{ name: gw, sectionName: tls, port: 443 }, { kind: ListenerSet, name: set }]
  hostnames: [a.example.com]
  rules: [{ backendRefs: [{ name: redis, port: 6379, weight: 3 }] }]
"#;
    let (taken, refused) = with_every_field_changed(&text, index(&text));
    assert!(taken > 200 && refused > 200, "{taken} and {refused}");
}

#[test]
fn what_cannot_be_read_is_told_so_in_its_status() {
    let gateway = "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: db }\n\
                   spec: { gatewayClassName: edge, listeners: [{ name: tcp, protocol: TCP, port: 7000 }] }";
    let mut index = index(&(BASE.to_owned() + gateway));
    let unread = |text: &str| {
        let value = files::parse(text).unwrap().unwrap();
        let refusal = Object::read(value.clone()).unwrap_err();
        let (kind, name) = (value["kind"].as_str().unwrap(), value["metadata"]["name"].as_str().unwrap());
        let key = Key::new(Kind::of(GROUP, kind).unwrap(), "db", name);
        Object::unread(key, &value, refusal)
    };
    let head = |kind: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
             metadata: {{ name: bad, namespace: db, generation: 3 }}\nspec: "
        )
    };
    let other = "{ name: other }";
    for (kind, spec) in [
        ("TLSRoute", format!("{{ parentRefs: [{{ name: gw, sectionName: tcp }}, {other}, 7] }}")),
        ("Gateway", "{ gatewayClassName: edge, listeners: 7 }".to_owned()),
        ("ListenerSet", "{ parentRef: { name: gw }, listeners: 7 }".to_owned()),
        // Somebody else's.
        ("TCPRoute", format!("{{ parentRefs: [{other}], rules: 7 }}")),
    ] {
        assert_eq!(index.apply(unread(&(head(kind) + &spec)).unwrap()), Change::All);
    }
    assert!(unread(&(head("ReferenceGrant") + "{ from: 7 }")).is_none());
    let (config, statuses) = made(&mut index);
    assert_eq!(config.listeners.len(), 1);
    let of = |kind: Kind, part: Option<&str>| conditions(&statuses, &key(kind, "db/bad"), part);
    assert_eq!(of(Kind::TlsRoute, Some("Gateway gw listener tcp")), ["Accepted=False UnsupportedValue"]);
    for kind in [Kind::Gateway, Kind::ListenerSet] {
        assert_eq!(of(kind, None), ["Accepted=False Invalid", "Programmed=False Invalid"]);
    }
    assert!(!statuses.contains_key(&key(Kind::TcpRoute, "db/bad")));
    let Status::Route(route) = &statuses[&key(Kind::TlsRoute, "db/bad")] else { panic!() };
    assert_eq!(route.parents.len(), 1);
    let condition = &route.parents[0].conditions[0];
    assert_eq!(
        &*condition.message,
        "spec.parentRefs[2]: invalid type: integer `7`, expected struct ParentRef"
    );
    assert_eq!(condition.observed_generation, 3);
}
