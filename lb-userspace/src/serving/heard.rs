//! How a MySQL server greets, as it was last heard.

use crate::mysql::ServerGreeting;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// How long it takes until a server that has not answered is asked again how it greets, in milliseconds.
const ASK_AGAIN_MS: u64 = 5000;

/// How a server greets, as it was last heard.
#[derive(Debug, Default)]
pub struct Heard {
    greeting: ArcSwapOption<ServerGreeting>,
    /// When it was last asked; 0: never.
    asked_ms: AtomicU64,
    /// Asked, it has answered, or failed to.
    tried: AtomicBool,
}

impl Heard {
    /// It has greeted so.
    pub fn hear(&self, greeting: ServerGreeting) {
        if self.greeting().is_none_or(|known| *known != greeting) {
            self.greeting.store(Some(Arc::new(greeting)));
        }
        self.tried();
    }

    /// Asked, it has greeted, or not.
    pub fn tried(&self) {
        self.tried.store(true, Relaxed);
    }

    /// Whether it has answered, or failed to.
    pub fn is_tried(&self) -> bool {
        self.tried.load(Relaxed)
    }

    /// Its greeting, if it is known.
    pub fn greeting(&self) -> Option<Arc<ServerGreeting>> {
        self.greeting.load_full()
    }

    /// Whether it is to be asked now; then it is not for a while.
    pub fn is_due(&self, now_ms: u64) -> bool {
        let asked_ms = self.asked_ms.load(Relaxed);
        let is_due = self.greeting.load().is_none()
            && (asked_ms == 0 || now_ms.saturating_sub(asked_ms) >= ASK_AGAIN_MS);
        if is_due {
            self.asked_ms.store(now_ms.max(1), Relaxed);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_again_until_it_is_heard() {
        let heard = Heard::default();
        assert!(heard.is_due(10) && !heard.is_due(10 + ASK_AGAIN_MS - 1) && heard.is_due(10 + ASK_AGAIN_MS));
        let greeting =
            ServerGreeting { version: (*b"9.7.4").into(), capabilities: 1, extended: 0, collation: 45 };
        heard.hear(greeting.clone());
        assert!(!heard.is_due(10 + 9 * ASK_AGAIN_MS));
        assert_eq!(*heard.greeting().unwrap(), greeting);
    }
}
