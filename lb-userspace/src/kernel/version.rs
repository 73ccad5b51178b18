//! Kernel releases, and which of them have a sound sockmap.

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
        let uname = rustix::system::uname();
        let signature = std::fs::read_to_string("/proc/version_signature").unwrap_or_default();
        Self::identify(uname.release().to_str().ok()?, uname.version().to_str().ok()?, &signature)
    }

    /// From `uname -r`, `uname -v` and Ubuntu's /proc/version_signature (else empty).
    ///
    /// Debian and Ubuntu put the number of their own ABI where the patch level belongs (`6.1.0-50-amd64`); the
    /// release they are built from stands in the other texts.
    pub fn identify(release: &str, version: &str, signature: &str) -> Option<Self> {
        let of_debian = version.split_once("Debian ").map(|(_, rest)| rest);
        let of_ubuntu = signature.split_whitespace().nth(2);
        let stated: Option<Self> = of_debian.or(of_ubuntu).and_then(|text| text.parse().ok());
        let release: Self = release.parse().ok()?;
        Some(stated.filter(|stated| stated.branch() == release.branch()).unwrap_or(release))
    }

    fn branch(&self) -> (u16, u16) {
        (self.major, self.minor)
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

/// The first release whose sockmap the tier may use.
///
/// Earlier ones sent a redirected message again from its beginning after a partial send. 5.15.186, 6.1.142, 6.6.94, 6.12.34
/// and 6.15.3 have the fix too, but this project's tests have not shown those branches correct: on 6.1.192, inserting
/// sockets under load froze two virtual machines of five.
const SOUND_SINCE: KernelVersion = KernelVersion::new(6, 16, 0);

/// Whether this kernel's sockmap moves every byte exactly once, in the way the sockmap tier uses it.
///
/// Two further defects do not matter, because the tier never passes data up to a socket of the map and does not use
/// FIONREAD: a wrong `copied_seq` after SK_PASS, and FIONREAD and wake-ups of the psock's own ingress queue.
pub fn sockmap_sound(release: &KernelVersion) -> Result<(), &'static str> {
    match *release >= SOUND_SINCE {
        true => Ok(()),
        false => Err("may send bytes twice, or was never shown to move each byte once (sound since 6.16)"),
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
    fn a_distribution_states_the_patch_level_elsewhere() {
        let identify = |release, version, signature| KernelVersion::identify(release, version, signature);
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.164-1 (2026-03-09)";
        assert_eq!(identify("6.1.0-50-amd64", debian, ""), Some(KernelVersion::new(6, 1, 164)));
        let ubuntu = "Ubuntu 6.8.0-31.31-generic 6.8.1\n";
        let version = "#31-Ubuntu SMP PREEMPT_DYNAMIC";
        assert_eq!(identify("6.8.0-31-generic", version, ubuntu), Some(KernelVersion::new(6, 8, 1)));
        assert_eq!(identify("6.18.44-fc", "#1 SMP", ""), Some(KernelVersion::new(6, 18, 44)));
        assert_eq!(identify("6.18.44", debian, ""), Some(KernelVersion::new(6, 18, 44)), "another branch");
        assert_eq!(identify("five", debian, ""), None);
    }

    #[test]
    fn only_kernels_that_the_tests_have_shown_correct_are_sound() {
        for (major, minor, patch) in [(5, 10, 250), (5, 15, 190), (6, 1, 192), (6, 6, 94), (6, 15, 3)] {
            assert!(sockmap_sound(&KernelVersion::new(major, minor, patch)).is_err(), "{major}.{minor}");
        }
        for (major, minor, patch) in [(6, 16, 0), (6, 18, 44)] {
            assert_eq!(sockmap_sound(&KernelVersion::new(major, minor, patch)), Ok(()), "{major}.{minor}");
        }
    }
}
