//! h2spec, which looks at HTTP/2 section by section.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use snisplice_tests::backend::Backend;
use snisplice_tests::process::checked_output;
use snisplice_tests::require;

use super::{HOST, Recorder};
use crate::config::{listener, pool, route};
use crate::world::World;

/// Where `cargo xtask` has built it.
fn program() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let mut found = here.ancestors().map(|directory| directory.join("cluster/bin/h2spec"));
    found.find(|program| program.is_file())
}

#[test]
fn all_sections_are_kept_to() -> Result<()> {
    let program = program();
    require!(program.is_some(), "h2spec is not built: `cargo xtask cluster --build`");
    let program = program.context("just seen")?;
    let world = World::new()?;
    let recorder = Recorder::default();
    let _backend = Backend::start(&world.net.server, 80, move |stream| recorder.serve(stream))?;
    let leaf = world.authority.leaf(&[HOST])?;
    let rules = format!(
        "tls = 'terminate'\nprotocol = 'http'\ncertificate = {}\n[[route.rule]]\nbackends = ['app']",
        leaf.toml()
    );
    let gateway = world.gateway(&(listener("") + &route("app", HOST, &rules) + &pool("app", &[80], "")))?;
    let hosts = gateway.file("hosts");
    std::fs::write(&hosts, format!("10.0.1.1 {HOST}\n"))?;
    let mut h2spec = world.net.client.command("unshare");
    h2spec.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(&hosts);
    h2spec.arg(&program).args(["--host", HOST, "--port", "443", "--tls", "--insecure", "--timeout", "10"]);
    let output = checked_output(&mut h2spec)?;
    assert!(output.contains(", 0 failed") && output.contains("145 tests, "), "{output}");
    Ok(())
}
