use super::*;
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
    let Manifests { objects, problems, .. } = Manifests::read(&dir.0);
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
        (gateway("x"), "b.yaml:4: Gateway n/g: spec.listeners[0].port: invalid type: string \\\"x\\\", expected a nonzero u16"),
        (gateway("1").replace("name: l", "name: \"l\\n\""), "b.yaml:4: Gateway n/g: spec.listeners[0].name: a name has 1 to 253"),
        (gateway("0"), "b.yaml:4: Gateway n/g: spec.listeners[0].port: invalid value: integer `0`, expected a nonzero u16"),
        ("a: [1\nb: 2\n".to_owned(), "b.yaml:5: it is not YAML: "),
        ("just text".to_owned(), "b.yaml:4: it is no object: `apiVersion`, `kind` and `metadata` are missing"),
        ("kind: Namespace\nmetadata: {}\n".to_owned(), "b.yaml:4: "),
        (NAMESPACE.replace("v1", "v9"), "b.yaml:4: Namespace a: apiVersion: version `v9` of Namespace is not known, but v1"),
        (NAMESPACE.replace("name: a", "name: A/B"), "b.yaml:4: Namespace A/B: metadata.name: a name has 1 to 253 lower-case letters, digits, `-` and `.`"),
        (
            "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: r }\nspec: { rules: [] }\n".to_owned(),
            "b.yaml:4: TLSRoute r: spec.hostnames: a TLSRoute of version v1 has one at least",
        ),
    ] {
        let text = format!("{NAMESPACE}---\n{text}\n---\n{}", NAMESPACE.replace("name: a", "name: z"));
        // The first document has the name of the object in the test of versions.
        let text = text.replacen("name: a", "name: first", 1);
        let (objects, problems) = read(&[("b.yaml", &text.replacen("---\n", "---\n", 1))]);
        assert_eq!(objects.len(), 2, "{text}: {problems:?}");
        let [problem] = problems.as_slice() else { panic!("{text}: {problems:?}") };
        let at = problem.split(": ").next().unwrap().to_owned();
        let expected_rest = expected.split_once(": ").unwrap().1;
        assert!(at.starts_with("b.yaml:"), "{problem}");
        assert!(problem.contains(expected_rest), "{problem} has not {expected_rest}");
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
    let (places, change) = Manifests::read(&dir.0).put_into(&mut index);
    assert_eq!((places.len(), change), (3, Change::All));
    assert_eq!(Manifests::read(&dir.0).put_into(&mut index).1, Change::Nothing);
    fs::remove_file(&file).unwrap();
    assert_eq!(Manifests::read(&dir.0).put_into(&mut index).1, Change::All);
    assert_eq!(index.keys().count(), 0);
    let missing = Manifests::read(&dir.0.join("missing"));
    assert_eq!(missing.problems.len(), 1);
}
