//! The Gateway API: objects become listeners, routes and pools, and are told what has become of them.
//!
//! All of it is pure but `files`: objects go into an [`Index`], which makes drafts and statuses of them. Whoever brings the
//! objects (a directory, an API server) says what has changed, and gets to know whether that asks for a new build.

mod attach;
mod claims;
mod convert;
mod files;
mod gateways;
mod hostname;
mod index;
mod listeners;
mod objects;
mod pools;
mod secret;
mod settings;
mod specs;
mod status;
#[cfg(test)]
mod tests;

pub use files::{At, Manifests, Problem};
pub use index::{Built, Change, Context, Index};
pub use objects::{GROUP, Key, Kind, Labels, Name, Object, Refusal};
pub use settings::{Attach, GatewayApi, Mode, Settings, Source};
pub use specs::{ParentRef, RouteKind};
pub use status::{
    ClassStatus, Condition, Feature, GatewayStatus, ListenerSetStatus, ListenerStatus, RouteParentStatus,
    RouteStatus, Status, StatusAddress, Statuses, Truth,
};
