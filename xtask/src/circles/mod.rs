//! `cargo xtask circles`: files and modules that need each other.
//!
//! An arrow leads from a file to another one of the same crate in which something is defined that it names, in a `use` or in
//! a path. A re-export leads nowhere by itself: who names what `pub use` offers depends on the file that defines it, not on
//! the one in between. Unit tests (`#[cfg(test)]`) do not count: they may use whatever they like.
//!
//! Arrows are compared level by level. At each module the nodes are its own file (`mod.rs`) and its children, each with all
//! that lies below it, and no circle may lead through them. So `connect` and `gateway` may not need each other, through
//! whichever of their files; neither may a `mod.rs` and a file beside it. A circle of files is one at some level.
//!
//! What has to be known of types is not seen: a method that is called on a value names no file.
//!
//! Own code, over the tokens that proc-macro2 gives: a few hundred lines that take a second. cargo-modules, the tool for this,
//! is built upon rust-analyzer, and this needs levels and the files behind re-exports.

mod graph;
mod modules;
mod source;

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{circles::modules::Crate, steps};

/// Look for files and modules that need each other, which none may.
///
/// Each circle is shown with the lines that make it.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<()> {
    check()
}

/// Reads every crate; an error names all that is wrong.
pub(crate) fn check() -> Result<()> {
    let mut crates = Vec::new();
    for root in roots()? {
        crates.push(Crate::read(&root, &|path| read(steps::root(), path))?);
    }
    let complaints = graph::complaints(crates.iter().flat_map(Crate::arrows));
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    println!("{} crates: no circle", crates.len());
    Ok(())
}

/// The text of a source file, by its path from the root of the workspace; `None` if there is no such file.
fn read(root: &Path, path: &str) -> io::Result<Option<String>> {
    match fs::read_to_string(root.join(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

/// The root file of each library, program, test and build script, by its path from the root of the workspace.
fn roots() -> Result<Vec<String>> {
    let mut roots = Vec::new();
    for workspace in ["", "lb-ebpf"] {
        let mut cargo = steps::cargo(&["metadata", "--no-deps", "--format-version", "1"]);
        let output = cargo.current_dir(steps::root().join(workspace)).output()?;
        if !output.status.success() {
            bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let packages = metadata["packages"].as_array().context("cargo metadata lists packages")?;
        for target in packages.iter().flat_map(|package| package["targets"].as_array()).flatten() {
            let path = Path::new(target["src_path"].as_str().context("a target has a src_path")?);
            let path = path.strip_prefix(steps::root()).context("a target lies in the workspace")?;
            roots.push(path.to_str().context("a path is UTF-8")?.to_owned());
        }
    }
    Ok(roots)
}
