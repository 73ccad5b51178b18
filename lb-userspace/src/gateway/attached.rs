//! Addresses that devices have for the sake of Gateways: while they are served, and while connections to them are open.

use super::drained::write_whole;
use crate::kernel::{addresses, arp, listeners};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{fs, io};

/// The file in `state_dir` that names the addresses that this gateway has given to devices, a line each: those of other gateways
/// on the host are marked in the same way.
const FILE: &str = "attached";

/// The file in a state directory.
pub fn file(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// The device on which addresses need no answer to ARP.
const LOOPBACK: &str = "lo";

/// An address, on a device.
type Place = (Box<str>, IpAddr);

/// Addresses that devices have for the sake of Gateways. One for the process: the device may be another after a reload, or none
/// any more, and then what the one before has is taken from it all the same.
pub(crate) struct Attached {
    file: PathBuf,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    all: BTreeSet<Place>,
    /// Those of them that are for the sake of something that is not in force yet.
    added: BTreeSet<Place>,
    /// What this process has written last into the file.
    noted: Option<BTreeSet<Place>>,
    /// What a device did not get: the log says it once.
    refused: BTreeSet<Place>,
}

/// What the configuration in force wants of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Wants<'a> {
    /// `None`: no device is to have any.
    pub(super) device: Option<&'a str>,
    /// Those of Gateways. Without a device, something else sees to it that packets for them arrive.
    pub(super) addresses: Option<&'a BTreeSet<IpAddr>>,
    /// Since when, by [`crate::clock::now_ms`].
    pub(super) since_ms: u64,
}

/// The addresses that connections use, and when the oldest connection of each was opened, by [`crate::clock::now_ms`].
pub(super) type Used = BTreeMap<IpAddr, u64>;

/// Whether a device keeps an address.
#[derive(Debug, PartialEq, Eq)]
enum Keeps {
    Yes,
    No,
    /// If a socket listens on it: that is another gateway's, which marks addresses as this one does.
    IfListenedOn,
}

impl Wants<'_> {
    fn has(&self, address: IpAddr) -> bool {
        self.addresses.is_some_and(|addresses| addresses.contains(&address))
    }

    fn has_place(&self, (device, address): &Place) -> bool {
        self.device == Some(device) && self.has(*address)
    }

    fn keeps(&self, place: &Place, all: &BTreeSet<Place>, used: &Used) -> Keeps {
        let (device, address) = place;
        let oldest = used.get(address);
        let other = self.device.filter(|wanted| *wanted != &**device);
        let keeps = if self.has_place(place) {
            true
        } else if other.is_some_and(|other| all.contains(&(other.into(), *address))) {
            // It is the machine's still, which is all that its connections need.
            false
        } else if self.has(*address) {
            // The device did not get it; or something else is to see to it, and for new connections does.
            self.device.is_some() || oldest.is_some_and(|opened| *opened < self.since_ms)
        } else if oldest.is_some() {
            true
        } else {
            return Keeps::IfListenedOn;
        };
        if keeps { Keeps::Yes } else { Keeps::No }
    }
}

impl Attached {
    /// What earlier processes of the gateway with this `state_dir` have left on devices.
    pub(crate) fn found(state_dir: &Path) -> Self {
        let found = Self { file: file(state_dir), places: Mutex::default() };
        found.look_again();
        found
    }

    /// The same, as it is when no other process changes it any more.
    pub(super) fn look_again(&self) {
        let text = fs::read_to_string(&self.file).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                let file = self.file.display();
                tracing::error!(%file, %error, "cannot read: addresses may stay on devices");
            }
            String::new()
        });
        let listed: BTreeSet<&str> = text.lines().collect();
        if let Some(mut marked) = marked() {
            let all = &mut self.places().all;
            marked.retain(|place| all.contains(place) || listed.contains(&*line(place)));
            *all = marked;
        }
    }

    /// If `state_dir` is lost, what this device has of the addresses that Gateways here may have is its own, too. Not where a
    /// socket listens: that is another gateway's, which marks addresses as this one does.
    pub(super) fn take(&self, device: &str, may_have: impl Fn(IpAddr) -> bool) {
        if self.file.exists() {
            return;
        }
        let is_left = |(on, address): &Place| {
            **on == *device
                && may_have(*address)
                && listeners::is_used(*address).is_ok_and(|is_used| !is_used)
        };
        let left = marked().unwrap_or_default().into_iter().filter(is_left);
        self.places().all.extend(left);
    }

    /// Notes what it has, before or after a change: what is missing there, no later process would find.
    fn note(&self, noted: &mut Option<BTreeSet<Place>>, all: BTreeSet<Place>) {
        if noted.as_ref() == Some(&all) {
            return;
        }
        let text: String = all.iter().map(|place| line(place) + "\n").collect();
        match write_whole(&self.file, &text) {
            Ok(()) => *noted = Some(all),
            Err(error) => {
                let file = self.file.display();
                tracing::error!(%file, %error, "cannot write: addresses may stay on devices");
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        // Every change of it is whole before anything can panic.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses, on whichever device, and what this device has for the sake of other gateways.
    pub(super) fn addresses(&self, device: Option<&str>) -> BTreeSet<IpAddr> {
        let marked = device.and_then(|_| marked()).unwrap_or_default();
        let of_any = marked.into_iter().filter(|(on, _)| Some(&**on) == device);
        let all = self.places().all.clone();
        all.into_iter().chain(of_any).map(|(_, address)| address).collect()
    }

    /// Sees to it that a device has these, also if it had them before.
    pub(super) fn add(&self, device: &str, wanted: &BTreeSet<IpAddr>) {
        let mut guard = self.places();
        let Places { all, added, noted, refused } = &mut *guard;
        // An error: it has what it was given.
        let there = addresses::on(device).ok();
        let is_lost = |address: &IpAddr| there.as_ref().is_some_and(|there| !there.contains(address));
        let places = wanted.iter().map(|address| (device.into(), *address));
        let missing: BTreeSet<Place> =
            places.filter(|place| !all.contains(place) || is_lost(&place.1)).collect();
        if missing.is_empty() {
            return;
        }
        self.note(noted, all.union(&missing).cloned().collect());
        for place in missing {
            let address = place.1;
            match addresses::add(device, address) {
                Ok(()) => {
                    refused.remove(&place);
                    if all.insert(place.clone()) {
                        added.insert(place);
                    } else {
                        tracing::warn!(%device, %address, "the device had lost it, and has it again");
                    }
                }
                Err(error) if refused.insert(place) => {
                    tracing::error!(%device, %address, %error, "the device does not get it");
                }
                Err(_) => {}
            }
        }
    }

    /// Writes the file anew: another process has had it until now.
    pub(super) fn note_again(&self) {
        let Places { all, noted, .. } = &mut *self.places();
        *noted = None;
        if !all.is_empty() {
            self.note(noted, all.clone());
        }
    }

    /// What was added is for the sake of what is in force now.
    pub(super) fn in_force(&self) {
        self.places().added.clear();
    }

    /// Takes from devices what was added since [`in_force`](Self::in_force).
    pub(super) fn remove_added(&self) {
        let Places { all, added, noted, .. } = &mut *self.places();
        let added = std::mem::take(added);
        if !added.is_empty() {
            all.retain(|place| !added.contains(place) || !is_removed(place));
            self.note(noted, all.clone());
        }
    }

    /// Whether a device has addresses that it is not to have.
    pub(super) fn has_surplus(&self, wants: &Wants<'_>) -> bool {
        !self.places().all.iter().all(|place| wants.has_place(place))
    }

    /// Takes from devices what they are not to have, but for what is used.
    pub(super) fn release(&self, wants: &Wants<'_>, used: &Used) {
        let Places { all, noted, .. } = &mut *self.places();
        let before = all.clone();
        all.retain(|place| {
            let keeps = match wants.keeps(place, &before, used) {
                Keeps::Yes => true,
                Keeps::No => false,
                // If that cannot be told, it may be.
                Keeps::IfListenedOn => listeners::is_used(place.1).unwrap_or(true),
            };
            keeps || !is_removed(place)
        });
        if *all != before {
            self.note(noted, all.clone());
        }
    }
}

/// The addresses that some gateway has given to devices. `None`: that cannot be told.
fn marked() -> Option<BTreeSet<Place>> {
    let found = addresses::ours();
    let found = found.inspect_err(|error| tracing::error!(%error, "cannot list the addresses of devices"));
    Some(found.ok()?.into_iter().map(|(device, address)| (device.into(), address)).collect())
}

fn line((device, address): &Place) -> String {
    format!("{device} {address}")
}

fn is_removed((device, address): &Place) -> bool {
    let removed = addresses::remove(device, *address);
    removed.inspect_err(|error| tracing::error!(%device, %address, %error, "the device keeps it")).is_ok()
}

/// Keeps the machine from answering ARP for addresses on a device that is not to. Why it may answer all the same, which is logged
/// unless it was `said`.
pub(super) fn keep_quiet(device: &str, addresses: &BTreeSet<IpAddr>, said: &[String]) -> Vec<String> {
    if device != LOOPBACK || !addresses.iter().any(IpAddr::is_ipv4) {
        return Vec::new();
    }
    let fault = |(loud, error): (arp::Loud, std::io::Error)| {
        let arp::Loud { setting, wanted } = loud;
        format!("every node may answer ARP for addresses on lo: {setting} is not {wanted} ({error})")
    };
    let faults: Vec<String> = arp::keep_quiet().into_iter().map(fault).collect();
    faults.iter().filter(|fault| !said.contains(fault)).for_each(|fault| tracing::error!("{fault}"));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_what_it_is_to_have_or_connections_need() {
        let ip = |last: u8| IpAddr::from([198, 51, 100, last]);
        let place = |device: &str, last: u8| -> Place { (device.into(), ip(last)) };
        let gateways = BTreeSet::from([ip(1), ip(2)]);
        let all = BTreeSet::from([place("eth0", 1), place("eth0", 3), place("lo", 1), place("lo", 2)]);
        let on = |device| Wants { device, addresses: Some(&gateways), since_ms: 10 };
        let (eth0, freebind, none) = (on(Some("eth0")), on(None), Wants::default());
        for (wants, device, last, opened, expected) in [
            (eth0, "eth0", 1, None, Keeps::Yes),
            // No Gateway has it.
            (eth0, "eth0", 3, None, Keeps::IfListenedOn),
            (eth0, "eth0", 3, Some(20), Keeps::Yes),
            // The device before: what both have is not needed there, whatever connections there are.
            (eth0, "lo", 1, None, Keeps::No),
            (eth0, "lo", 1, Some(5), Keeps::No),
            // What the device did not get is better there than nowhere.
            (eth0, "lo", 2, None, Keeps::Yes),
            (eth0, "lo", 4, None, Keeps::IfListenedOn),
            (eth0, "lo", 4, Some(20), Keeps::Yes),
            // New clients come by what something else does.
            (freebind, "lo", 1, Some(5), Keeps::Yes),
            (freebind, "lo", 1, Some(20), Keeps::No),
            (freebind, "lo", 1, None, Keeps::No),
            (none, "lo", 1, Some(5), Keeps::Yes),
            (none, "lo", 1, None, Keeps::IfListenedOn),
        ] {
            let used = opened.map(|opened| (ip(last), opened)).into_iter().collect();
            let keeps = wants.keeps(&place(device, last), &all, &used);
            assert_eq!(keeps, expected, "{last} on {device}, {opened:?}, of {:?}", wants.device);
        }
    }
}
