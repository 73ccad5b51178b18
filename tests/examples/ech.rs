//! `ech`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use snisplice_tests::process::checked_output;
use snisplice_tests::skip::has_program;
use snisplice_tests::{Process, gateway, require};

use crate::scene::Scene;

#[test]
fn a_site_is_reached_by_the_name_that_nobody_on_the_way_reads() -> Result<()> {
    require!(has_program("go"), "Go is not installed, whose servers know ECH");
    let scene = Scene::new("ech", &[11, 12])?;
    let ends = scene.path("ends");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("stages/ech/ends.go");
    checked_output(Command::new("go").args(["build", "-o"]).arg(&ends).arg(source))?;
    let key = scene.path("certs/ech.pem");
    let mut make = Command::new(gateway::binary()?);
    make.args(["ech-key", "--public-name", "gateway.example.com", "-o"]).arg(&key);
    let said = checked_output(&mut make)?;
    let config = said.lines().find_map(|line| line.strip_prefix("ech=")).context("no `ech=`")?.to_owned();

    let mut servers = Vec::new();
    for (name, address) in [("hidden.example.com", "10.0.2.11:443"), ("gateway.example.com", "10.0.2.12:443")]
    {
        let leaf = scene.authority.leaf(&[name])?;
        let mut command = scene.net.server.command(&ends);
        command.args(["server", address]).args([&leaf.chain, &leaf.key, &key]);
        let mut server = Process::spawn(name, command)?;
        server.wait_listening(&[443])?;
        servers.push(server);
    }
    let example = scene.start()?;
    let mut client = example.net.client.command(&ends);
    client.args(["client", "10.0.1.1:443", "hidden.example.com"]).arg(&example.authority.path).arg(&config);
    assert_eq!(checked_output(&mut client)?.trim(), "hidden.example.com true");
    assert_eq!(example.logged(1, "sni")?, ["hidden.example.com"]);
    assert_eq!(example.logged(1, "sni_outer")?, ["gateway.example.com"]);
    Ok(())
}
