//! Whether clients get to the listeners: what redirects their connections before they arrive, and, for addresses that Gateways
//! have of their own, the settings that `attach` asks for and who else answers for them.

use super::lines::{Line, LineState};
use crate::admin::Client;
use crate::admin::view::Status;
use crate::config::Config;
use crate::config::gateway_api::{Attach, Mode};
use crate::kernel::arp::{self, Loud, Mac};
use crate::kernel::version::KernelVersion;
use crate::kernel::{addresses, conntrack, devices, pairs};
use crate::words::counted;
use socket2::{Domain, Socket, Type};
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::Duration;

/// The most addresses and ports that are dialled.
const MOST_DIALLED: usize = 256;
/// The most addresses for which it is asked who else answers.
const MOST_ASKED: usize = 16;
/// How long a connection has to appear in the kernel's table.
const PAUSE: Duration = Duration::from_millis(50);
/// The first kernel that keeps a protocol number with an address (IFA_PROTO).
const KEEPS_PROTOCOL: KernelVersion = KernelVersion::new(5, 18, 0);

/// The lines of a gateway with this configuration. Listeners are those of the running gateway, or else those of the file.
pub(super) fn lines(config: &Config, state_dir: &Path) -> Vec<Line> {
    let running = Client::connect(state_dir).and_then(|mut client| client.status()).ok();
    let binds = listening(config, running.as_ref());
    let mut lines = vec![redirected(&binds, diverted(&binds))];
    let Some(api) = &config.gateway_api else { return lines };
    lines.extend(running.and_then(|status| rights(&status.objects_denied)));
    if api.settings.mode == Mode::Node {
        return lines;
    }
    let attach = &api.settings.attach;
    let is_there = match attach {
        // Every machine has it.
        Attach::Device(device) if **device == *"lo" => true,
        Attach::Device(device) => {
            devices::devices().is_ok_and(|all| all.iter().any(|known| known.name == **device))
        }
        Attach::Freebind => true,
    };
    lines.push(attached(attach, is_there, &arp::loud(), KernelVersion::running()));
    let own = addresses::ours().unwrap_or_default().into_iter().map(|(_, address)| address);
    let v4 = own.chain(binds.iter().map(SocketAddr::ip)).filter_map(|ip| match ip {
        IpAddr::V4(ip) if !ip.is_unspecified() && !ip.is_loopback() => Some(ip),
        _ => None,
    });
    let v4: BTreeSet<Ipv4Addr> = v4.collect();
    lines.extend(v4.into_iter().take(MOST_ASKED).filter_map(|address| {
        let is_silent = *attach == Attach::Device("lo".into()) && arp::loud().is_empty();
        Some(answered(address, &answers(address).transpose()?, is_silent))
    }));
    lines
}

/// Where clients arrive.
fn listening(config: &Config, running: Option<&Status>) -> Vec<SocketAddr> {
    match running {
        Some(status) => {
            let binds = status.listeners.iter().flat_map(|listener| &listener.bind);
            binds.filter_map(|address| address.parse().ok()).collect()
        }
        None => config.listeners.iter().flat_map(|listener| listener.bind.iter().copied()).collect(),
    }
}

/// What the API server does not let the running gateway watch.
fn rights(denied: &[String]) -> Option<Line> {
    let line = |found| Line::new("rights", LineState::Note, found);
    let remedy = "a ClusterRole or Role that lets its service account list and watch them, as deploy/kubernetes.yaml has it";
    (!denied.is_empty()).then(|| line(denied.join("; ")).remedy(remedy))
}

/// Dials every listener from here, and looks where the kernel's connection tracking has sent these connections, or those of
/// clients. That is true of rules of any kind: nftables, iptables, and what writes them.
fn diverted(binds: &[SocketAddr]) -> io::Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    let own = pairs::own_addresses()?;
    let all = binds.iter().flat_map(|bind| {
        let on = own.iter().filter(|ip| ip.is_ipv4() == bind.is_ipv4()).copied();
        let on: Vec<IpAddr> = if bind.ip().is_unspecified() { on.collect() } else { vec![bind.ip()] };
        on.into_iter().map(|ip| SocketAddr::new(ip, bind.port()))
    });
    let all: BTreeSet<SocketAddr> = all.take(MOST_DIALLED).collect();
    let dialled: Vec<Socket> = all.iter().filter_map(|address| dial(*address).ok()).collect();
    if !dialled.is_empty() {
        thread::sleep(PAUSE);
    }
    conntrack::redirected(&all)
}

fn dial(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Who else answers for an address; `None`: it is on none of this machine's segments.
fn answers(address: Ipv4Addr) -> io::Result<Option<BTreeSet<Mac>>> {
    let segments = addresses::segments_of(address)?;
    let mut found = None::<BTreeSet<Mac>>;
    for device in segments {
        found.get_or_insert_default().extend(arp::who_has(device, address)?);
    }
    Ok(found)
}

fn redirected(binds: &[SocketAddr], found: io::Result<BTreeSet<(SocketAddr, SocketAddr)>>) -> Line {
    let line = |state, found: String| Line::new("redirected", state, found);
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            return line(
                LineState::Note,
                format!("the kernel's connection tracking cannot be read: {error}"),
            )
            .remedy("run as root, in the network namespace of the gateway");
        }
    };
    if found.is_empty() {
        let count = counted(binds.len(), "listening address");
        return line(LineState::Ok, format!("no rule takes connections from {count}"));
    }
    let found: Vec<_> = found.iter().map(|(from, to)| format!("{from} to {to}")).collect();
    line(
        LineState::Note,
        format!("a rule of netfilter takes connections from listeners: {}", found.join(", ")),
    )
    .remedy(
        "on k3s `--disable traefik,servicelb`; else `iptables-save -t nat` and `nft list ruleset` show it",
    )
}

fn attached(attach: &Attach, is_there: bool, loud: &[Loud], kernel: Option<KernelVersion>) -> Line {
    let line = |state, found: String| Line::new("attach", state, found);
    let Attach::Device(device) = attach else {
        return line(LineState::Ok, "freebind: something else brings the packets".to_owned());
    };
    if !is_there {
        return line(LineState::Missing, format!("there is no device {device}"))
            .remedy("another `gateway_api.attach`");
    }
    if **device == *"lo" && !loud.is_empty() {
        let commands: Vec<_> =
            loud.iter().map(|Loud { setting, wanted }| format!("sysctl -w {setting}={wanted}")).collect();
        return line(
            LineState::Note,
            "this machine answers ARP for addresses on lo, as every other node does".into(),
        )
        .remedy(commands.join("; "));
    }
    if kernel.is_some_and(|kernel| kernel < KEEPS_PROTOCOL) {
        return line(
            LineState::Note,
            format!("{device}; what a killed process leaves there is not found again"),
        )
        .remedy("Linux 5.18; or remove such addresses by hand");
    }
    line(LineState::Ok, device.to_string())
}

/// `is_silent`: this machine does not answer itself.
fn answered(address: Ipv4Addr, by: &io::Result<BTreeSet<Mac>>, is_silent: bool) -> Line {
    let line = |state, found: String| Line::new("answered", state, found);
    let by = match by {
        Ok(by) => by,
        Err(error) => {
            return line(
                LineState::Note,
                format!("{address}: it cannot be asked who answers for it: {error}"),
            )
            .remedy("run as root, or with CAP_NET_RAW");
        }
    };
    let macs: Vec<_> = by.iter().map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).collect();
    let most = usize::from(is_silent);
    match by.len() {
        0 => line(LineState::Ok, format!("{address}: by no other machine")),
        answers if answers <= most => line(LineState::Ok, format!("{address}: by {}, alone", macs.join(", "))),
        _ => line(LineState::Note, format!("{address}: also by {}: clients get now to one, now to another", macs.join(", ")))
            .remedy("the address on one node only, or `attach = \"lo\"` with net.ipv4.conf.all.arp_ignore=1 on each of them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_takes_connections_is_shown_with_where_they_go() {
        let binds = ["10.0.0.1:443".parse().unwrap()];
        assert_eq!(redirected(&binds, Ok(BTreeSet::new())).state, LineState::Ok);
        let taken = BTreeSet::from([(binds[0], "10.42.0.8:8443".parse().unwrap())]);
        let line = redirected(&binds, Ok(taken));
        assert!(line.found.contains("10.0.0.1:443 to 10.42.0.8:8443"), "{}", line.found);
        assert!(line.remedy.unwrap().contains("--disable traefik,servicelb"));
    }

    #[test]
    fn lo_wants_a_quiet_machine_and_a_device_that_is_there() {
        let lo = Attach::Device("lo".into());
        let new = Some(KernelVersion::new(6, 1, 0));
        assert_eq!(attached(&lo, true, &[], new).state, LineState::Ok);
        let loud = [Loud { setting: "net.ipv4.conf.all.arp_ignore".into(), wanted: 1 }];
        let line = attached(&lo, true, &loud, new);
        assert_eq!(line.remedy.as_deref(), Some("sysctl -w net.ipv4.conf.all.arp_ignore=1"));
        // A device answers, and is meant to.
        assert_eq!(attached(&Attach::Device("eth0".into()), true, &loud, new).state, LineState::Ok);
        assert_eq!(attached(&lo, false, &[], new).state, LineState::Missing);
        assert_eq!(attached(&lo, true, &[], Some(KernelVersion::new(5, 15, 0))).state, LineState::Note);
        assert_eq!(attached(&Attach::Freebind, true, &loud, new).state, LineState::Ok);
    }

    #[test]
    fn one_machine_may_answer_for_an_address() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let state = |count: u8, is_silent| {
            let macs = (0..count).map(|last| [2, 0, 0, 0, 0, last]).collect();
            answered(address, &Ok(macs), is_silent).state
        };
        assert_eq!(
            (state(0, true), state(1, true), state(2, true)),
            (LineState::Ok, LineState::Ok, LineState::Note)
        );
        assert_eq!((state(0, false), state(1, false)), (LineState::Ok, LineState::Note));
    }
}
