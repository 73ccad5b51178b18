//! Loading, attaching and pinning the sockmap tier's programs.

use super::{FLOWS, SHAPES, SOURCES, Sockmap, TARGETS, VERDICT, sources};
use crate::kernel::error::{KernelError, from_map, from_program, pin_error};
use crate::kernel::object::{self, shrink_packet, uninterrupted};
use crate::kernel::pins::Pins;
use aya::programs::SkSkb;
use aya::{Ebpf, EbpfLoader};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The kernel programs, loaded.
///
/// They live as long as this value. If `snisplice load` has pinned maps, those are adopted, and this build's program
/// replaces the one that is attached to them.
pub struct Kernel {
    sockmap: Arc<Sockmap>,
    /// Owns the programs. `None`: the pinned maps own them.
    _programs: Option<Ebpf>,
    /// Locked while pinned maps are used: a ring buffer has one reader.
    _pins: Option<Pins>,
}

impl Kernel {
    /// For a gateway: adopts what is pinned, unless another gateway uses it; else loads programs of its own.
    ///
    /// `sockets`: the capacity of the sockmap, two per connection; adopted maps keep their own.
    pub fn open(bpffs: &Path, sockets: u32) -> Result<Self, KernelError> {
        match Pins::existing(bpffs, "sockmap")?.filter(Pins::lock) {
            Some(pins) => {
                let mut programs = load(Some(&pins), sockets)?;
                let sockmap = Arc::new(Sockmap::new(&mut programs).map_err(from_map)?);
                Ok(Self { sockmap, _programs: None, _pins: Some(pins) })
            }
            None => {
                let mut programs = load(None, sockets)?;
                let sockmap = Arc::new(Sockmap::new(&mut programs).map_err(from_map)?);
                Ok(Self { sockmap, _programs: Some(programs), _pins: None })
            }
        }
    }

    /// The maps of the sockmap tier.
    pub fn sockmap(&self) -> &Arc<Sockmap> {
        &self.sockmap
    }
}

/// `snisplice load` for the sockmap tier: loads, attaches and pins the programs; mounts the bpf file system if it is
/// missing. Maps that are pinned already stay, and get this build's program.
pub fn load_and_pin(bpffs: &Path, sockets: u32) -> Result<(), KernelError> {
    let pins = Pins::create(bpffs, "sockmap")?;
    load(Some(&pins), sockets).map(drop)
}

/// Loads the programs and attaches them to new maps, or to pinned ones: those are checked, and made if they are missing.
fn load(pins: Option<&Pins>, sockets: u32) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    let sized = [SOURCES, TARGETS, FLOWS];
    for name in sized {
        loader.map_max_entries(name, sockets.max(2));
    }
    shrink_packet(&mut loader);
    if let Some(pins) = pins {
        for shape in &SHAPES {
            pins.check(shape)?;
            loader.map_pin_path(shape.name, pins.path(shape.name));
        }
    }
    let mut programs = object::load(&mut loader)?;

    let of_verdict = |error| from_program(VERDICT, error);
    let sources = sources(&mut programs).map_err(from_map)?;
    let verdict: &mut SkSkb =
        programs.program_mut(VERDICT).expect("the object has the program").try_into().map_err(of_verdict)?;
    uninterrupted(|| verdict.load()).map_err(of_verdict)?;
    let link = verdict.attach(&sources).map_err(of_verdict)?;
    if let Some(pins) = pins {
        let path = pins.path(VERDICT);
        pins.clear(VERDICT)?;
        verdict.pin(&path).map_err(|error| pin_error(path, io::Error::other(error)))?;
        // Dropping the link would detach the program, which the pinned map keeps.
        std::mem::forget(verdict.take_link(link).map_err(of_verdict)?);
    }
    Ok(programs)
}
