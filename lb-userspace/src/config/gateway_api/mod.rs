//! The Gateway API: objects become listeners, routes and pools, and are told what has become of them.
//!
//! All of it is pure but `files`: objects go into an [`Index`], which makes drafts and statuses of them. Whoever brings the
//! objects (a directory, an API server) says what has changed, and gets to know whether that asks for a new build.

mod attach;
mod backend_tls;
mod build;
mod claims;
mod context;
mod convert;
mod decode;
mod drafts;
mod files;
mod gateway;
mod gateways;
mod grpc_route;
mod http_filters;
mod http_listeners;
mod http_route;
mod index;
mod istio;
mod kept;
mod key;
mod listeners;
mod memo;
mod named;
mod objects;
mod policies;
mod pools;
mod references;
mod refusal;
mod requests;
mod route;
mod secret;
mod specs;
mod status;
mod subsets;
mod target;
#[cfg(test)]
mod tests;
mod view;
mod virtual_services;

pub use super::controller::{Attach, GatewayApi, Mode, Settings, Source};
pub use context::{Assigned, Context, Definition, Definitions, Lacking};
pub use files::{At, Manifests, Problem};
pub use index::{Built, Census, Change, Index, Wanted, watched};
pub use key::{GROUP, Key, Kind, Labels, Name};
pub use objects::Object;
pub use refusal::Refusal;
pub(crate) use secret::parts_of_secrets;
pub use specs::{ParentRef, RouteKind};
pub use status::{
    ClassStatus, Condition, Feature, GatewayStatus, ListenerSetStatus, ListenerStatus, PolicyAncestorStatus,
    PolicyStatus, RouteParentStatus, RouteStatus, RuleStatus, Status, StatusAddress, Statuses, Truth,
};
