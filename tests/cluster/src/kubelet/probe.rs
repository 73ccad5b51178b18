//! Probes of a container.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::container::Running;

/// One probe, and what it has found so far.
pub(super) struct Prober {
    probe: Probe,
    due: Instant,
    in_a_row: (bool, i32),
}

/// What is probed.
pub(super) struct Target<'a> {
    pub(super) address: IpAddr,
    pub(super) container: &'a Container,
    pub(super) running: &'a Running,
}

impl Prober {
    pub(super) fn new(probe: &Probe) -> Self {
        let delay = probe.initial_delay_seconds.unwrap_or(0);
        let due = Instant::now() + Duration::from_secs(delay.max(0).cast_unsigned().into());
        Self { probe: probe.clone(), due, in_a_row: (false, 0) }
    }

    /// Probes if it is time; the outcome once there were enough of it in a row.
    pub(super) async fn turn(&mut self, target: &Target<'_>) -> Option<bool> {
        if self.due > Instant::now() {
            return None;
        }
        let seconds = |value: Option<i32>, default: i32| {
            Duration::from_secs(value.filter(|&value| value > 0).unwrap_or(default).cast_unsigned().into())
        };
        self.due = Instant::now() + seconds(self.probe.period_seconds, 10);
        let bound = seconds(self.probe.timeout_seconds, 1);
        let good = timeout(bound, target.answers(&self.probe)).await.unwrap_or(false);
        self.in_a_row = (good, if self.in_a_row.0 == good { self.in_a_row.1 + 1 } else { 1 });
        let needed = match good {
            true => self.probe.success_threshold.unwrap_or(1),
            false => self.probe.failure_threshold.unwrap_or(3),
        };
        (self.in_a_row.1 >= needed).then_some(good)
    }
}

impl Target<'_> {
    async fn answers(&self, probe: &Probe) -> bool {
        if let Some(exec) = &probe.exec {
            self.running.exec(exec.command.as_deref().unwrap_or_default()).await
        } else if let Some(get) = &probe.http_get {
            self.get(get).await
        } else if let Some(socket) = &probe.tcp_socket {
            let port = self.port(&socket.port);
            TcpStream::connect((self.address, port)).await.is_ok()
        } else {
            false
        }
    }

    /// Runs a `preStop` hook to its end.
    pub(super) async fn hook(&self, hook: &LifecycleHandler) {
        if let Some(exec) = &hook.exec {
            self.running.exec(exec.command.as_deref().unwrap_or_default()).await;
        }
        if let Some(get) = &hook.http_get {
            self.get(get).await;
        }
        if let Some(pause) = &hook.sleep {
            sleep(Duration::from_secs(pause.seconds.max(0).cast_unsigned())).await;
        }
    }

    async fn get(&self, get: &HTTPGetAction) -> bool {
        let address = get.host.as_deref().and_then(|host| host.parse().ok()).unwrap_or(self.address);
        let Ok(mut stream) = TcpStream::connect((address, self.port(&get.port))).await else { return false };
        let path = get.path.as_deref().unwrap_or("/");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        let mut status = [0; 12];
        let asked = stream.write_all(request.as_bytes()).await;
        let answered = stream.read_exact(&mut status).await;
        // "HTTP/1.1 200"
        asked.is_ok() && answered.is_ok() && matches!(status[9], b'2' | b'3')
    }

    fn port(&self, port: &IntOrString) -> u16 {
        let number = match port {
            IntOrString::Int(number) => Some(*number),
            IntOrString::String(name) => {
                let mut ports = self.container.ports.iter().flatten();
                ports.find(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port)
            }
        };
        number.and_then(|number| number.try_into().ok()).unwrap_or(0)
    }
}
