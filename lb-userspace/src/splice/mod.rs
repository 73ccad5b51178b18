//! Splice: bytes flow between the two legs. The tier is chosen per connection.

pub mod copy;
pub(crate) mod keepalive;
pub mod packet;
mod pipe;
pub mod sockmap;
pub mod terminate;

use crate::traffic::Traffic;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Returns when no byte has moved for `idle`; never if that is `None`.
pub(crate) async fn idle_expired(traffic: &Traffic, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    loop {
        let quiet = Duration::from_millis(crate::clock::now_ms() - traffic.active_ms.load(Relaxed));
        match idle.checked_sub(quiet) {
            // At least a millisecond, the clock's unit: with less this would spin.
            Some(left) => tokio::time::sleep(left.max(Duration::from_millis(1))).await,
            None => return,
        }
    }
}
