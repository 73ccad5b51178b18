//! The choice of a connection's tier. Pure.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::reason::{FallbackReason, Tier};

/// A tier, and why it is not the first one of the configured order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The tier.
    pub tier: Tier,
    /// Why the first tier of the order was not chosen; `None` if it was.
    pub reason: Option<FallbackReason>,
}

/// The first tier of `order` for which `refusal` gives no reason. Without any it is `copy`, which always works.
pub fn choose(order: &[Tier], mut refusal: impl FnMut(Tier) -> Option<FallbackReason>) -> Choice {
    let mut reason = None;
    for tier in order {
        match refusal(*tier) {
            None => return Choice { tier: *tier, reason },
            Some(refused) => reason = reason.or(Some(refused)),
        }
    }
    Choice { tier: Tier::Copy, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tier_needs_no_reason() {
        let choice = choose(&[Tier::Sockmap, Tier::Copy], |_| None);
        assert_eq!(choice, Choice { tier: Tier::Sockmap, reason: None });
    }

    #[test]
    fn the_reason_is_the_one_of_the_first_tier() {
        let refuse = |tier| match tier {
            Tier::Packet => Some(FallbackReason::PacketUnavailable),
            Tier::Sockmap => Some(FallbackReason::SockmapKernel),
            Tier::Ktls => Some(FallbackReason::KtlsLater),
            Tier::Copy => None,
        };
        let choice = choose(&[Tier::Packet, Tier::Sockmap, Tier::Copy], refuse);
        assert_eq!(choice, Choice { tier: Tier::Copy, reason: Some(FallbackReason::PacketUnavailable) });
    }

    #[test]
    fn copy_carries_what_nothing_else_may() {
        let choice = choose(&[Tier::Sockmap], |_| Some(FallbackReason::TlsTerminated));
        assert_eq!(choice, Choice { tier: Tier::Copy, reason: Some(FallbackReason::TlsTerminated) });
    }
}
