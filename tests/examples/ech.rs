//! `ech`.

use anyhow::{Context, Result};
use snisplice_tests::ech::{EchKey, NO_ENDS, PUBLIC, ends, server};
use snisplice_tests::process::checked_output;
use snisplice_tests::require;

use crate::scene::Scene;

const HIDDEN: &str = "hidden.example.com";

#[test]
fn a_site_is_reached_by_the_name_that_nobody_on_the_way_reads() -> Result<()> {
    require!(ends().is_some(), NO_ENDS);
    let scene = Scene::new("ech", &[11, 12])?;
    let key = EchKey::new(scene.files(), "certs/ech.pem")?;
    let serve = |name: &str, address: &str| {
        server(&scene.net.server, &scene.authority, name, address.parse()?, Some(&key), false)
    };
    let _servers = [serve(HIDDEN, "10.0.2.11:443")?, serve(PUBLIC, "10.0.2.12:443")?];
    let example = scene.start()?;
    let mut client = example.net.client.command(ends().context(NO_ENDS)?);
    client.args(["client", "10.0.1.1:443", HIDDEN]).arg(&example.authority.path).arg(&key.config);
    assert_eq!(checked_output(&mut client)?.trim(), format!("{HIDDEN} true"));
    assert_eq!(example.logged(1, "sni")?, [HIDDEN]);
    assert_eq!(example.logged(1, "sni_outer")?, [PUBLIC]);
    Ok(())
}
