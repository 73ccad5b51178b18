//! How the packet tier's programs are attached to devices: by links of tcx (Linux 6.6), else by filters of tc.

use super::links;
use super::programs::Programs;
use super::shapes::TIER;
use crate::kernel::devices::{Device, devices};
use crate::kernel::error::{KernelError, from_program, pin_error};
use crate::kernel::pins::{self, Pins};
use aya::maps::MapInfo;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{Link as _, LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use lb_common::packet::FLOWS;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

/// What the names of pinned links begin with; behind it is the device's number.
const LINK: &str = "link-";

/// The priority of the tc filters by which programs are attached on kernels without tcx. All gateways of a host use it,
/// each with a handle of its own.
const PRIORITY: u16 = 17;

/// Attaches the program for this kind of device. If an earlier process has attached one, it is replaced atomically.
/// `false`: there is no program for this kind of device, or it is not loaded yet.
pub(super) fn attach(
    programs: &mut Programs,
    pins: &Pins,
    device: &Device,
    flows: u32,
) -> Result<bool, KernelError> {
    let handle = programs.handle;
    let Some((name, program)) = programs.of(device, pins, flows)? else { return Ok(false) };
    let failed = |error| from_program(name, error);
    let pin = link_name(device.index);
    let path = pins.path(&pin);
    if let Ok(pinned) = PinnedLink::from_pin(&path) {
        let link = SchedClassifierLink::try_from(FdLink::from(pinned)).map_err(of_link)?;
        match program.attach_to_link(link) {
            // The pin keeps the link.
            Ok(link) => return program.take_link(link).map(|_| true).map_err(failed),
            // The link's device is gone, and a new one has its index; or an `unload` that was cut short has detached it.
            Err(_) => pins.clear(&pin)?,
        }
    }
    let tcx = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(&device.name, TcAttachType::Ingress, tcx) {
        Ok(link) => {
            let link: FdLink = program.take_link(link).map_err(failed)?.try_into().map_err(of_link)?;
            link.pin(&path).map_err(|error| pin_error(path, io::Error::other(error)))?;
        }
        Err(error) if is_unknown(&error) => attach_by_netlink(program, device, handle).map_err(failed)?,
        Err(error) => return Err(failed(error)),
    }
    Ok(true)
}

fn of_link(error: LinkError) -> KernelError {
    KernelError::Load(Box::new(error))
}

/// Whether the error is that of a kernel without tcx: EINVAL.
fn is_unknown(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::EINVAL))
}

/// Attaches the program as a filter of the clsact qdisc; it stays when the process ends. Filters of other gateways, with
/// other handles, stay too: a packet that one program does not take goes on to the next.
pub(super) fn attach_by_netlink(
    program: &mut SchedClassifier,
    device: &Device,
    handle: TcHandle,
) -> Result<(), ProgramError> {
    // An error: the device has the qdisc already.
    let _ = qdisc_add_clsact(&device.name);
    let (name, ingress) = (&device.name, TcAttachType::Ingress);
    let options = NlOptions { priority: PRIORITY, handle, ..NlOptions::default() };
    let link = match program.attach_with_options(name, ingress, TcAttachOptions::Netlink(options)) {
        Ok(link) => link,
        Err(_) => program.attach_to_link(
            SchedClassifierLink::attached(name, ingress, PRIORITY, handle, None).map_err(TcError::IoError)?,
        )?,
    };
    // Dropping the link would detach the program.
    std::mem::forget(program.take_link(link)?);
    Ok(())
}

/// The handle of the tc filters of programs with this flow table: the table's id. While such a program is attached, no
/// other table gets that id, so other tables have other handles, and a process that adopts the table finds the filters
/// again. The kernel itself chooses no handle with the highest bit set.
pub(super) fn handle(flows: &MapInfo) -> TcHandle {
    TcHandle::from(flows.id() | 1 << 31)
}

/// The handles of all versions that have pins in the directory.
fn handles(bpffs: &Path) -> Result<Vec<TcHandle>, KernelError> {
    let tables = pins::versions(bpffs)?.into_iter().map(|version| version.join(TIER).join(FLOWS));
    Ok(tables.filter_map(|table| MapInfo::from_pin(table).ok()).map(|info| handle(&info)).collect())
}

/// Detaches the programs of this directory: when this returns `Ok`, no packet meets them any more. After an error as many are
/// detached as can be.
pub(in crate::kernel) fn detach(bpffs: &Path) -> Result<(), KernelError> {
    let links = pinned_links(bpffs)?;
    let failed =
        |path: PathBuf| move |source| KernelError::Detach { what: path.display().to_string(), source };
    // Of all: one that fails leaves none of the others attached.
    let by_links =
        links.into_iter().map(|path| links::detach(&path).map_err(failed(path))).collect::<Vec<_>>();
    let by_filters = detach_filters(bpffs);
    by_links.into_iter().chain([by_filters]).collect()
}

/// The pins of links, of all versions that have pins in the directory.
fn pinned_links(bpffs: &Path) -> Result<Vec<PathBuf>, KernelError> {
    let mut links = Vec::new();
    for version in pins::versions(bpffs)? {
        let directory = version.join(TIER);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(pin_error(directory, error)),
        };
        // A symbolic link would lead to somebody else's pin.
        let is_ours = |entry: &DirEntry| {
            entry.file_name().to_string_lossy().starts_with(LINK)
                && entry.file_type().is_ok_and(|kind| kind.is_file())
        };
        links.extend(entries.flatten().filter(is_ours).map(|entry| entry.path()));
    }
    Ok(links)
}

fn detach_filters(bpffs: &Path) -> Result<(), KernelError> {
    let handles = handles(bpffs)?;
    if handles.is_empty() {
        return Ok(());
    }
    let mut outcome = Ok(());
    for device in devices().map_err(|error| KernelError::Load(Box::new(error)))? {
        for handle in &handles {
            let ingress = TcAttachType::Ingress;
            // An error: the device is gone.
            let Ok(filter) = SchedClassifierLink::attached(&device.name, ingress, PRIORITY, *handle, None)
            else {
                continue;
            };
            match filter.detach() {
                Err(ProgramError::NetlinkError(error)) if !is_none(error.raw_os_error()) => {
                    let source = io::Error::other(error);
                    outcome = Err(KernelError::Detach { what: device.name.clone(), source });
                }
                _ => {}
            }
        }
    }
    outcome
}

/// Whether the kernel says that there is no such filter: none of that handle, none at all, or no device.
fn is_none(code: Option<i32>) -> bool {
    use libc::{EINVAL, ENODEV, ENOENT, EOPNOTSUPP};
    matches!(code, Some(ENOENT | EINVAL | ENODEV | EOPNOTSUPP))
}

pub(super) fn link_name(ifindex: u32) -> String {
    format!("{LINK}{ifindex}")
}
