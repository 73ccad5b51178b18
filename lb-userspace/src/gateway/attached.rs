//! A device that has addresses for the sake of Gateways: while they are served, and while connections to them are open.

use crate::config::gateway_api::{Attach, Mode, Settings};
use crate::kernel::{addresses, arp};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// The device on which addresses need no answer to ARP.
const LOOPBACK: &str = "lo";

/// A device with addresses that it has for the sake of Gateways.
pub(super) struct Attached {
    device: Box<str>,
    addresses: BTreeSet<IpAddr>,
    /// Those of them that it has for the sake of something that is not in force yet.
    added: BTreeSet<IpAddr>,
    /// Why addresses on `lo` may be answered for by every node.
    faults: Vec<String>,
}

impl Attached {
    /// The device, with what an earlier process has left there. `None`: no device gets any.
    pub(super) fn of(settings: &Settings) -> Option<Self> {
        let Attach::Device(device) = settings.attach.clone() else { return None };
        if settings.mode == Mode::Node {
            return None;
        }
        let addresses = addresses::ours().unwrap_or_else(|error| {
            tracing::error!(%device, %error, "cannot list the addresses of the device");
            Vec::new()
        });
        let addresses = addresses.into_iter().filter(|(on, _)| *on == *device).map(|(_, address)| address);
        Some(Self { addresses: addresses.collect(), device, added: BTreeSet::new(), faults: Vec::new() })
    }

    /// Those that it has.
    pub(super) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// Why it should not be relied on.
    pub(super) fn faults(&self) -> &[String] {
        &self.faults
    }

    /// Sees to it that the device has these.
    pub(super) fn add(&mut self, wanted: &BTreeSet<IpAddr>) {
        if *self.device == *LOOPBACK && wanted.iter().any(IpAddr::is_ipv4) {
            // Before the first of them is there.
            let said = std::mem::take(&mut self.faults);
            let fault = |(loud, error): (arp::Loud, std::io::Error)| {
                let arp::Loud { setting, wanted } = loud;
                format!("every node may answer ARP for addresses on lo: {setting} is not {wanted} ({error})")
            };
            self.faults = arp::keep_quiet().into_iter().map(fault).collect();
            self.faults
                .iter()
                .filter(|fault| !said.contains(fault))
                .for_each(|fault| tracing::error!("{fault}"));
        }
        for address in wanted.difference(&self.addresses.clone()) {
            match addresses::add(&self.device, *address) {
                Ok(()) => {
                    self.addresses.insert(*address);
                    self.added.insert(*address);
                }
                Err(error) => {
                    tracing::error!(device = %self.device, %address, %error, "the device does not get it")
                }
            }
        }
    }

    /// What was added is for the sake of what is in force now.
    pub(super) fn in_force(&mut self) {
        self.added.clear();
    }

    /// Takes from the device what was added since [`in_force`](Self::in_force).
    pub(super) fn remove_added(&mut self) {
        let kept = self.addresses.difference(&std::mem::take(&mut self.added)).copied().collect();
        self.retain(&kept);
    }

    /// Takes from the device what is not among these.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<IpAddr>) {
        let device = &self.device;
        self.addresses.retain(|address| {
            wanted.contains(address)
                || addresses::remove(device, *address)
                    .inspect_err(|error| tracing::error!(%device, %address, %error, "the device keeps it"))
                    .is_err()
        });
    }
}
