//! Objects from an API server, and reloads of a configuration that says something else of it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::json;
use snisplice::kernel::addresses;
use snisplice_tests::api_server::{Answer, Object};
use snisplice_tests::backend::{Backend, naming_and_holding};
use snisplice_tests::tls::client_hello;
use snisplice_tests::wait::patience;
use snisplice_tests::{ApiServer, NetNs, Status};

use super::changes::still_open;
use super::*;
use crate::world::dial;

/// What the file has of its own.
const FILE: &str = "[gateway]\ntiers = ['copy']\n[[listener]]\nname = 'own'\nbind = ['0.0.0.0:444']\n[[route]]\nlistener = 'own'\n\
                    sni = ['own.example.com']\nbackends = ['own']\n[[pool]]\nname = 'own'\nservers = ['10.0.2.2:7000']\n";

const PORT: u16 = 443;
/// Where TLS ends.
const TERMINATED: u16 = 8443;

/// What a reload says that was not given all objects in time.
const UNANSWERED: &str = "reload again when it answers";

/// The file with a table for objects of these namespaces, each of which has a Gateway with an address of its own.
fn config(namespaces: &[&str], attach: &str, more: &str) -> String {
    format!(
        "{FILE}[gateway_api]\nfrom = 'cluster'\nkubeconfig = 'kubeconfig'\nmode = 'pool'\naddresses = ['198.51.100.0/28']\n\
         namespaces = {namespaces:?}\nattach = '{attach}'\n{more}\n"
    )
}

/// The address of a namespace's Gateway.
fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, last).into()
}

fn class() -> Object {
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "edge", "uid": "edge"},
        "spec": {"controllerName": "snisplice.dev/gateway"},
    });
    ("gatewayclasses", class)
}

/// A Gateway with an address, and a TLSRoute to the server's port.
fn deployment(namespace: &str, last: u8, server: u16, leaf: &Leaf) -> Result<Vec<Object>> {
    let object = |kind: &str, group: &str, more: Value| {
        let mut object = json!({
            "apiVersion": group, "kind": kind, "metadata": {"name": "app", "namespace": namespace, "uid": kind},
        });
        object.as_object_mut().expect("it is one").extend(more.as_object().cloned().unwrap_or_default());
        object
    };
    let api = "gateway.networking.k8s.io/v1";
    let passed = json!({"name": "passed", "protocol": "TLS", "port": PORT, "tls": {"mode": "Passthrough"}});
    let tls = json!({"mode": "Terminate", "certificateRefs": [{"name": "app"}]});
    let terminated = json!({"name": "terminated", "protocol": "TLS", "port": TERMINATED, "tls": tls});
    let gateway = json!({
        "spec": {"gatewayClassName": "edge", "listeners": [passed, terminated]},
        "status": {"addresses": [{"type": "IPAddress", "value": address(last)}]},
    });
    let route = json!({"spec": {
        "parentRefs": [{"name": "app", "sectionName": "passed"}], "hostnames": ["app.example.com"],
        "rules": [{"backendRefs": [{"name": "app", "port": 1}]}],
    }});
    let mut slice = object(
        "EndpointSlice",
        "discovery.k8s.io/v1",
        json!({
            "addressType": "IPv4", "ports": [{"name": "x", "port": server}], "endpoints": [{"addresses": ["10.0.2.2"]}],
        }),
    );
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": "app"});
    let encoded = |path: &Path| Ok::<_, anyhow::Error>(Base64::encode_string(&fs::read(path)?));
    let pair = json!({"tls.crt": encoded(&leaf.chain)?, "tls.key": encoded(&leaf.key)?});
    let secret = json!({"type": "kubernetes.io/tls", "data": pair});
    Ok(vec![
        ("secrets", object("Secret", "v1", secret)),
        ("gateways", object("Gateway", api, gateway)),
        ("tlsroutes", object("TLSRoute", api, route)),
        ("services", object("Service", "v1", json!({"spec": {"ports": [{"name": "x", "port": 1}]}}))),
        ("endpointslices", slice),
    ])
}

/// A gateway for the namespace `one` of an API server that has `two` as well.
struct Scene {
    gateway: Gateway,
    api: ApiServer,
    _servers: [Backend; 2],
    world: World,
}

impl Scene {
    fn new() -> Result<Self> {
        let world = World::new()?;
        world.net.client.ip("route add 198.51.100.0/28 via 10.0.1.1")?;
        let server = |name, port| Backend::start(&world.net.server, port, naming_and_holding(name));
        let servers = [server("one", 7001)?, server("two", 7002)?];
        let mut objects = vec![class()];
        let leaf = world.authority.leaf(&["app.example.com"])?;
        objects.extend(deployment("one", 1, 7001, &leaf)?);
        objects.extend(deployment("two", 2, 7002, &leaf)?);
        let api = ApiServer::start(&world.net.gateway, objects)?;
        let files = TempDir::new()?;
        std::fs::write(files.join("kubeconfig"), api.kubeconfig())?;
        let text = config(&["one"], "lo", "keep_objects = false");
        let gateway = Gateway::start_in(files, &world.net.gateway, &text, Launch::default())?;
        let scene = Self { gateway, api, _servers: servers, world };
        eventually("the Gateway to serve", || (scene.ask(1).ok()? == "one").then_some(()))?;
        Ok(scene)
    }

    /// A connection to a Gateway's server, which has said its name.
    fn open(&self, last: u8) -> Result<(TcpStream, String)> {
        let mut stream = dial(&self.world.net.client, SocketAddr::new(address(last), PORT))?;
        stream.write_all(&client_hello("app.example.com", &[]))?;
        let mut name = [0; 3];
        stream.read_exact(&mut name)?;
        Ok((stream, String::from_utf8_lossy(&name).into_owned()))
    }

    fn ask(&self, last: u8) -> Result<String> {
        Ok(self.open(last)?.1)
    }

    /// Replaces the configuration; what `snisplice reload` says, if it fails.
    fn reload(&self, config: &str) -> Result<Option<String>> {
        self.gateway.write_config(config)?;
        let output = self.gateway.cli(["reload"])?;
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// Whether a device has an address.
fn has(ns: &NetNs, device: &str, last: u8) -> Result<bool> {
    Ok(ns.ip(&format!("-o addr show dev {device}"))?.contains(&format!(" {}/32", address(last))))
}

#[test]
fn a_reload_that_asks_the_api_server_anew_waits_for_its_objects_and_nobody_is_refused() -> Result<()> {
    let scene = Scene::new()?;
    // What a Gateway names, too: it is asked for only when the Gateway is known.
    let held = ["two", "two/secrets"];
    held.iter().for_each(|of| scene.api.answer(of, Some(Answer::Nothing)));
    let both = config(&["one", "two"], "lo", "keep_objects = false");
    scope(|threads| -> Result<()> {
        let reload = threads.spawn(|| scene.reload(&both));
        for of in held {
            // Far longer than a reload takes.
            for _ in 0..15 {
                ensure!(scene.ask(1)? == "one");
                sleep(Duration::from_millis(50));
            }
            ensure!(!reload.is_finished(), "{of}: {:?}", reload.join());
            scene.api.answer(of, None);
        }
        while !reload.is_finished() {
            ensure!(scene.ask(1)? == "one");
        }
        let failed = reload.join().expect("no panic")?;
        ensure!(failed.is_none(), "{failed:?}");
        Ok(())
    })?;
    dial(&scene.world.net.client, SocketAddr::new(address(2), TERMINATED))?;
    ensure!(scene.ask(1)? == "one" && scene.ask(2)? == "two");
    Ok(())
}

#[test]
fn a_gateway_whose_reload_waits_for_objects_stops_when_it_is_told_to() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.api.answer("two", Some(Answer::Nothing));
    let both = config(&["one", "two"], "lo", "keep_objects = false");
    let failed = scope(|threads| -> Result<_> {
        let reload = threads.spawn(|| scene.reload(&both));
        sleep(Duration::from_millis(500));
        ensure!(!reload.is_finished(), "{:?}", reload.join());
        scene.gateway.process.signal(Signal::SIGTERM)?;
        reload.join().expect("no panic")
    })?;
    // It has not waited to the end of the reload's patience.
    let failed = failed.unwrap_or_default();
    ensure!(!failed.is_empty() && !failed.contains(UNANSWERED), "{failed}");
    ensure!(scene.gateway.process.wait(patience())?.success());
    Ok(())
}

#[test]
fn a_reload_for_whose_objects_nobody_answers_is_refused_and_what_is_in_force_stays() -> Result<()> {
    let scene = Scene::new()?;
    let generation = scene.gateway.status()?.number("/config_generation");
    // Without the right to look into the other namespace.
    scene.api.answer("two", Some(Answer::Forbidden));
    let failed = scene.reload(&config(&["one", "two"], "lo", "keep_objects = false"))?.unwrap_or_default();
    ensure!(
        failed.contains("does not let this gateway watch") && failed.contains("of two (403)"),
        "{failed}"
    );
    ensure!(scene.ask(1)? == "one");

    // An API server that does not answer, and one that is not even named.
    scene.api.answer("one", Some(Answer::Nothing));
    let failed = scene.reload(&config(&["one"], "lo", "keep_objects = true"))?.unwrap_or_default();
    ensure!(failed.contains(UNANSWERED), "{failed}");
    let unnamed = config(&["one"], "lo", "").replace("'kubeconfig'", "'none'");
    let failed = scene.reload(&unnamed)?.unwrap_or_default();
    ensure!(failed.contains("gateway_api.kubeconfig"), "{failed}");

    ensure!(scene.ask(1)? == "one" && has(&scene.world.net.gateway, "lo", 1)?);
    ensure!(scene.gateway.status()?.number("/config_generation") == generation);
    // The settings of before ask for nothing new.
    let failed = scene.reload(&config(&["one"], "lo", "keep_objects = false"))?;
    ensure!(failed.is_none() && scene.ask(1)? == "one", "{failed:?}");
    Ok(())
}

#[test]
fn addresses_go_from_the_device_that_is_not_to_have_them_any_more() -> Result<()> {
    let mut scene = Scene::new()?;
    let ns = scene.world.net.gateway.again()?;
    ns.ip("link add other type bridge")?;
    ns.ip("link set other up")?;
    // Of another gateway, which has been killed, for example, and whose connections go on.
    ns.ip("link add third type bridge")?;
    ns.run(|| addresses::add("third", address(99)))?;
    let on = |device: &str| config(&["one"], device, "keep_objects = false");
    let are_on = |expected: [bool; 2]| {
        eventually(&format!("addresses on lo, other: {expected:?}"), || {
            ([has(&ns, "lo", 1).ok()?, has(&ns, "other", 1).ok()?] == expected).then_some(())
        })
    };
    are_on([true, false])?;
    let (mut open, _) = scene.open(1)?;
    ensure!(scene.reload(&on("other"))?.is_none());
    are_on([false, true])?;
    // It is the machine's still.
    still_open(&mut open)?;
    ensure!(scene.ask(1)? == "one");

    // What a process has left that was killed, or taken over.
    scene.gateway.kill()?;
    scene.gateway.write_config(&on("lo"))?;
    scene.gateway.start_again()?;
    are_on([true, false])?;
    scene.gateway.write_config(&on("other"))?;
    scene.gateway.replace()?;
    are_on([false, true])?;
    ensure!(scene.reload(&on("freebind"))?.is_none());
    are_on([false, false])?;
    ensure!(scene.reload(&on("lo"))?.is_none());
    are_on([true, false])?;

    // Without the table, for as long as a connection needs it.
    let (mut open, _) = scene.open(1)?;
    ensure!(scene.reload(FILE)?.is_none());
    eventually("no new clients", || scene.ask(1).is_err().then_some(()))?;
    sleep(Duration::from_millis(2500));
    still_open(&mut open)?;
    are_on([true, false])?;
    drop(open);
    are_on([false, false])?;

    // And at the end of the process, if a connection is open until then.
    ensure!(scene.reload(&on("lo"))?.is_none());
    eventually("the Gateway to serve", || (scene.ask(1).ok()? == "one").then_some(()))?;
    let _open = scene.open(1)?;
    ensure!(scene.reload(&FILE.replace("tiers", "drain_timeout = '0s'\ntiers"))?.is_none());
    scene.gateway.process.stop()?;
    are_on([false, false])?;
    ensure!(has(&ns, "third", 99)?, "it is another gateway's");
    Ok(())
}

#[test]
fn only_what_is_the_gateways_own_goes_from_its_device() -> Result<()> {
    let mut scene = Scene::new()?;
    let ns = scene.world.net.gateway.again()?;
    let mark = |last| ns.run(|| addresses::add("lo", address(last)));
    let listen = |last| ns.run(|| TcpListener::bind((address(last), 4440)));
    let stay = |more: &[u8]| -> Result<()> {
        for last in [3, 99].iter().chain(more) {
            ensure!(has(&ns, "lo", *last)?, "{last} has gone");
        }
        Ok(())
    };
    // It has no file, as if it started for the first time: beside another one, which listens on 3, and with 99, which Gateways
    // cannot have here.
    scene.gateway.process.stop()?;
    fs::remove_file(scene.gateway.file("state/attached"))?;
    for last in [3, 4, 99] {
        mark(last)?;
    }
    let _other = listen(3)?;
    scene.gateway.start_again()?;
    eventually("the Gateway to serve", || (scene.ask(1).ok()? == "one").then_some(()))?;
    // Nobody listens there: an earlier process has left it.
    eventually("what was left to be gone", || (!has(&ns, "lo", 4).ok()?).then_some(()))?;
    stay(&[])?;

    // With the file, nothing but what is in there is its own.
    mark(4)?;
    ensure!(scene.reload(&config(&["one"], "lo", "keep_objects = true"))?.is_none());
    // Long enough for more than one look.
    sleep(Duration::from_millis(2500));
    stay(&[1, 4])?;
    scene.gateway.kill()?;
    scene.gateway.start_again()?;
    eventually("the Gateway to serve", || (scene.ask(1).ok()? == "one").then_some(()))?;
    stay(&[1, 4])?;
    // What the other one listens on, this one leaves, too.
    let _other = listen(1)?;
    scene.gateway.process.stop()?;
    stay(&[1, 4])
}

#[test]
fn an_address_that_its_device_has_lost_comes_back() -> Result<()> {
    let scene = Scene::new()?;
    let ns = &scene.world.net.gateway;
    ns.ip(&format!("addr del {}/32 dev lo", address(1)))?;
    eventually("the Gateway to serve again", || (scene.ask(1).ok()? == "one").then_some(()))?;
    let log = scene.gateway.process.stderr();
    ensure!(log.contains("the device had lost it, and has it again"), "{log}");
    ensure!(has(ns, "lo", 1)?);
    Ok(())
}

#[test]
fn a_watch_that_breaks_and_does_not_begin_at_once_is_not_taken_for_broken_for_ever() -> Result<()> {
    let scene = Scene::new()?;
    let is_current = |status: &Status| status.0.get("objects_stale_since").is_none();
    scene.gateway.wait_status("the API server to be followed", is_current)?;
    scene.api.break_watches(1);
    eventually("the watches to begin again", || scene.api.are_watched_again().then_some(()))?;
    // On none of them anything comes.
    scene.gateway.wait_status("the API server to be followed again", is_current)?;
    Ok(())
}

#[test]
fn addresses_stay_with_a_successor_that_has_not_taken_over_yet() -> Result<()> {
    let mut scene = Scene::new()?;
    let (open, _) = scene.open(1)?;
    scene.gateway.process.signal(Signal::SIGTERM)?;
    eventually("no new clients", || scene.ask(1).is_err().then_some(()))?;
    let _half = scene.gateway.half_successor()?;
    drop(open);
    // Far longer than it takes to notice.
    sleep(Duration::from_millis(600));
    ensure!(scene.gateway.process.is_running(), "{}", scene.gateway.process.output());
    scene.gateway.process.signal(Signal::SIGTERM)?;
    ensure!(scene.gateway.process.wait(patience())?.success());
    ensure!(has(&scene.world.net.gateway, "lo", 1)?);
    Ok(())
}

#[test]
fn a_reload_follows_what_the_kubeconfig_says_by_then() -> Result<()> {
    let scene = Scene::new()?;
    let mut objects = vec![class()];
    objects.extend(deployment("one", 1, 7002, &scene.world.authority.leaf(&["app.example.com"])?)?);
    let other = ApiServer::start(&scene.world.net.gateway, objects)?;
    fs::write(scene.gateway.config_file().with_file_name("kubeconfig"), other.kubeconfig())?;
    let failed = scene.reload(&config(&["one"], "lo", "keep_objects = false"))?;
    ensure!(failed.is_none(), "{failed:?}");
    eventually("the other API server's objects", || (scene.ask(1).ok()? == "two").then_some(()))
}

#[test]
fn who_writes_statuses_takes_nothing_away_before_it_knows_what_they_are_made_of() -> Result<()> {
    let world = World::new()?;
    let mut objects = vec![class()];
    objects.extend(deployment("one", 1, 7001, &world.authority.leaf(&["app.example.com"])?)?);
    let (_, route) = objects.iter_mut().find(|(plural, _)| *plural == "tlsroutes").context("there is one")?;
    let mut fresh = route.clone();
    fresh["metadata"] = json!({"name": "fresh", "namespace": "one", "uid": "fresh"});
    fresh["spec"]["hostnames"] = json!(["fresh.example.com"]);
    route["status"] = json!({"parents": [{
        "parentRef": {"name": "app", "sectionName": "passed"}, "controllerName": "snisplice.dev/gateway", "conditions": [],
    }]});
    objects.push(("tlsroutes", fresh));
    let api = ApiServer::start(&world.net.gateway, objects)?;
    api.take_writes();
    api.answer("one", Some(Answer::Nothing));
    let files = TempDir::new()?;
    fs::write(files.join("kubeconfig"), api.kubeconfig())?;
    let text = config(&["one"], "lo", "keep_objects = false");
    let _gateway = Gateway::start_in(files, &world.net.gateway, &text, Launch::default())?;
    let is_written = |end: &str| api.written().iter().any(|(path, _)| path.ends_with(end)).then_some(());
    eventually("it to take the Lease", || is_written("/leases"))?;
    api.answer("one", None);
    eventually("a status", || is_written("/tlsroutes/fresh/status"))?;
    for (path, written) in api.written().iter().filter(|(path, _)| path.contains("/tlsroutes/")) {
        let entries = written["status"]["parents"].as_array().map_or(0, Vec::len);
        ensure!(entries == 1, "{path}: {written}");
    }
    Ok(())
}
