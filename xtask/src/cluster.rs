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

    /// Measure instead: time, CPU and memory with thousands of routes, of the gateway as it is released.
    #[arg(long)]
    figures: bool,

    /// Arguments of the cluster itself; `-- --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Run the Gateway API's own conformance suite, unmodified, against the gateway in a cluster on this machine.
///
/// The report goes to target/conformance/, in the format that the Gateway API project asks for. Needs root.
#[derive(clap::Args)]
pub(crate) struct ConformanceArgs {
    /// Profiles, such as GATEWAY-TLS (default: those of TLS, TCP, HTTP and GRPC), and options of the suite: `-- --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// How long CI waits for the programs of the cluster in all. They come from a Go module proxy, which may be slow, and a run of CI has
/// an end.
const PATIENCE: Duration = Duration::from_secs(18 * 60);

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.build {
        return build_programs(MODULES, None);
    }
    if !args.figures {
        return run_cluster("up", &args.args);
    }
    steps::show(&mut steps::cargo(&["build", "--release", "--package", "snisplice"]))?;
    let mut cluster = cluster("figures", &args.args)?;
    steps::show(cluster.env("SNISPLICE_BIN", steps::target_dir().join("release/snisplice")))
}

pub(crate) fn conformance(args: &ConformanceArgs) -> Result<()> {
    run_cluster("conformance", &args.args)
}

/// Builds the programs if they can be had in time; else the tests that need them are skipped, and say so.
pub(crate) fn build_programs_in_time() -> Result<()> {
    if let Err(error) = build_programs(MODULES, Some(Instant::now() + PATIENCE)) {
        println!("SKIPPED, with the tests that need it: {error:#}");
        // By these they see what is there. An old one may be, and that is of no use.
        for module in MODULES.iter().filter(|module| !is_current(module)) {
            let _ = fs::remove_file(bin().join(module.shows));
        }
    }
    Ok(())
}

/// The suite against what [`steps::BUILD`] has built, if its programs are there.
pub(crate) fn conformance_built() -> Result<()> {
    if !["conformance.test", "kube-apiserver"].iter().all(|program| bin().join(program).is_file()) {
        println!("SKIPPED: the programs of the cluster are not built");
        return Ok(());
    }
    let suite = || {
        let mut command = Command::new(steps::target_dir().join("debug/cluster"));
        command.arg("conformance");
        command
    };
    steps::show(&mut suite())?;
    // What only the definitions of the experimental channel have.
    steps::show(suite().args(["--experimental", "--run-test", "HTTPRouteRetry"]))
}

/// Helm alone.
pub(crate) fn build_helm() -> Result<()> {
    build_programs(&[HELM], None)
}

fn run_cluster(command: &str, args: &[String]) -> Result<()> {
    steps::show(&mut cluster(command, args)?)
}

/// Builds all that a command of the cluster needs.
fn cluster(command: &str, args: &[String]) -> Result<Command> {
    build_programs(MODULES, None)?;
    let mut cluster = Command::new(binary()?);
    cluster.arg(command).args(args);
    Ok(cluster)
}

/// Builds the program that runs the cluster, and the gateway.
pub(crate) fn binary() -> Result<PathBuf> {
    let packages = ["build", "--package", "snisplice", "--package", "snisplice-cluster"];
    steps::show(&mut steps::cargo(&packages))?;
    Ok(steps::target_dir().join("debug/cluster"))
}

/// A Go module whose tools are programs of the cluster.
struct Module {
    what: &'static str,
    /// Below tests/cluster/go.
    directory: &'static str,
    /// The program by which a test sees that the module's programs are there.
    shows: &'static str,
    /// Also its tests, as a program of this name.
    tests: Option<&'static str>,
    /// What `go build tool` calls a program, and what it is called here.
    rename: Option<(&'static str, &'static str)>,
    /// The Go module whose version the programs tell, and the variable in which they have it.
    version: Option<(&'static str, &'static str)>,
    /// Definitions of the API's objects: the Go module that has them, a directory or file in it, and what the file is called here.
    definitions: &'static [(&'static str, &'static str, &'static str)],
}

const HELM: Module = Module {
    // For the chart's ServiceMonitor.
    definitions: &[(
        "github.com/prometheus-operator/prometheus-operator@v0.85.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
        "servicemonitor-crd.yaml",
    )],
    ..Module::new("Helm (three minutes)", "helm", "helm")
};

const MODULES: &[Module] = &[
    Module {
        tests: Some("conformance.test"),
        definitions: &[
            ("sigs.k8s.io/gateway-api", "config/crd/standard", "gateway-api-crds.yaml"),
            ("sigs.k8s.io/gateway-api", "config/crd/experimental", "gateway-api-experimental-crds.yaml"),
        ],
        ..Module::new("the Gateway API's conformance suite (a minute)", "conformance", "conformance.test")
    },
    Module::new("CoreDNS (a minute)", "coredns", "coredns"),
    Module {
        definitions: &[("go.universe.tf/metallb", "config/crd/bases", "metallb-crds.yaml")],
        ..Module::new("MetalLB (two minutes)", "metallb", "speaker")
    },
    Module {
        rename: Some(("server", "etcd")),
        // Helm asks whether a chart fits.
        version: Some(("k8s.io/kubernetes", "k8s.io/component-base/version.gitVersion")),
        definitions: &[(
            "istio.io/api@v1.32.0",
            "kubernetes/customresourcedefinitions.gen.yaml",
            "istio-crds.yaml",
        )],
        ..Module::new("a Kubernetes control plane (ten minutes)", "controlplane", "kube-apiserver")
    },
    HELM,
    // Of the tests of HTTP.
    Module::new("h2spec (seconds)", "h2spec", "h2spec"),
];

impl Module {
    const fn new(what: &'static str, directory: &'static str, shows: &'static str) -> Self {
        Module { what, directory, shows, tests: None, rename: None, version: None, definitions: &[] }
    }
}

/// Where the programs are.
fn bin() -> PathBuf {
    steps::target_dir().join("cluster/bin")
}

/// Says which versions of a module's programs are there; written when they are.
fn stamp(module: &Module) -> PathBuf {
    bin().join(format!(".{}", module.directory))
}

/// Where the module is.
fn source(module: &Module) -> PathBuf {
    steps::root().join("tests/cluster/go").join(module.directory)
}

/// What decides how the programs are.
fn wanted(module: &Module) -> Result<Vec<u8>> {
    let variable = module.version.map_or("", |(_, variable)| variable);
    let definitions = module.definitions.iter().map(|(from, _, _)| *from).collect::<String>();
    Ok([fs::read(source(module).join("go.sum"))?, variable.into(), definitions.into()].concat())
}

fn is_current(module: &Module) -> bool {
    fs::read(stamp(module)).is_ok_and(|built| wanted(module).is_ok_and(|wanted| built == wanted))
}

/// Builds what is not there, or not of the versions that are wanted, until `deadline`.
fn build_programs(modules: &[Module], deadline: Option<Instant>) -> Result<()> {
    setup::ensure(setup::Scope::Cluster)?;
    let go = setup::ensure_go()?;
    fs::create_dir_all(bin())?;
    for module in modules.iter().filter(|module| !is_current(module)) {
        build(&go, module, &source(module), &bin(), deadline)?;
        fs::write(stamp(module), wanted(module)?)?;
    }
    Ok(())
}

/// `go ARGS` in a directory, which ends at the deadline.
fn go_in(go: &Path, directory: &Path, deadline: Option<Instant>, args: &[&str]) -> Command {
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
}

fn build(go: &Path, module: &Module, directory: &Path, bin: &Path, deadline: Option<Instant>) -> Result<()> {
    let run = |args: &[&str]| go_in(go, directory, deadline, args);
    let mut flags = "-ldflags=-s -w".to_owned();
    if let Some((source, variable)) = module.version {
        let version = run(&["list", "-m", "-f", "{{.Version}}", source]).output()?;
        ensure!(version.status.success(), "go list: {}", String::from_utf8_lossy(&version.stderr));
        flags += &format!(" -X {variable}={}", String::from_utf8(version.stdout)?.trim());
    }
    let output = format!("{}/", bin.display());
    steps::quietly(module.what, &mut run(&["build", &flags, "-o", &output, "tool"]))?;
    if let Some((there, wanted)) = module.rename {
        fs::rename(bin.join(there), bin.join(wanted))?;
    }
    if let Some(name) = module.tests {
        let output = bin.join(name).display().to_string();
        steps::quietly(module.what, &mut run(&["test", "-ldflags=-s -w", "-c", "-o", &output, "."]))?;
    }
    for (source, path, file) in module.definitions {
        // Of the version that go.mod names, unless the source does.
        let downloaded = run(&["mod", "download", "-json", source]).output()?;
        ensure!(
            downloaded.status.success(),
            "go mod download: {}",
            String::from_utf8_lossy(&downloaded.stdout)
        );
        let downloaded: serde_json::Value = serde_json::from_slice(&downloaded.stdout)?;
        let directory = downloaded["Dir"].as_str().context("go mod download says where it is")?;
        fs::write(bin.join(file), definitions(&Path::new(directory).join(path))?)?;
    }
    Ok(())
}

/// A file, or those of a directory as one.
fn definitions(path: &Path) -> Result<String> {
    if path.is_file() {
        return Ok(fs::read_to_string(path)?);
    }
    let entries = fs::read_dir(path).with_context(|| path.display().to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    // That is no object of a cluster.
    files.retain(|file| file.file_name().is_none_or(|name| name != "kustomization.yaml"));
    files.sort();
    let texts = files.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join("\n---\n"))
}
