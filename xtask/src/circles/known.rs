//! Arrows of circles that are still there.

/// From a node to another that needs it too, by some way. Without these arrows there is no circle. One that is on no circle
/// any more has to leave this list.
///
/// What is to be moved apart: the specs of policies; what a build keeps, which is made of what makes it.
pub(super) const ARROWS: &[(&str, &str)] = &[
    ("lb-userspace/src/config/gateway_api/index.rs", "lb-userspace/src/config/gateway_api/backend_tls.rs"),
    (
        "lb-userspace/src/config/gateway_api/http_listeners.rs",
        "lb-userspace/src/config/gateway_api/convert.rs",
    ),
    (
        "lb-userspace/src/config/gateway_api/http_filters.rs",
        "lb-userspace/src/config/gateway_api/requests.rs",
    ),
    (
        "lb-userspace/src/config/gateway_api/istio/http.rs",
        "lb-userspace/src/config/gateway_api/istio/virtual_service.rs",
    ),
    ("lb-userspace/src/config/gateway_api/objects.rs", "lb-userspace/src/config/gateway_api/backend_tls.rs"),
    ("lb-userspace/src/config/gateway_api/memo.rs", "lb-userspace/src/config/gateway_api/index.rs"),
    ("lb-userspace/src/config/gateway_api/specs.rs", "lb-userspace/src/config/gateway_api/requests.rs"),
    ("lb-userspace/src/config/gateway_api/pools.rs", "lb-userspace/src/config/gateway_api/backend_tls.rs"),
    ("lb-userspace/src/config/gateway_api/memo.rs", "lb-userspace/src/config/gateway_api/attach.rs"),
    ("lb-userspace/src/config/gateway_api/memo.rs", "lb-userspace/src/config/gateway_api/convert.rs"),
    ("lb-userspace/src/config/gateway_api/memo.rs", "lb-userspace/src/config/gateway_api/http_listeners.rs"),
];
