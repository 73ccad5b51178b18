//! Arrows of circles that are still there.

/// From a node to another that needs it too, by some way. Without these arrows there is no circle. One that is on no circle
/// any more has to leave this list.
pub(super) const ARROWS: &[(&str, &str)] = &[
    ("lb-userspace/src/config/certificate.rs", "lb-userspace/src/config/mod.rs"),
    ("lb-userspace/src/config/check.rs", "lb-userspace/src/config/mod.rs"),
    ("lb-userspace/src/config/overlap.rs", "lb-userspace/src/config/mod.rs"),
    ("lb-userspace/src/config/raw.rs", "lb-userspace/src/config/mod.rs"),
    ("lb-userspace/src/config/reader.rs", "lb-userspace/src/config/raw.rs"),
    ("lb-userspace/src/config/value.rs", "lb-userspace/src/config/mod.rs"),
];
