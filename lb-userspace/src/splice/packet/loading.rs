//! Loading the kernel programs while the gateway already serves: the verifier takes a good part of a second.

use super::tier::PacketTier;
use crate::clock::now_ms;
use crate::kernel::needs;
use crate::memory::give_back;
use crate::privileges::drop_privileges_to_load;
use crate::state::PacketTierState;
use crate::words::with_causes;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
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

    /// Notes since when new connections may be spliced ([`now_ms`]); `None`: never.
    pub(super) fn serve(&self, since: Option<u64>) {
        // The first call counts.
        let _ = self.serving.set(since);
    }

    /// Loads what is missing, in a thread of its own, which starts with the privileges of the calling thread. A process
    /// that ends meanwhile does not wait for it. `when`: only then, and the odd packets are taken then as well.
    pub fn load_aside(self: &Arc<Self>, when: Option<Receiver<()>>) -> io::Result<()> {
        // Unavailable: loading has failed before.
        let is_loaded = self.kernel.is_current() || self.state() == PacketTierState::Unavailable;
        if is_loaded && when.is_none() {
            return Ok(());
        }
        let tier = self.clone();
        let load = move || {
            if let Some(when) = when {
                if when.recv().is_err() {
                    return;
                }
                if let Err(error) = tier.take_odd_packets() {
                    tracing::error!("odd packets are lost: {}", with_causes(&error));
                }
            }
            if let Err(error) = drop_privileges_to_load() {
                tracing::warn!(%error, "the thread that loads kernel programs keeps its privileges");
            }
            if !is_loaded {
                tier.load();
                // Reading the object and its types takes many times the memory that is kept.
                give_back();
            }
        };
        Builder::new().name("loader".into()).spawn(load).map(drop)
    }

    /// Loads this build's programs and attaches them to the devices; from then on new connections are spliced. Errors are
    /// logged.
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
