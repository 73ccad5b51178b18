//! `cargo xtask cluster` and `cargo xtask conformance`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{setup, steps};

/// Start a Kubernetes cluster on this machine, with the gateway on each node, and leave it running.
///
/// The control plane is real (etcd, kube-apiserver, kube-controller-manager, built from their Go modules, which takes some
/// ten minutes the first time); nodes are network namespaces, and pods are processes in namespaces of their own. Prints a
/// kubeconfig and commands to try. Needs root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only build the programs of the cluster.
    #[arg(long)]
    build: bool,

    /// Arguments of the cluster itself; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Run the Gateway API's own conformance suite, unmodified, against the gateway in a cluster on this machine.
///
/// The report goes to target/conformance/, in the format that the Gateway API project asks for. Needs root.
#[derive(clap::Args)]
pub(crate) struct ConformanceArgs {
    /// Profiles, such as GATEWAY-TLS (default: GATEWAY-TLS and GATEWAY-TCP), and options of the suite: `-- --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// How long CI waits for the programs of the cluster in all. They come from a Go module proxy, which may be slow, and a run of CI has
/// an end.
const PATIENCE: Duration = Duration::from_secs(18 * 60);

pub(crate) fn run(args: &Args) -> Result<()> {
    match args.build {
        true => build_programs(None),
        false => run_cluster("up", &args.args),
    }
}

pub(crate) fn conformance(args: &ConformanceArgs) -> Result<()> {
    run_cluster("conformance", &args.args)
}

/// Builds the programs if they can be had in time; else the tests that need them are skipped, and say so.
pub(crate) fn build_programs_in_time() -> Result<()> {
    if let Err(error) = build_programs(Some(Instant::now() + PATIENCE)) {
        println!("SKIPPED the conformance suite and the tests of the cluster: {error:#}");
        // By this one they see whether the programs are there; some may be, and that is of no use.
        let _ = fs::remove_file(steps::target_dir().join("cluster/bin/kube-apiserver"));
    }
    Ok(())
}

/// The suite against what [`steps::BUILD`] has built, if its programs are there.
pub(crate) fn conformance_built() -> Result<()> {
    if MODULES.iter().any(|module| !stamp(module).is_file()) {
        println!("SKIPPED: the programs of the cluster are not built");
        return Ok(());
    }
    steps::show(Command::new(steps::target_dir().join("debug/cluster")).arg("conformance"))
}

fn run_cluster(command: &str, args: &[String]) -> Result<()> {
    build_programs(None)?;
    let packages = ["build", "--package", "snisplice", "--package", "snisplice-cluster"];
    steps::show(&mut steps::cargo(&packages))?;
    let debug = steps::target_dir().join("debug");
    steps::show(Command::new(debug.join("cluster")).arg(command).args(args))
}

/// A Go module whose tools are programs of the cluster.
struct Module {
    what: &'static str,
    /// Below tests/cluster/go.
    directory: &'static str,
    /// Also its tests, as a program of this name.
    tests: Option<&'static str>,
    /// What `go build tool` calls a program, and what it is called here.
    rename: Option<(&'static str, &'static str)>,
    /// Definitions of an API's objects: the module and the directory in it that have them, and the file that they become.
    definitions: Option<(&'static str, &'static str, &'static str)>,
}

const MODULES: &[Module] = &[
    Module {
        tests: Some("conformance.test"),
        definitions: Some(("sigs.k8s.io/gateway-api", "config/crd/standard", "gateway-api-crds.yaml")),
        ..Module::new("the Gateway API's conformance suite (a minute)", "conformance")
    },
    Module::new("CoreDNS (a minute)", "coredns"),
    Module {
        definitions: Some(("go.universe.tf/metallb", "config/crd/bases", "metallb-crds.yaml")),
        ..Module::new("MetalLB (two minutes)", "metallb")
    },
    Module {
        rename: Some(("server", "etcd")),
        ..Module::new("a Kubernetes control plane (ten minutes)", "controlplane")
    },
];

impl Module {
    const fn new(what: &'static str, directory: &'static str) -> Self {
        Module { what, directory, tests: None, rename: None, definitions: None }
    }
}

/// Says which versions of a module's programs are there; written when they are.
fn stamp(module: &Module) -> PathBuf {
    steps::target_dir().join("cluster/bin").join(format!(".{}", module.directory))
}

/// Builds what is not there, or not of the versions that are wanted, until `deadline`.
fn build_programs(deadline: Option<Instant>) -> Result<()> {
    setup::ensure(setup::Scope::Cluster)?;
    let go = setup::ensure_go()?;
    let bin = steps::target_dir().join("cluster/bin");
    fs::create_dir_all(&bin)?;
    for module in MODULES {
        let directory = steps::root().join("tests/cluster/go").join(module.directory);
        let stamp = stamp(module);
        let versions = fs::read(directory.join("go.sum"))?;
        if fs::read(&stamp).is_ok_and(|built| built == versions) {
            continue;
        }
        build(&go, module, &directory, &bin, deadline)?;
        fs::write(stamp, versions)?;
    }
    Ok(())
}

fn build(go: &Path, module: &Module, directory: &Path, bin: &Path, deadline: Option<Instant>) -> Result<()> {
    let run = |args: &[&str]| {
        let mut command = match deadline {
            None => Command::new(go),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now()).as_secs().max(1);
                let mut command = Command::new("timeout");
                command.arg(left.to_string()).arg(go);
                command
            }
        };
        command.current_dir(directory).args(args);
        command
    };
    let output = format!("{}/", bin.display());
    steps::quietly(module.what, &mut run(&["build", "-ldflags=-s -w", "-o", &output, "tool"]))?;
    if let Some((there, wanted)) = module.rename {
        fs::rename(bin.join(there), bin.join(wanted))?;
    }
    if let Some(name) = module.tests {
        let output = bin.join(name).display().to_string();
        steps::quietly(module.what, &mut run(&["test", "-ldflags=-s -w", "-c", "-o", &output, "."]))?;
    }
    if let Some((of, there, wanted)) = module.definitions {
        let found = run(&["list", "-m", "-f", "{{.Dir}}", of]).output()?;
        ensure!(found.status.success(), "go list: {}", String::from_utf8_lossy(&found.stderr));
        let found = PathBuf::from(String::from_utf8(found.stdout)?.trim());
        fs::write(bin.join(wanted), definitions(&found.join(there))?)?;
    }
    Ok(())
}

/// The definitions of the API's objects, as one file.
fn definitions(directory: &Path) -> Result<String> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let texts = files.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n---\n"))
}
