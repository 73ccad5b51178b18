//! Tests on another kernel than this machine's.
//!
//! A virtual machine without hardware acceleration boots a kernel of Debian's over this machine's root file system
//! (virtme-ng). That needs no image and no second build, and works inside other virtual machines; it is ten times
//! slower than the real thing, so what passes there says nothing about speed.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{setup, steps, tally::Tally};

/// Has VLAN devices and tcx, as most distributions' kernels do.
pub(crate) const DEFAULT_SERIES: &str = "6.12";

/// The test programs with tests that depend on the kernel.
const PROGRAMS: [&str; 6] = ["verdicts", "attack", "facade", "packet", "sockmap", "ktls"];

/// Runs these tests, named exactly, on a kernel that has more than this machine's.
pub(crate) fn run_exactly(names: &[&str]) -> Result<Tally> {
    let mut args = vec!["--exact"];
    args.extend(names);
    Machine::prepare(DEFAULT_SERIES)?.test(&args)
}

/// All that it takes to boot a kernel.
pub(crate) struct Machine {
    vng: PathBuf,
    kernel: PathBuf,
}

impl Machine {
    /// Installs what is missing: an emulator, virtme-ng and the newest kernel of a series.
    pub(crate) fn prepare(series: &str) -> Result<Self> {
        let vng = setup::ensure_vm()?;
        let package = newest_kernel(series)?;
        let dir = steps::target_dir().join("kernels").join(&package);
        let kernel = dir.join("boot").join(package.replacen("linux-image-", "vmlinuz-", 1));
        if !kernel.is_file() {
            unpack(&package, &dir)?;
        }
        Ok(Self { vng, kernel })
    }

    /// Runs the kernel's tests there, as [`steps::BUILD`] has built them; the filter is libtest's.
    pub(crate) fn test(&self, filter: &[&str]) -> Result<Tally> {
        let programs = test_programs()?;
        let name = self.kernel.file_name().unwrap_or_default().to_string_lossy();
        println!("\n== on another kernel: {}", name.trim_start_matches("vmlinuz-"));
        let script = steps::target_dir().join("vm-test.sh");
        fs::write(&script, self.script(&programs, filter))?;

        let mut vng = Command::new(&self.vng);
        let dir = self.vng.parent().expect("a program lies in a directory");
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([dir.to_owned()].into_iter().chain(env::split_paths(&path)))?;
        vng.args(["--disable-kvm", "--disable-microvm", "--disable-monitor", "--force-9p"])
            .args(["--cpus", "2", "--memory", "3G", "--run"])
            .arg(&self.kernel)
            .args(["--", "sh"])
            .arg(&script)
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(steps::target_dir().join("vm-test.log"))?);
        let mut child = vng.spawn().context("cannot start virtme-ng")?;
        let mut tally = Tally::default();
        let mut skipped = String::new();
        let mut ended = false;
        for line in BufReader::new(child.stdout.take().expect("piped")).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            ended |= line == ENDED;
            println!("{line}");
            tally.read(&line);
            if let Some(name_and_reason) = line.strip_prefix("SKIPPED ") {
                skipped += &format!("{name_and_reason}\n");
            }
        }
        child.wait()?;
        tally.skip(&skipped);
        if !ended {
            bail!(
                "the virtual machine ended before its tests; see {}/vm-test.log",
                steps::target_dir().display()
            );
        }
        Ok(tally)
    }

    /// What the virtual machine runs. Its kernel loads modules by themselves for devices, but not for all of this.
    fn script(&self, programs: &[PathBuf], filter: &[&str]) -> String {
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        let filter: Vec<String> = filter.iter().map(|word| quoted(word)).collect();
        let mut script = format!(
            "cd {}\nmount -t bpf bpf /sys/fs/bpf\nmodprobe -a veth bridge 8021q tun sch_ingress cls_bpf nf_tables \
             nf_conntrack nft_socket tls\nexport SNISPLICE_PATIENCE=180 SNISPLICE_BIN={}\n",
            quoted(&steps::root().to_string_lossy()),
            quoted(&steps::target_dir().join("debug/snisplice").to_string_lossy()),
        );
        for program in programs {
            let program = quoted(&program.to_string_lossy());
            script += &format!("{program} --quiet --test-threads 2 {} 2>&1\n", filter.join(" "));
        }
        script += &format!("echo {ENDED}\n");
        script
    }
}

/// The script's last line: without it, the kernel died before.
const ENDED: &str = "-- all tests ran";

/// The newest package of a kernel series, such as `linux-image-6.12.117+deb12-amd64`.
fn newest_kernel(series: &str) -> Result<String> {
    let pattern = format!("^linux-image-{}[.][0-9][^ ]*-amd64$", series.replace('.', "[.]"));
    let output = Command::new("apt-cache").args(["search", "--names-only", &pattern]).output()?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    newest(names).map(str::to_owned).with_context(|| {
        format!(
            "Debian's lists have no kernel {series} for amd64; `apt-cache search linux-image` shows which"
        )
    })
}

/// The package with the highest numbers; not those for a cloud or for real time, which lack drivers.
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = names.filter(|name| !["-cloud-", "-rt-"].iter().any(|flavour| name.contains(flavour)));
    plain.max_by_key(|name| {
        let digits = name.split(|c: char| !c.is_ascii_digit());
        digits.filter_map(|number| number.parse().ok()).collect::<Vec<u32>>()
    })
}

/// Fetches a package and unpacks it into `dir`. Not installed: the machine's own kernel is none of our business.
fn unpack(package: &str, dir: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(dir);
    let scratch = dir.with_extension("download");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch)?;
    steps::quietly(
        "a kernel to run tests on",
        Command::new("apt-get").args(["download", package]).current_dir(&scratch),
    )?;
    let file = fs::read_dir(&scratch)?.next().context("apt-get downloaded nothing")??.path();
    let unpacked = scratch.join("root");
    steps::quietly("its files", Command::new("dpkg-deb").arg("-x").args([&file, &unpacked]))?;
    fs::rename(unpacked, dir)?;
    fs::remove_dir_all(scratch)?;
    Ok(())
}

/// The compiled test programs, in the order of `PROGRAMS`.
fn test_programs() -> Result<Vec<PathBuf>> {
    let list = ["test", "--workspace", "--test", "*", "--no-run", "--quiet", "--message-format", "json"];
    let output = steps::cargo(&list).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("the tests do not compile");
    }
    let output = String::from_utf8_lossy(&output.stdout);
    PROGRAMS
        .iter()
        .map(|program| {
            let executable = output.lines().find_map(|line| executable(line, program));
            executable.with_context(|| format!("cargo names no test program {program}"))
        })
        .collect()
}

/// The path in a line of cargo's JSON, if it is about this test program.
fn executable(line: &str, program: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = message["executable"].as_str()?;
    let name = Path::new(path).file_name()?.to_str()?;
    (name.rsplit_once('-')?.0 == program).then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_by_numbers_and_without_a_flavour() {
        let names = [
            "linux-image-6.12.9+deb12-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.113+deb12-amd64",
            "linux-image-6.12.111+deb12-amd64",
        ];
        assert_eq!(newest(names.into_iter()), Some("linux-image-6.12.113+deb12-amd64"));
        assert_eq!(newest(["linux-image-6.1.0-56-rt-amd64"].into_iter()), None);
    }

    #[test]
    fn a_test_program_is_found_in_what_cargo_says() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/debug/deps/packet-10f9","fresh":true}"#;
        assert_eq!(executable(line, "packet"), Some(PathBuf::from("/t/debug/deps/packet-10f9")));
        assert_eq!(executable(line, "sockmap"), None);
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#, "packet"), None);
    }
}
