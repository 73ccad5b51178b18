//! A server that goes down while connections to it are in the kernel's hands.

use std::net::Ipv6Addr;

use anyhow::Result;
use snisplice_tests::{Backend, Launch, Triangle, backend};

use crate::ends::Opening;
use crate::keepalive::talk;
use crate::scene::{Scene, meets_reset};
use crate::strangers::settled;

/// Where the checks connect to.
const CHECKED: u16 = 7100;

/// A scene whose server is checked at a port of its own, and who answers there.
fn scene(on_down: &str) -> Result<(Scene, Backend)> {
    let net = Triangle::new()?;
    let answering = Backend::start_on(&net.server, Ipv6Addr::UNSPECIFIED.into(), CHECKED, backend::echo)?;
    let scene = Scene::within(net, Opening::default(), "", "", |_| Ok(Launch::default()))?;
    scene.reconfigure(|text| {
        let health = format!("health = {{ check = 'tcp', port = {CHECKED}, interval = '200ms', fall = 1 }}");
        text.replace("[[pool]]", &format!("[[pool]]\n{health}\non_down = '{on_down}'"))
    })?;
    scene.gateway.reload()?;
    let is_up = |status: &snisplice_tests::Status| {
        let server = &status.0["pools"][0]["servers"][0];
        server["state"] == "up" && server["reason"].is_null()
    };
    scene.gateway.wait_status("the server to be checked", is_up)?;
    Ok((scene, answering))
}

fn wait_down(scene: &Scene) -> Result<()> {
    let is_down = |status: &snisplice_tests::Status| status.0["pools"][0]["servers"][0]["state"] == "down";
    scene.gateway.wait_status("the server to be down", is_down).map(drop)
}

#[test]
fn a_server_that_goes_down_takes_its_spliced_connections_along_if_so_configured() -> Result<()> {
    let (scene, answering) = scene("kill")?;
    let (client, server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    drop(answering);
    for end in [&client.socket, &server] {
        meets_reset(end)?;
    }
    let log = scene.gateway.wait_access_log(1)?;
    assert_eq!(
        (&log[0]["close_reason"], &log[0]["tier"]),
        (&"server_down".into(), &"packet".into()),
        "{log:?}"
    );
    wait_down(&scene)
}

#[test]
fn otherwise_they_go_on() -> Result<()> {
    let (scene, answering) = scene("keep")?;
    let (mut client, mut server, _) = scene.connection()?;
    settled(&scene, "packet", 1)?;
    drop(answering);
    wait_down(&scene)?;
    talk(&mut client, &mut server)
}
