//! `client_rate` holds for connections that the kernel forwards, for as long as they are open.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use snisplice_tests::eventually;

use crate::case::config;
use crate::ends::Opening;
use crate::scene::Scene;
use crate::strangers::settled;

const GATEWAY: &str = "[gateway]\ntiers = ['packet']\n";

/// The next client of the same address is turned away for this reason, which was so often before.
fn turned_away(scene: &Scene, reason: &str, before: u64) -> Result<()> {
    let said = scene.opening.open(&scene.net.client).map(|(mut client, _)| {
        let mut said = Vec::new();
        // An alert or nothing, and then the end or a reset.
        let _ = client.reader.read_to_end(&mut said);
        said
    });
    ensure!(said.as_ref().map_or(true, |said| said.len() <= 7), "{said:?}");
    let counted =
        |status: &snisplice_tests::gateway::Status| status.rejects("databases", reason) == before + 1;
    scene.gateway.wait_status(reason, counted).map(drop)
}

#[test]
fn a_clients_open_connections_count_in_every_process_until_they_end() -> Result<()> {
    for (v6, of_route) in [(false, true), (false, false), (true, false)] {
        let limit = "client_rate = { open = 2 }";
        let opening = Opening { v6, ..Opening::default() };
        let mut scene = Scene::with_gateway(opening, GATEWAY, if of_route { limit } else { "" })?;
        if !of_route {
            let address = scene.net.server_addresses[usize::from(v6)];
            let config = GATEWAY.to_owned() + &config(&scene.opening, address, None, "");
            scene.gateway.write_config(&config.replace("[[route]]", &format!("{limit}\n[[route]]")))?;
            scene.gateway.reload()?;
        }
        let reason = if of_route { "route_client_full" } else { "client_full" };
        let (mut client, mut server, _) = scene.connection()?;
        let _second = scene.connection()?;
        settled(&scene, "packet", 2)?;
        turned_away(&scene, reason, 0)?;
        scene.gateway.reload()?;
        turned_away(&scene, reason, 1)?;
        for _ in 0..2 {
            scene.gateway.kill_and_restart()?;
            settled(&scene, "packet", 2)?;
            turned_away(&scene, reason, 0).with_context(|| format!("adopted, {v6} {of_route}"))?;
        }
        client.writer.finish()?;
        ensure!(server.read(&mut [0])? == 0);
        drop(server);
        ensure!(client.reader.read(&mut [0])? == 0);
        let _third = eventually("the place of the one that has ended", || scene.connection().ok())?;
        settled(&scene, "packet", 2)?;
        turned_away(&scene, reason, 1)?;
    }
    Ok(())
}
