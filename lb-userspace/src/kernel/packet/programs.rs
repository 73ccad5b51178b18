//! The programs of the packet tier: loaded and pinned once by each build, adopted by its later starts.

use super::hash::Hash;
use super::shapes::SHAPES;
use crate::kernel::devices::{Device, LinkLayer};
use crate::kernel::error::{KernelError, from_program, pin_error};
#[cfg(feature = "kernel-log")]
use crate::kernel::log;
use crate::kernel::object::{self, shrink_sockmap, uninterrupted};
use crate::kernel::pins::Pins;
use aya::maps::MapInfo;
use aya::programs::SchedClassifier;
use aya::programs::tc::TcHandle;
use aya::{Ebpf, EbpfLoader};
use lb_common::packet::{CONNECTIONS, FLOWS, FORWARD_BARE, FORWARD_ETHERNET, NAMES, TRACKS};
use std::collections::HashSet;
use std::path::Path;
use std::{fs, io};

/// Those that are loaded, and the devices that they are attached to.
pub(super) struct Programs {
    /// `None`: not loaded yet.
    pub(super) ethernet: Option<SchedClassifier>,
    /// For devices without an Ethernet header; loaded when there is one.
    pub(super) bare: Option<SchedClassifier>,
    /// Whether this build's are loaded. Until then those of an earlier build serve, if they are pinned.
    pub(super) are_current: bool,
    /// The handle of their tc filters.
    pub(super) handle: TcHandle,
    /// Interface indices of the devices that have a program.
    pub(super) attached: HashSet<u32>,
}

impl Programs {
    /// The program for this kind of device, and its name; `None`: there is none, or it is not loaded yet.
    pub(super) fn of(
        &mut self,
        device: &Device,
        pins: &Pins,
        flows: u32,
    ) -> Result<Option<(&'static str, &mut SchedClassifier)>, KernelError> {
        let (name, known) = match device.link_layer {
            LinkLayer::Ethernet => (FORWARD_ETHERNET, &mut self.ethernet),
            LinkLayer::Bare => (FORWARD_BARE, &mut self.bare),
            LinkLayer::Unsupported => return Ok(None),
        };
        if known.is_none() {
            *known = if self.are_current { Some(program(pins, name, flows)?) } else { earlier(pins, name)? };
        }
        Ok(known.as_mut().map(|program| (name, program)))
    }
}

/// The program of this build, with the pinned maps: adopted if it is pinned, else loaded and pinned. So only the first
/// start of a build takes the verifier's time, a good part of a second.
pub(super) fn program(pins: &Pins, name: &'static str, flows: u32) -> Result<SchedClassifier, KernelError> {
    if let Some(adopted) = adopted(pins, name) {
        return Ok(adopted);
    }
    let path = pins.path(&current_pin(name));
    load_program(pins, name, flows, &path)?;
    for other in earlier_pins(pins, name)? {
        pins.clear(&other)?;
    }
    SchedClassifier::from_pin(&path).map_err(|error| from_program(name, error))
}

/// This build's program, if it is pinned.
pub(super) fn adopted(pins: &Pins, name: &str) -> Option<SchedClassifier> {
    from_pin(pins, &current_pin(name))
}

/// An earlier build's program, if one is pinned. It uses the same maps: the ABI is the same.
pub(super) fn earlier(pins: &Pins, name: &str) -> Result<Option<SchedClassifier>, KernelError> {
    Ok(earlier_pins(pins, name)?.iter().find_map(|pin| from_pin(pins, pin)))
}

fn earlier_pins(pins: &Pins, name: &str) -> Result<Vec<String>, KernelError> {
    let (prefix, current) = (format!("{name}-"), current_pin(name));
    let mut names = pins.names()?;
    names.retain(|pin| pin.starts_with(&prefix) && *pin != current);
    Ok(names)
}

/// The name of this build's pin.
fn current_pin(name: &str) -> String {
    let build = Hash::EMPTY.of(object::OBJECT);
    #[cfg(feature = "kernel-log")]
    let build = build ^ u64::from(log::level());
    format!("{name}-{build:016x}")
}

/// The pinned program of that name, if it uses the pinned maps.
fn from_pin(pins: &Pins, pin: &str) -> Option<SchedClassifier> {
    let program = SchedClassifier::from_pin(pins.path(pin)).ok()?;
    uses_pinned_maps(&program, pins).then_some(program)
}

/// Whether a program uses the pinned maps. It does not if a map's pin was removed by hand: then another map is, or will be,
/// pinned there.
fn uses_pinned_maps(program: &SchedClassifier, pins: &Pins) -> bool {
    let Some(used) = program.info().ok().and_then(|info| info.map_ids().ok().flatten()) else { return false };
    SHAPES.iter().all(|shape| {
        let for_userspace_alone = [CONNECTIONS, NAMES].contains(&shape.name);
        MapInfo::from_pin(pins.path(shape.name))
            .is_ok_and(|pinned| for_userspace_alone || used.contains(&pinned.id()))
    })
}

/// Makes the maps that are not pinned yet, pins them, and checks those that are. The programs are not loaded yet.
pub(super) fn load_object(pins: &Pins, flows: u32) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries(FLOWS, flows.max(2));
    loader.map_max_entries(CONNECTIONS, (flows / 2).max(1));
    loader.map_max_entries(TRACKS, (flows / 2).max(1));
    shrink_sockmap(&mut loader);
    #[cfg(feature = "kernel-log")]
    let level = log::level();
    #[cfg(feature = "kernel-log")]
    loader.override_global(aya_log::LEVEL, &level, true).map_pin_path(log::LOGS, pins.path(log::LOGS));
    for shape in &SHAPES {
        pins.check(shape)?;
        loader.map_pin_path(shape.name, pins.path(shape.name));
    }
    object::load(&mut loader)
}

fn load_program(pins: &Pins, name: &'static str, flows: u32, path: &Path) -> Result<(), KernelError> {
    let mut ebpf = load_object(pins, flows)?;
    let program = ebpf.program_mut(name).expect("the object has the program");
    let failed = |error| from_program(name, error);
    let program: &mut SchedClassifier = program.try_into().map_err(failed)?;
    uninterrupted(|| program.load()).map_err(failed)?;
    // A program of this build with other maps may be pinned there.
    let _ = fs::remove_file(path);
    program.pin(path).map_err(|error| pin_error(path.to_owned(), io::Error::other(error)))
}
