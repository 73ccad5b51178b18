//! Drops the privileges that the process no longer needs, before a byte from the network is read.

use caps::{CapSet, Capability, CapsHashSet};

/// Needed after the start: ports below 1024 (a reload may add a listener), CAP_BPF for the kernel programs' maps,
/// CAP_NET_ADMIN for TCP_REPAIR and netlink (conntrack, IPsec policies, devices of containers).
const KEPT: [Capability; 3] =
    [Capability::CAP_NET_BIND_SERVICE, Capability::CAP_NET_ADMIN, Capability::CAP_BPF];

/// Raises the soft limit on open files as far as allowed. A connection needs two descriptors, and two more during a bulk
/// transfer. Returns the new limit.
pub(crate) fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const WANTED: u64 = 1_048_576;
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    // Raising the hard limit takes CAP_SYS_RESOURCE; without it the soft limit still goes up to the hard one.
    for (soft, hard) in [(WANTED.max(hard), WANTED.max(hard)), (hard, hard)] {
        if setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: Some(hard) }).is_ok() {
            return soft;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

/// Drops every capability but [`KEPT`], for this thread and those it starts from here on, and forbids gaining any by
/// exec.
pub(crate) fn drop_privileges() -> Result<(), caps::errors::CapsError> {
    keep(&KEPT)
}

/// As [`drop_privileges`], for a thread that loads kernel programs: it keeps CAP_PERFMON, which programs with pointers need.
pub(crate) fn drop_privileges_to_load() -> Result<(), caps::errors::CapsError> {
    keep(&[&KEPT[..], &[Capability::CAP_PERFMON]].concat())
}

fn keep(capabilities: &[Capability]) -> Result<(), caps::errors::CapsError> {
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet =
        capabilities.iter().copied().filter(|capability| held.contains(capability)).collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        tracing::warn!(%error, "cannot set no_new_privs");
    }
    Ok(())
}
