//! TCP keepalive (RFC 9293, section 3.8.4): of sockets, and of spliced connections, which have none.

use crate::config::Keepalive;
use socket2::{SockRef, TcpKeepalive};
use std::fs;
use std::time::Duration;
use tokio::net::TcpStream;

/// Turns a socket's keepalive on. What is not configured stays as the system has it.
pub(crate) fn keep_alive(socket: &TcpStream, keepalive: Keepalive) {
    let mut options = TcpKeepalive::new();
    if let Some(idle) = keepalive.idle {
        options = options.with_time(Duration::from_secs(idle.into()));
    }
    if let Some(interval) = keepalive.interval {
        options = options.with_interval(Duration::from_secs(interval.into()));
    }
    if let Some(count) = keepalive.count {
        options = options.with_retries(count.into());
    }
    // An error: the socket's connection is closed, which the next read shows.
    let _ = SockRef::from(socket).set_tcp_keepalive(&options);
}

/// When a silent peer is probed, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// Silence before the first probe.
    pub(super) idle_ms: u64,
    /// Between two probes.
    pub(super) interval_ms: u64,
    /// Unanswered probes after which the peer is given up.
    pub(super) count: u8,
}

impl Timing {
    /// The sysctls of the network namespace in which the calling thread is; if they cannot be read, the kernel's defaults
    /// (tcp(7)).
    pub(super) fn system() -> Self {
        let read = |name: &str, default: u32| {
            let text = fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_keepalive_{name}"));
            // 0 would mean endless probes.
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(default).max(1)
        };
        Self {
            idle_ms: u64::from(read("time", 7200)) * 1000,
            interval_ms: u64::from(read("intvl", 75)) * 1000,
            count: u8::try_from(read("probes", 9)).unwrap_or(u8::MAX),
        }
    }

    /// The configured values of a leg, and the system's for what is not configured.
    pub(super) fn of(keepalive: Keepalive, system: &Self) -> Self {
        let ms = |seconds: u16| u64::from(seconds) * 1000;
        Self {
            idle_ms: keepalive.idle.map_or(system.idle_ms, ms),
            interval_ms: keepalive.interval.map_or(system.interval_ms, ms),
            count: keepalive.count.unwrap_or(system.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_configured_is_the_systems() {
        let system = Timing { idle_ms: 7_200_000, interval_ms: 75_000, count: 9 };
        assert_eq!(Timing::of(Keepalive::default(), &system), system);
        let keepalive = Keepalive { idle: Some(32_767), interval: None, count: Some(4) };
        let expected = Timing { idle_ms: 32_767_000, count: 4, ..system };
        assert_eq!(Timing::of(keepalive, &system), expected);
    }
}
