//! Compiles the kernel programs, so that the binary carries them: `OUT_DIR/snisplice.bpf.o`.

#[path = "../xtask/src/ebpf.rs"]
#[allow(
    dead_code,
    reason = "shared with xtask, which also installs the toolchain and lints with it"
)]
mod ebpf;

use std::{env, fs, path::Path, process::exit};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("lb-userspace lies in the workspace");
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let out = Path::new(&out);
    let toolchains = ebpf::Places::here().toolchains();

    println!("cargo::rerun-if-env-changed={}", ebpf::CHOICE);
    for input in ebpf::INPUTS {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    for file in toolchains
        .iter()
        .flat_map(|toolchain| [&toolchain.rustc, &toolchain.linker])
    {
        println!("cargo::rerun-if-changed={}", file.display());
    }

    match ebpf::build(&toolchains, root, &out.join("target")) {
        Ok((_, object)) => {
            fs::copy(object, out.join("snisplice.bpf.o")).expect("OUT_DIR is writable");
        }
        Err(error) => {
            // One `cargo::error` is one line.
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            exit(1);
        }
    }
}
