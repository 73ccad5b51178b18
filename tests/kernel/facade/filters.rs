//! Programs on one device: of several gateways by netlink, as on kernels without tcx, and what `unload` does with them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::MapData;
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use lb_common::packet::PORTS;
use snisplice::config::Interfaces;
use snisplice::kernel::devices::devices;
use snisplice::kernel::probe::{self, Answer};
use snisplice::kernel::{self, Packet};
use snisplice_tests::bpffs::BpfFs;
use snisplice_tests::process::checked_output;
use snisplice_tests::{NetNs, TempDir, eventually, require};

/// A namespace with its loopback device, and directories for two gateways.
struct Scene {
    ns: NetNs,
    directories: [PathBuf; 2],
    _bpffs: BpfFs,
    _files: TempDir,
}

impl Scene {
    fn new() -> Result<Self> {
        let files = TempDir::new()?;
        let bpffs = BpfFs::mount_in(files.path())?;
        let directories = ["a", "b"].map(|name| files.join(BpfFs::NAME).join(name));
        Ok(Self { ns: NetNs::new("filters")?, directories, _bpffs: bpffs, _files: files })
    }

    /// A process of the gateway in that directory comes, attaches and goes.
    fn attach(&self, directory: &Path) -> Result<()> {
        self.ns.run(|| {
            // A process that another test is starting has the lock's file open until it executes its program.
            let gateway = eventually("the lock", || Packet::open(directory, 64).ok())?;
            let failures = gateway.attach_by_netlink(&devices()?, &Interfaces::Named(vec!["lo".to_owned()]));
            ensure!(failures.is_empty(), "{failures:?}");
            Ok(())
        })
    }

    /// The handles and programs on the device, in ascending order.
    fn filters(&self) -> Result<Vec<(String, String)>> {
        let text = checked_output(self.ns.command("tc").args(["filter", "show", "dev", "lo", "ingress"]))?;
        let filters = text.lines().filter(|line| line.contains("direct-action"));
        let word_after = |line: &str, word: &str| -> Result<String> {
            let found = line.split_whitespace().skip_while(|w| *w != word).nth(1);
            Ok(found.with_context(|| format!("no {word} in {line:?}"))?.to_owned())
        };
        let filters = filters.map(|line| Ok((word_after(line, "handle")?, word_after(line, "id")?)));
        let mut filters: Vec<_> = filters.collect::<Result<_>>()?;
        filters.sort();
        Ok(filters)
    }
}

#[test]
fn each_gateway_has_its_program_and_the_next_process_finds_it_again() -> Result<()> {
    let scene = Scene::new()?;
    let [a, b] = &scene.directories;
    scene.attach(a)?;
    let first = scene.filters()?;
    ensure!(first.len() == 1, "{first:?}");
    scene.attach(b)?;
    let both = scene.filters()?;
    ensure!(both.len() == 2 && both.contains(&first[0]), "{both:?}, but {first:?} before");
    scene.attach(a)?;
    scene.attach(b)?;
    let again = scene.filters()?;
    ensure!(again == both, "{again:?}, but {both:?} before");
    Ok(())
}

#[test]
fn unloading_one_gateway_leaves_the_other_its_program() -> Result<()> {
    let scene = Scene::new()?;
    let [a, b] = &scene.directories;
    scene.attach(b)?;
    let of_b = scene.filters()?;
    scene.attach(a)?;
    ensure!(scene.ns.run(|| kernel::unload(a))?);
    let left = scene.filters()?;
    ensure!(left == of_b, "{left:?} instead of {of_b:?}");
    ensure!(kernel::is_loaded(b)? && !kernel::is_loaded(a)?);
    ensure!(scene.ns.run(|| kernel::unload(b))?);
    ensure!(scene.filters()?.is_empty(), "{:?}", scene.filters()?);
    Ok(())
}

#[test]
fn a_pin_that_is_no_link_keeps_no_program_attached() -> Result<()> {
    require!(matches!(probe::tcx(), Answer::Yes), "this kernel has no tcx");
    let scene = Scene::new()?;
    let [a, _] = &scene.directories;
    let attached = || -> Result<usize> {
        scene.ns.run(|| Ok(SchedClassifier::query_tcx("lo", TcAttachType::Ingress)?.1.len()))
    };
    let pins = scene.ns.run(|| -> Result<PathBuf> {
        let gateway = eventually("the lock", || Packet::open(a, 64).ok())?;
        let failures = gateway.attach(&devices()?, &Interfaces::Named(vec!["lo".to_owned()]));
        ensure!(failures.is_empty(), "{failures:?}");
        Ok(gateway.directory().to_owned())
    })?;
    ensure!(attached()? == 1);
    // Before and behind the link, in whatever order they are listed.
    let others = ["link-0", "link-9999"].map(|name| pins.join(name));
    for other in &others {
        MapData::from_pin(pins.join(PORTS))?.pin(other)?;
    }
    let error = scene.ns.run(|| kernel::unload(a)).err().context("it says nothing of them")?;
    ensure!(error.to_string().contains("link-"), "{error}");
    ensure!(attached()? == 0 && kernel::is_loaded(a)?);
    for other in &others {
        std::fs::remove_file(other)?;
    }
    ensure!(scene.ns.run(|| kernel::unload(a))? && !kernel::is_loaded(a)?);
    Ok(())
}
