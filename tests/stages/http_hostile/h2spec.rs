//! h2spec, which looks at HTTP/2 section by section.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use snisplice_tests::process::checked_output;
use snisplice_tests::require;

use super::Scene;

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
    let scene = Scene::new("", "")?;
    let name = scene.gateway.file("hosts");
    std::fs::write(&name, format!("10.0.1.1 {}\n", super::HOST))?;
    let mut h2spec = scene.world.net.client.command("unshare");
    h2spec.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]).arg(&name);
    h2spec.arg(&program).args(["--host", super::HOST, "--port", "80", "--timeout", "10"]);
    let output = checked_output(&mut h2spec)?;
    assert!(output.contains(", 0 skipped, 0 failed"), "{output}");
    scene.serves_others()
}
