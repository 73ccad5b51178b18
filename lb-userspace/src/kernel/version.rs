//! Kernel releases, and which of them have a sockmap to be trusted with somebody's bytes.

use std::{fmt, str::FromStr};

/// A release as `uname -r` gives it, without what a distribution appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelVersion {
    /// `6` in 6.12.34.
    pub major: u16,
    /// `12` in 6.12.34.
    pub minor: u16,
    /// `34` in 6.12.34; 0 where none is given.
    pub patch: u16,
}

impl KernelVersion {
    /// The release `major.minor.patch`.
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self { major, minor, patch }
    }

    /// The kernel that runs. `None` if its release cannot be read.
    pub fn running() -> Option<Self> {
        rustix::system::uname().release().to_str().ok()?.parse().ok()
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A text that is not a kernel release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a kernel release")]
pub struct NotARelease;

impl FromStr for KernelVersion {
    type Err = NotARelease;

    fn from_str(text: &str) -> Result<Self, NotARelease> {
        let digits = text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
        let mut numbers = digits.split('.').map(str::parse::<u16>);
        let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
            return Err(NotARelease);
        };
        let patch = numbers.next().and_then(Result::ok).unwrap_or(0);
        Ok(Self { major, minor, patch })
    }
}

/// The first releases, per stable branch, in which a partial send of a redirected message is no longer sent
/// again from its beginning.
const PARTIAL_SEND_FIXED: [KernelVersion; 5] = [
    KernelVersion::new(5, 15, 186),
    KernelVersion::new(6, 1, 142),
    KernelVersion::new(6, 6, 94),
    KernelVersion::new(6, 12, 34),
    KernelVersion::new(6, 15, 3),
];

/// The first mainline release with that fix: later branches all have it.
const PARTIAL_SEND_FIXED_SINCE: KernelVersion = KernelVersion::new(6, 16, 0);

/// Whether this kernel's sockmap moves every byte exactly once, in the way the sockmap tier uses it.
///
/// Two further defects do not count, because the tier never passes data up to a socket of the map: a wrong
/// `copied_seq` after SK_PASS, and FIONREAD and wake-ups of the psock's own ingress queue. A distribution's
/// kernel that took the fix under an older number is judged by its number.
pub fn sockmap_sound(release: &KernelVersion) -> Result<(), &'static str> {
    let branch = PARTIAL_SEND_FIXED.iter().find(|v| (v.major, v.minor) == (release.major, release.minor));
    match branch {
        Some(first) if release >= first => Ok(()),
        None if *release >= PARTIAL_SEND_FIXED_SINCE => Ok(()),
        _ => Err(
            "sends the bytes of a partial send twice (fixed in 5.15.186, 6.1.142, 6.6.94, 6.12.34, 6.15.3 and 6.16)",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_read() {
        let read = |text: &str| text.parse::<KernelVersion>();
        assert_eq!(read("6.18.44-fc-v657"), Ok(KernelVersion::new(6, 18, 44)));
        assert_eq!(read("6.1.0-50-amd64"), Ok(KernelVersion::new(6, 1, 0)));
        assert_eq!(read("6.12"), Ok(KernelVersion::new(6, 12, 0)));
        assert_eq!(read("6.12-rc3"), Ok(KernelVersion::new(6, 12, 0)));
        assert_eq!(read("five"), Err(NotARelease));
        assert_eq!(read("6"), Err(NotARelease));
        assert_eq!(read(""), Err(NotARelease));
    }

    #[test]
    fn each_stable_branch_is_sound_from_its_fix_on() {
        for fixed in PARTIAL_SEND_FIXED {
            let before = KernelVersion { patch: fixed.patch - 1, ..fixed };
            assert_eq!(sockmap_sound(&fixed), Ok(()), "{fixed}");
            assert!(sockmap_sound(&before).is_err(), "{before}");
        }
    }

    #[test]
    fn branches_without_a_fix_are_not_sound_and_later_ones_are() {
        for (major, minor, patch) in [(5, 10, 250), (6, 5, 13), (6, 13, 12), (6, 14, 11)] {
            assert!(sockmap_sound(&KernelVersion::new(major, minor, patch)).is_err(), "{major}.{minor}");
        }
        for (major, minor, patch) in [(6, 16, 0), (6, 18, 44), (7, 0, 0)] {
            assert_eq!(sockmap_sound(&KernelVersion::new(major, minor, patch)), Ok(()), "{major}.{minor}");
        }
    }
}
