//! Arrows of circles that are still there.

/// From a node to another that needs it too, by some way. Without these arrows there is no circle. One that is on no circle
/// any more has to leave this list.
///
/// What is to be moved apart: the patterns of paths and the names of filters, which the configuration reads and the proxy uses;
/// a connection's body and the task that moves it.
pub(super) const ARROWS: &[(&str, &str)] = &[
    ("lb-userspace/src/config", "lb-userspace/src/http"),
    ("lb-userspace/src/http/body.rs", "lb-userspace/src/http/upstream.rs"),
    ("lb-userspace/src/http/mirror.rs", "lb-userspace/src/http/forward.rs"),
    ("lb-userspace/src/config", "lb-userspace/src/route"),
    ("lb-userspace/src/http/link.rs", "lb-userspace/src/http/upstream.rs"),
];
