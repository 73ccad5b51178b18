//! Listeners come and go, are told apart on one port, and ask clients for certificates.

use std::io::{Read, Write};
use std::net::TcpListener;

use anyhow::{Result, ensure};
use snisplice_tests::backend::{Backend, echo};
use snisplice_tests::{Redis, eventually};

use super::*;
use crate::openssl::SClient;
use crate::world::World;

/// A Gateway with TCP listeners on these ports, and a route for all of them.
fn tcp(name: &str, ports: &[u16]) -> String {
    let listeners: Vec<_> =
        ports.iter().map(|port| format!("{{ name: tcp-{port}, protocol: TCP, port: {port} }}")).collect();
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: {name}, namespace: db }}\n\
         spec: {{ gatewayClassName: edge, listeners: [{}] }}\n\
         ---\napiVersion: gateway.networking.k8s.io/v1\nkind: TCPRoute\nmetadata: {{ name: {name}, namespace: db }}\n\
         spec: {{ parentRefs: [{{ name: {name} }}], rules: [{{ backendRefs: [{{ name: app, port: 1 }}] }}] }}\n",
        listeners.join(", ")
    )
}

fn service(port: u16) -> String {
    "---\napiVersion: v1\nkind: Service\nmetadata: { name: app, namespace: db }\nspec: { ports: [{ name: x, port: 1 }] }\n".to_owned()
        + &slice("db/app", "x", port, &[ready(SERVER)])
}

fn echoes(stream: &mut std::net::TcpStream) -> Result<()> {
    stream.write_all(b"x")?;
    let mut back = [0];
    stream.read_exact(&mut back)?;
    ensure!(&back == b"x");
    Ok(())
}

#[test]
fn come_and_go_and_touch_nobody_else() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, echo)?;
    let manifests = Manifests::new(None)?;
    manifests.write("service.yaml", &service(7001))?;
    manifests.write("one.yaml", &tcp("one", &[8001]))?;
    let gateway = manifests.serve(&world)?;
    let mut open = world.connect(8001)?;
    echoes(&mut open)?;
    manifests.write("two.yaml", &tcp("two", &[8002, 8003]))?;
    let mut second = eventually("the new listener", || world.connect(8003).ok())?;
    echoes(&mut second)?;
    echoes(&mut open)?;
    manifests.write("two.yaml", &tcp("two", &[8002]))?;
    eventually("its end", || world.connect(8003).is_err().then_some(()))?;
    // Whoever came in by it stays.
    echoes(&mut second)?;
    echoes(&mut open)?;
    echoes(&mut world.connect(8002)?)?;
    assert_eq!(gateway.status()?.listener("gateway:8001", "total"), 1);
    // Both families.
    let stream = crate::world::dial(&world.net.client, "[fd00:1::1]:8002".parse()?);
    echoes(&mut stream?)
}

#[test]
fn a_port_that_another_program_has_is_that_listeners_fault_alone() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, echo)?;
    let other = world.net.gateway.run(|| TcpListener::bind("0.0.0.0:8002"))?;
    let manifests = Manifests::new(None)?;
    manifests.write("service.yaml", &service(7001))?;
    manifests.write("gateways.yaml", &(tcp("one", &[8001]) + &tcp("two", &[8002, 8003])))?;
    let gateway = manifests.serve(&world)?;
    for port in [8001, 8003] {
        echoes(&mut world.connect(port)?)?;
    }
    let listener = |object: &Value| conditions(&object["status"]["listeners"][0]["conditions"]);
    let object = wait_object(&gateway, "Gateway", "two", "the port", |object| {
        listener(object).first().is_some_and(|first| first == "Accepted=False PortUnavailable")
    })?;
    assert!(object.to_string().contains("cannot listen on 0.0.0.0:8002"), "{object}");
    assert_eq!(conditions(&object["status"]["conditions"])[0], "Accepted=True ListenersNotValid");
    // It is asked for again.
    drop(other);
    let mut stream = eventually("the port", || {
        let mut stream = world.connect(8002).ok()?;
        echoes(&mut stream).ok()?;
        Some(stream)
    })?;
    echoes(&mut stream)?;
    wait_object(&gateway, "Gateway", "two", "the port again", |object| {
        listener(object)[0] == "Accepted=True Accepted"
    })?;
    Ok(())
}

#[test]
fn ports_of_the_file_are_not_for_gateways() -> Result<()> {
    let world = World::new()?;
    let _app = Backend::start(&world.net.server, 7001, echo)?;
    let manifests = Manifests::new(None)?;
    manifests.write("all.yaml", &(service(7001) + &tcp("gw", &[443, 8001])))?;
    let gateway = world.gateway(&(manifests.config("") + &crate::config::one_route()))?;
    echoes(&mut world.connect(8001)?)?;
    let object = wait_object(&gateway, "Gateway", "gw", "the port", |object| object["status"].is_object())?;
    assert!(
        object.to_string().contains("the listener databases of the configuration file has it"),
        "{object}"
    );
    Ok(())
}

#[test]
fn clients_show_certificates_where_the_gateway_asks_for_them() -> Result<()> {
    let world = World::new()?;
    let redis = Redis::plain(&world.net.server, 7001)?;
    let leaf = world.authority.leaf(&["app.example.com"])?;
    let client = world.authority.leaf(&["client"])?;
    let stranger = snisplice_tests::Authority::new("another")?;
    let other = stranger.leaf(&["client"])?;
    let manifests = Manifests::new(None)?;
    let authority = fs::read_to_string(&world.authority.path)?;
    let authority: String = authority.lines().map(|line| format!("    {line}\n")).collect();
    let gateway = |mode: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: gw, namespace: db }}\n\
             spec:\n  gatewayClassName: edge\n  tls: {{ frontend: {{ default: {{ validation: {{ {mode}caCertificateRefs: [{{ group: \"\", kind: ConfigMap, name: ca }}] }} }} }} }}\n  \
             listeners: [{{ name: tls, protocol: TLS, port: 443, tls: {{ certificateRefs: [{{ name: app }}] }} }}]\n\
             ---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: ca, namespace: db }}\ndata:\n  ca.crt: |\n{authority}\
             ---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{ name: app, namespace: db }}\n\
             spec: {{ parentRefs: [{{ name: gw }}], hostnames: [app.example.com], rules: [{{ backendRefs: [{{ name: app, port: 1 }}] }}] }}\n"
        )
    };
    manifests.write("service.yaml", &(service(redis.port) + &secret("db/app", &leaf)?))?;
    manifests.write("gateway.yaml", &gateway(""))?;
    let running = manifests.serve(&world)?;
    let reached = |leaf: Option<&Leaf>| -> Result<bool> {
        let mut args: Vec<std::ffi::OsString> = vec!["-quiet".into()];
        if let Some(leaf) = leaf {
            args.extend(["-cert".into(), leaf.chain.clone().into(), "-key".into(), leaf.key.clone().into()]);
        }
        let mut session = SClient::start(&world, "app.example.com", args)?;
        // It may be gone already.
        let _ = session.type_in("ping\r\n");
        eventually("an answer or an end", || {
            let output = session.output();
            let refused = output.contains("alert") || output.contains("errno");
            (refused || output.contains("+PONG")).then_some(!refused)
        })
    };
    assert!(reached(Some(&client))?);
    assert!(!reached(None)?);
    assert!(!reached(Some(&other))?);
    manifests.write("gateway.yaml", &gateway("mode: AllowInsecureFallback, "))?;
    wait_object(&running, "Gateway", "gw", "its warning", |object| {
        conditions(&object["status"]["conditions"])
            .contains(&"InsecureFrontendValidationMode=True ConfigurationChanged".to_owned())
    })?;
    for leaf in [Some(&client), Some(&other), None] {
        assert!(reached(leaf)?);
    }
    Ok(())
}
