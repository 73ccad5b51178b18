//! What keeps a machine from answering ARP for addresses that are on `lo`.
//!
//! Linux answers for every address of the machine on every device, and puts any of them into its own requests
//! (Documentation/networking/ip-sysctl.rst). Two nodes with one address on `lo` would both answer for it. Of each of these
//! settings the greater of `all` and the device's counts. Neighbour discovery of IPv6 answers for a device's own addresses only.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::frames::link;

/// The settings, with the least value that is enough.
const WANTED: [(&str, u8); 2] = [("arp_ignore", 1), ("arp_announce", 2)];

/// A setting that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loud {
    /// As sysctl(8) names it.
    pub setting: String,
    /// What it should be, at least.
    pub wanted: u8,
}

/// The settings that are not as they should be; none where there is no IPv4.
pub fn loud() -> Vec<Loud> {
    let is_enough = |name: &str, wanted: u8| {
        let of = |device: &str| fs::read_to_string(path(device, name)).ok()?.trim().parse::<u8>().ok();
        of("all").is_none_or(|value| value >= wanted)
    };
    let wrong = WANTED.into_iter().filter(|(name, wanted)| !is_enough(name, *wanted));
    wrong.map(|(name, wanted)| Loud { setting: format!("net.ipv4.conf.all.{name}"), wanted }).collect()
}

/// Sets what is not as it should be, and says what could not be set, and why.
pub fn keep_quiet() -> Vec<(Loud, io::Error)> {
    let set = |loud: Loud| {
        let path = PathBuf::from("/proc/sys").join(loud.setting.replace('.', "/"));
        match fs::write(path, loud.wanted.to_string()) {
            Ok(()) => {
                tracing::info!("{} = {}: addresses on lo are not answered for", loud.setting, loud.wanted);
                None
            }
            Err(error) => Some((loud, error)),
        }
    };
    loud().into_iter().filter_map(set).collect()
}

fn path(device: &str, name: &str) -> PathBuf {
    ["/proc/sys/net/ipv4/conf", device, name].iter().collect()
}

/// An Ethernet address.
pub type Mac = [u8; 6];

/// How long answers are waited for. A neighbour on the segment takes less than a millisecond.
const PATIENCE: Duration = Duration::from_millis(300);

/// RFC 826: Ethernet, IPv4, and a request; then the sender's addresses, and those that are asked for.
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// Who answers for an address on a device's segment, this machine not counted: with a probe (RFC 5227, section 2.1.1), which changes
/// nobody's table. Needs CAP_NET_RAW.
pub fn who_has(device: u32, address: Ipv4Addr) -> io::Result<BTreeSet<Mac>> {
    let mut socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.bind(&link(device, libc::ETH_P_ARP as u16))?;
    let own = own_address(&socket)?;
    let probe = [
        &[0xff; 6][..],
        &own,
        &(libc::ETH_P_ARP as u16).to_be_bytes(),
        &REQUEST,
        &own,
        &[0; 4],
        &[0; 6],
        &address.octets(),
    ]
    .concat();
    socket.write_all(&probe)?;
    let (until, mut found) = (Instant::now() + PATIENCE, BTreeSet::new());
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(found);
        }
        socket.set_read_timeout(Some(left))?;
        let mut frame = [0; 128];
        match socket.read(&mut frame) {
            Ok(length) => found.extend(answer(&frame[..length], address)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(found),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The Ethernet address of the device that a packet socket is bound to.
fn own_address(socket: &Socket) -> io::Result<Mac> {
    let address = socket.local_addr()?;
    // SAFETY: the storage has room for every address, zeros are a value of `sockaddr_ll`, and the kernel has filled in one.
    let address = unsafe { &*address.as_ptr().cast::<libc::sockaddr_ll>() };
    match (i32::from(address.sll_family), address.sll_halen) {
        (libc::AF_PACKET, 6) => Ok(*address.sll_addr.first_chunk().expect("it has eight bytes")),
        _ => Err(io::Error::other("the device has no Ethernet address")),
    }
}

/// Who says in this frame that the address is its own.
fn answer(frame: &[u8], address: Ipv4Addr) -> Option<Mac> {
    let packet = frame.get(14..)?.strip_prefix(&REPLY)?;
    let (sender, rest) = packet.split_first_chunk::<6>()?;
    (rest.get(..4)? == address.octets()).then_some(*sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_for_the_address_counts() {
        let address = Ipv4Addr::new(192, 0, 2, 1);
        let mac = [2, 0, 0, 0, 0, 1];
        let frame =
            |operation: &[u8], sender: [u8; 4]| [&[0; 14][..], operation, &mac, &sender, &[0; 10]].concat();
        assert_eq!(answer(&frame(&REPLY, address.octets()), address), Some(mac));
        assert_eq!(answer(&frame(&REQUEST, address.octets()), address), None);
        assert_eq!(answer(&frame(&REPLY, [192, 0, 2, 2]), address), None);
        for length in 0..32 {
            assert_eq!(answer(&frame(&REPLY, address.octets())[..length], address), None, "{length}");
        }
    }
}
