//! The states of servers and of the packet tier, as `status` and the metrics name them.

use serde::{Deserialize, Serialize};

/// Whether a server takes new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// Yes.
    Up,
    /// No: its health check fails.
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
