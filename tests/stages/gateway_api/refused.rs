//! What is wrong is refused alone, and clients are refused without a word.

use std::io::Read;

use anyhow::{Result, ensure};
use snisplice_tests::backend::{Backend, naming};
use snisplice_tests::eventually;
use snisplice_tests::gateway::binary;

use super::*;
use crate::world::World;

const GOOD: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: gw, namespace: db }\n\
    spec:\n  gatewayClassName: edge\n  listeners:\n    - { name: tls, protocol: TLS, port: 443, tls: { mode: Passthrough } }\n\
    ---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: { name: app, namespace: db }\n\
    spec:\n  parentRefs: [{ name: gw }]\n  hostnames: [app.example.com]\n  rules: [{ backendRefs: [{ name: app, port: 1 }] }]\n\
    ---\napiVersion: v1\nkind: Service\nmetadata: { name: app, namespace: db }\nspec: { ports: [{ name: x, port: 1 }] }\n";

const BROKEN: &str = "# somebody's mistake\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
    metadata: { name: broken, namespace: db }\nspec: { gatewayClassName: edge, listeners: [{ name: a, port: x, protocol: TCP }] }\n";

fn manifests() -> Result<Manifests> {
    let manifests = Manifests::new(None)?;
    manifests.write("app.yaml", &(GOOD.to_owned() + &slice("db/app", "x", 7001, &[ready(SERVER)])))?;
    Ok(manifests)
}

#[test]
fn a_broken_object_is_refused_alone_and_told() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, naming("app"))?;
    let manifests = manifests()?;
    let gateway = manifests.serve(&world)?;
    manifests.write("broken.yaml", BROKEN)?;
    let object =
        wait_object(&gateway, "Gateway", "broken", "its refusal", |object| object["refused"].is_string())?;
    let place = manifests.0.join("broken.yaml");
    assert_eq!(object["place"], format!("{}:2", place.display()));
    let refused = object["refused"].as_str().unwrap_or_default().to_owned();
    assert!(refused.starts_with("spec.listeners[0].port: "), "{refused}");
    assert_eq!(world.ask("app.example.com")?, "app");
    let text = String::from_utf8(gateway.cli(["objects"])?.stdout)?;
    let expected =
        format!("Gateway db/broken  ({}:2)\n  NOT TAKEN: spec.listeners[0].port: ", place.display());
    assert!(text.starts_with(&expected), "{text}");
    assert!(
        text.contains("TLSRoute db/app")
            && text.contains("  Parent Gateway gw\n    Accepted       True   Accepted\n"),
        "{text}"
    );
    let status = String::from_utf8(gateway.cli(["status"])?.stdout)?;
    assert!(status.contains("5 objects of the Gateway API, 1 not taken, 0 with something amiss"), "{status}");
    // A file that is not YAML at all is refused as a document.
    manifests.write("broken.yaml", "a: [\n")?;
    eventually("the other refusal", || {
        let objects = objects(&gateway).ok()?;
        objects
            .iter()
            .any(|object| object["refused"].as_str().is_some_and(|why| why.starts_with("it is not YAML")))
            .then_some(())
    })?;
    assert_eq!(world.ask("app.example.com")?, "app");
    manifests.remove("broken.yaml")?;
    eventually("its end", || {
        objects(&gateway).ok()?.iter().all(|object| object["refused"].is_null()).then_some(())
    })?;
    Ok(())
}

#[test]
fn a_file_that_is_broken_meanwhile_does_not_stop_objects() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, naming("app"))?;
    let manifests = manifests()?;
    let gateway = manifests.serve(&world)?;
    gateway.write_config_verbatim("this is no configuration")?;
    ensure!(!gateway.cli(["reload"])?.status.success());
    manifests.write(
        "app.yaml",
        &(GOOD.replace("app.example.com", "other.example.com")
            + &slice("db/app", "x", 7001, &[ready(SERVER)])),
    )?;
    eventually("the other name", || (world.ask("other.example.com").ok()? == "app").then_some(()))?;
    Ok(())
}

#[test]
fn a_reload_takes_the_objects_away_and_brings_them_back() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, naming("app"))?;
    let manifests = manifests()?;
    let gateway = manifests.serve(&world)?;
    assert_eq!(world.ask("app.example.com")?, "app");
    let elsewhere = manifests.config("").replace("tiers = ['copy']", "tiers = ['copy']\n")
        + "namespaces = ['elsewhere']\n";
    gateway.write_config(&elsewhere)?;
    gateway.reload()?;
    // The workers stop listening soon after.
    eventually("its port to be closed", || world.connect(443).is_err().then_some(()))?;
    gateway.write_config(&manifests.config(""))?;
    gateway.reload()?;
    assert_eq!(world.ask("app.example.com")?, "app");
    Ok(())
}

#[test]
fn clients_without_a_route_get_no_alert() -> Result<()> {
    let world = World::new()?;
    let manifests = manifests()?;
    let gateway = manifests.serve(&world)?;
    let mut stream = world.open("unknown.example.com")?;
    let mut bytes = Vec::new();
    // An end or a reset.
    let _ = stream.read_to_end(&mut bytes);
    assert_eq!(bytes, b"");
    gateway.wait_status("its count", |status| status.rejects("gateway:443", "unknown_sni") == 1)?;
    Ok(())
}

#[test]
fn check_takes_a_directory() -> Result<()> {
    let manifests = manifests()?;
    let check = |args: &[&str]| -> Result<(Option<i32>, String, String)> {
        let output = std::process::Command::new(binary()?).arg("check").args(args).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    };
    let directory = manifests.0.path().display().to_string();
    let (code, said, errors) = check(&[&directory])?;
    assert_eq!(
        (code, said),
        (Some(0), format!("{directory}: 1 listener, 1 route, 1 pool: good\n")),
        "{errors}"
    );
    let config = TempDir::new()?;
    let file = config.join("snisplice.toml");
    fs::write(&file, manifests.config(""))?;
    assert_eq!(check(&["-c", &file.display().to_string()])?.0, Some(0));
    manifests.write("broken.yaml", BROKEN)?;
    manifests.write(
        "route.yaml",
        &GOOD
            .split("---\n")
            .nth(2)
            .unwrap_or_default()
            .replace("name: app, namespace", "name: second, namespace")
            .replace("port: 1 }", "port: 9 }"),
    )?;
    for args in [&[directory.as_str()][..], &["-c", &file.display().to_string()]] {
        let (code, _, errors) = check(args)?;
        assert_eq!(code, Some(2), "{errors}");
        assert!(
            errors.contains(&format!(
                "error: {directory}/broken.yaml:2: Gateway db/broken: spec.listeners[0].port: "
            )),
            "{errors}"
        );
        let route = format!(
            "error: {directory}/route.yaml:1: TLSRoute db/second: Gateway gw: ResolvedRefs=False BackendNotFound: Service db/app has no TCP port 9"
        );
        assert!(errors.contains(&route), "{errors}");
    }
    Ok(())
}
