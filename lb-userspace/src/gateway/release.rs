//! Addresses that devices have for the sake of Gateways are taken from them when nothing needs them any more, and given back
//! when something else has taken them.

use super::attached::{Used, Wants};
use super::control::Control;

impl Control {
    /// The addresses that devices are to have for the sake of Gateways.
    fn wants(&self) -> Wants<'_> {
        self.source.as_ref().map(|(_, objects)| objects.wants()).unwrap_or_default()
    }

    /// Whether devices have others, as far as Gateways are known.
    pub(super) fn has_surplus(&self) -> bool {
        let is_known = self.source.as_ref().is_none_or(|(_, objects)| !objects.is_awaited());
        is_known && self.attached.has_surplus(&self.wants())
    }

    /// Gives back what a device has lost: with its link, by `ip addr flush`, or to what manages the host's networks.
    pub(super) fn restore_addresses(&self) {
        if let Some((_, objects)) = &self.source {
            objects.restore();
        }
    }

    /// Takes addresses from devices that no Gateway has and no connection uses any more.
    pub(super) fn release_addresses(&self) {
        // Of which address the connections of earlier processes are, nobody knows.
        if !self.has_surplus() || self.admin_side.elsewhere.count() > 0 {
            return;
        }
        let used: Option<Used> = self.gateway.books.ledger.read(|connections| {
            let mut used = Used::new();
            for connection in connections {
                let bind = &connection.listener.bind;
                // One of an earlier process, whose listener is not there any more.
                if bind.is_empty() {
                    return None;
                }
                for address in bind {
                    let oldest = used.entry(address.ip()).or_insert(u64::MAX);
                    *oldest = connection.opened_ms.min(*oldest);
                }
            }
            Some(used)
        });
        if let Some(used) = used {
            self.attached.release(&self.wants(), &used);
        }
    }
}
