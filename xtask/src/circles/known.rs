//! Arrows of circles that are still there.

/// From a node to another that needs it too, by some way. Without these arrows there is no circle. One that is on no circle
/// any more has to leave this list.
pub(super) const ARROWS: &[(&str, &str)] = &[];
