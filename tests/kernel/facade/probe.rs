//! What the probes say of the kernel that the tests run on.

use anyhow::Result;
use snisplice::kernel::devices::{devices, joins_packets};
use snisplice::kernel::probe::{Answer, growing_hash, ipv6_checksum, ring_buffer, tcx};
use snisplice_tests::{NetNs, require};

#[test]
fn a_kernel_with_tcx_has_what_is_older() -> Result<()> {
    require!(tcx() == Answer::Yes, "no tcx in this kernel");
    assert_eq!(growing_hash(), Answer::Yes);
    assert_eq!(ring_buffer(), Answer::Yes);
    Ok(())
}

#[test]
fn the_helpers_flag_is_answered_by_running_it() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let answer = ipv6_checksum();
    // Older ones may have it by backport.
    if version >= (6, 16) {
        assert_eq!(answer, Answer::Yes);
    } else {
        assert!(matches!(answer, Answer::Yes | Answer::No), "{answer:?}");
    }
    Ok(())
}

#[test]
fn virtual_devices_do_not_join_packets_for_good() -> Result<()> {
    let ns = NetNs::new("lro")?;
    ns.ip("link add v0 type veth peer name v1")?;
    ns.run(|| {
        for device in devices()? {
            assert!(!joins_packets(&device)?, "{}", device.name);
        }
        let mut gone = devices()?.remove(0);
        gone.name = "not-there".to_owned();
        assert!(joins_packets(&gone).is_err());
        Ok(())
    })
}
