//! Compiles the kernel programs, so that the binary carries them: `OUT_DIR/snisplice.bpf.o`.

#[path = "../xtask/src/ebpf.rs"]
#[allow(dead_code, reason = "shared with xtask, which also installs the toolchain and lints with it")]
mod ebpf;

use std::{env, fs, path::Path, process::exit};

/// What to say where there is no toolchain. The one command in it is all that the reader needs.
const UNPREPARED: &str = "this machine has no eBPF toolchain yet; to install it, run: cargo xtask setup";

/// What the object is made of, relative to the root.
const INPUTS: &[&str] = &[
    "lb-ebpf/Cargo.toml",
    "lb-ebpf/Cargo.lock",
    "lb-ebpf/src",
    "lb-common/Cargo.toml",
    "lb-common/src",
    // lb-common inherits from it.
    "Cargo.toml",
    "xtask/src/ebpf.rs",
];

fn main() {
    // Cargo runs it in the package's directory, and takes relative paths from there: a target directory that two
    // checkouts share must not keep the one's sources for the other's.
    let package = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&package).parent().expect("lb-userspace lies in the workspace");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let out = Path::new(&out);

    let object = match ebpf::Places::here().toolchain(&out.join("probe")) {
        Some(toolchain) => {
            let log = env::var_os("CARGO_FEATURE_KERNEL_LOG").is_some();
            ebpf::build(&toolchain, root, &out.join("target"), log).map(|object| (toolchain, object))
        }
        None => Err(UNPREPARED.to_owned()),
    };
    // A build script that failed runs again anyway, and cargo shows all that it printed: the error alone.
    let (toolchain, object) = object.unwrap_or_else(|error| {
        for line in error.lines() {
            println!("cargo::error={line}");
        }
        exit(1);
    });
    fs::copy(object, out.join("snisplice.bpf.o")).expect("OUT_DIR is writable");

    println!("cargo::rerun-if-env-changed={}", ebpf::CHOICE);
    let inputs = INPUTS.iter().map(|input| Path::new("..").join(input));
    for file in inputs.chain([toolchain.rustc, toolchain.linker]) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
}
