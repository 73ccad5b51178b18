//! The states of servers and of the packet tier, as `status` and the metrics name them.

use crate::reason::DownReason;
use serde::{Deserialize, Serialize};

/// Whether a server takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// Yes.
    Up,
    /// No: its health check fails, or connections to it have failed: [`DownReason`].
    Down,
    /// No: an operator drains it. Open connections stay.
    Draining,
    /// No: its name has no address.
    Unresolved,
}

impl ServerState {
    /// The name in JSON and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Unresolved => "unresolved",
        }
    }
}

/// A server's state, with its reason and age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Availability {
    /// The state.
    pub state: ServerState,
    /// Why it is [`ServerState::Down`]; [`DownReason::Unchecked`] also of one that is up for want of a check.
    pub reason: Option<DownReason>,
    /// Since when it is in this state ([`crate::clock::now_ms`]).
    pub since_ms: u64,
}

/// Whether the packet tier takes new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PacketTierState {
    /// Not yet: its kernel programs are being loaded.
    Loading,
    /// Yes.
    #[default]
    Ready,
    /// No: the kernel does not accept its programs.
    Unavailable,
}
