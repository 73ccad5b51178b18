//! Finds a toolchain that compiles for the kernel and builds `lb-ebpf` with it.
//!
//! `bpfel-unknown-none` is a tier-3 target: it needs the source of `core` for the very same compiler, and a
//! bpf-linker whose LLVM is not older than the compiler's. Shared, as source, by `xtask` and by the build
//! script of `lb-userspace`; that is why it uses nothing but std.

use std::{
    env,
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Limits the search to one kind of toolchain: `rustup` or `debian`.
pub(crate) const CHOICE: &str = "SNISPLICE_EBPF_TOOLCHAIN";

/// Where a toolchain came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// rustup's nightly with rust-src, and the bpf-linker on PATH.
    Rustup,
    /// The distribution's rustc with its own source, and a bpf-linker that `setup` built for its LLVM.
    Debian,
}

/// A compiler, the source of its `core`, and a linker: complete as far as the file system tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// Where it came from.
    pub(crate) kind: Kind,
    /// The cargo that drives it.
    pub(crate) cargo: PathBuf,
    /// The compiler.
    pub(crate) rustc: PathBuf,
    /// The bpf-linker.
    pub(crate) linker: PathBuf,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Rustup => "rustup's nightly",
            Kind::Debian => "Debian's rustc",
        };
        write!(f, "{kind} ({}) with {}", self.rustc.display(), self.linker.display())
    }
}

/// The directories in which toolchains live on this machine.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// Where commands are looked for, in order.
    pub(crate) path: Vec<PathBuf>,
    /// `~/.cargo`.
    pub(crate) cargo_home: PathBuf,
    /// `~/.rustup`.
    pub(crate) rustup_home: PathBuf,
    /// The distribution's prefix.
    pub(crate) usr: PathBuf,
}

impl Places {
    /// From the environment, with the defaults of cargo and rustup.
    pub(crate) fn here() -> Self {
        let home = env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
        let or_in_home = |var, dir| env::var_os(var).map_or_else(|| home.join(dir), PathBuf::from);
        Self {
            path: env::var_os("PATH").map(|p| env::split_paths(&p).collect()).unwrap_or_default(),
            cargo_home: or_in_home("CARGO_HOME", ".cargo"),
            rustup_home: or_in_home("RUSTUP_HOME", ".rustup"),
            usr: PathBuf::from("/usr"),
        }
    }

    /// The first file of that name on PATH, else in cargo's directory of installed programs.
    pub(crate) fn command(&self, name: &str) -> Option<PathBuf> {
        let cargo_bin = self.cargo_home.join("bin");
        self.path.iter().chain([&cargo_bin]).map(|dir| dir.join(name)).find(|file| file.is_file())
    }

    /// rustup's nightly for this machine, with or without rust-src.
    ///
    /// Read from the file system: asking rustup about a toolchain can make it download one.
    pub(crate) fn nightly(&self) -> Option<PathBuf> {
        ["gnu", "musl"]
            .iter()
            .map(|libc| format!("nightly-{}-unknown-linux-{libc}", env::consts::ARCH))
            .map(|name| self.rustup_home.join("toolchains").join(name))
            .find(|dir| dir.join("bin/rustc").is_file() && dir.join("bin/cargo").is_file())
    }

    /// The root under which `setup` installs a bpf-linker for a distribution's LLVM, apart from any
    /// bpf-linker of the user's own.
    pub(crate) fn linker_root(&self, llvm: &str) -> PathBuf {
        self.cargo_home.join("snisplice").join(format!("llvm-{llvm}"))
    }

    fn rustup(&self) -> Option<Toolchain> {
        let nightly = self.nightly()?;
        has_source(&nightly).then_some(())?;
        Some(Toolchain {
            kind: Kind::Rustup,
            cargo: nightly.join("bin/cargo"),
            rustc: nightly.join("bin/rustc"),
            linker: self.command("bpf-linker")?,
        })
    }

    fn debian(&self) -> Option<Toolchain> {
        has_source(&self.usr).then_some(())?;
        let rustc = self.usr.join("bin/rustc");
        let version = RustcVersion::of(&rustc).filter(RustcVersion::is_new_enough)?;
        let linker = self.linker_root(&version.llvm).join("bin/bpf-linker");
        let cargo = env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
        linker.is_file().then_some(Toolchain { kind: Kind::Debian, cargo, rustc, linker })
    }

    /// The toolchain to build with: the first that is complete and whose parts fit each other, the ordinary
    /// one before the distribution's. `scratch` is a directory for the trial.
    pub(crate) fn toolchain(&self, scratch: &Path) -> Option<Toolchain> {
        let choice = env::var(CHOICE).unwrap_or_default();
        let rustup = || self.rustup().filter(|_| choice != "debian");
        let debian = || self.debian().filter(|_| choice != "rustup");
        rustup()
            .filter(|toolchain| toolchain.links(scratch))
            .or_else(|| debian().filter(|toolchain| toolchain.links(scratch)))
    }
}

impl Toolchain {
    /// Whether this linker reads what this compiler writes: compiles and links a crate without anything in it.
    ///
    /// LLVM reads bitcode of its own version and older. The debug information is what gives a newer one away;
    /// without it a small object passes and only the real one fails ("Invalid record").
    fn links(&self, scratch: &Path) -> bool {
        let (source, bitcode) = (scratch.join("probe.rs"), scratch.join("probe.bc"));
        let wrote = fs::create_dir_all(scratch)
            .and_then(|()| fs::write(&source, "#![feature(no_core)]\n#![no_core]\n"));
        wrote.is_ok()
            && Command::new(&self.rustc)
                .env("RUSTC_BOOTSTRAP", "1")
                .args([
                    "--crate-type=lib",
                    "--target=bpfel-unknown-none",
                    "--emit=llvm-bc",
                    "-Cdebuginfo=2",
                    "-o",
                ])
                .args([&bitcode, &source])
                .output()
                .is_ok_and(|output| output.status.success())
            && Command::new(&self.linker)
                .args(["--btf", "--target=bpfel-unknown-none", "-o"])
                .args([&scratch.join("probe.o"), &bitcode])
                .output()
                .is_ok_and(|output| output.status.success())
    }
}

/// What `rustc -vV` says, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RustcVersion {
    /// `96` in 1.96.0.
    pub(crate) minor: u32,
    /// `22.1` in 22.1.8: LLVM's ABI is stable within it, and names its shared library.
    pub(crate) llvm: String,
}

impl RustcVersion {
    /// Asks this compiler. `None` if it is not there or not a rustc.
    pub(crate) fn of(rustc: &Path) -> Option<Self> {
        let output = Command::new(rustc).arg("-vV").output().ok()?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    /// Reads the output of `rustc -vV`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let minor = field("release:")?.split('.').nth(1)?.parse().ok()?;
        let mut llvm = field("LLVM version:")?.split('.');
        Some(Self { minor, llvm: format!("{}.{}", llvm.next()?, llvm.next()?) })
    }

    /// Whether it compiles our crates: the `rust-version` of the workspace.
    pub(crate) fn is_new_enough(&self) -> bool {
        self.minor >= 95
    }
}

/// Whether the source of `core` lies beside this compiler: without it no tier-3 target can be built.
pub(crate) fn has_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file()
}

/// Builds `lb-ebpf` and returns the object's path, or what the compiler said. `log`: with its feature of that name.
pub(crate) fn build(
    toolchain: &Toolchain,
    root: &Path,
    target_dir: &Path,
    log: bool,
) -> Result<PathBuf, String> {
    let output = cargo(toolchain, root)
        .arg("build")
        .args(TARGET_ARGS)
        .args(log.then_some("--features=log"))
        .args([OsStr::new("--target-dir"), target_dir.as_os_str()])
        .output()
        .map_err(|error| format!("{}: {error}", toolchain.cargo.display()))?;
    if output.status.success() {
        Ok(target_dir.join("bpfel-unknown-none/release/lb-ebpf"))
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("building lb-ebpf with {toolchain} failed\n{said}"))
    }
}

/// A cargo for `lb-ebpf` and this toolchain, free of what an outer cargo has put into the environment.
pub(crate) fn cargo(toolchain: &Toolchain, root: &Path) -> Command {
    let mut cargo = Command::new(&toolchain.cargo);
    leave_outer_build(&mut cargo);
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
    ];
    cargo
        .current_dir(root.join("lb-ebpf"))
        .env("RUSTC", &toolchain.rustc)
        // Set, not merely removed: they also override what a user's configuration file asks of every build.
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
    if toolchain.kind == Kind::Debian {
        cargo.env("RUSTC_BOOTSTRAP", "1");
    }
    cargo
}

/// The arguments that every build of `lb-ebpf` has in common.
pub(crate) const TARGET_ARGS: &[&str] = &["--release", "--target", "bpfel-unknown-none", "-Zbuild-std=core"];

/// Takes out of a command's environment what an outer cargo has put there.
pub(crate) fn leave_outer_build(command: &mut Command) {
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(is_of_outer_build) {
            command.env_remove(key);
        }
    }
}

/// Whether a variable belongs to the build that started us: its compiler, flags and wrappers are for the
/// host, and its target directory is locked by it.
fn is_of_outer_build(key: &str) -> bool {
    const OF_THE_USER: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_MAKEFLAGS",
        "CARGO_BUILD_JOBS",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
    ];
    let of_rust = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CLIPPY_"];
    of_rust.iter().any(|prefix| key.starts_with(prefix))
        && !OF_THE_USER.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_rustc() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        let version = RustcVersion::parse(text).unwrap();
        assert_eq!(version, RustcVersion { minor: 96, llvm: "22.1".into() });
        assert!(version.is_new_enough());
        assert!(!RustcVersion { minor: 63, ..version }.is_new_enough());
        assert_eq!(RustcVersion::parse("no rustc"), None);
    }

    #[test]
    fn what_the_outer_build_set_is_dropped_and_what_the_user_set_is_kept() {
        for key in
            ["RUSTC", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"]
        {
            assert!(is_of_outer_build(key), "{key}");
        }
        for key in ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_OFFLINE", "PATH", "RUSTUP_HOME"] {
            assert!(!is_of_outer_build(key), "{key}");
        }
    }

    /// Directories that look like a machine; removed on drop.
    struct Machine(Places);

    impl Machine {
        fn new(name: &str) -> Self {
            let root = env::temp_dir().join(format!("snisplice-ebpf-{name}-{}", std::process::id()));
            let places = Places {
                path: vec![root.join("bin")],
                cargo_home: root.join("cargo"),
                rustup_home: root.join("rustup"),
                usr: root.join("usr"),
            };
            Self(places)
        }

        fn file(&self, path: PathBuf) -> PathBuf {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        }

        fn nightly(&self) -> PathBuf {
            let name = format!("toolchains/nightly-{}-unknown-linux-gnu", env::consts::ARCH);
            self.0.rustup_home.join(name)
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.0.usr.parent().unwrap());
        }
    }

    #[test]
    fn a_nightly_counts_only_with_its_source_and_a_linker() {
        let machine = Machine::new("nightly");
        assert_eq!(machine.0.rustup(), None);
        machine.file(machine.nightly().join("bin/rustc"));
        machine.file(machine.nightly().join("bin/cargo"));
        machine.file(machine.0.path[0].join("bpf-linker"));
        assert_eq!(machine.0.rustup(), None, "no rust-src");
        machine.file(machine.nightly().join("lib/rustlib/src/rust/library/core/src/lib.rs"));
        assert_eq!(machine.0.rustup().unwrap().kind, Kind::Rustup);
        fs::remove_file(machine.0.path[0].join("bpf-linker")).unwrap();
        assert_eq!(machine.0.rustup(), None, "no bpf-linker");
    }

    #[test]
    fn a_linker_that_does_not_link_is_no_toolchain() {
        let machine = Machine::new("broken");
        machine.file(machine.nightly().join("bin/rustc"));
        machine.file(machine.nightly().join("bin/cargo"));
        machine.file(machine.nightly().join("lib/rustlib/src/rust/library/core/src/lib.rs"));
        machine.file(machine.0.path[0].join("bpf-linker"));
        assert!(machine.0.rustup().is_some());
        assert_eq!(machine.0.toolchain(&machine.0.usr.join("scratch")), None);
    }
}
