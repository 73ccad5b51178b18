//! Loading the kernel programs, which takes the verifier a good part of a second, while the gateway serves already.

use super::tier::PacketTier;
use crate::clock::now_ms;
use crate::kernel::needs;
use crate::privileges::drop_privileges_to_load;
use crate::state::PacketTierState;
use std::io;
use std::sync::Arc;
use std::thread::Builder;

impl PacketTier {
    /// Whether it takes new connections.
    pub fn state(&self) -> PacketTierState {
        match self.serving.get() {
            None => PacketTierState::Loading,
            Some(Some(_)) => PacketTierState::Ready,
            Some(None) => PacketTierState::Unavailable,
        }
    }

    /// New connections are spliced from this time on ([`now_ms`]), or never.
    pub(super) fn serve(&self, since: Option<u64>) {
        // Set once.
        let _ = self.serving.set(since);
    }

    /// Loads what is missing in a thread of its own. It starts with the privileges of the calling thread, and ends when it
    /// is through: a process that ends meanwhile need not wait for it.
    pub fn load_aside(self: &Arc<Self>) -> io::Result<()> {
        // The latter: tried already.
        if self.kernel.is_current() || self.state() == PacketTierState::Unavailable {
            return Ok(());
        }
        let tier = self.clone();
        let load = move || {
            if let Err(error) = drop_privileges_to_load() {
                tracing::warn!(%error, "the thread that loads kernel programs keeps its privileges");
            }
            tier.load();
        };
        Builder::new().name("loader".into()).spawn(load).map(drop)
    }

    /// Loads this build's programs and gives them to the devices; from then on new connections are spliced. What goes wrong
    /// is logged.
    pub fn load(&self) {
        let is_replacing = self.kernel.has_programs();
        let loaded = self.kernel.load().map_err(anyhow::Error::from);
        let given = loaded.and_then(|()| Ok(self.ways.follow_devices(&self.kernel)?));
        let explained = |error| needs::explained(error, needs::PROGRAMS, self.kernel.directory());
        match given.map_err(explained) {
            Ok(()) if is_replacing => {
                tracing::info!("the kernel programs of an earlier version are replaced");
            }
            Ok(()) => self.serve(Some(now_ms())),
            Err(error) if is_replacing => {
                tracing::warn!("the kernel programs of an earlier version stay: {error:#}");
            }
            Err(error) => {
                tracing::warn!("no packet tier: {error:#}");
                self.serve(None);
            }
        }
    }
}
