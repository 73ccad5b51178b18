//! What is of no flow, or not for this host, passes untouched.

use anyhow::{Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpFragOffset, Ipv4Header, PacketBuilder, SingleVlanHeader};

use super::packets::{ipv4, with_ip_header};
use crate::connection::{ADDRESSES, Connection, frame, framed, with_link_header};
use crate::programs::{Fate, check, with_programs};
use crate::properties::model::{Segment, packet_between};

#[test]
fn what_is_not_of_a_flow_passes_untouched() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let segment = connection.request();
            let [mut sender, mut receiver] = [segment.from, segment.to];
            sender.set_port(sender.port() + 1);
            receiver.set_ip(connection.forwarded_request().to.ip());
            let mut udp = Vec::new();
            packet_between(segment.from.ip(), segment.to.ip(), 0)
                .udp(segment.from.port(), segment.to.port())
                .write_to_vec(&mut udp, &segment.payload)?;
            let whole = frame(&segment);
            let [mut tagged, mut neither] = [whole.clone(), whole.clone()];
            let tag = SingleVlanHeader {
                vlan_id: 7.try_into()?,
                ether_type: if v6 { EtherType::IPV6 } else { EtherType::IPV4 },
                ..SingleVlanHeader::default()
            };
            tagged.splice(Ethernet2Header::LEN.., [&tag.to_bytes(), &segment.packet()[..]].concat());
            tagged[12..14].copy_from_slice(&EtherType::VLAN_TAGGED_FRAME.0.to_be_bytes());
            neither[12..14].copy_from_slice(&EtherType::ARP.0.to_be_bytes());
            let ip = if v6 { 40 } else { 20 };

            let rows = [
                ("another port of the sender", frame(&Segment { from: sender, ..segment.clone() })),
                ("another receiver", frame(&Segment { to: receiver, ..segment.clone() })),
                ("what leaves", frame(&connection.forwarded_request())),
                ("UDP of the same addresses and ports", framed(&udp)),
                ("with a VLAN tag", tagged),
                ("of another protocol than IP", neither),
                ("cut off in the TCP header", whole[..14 + ip + 19].to_vec()),
            ];
            check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;
        }

        let connection = Connection::new(false);
        let segment = connection.request();
        let later = |headers: &mut Ipv4Header| {
            headers.fragment_offset = IpFragOffset::try_new(3).expect("13 bits");
        };
        let mut echo = Vec::new();
        PacketBuilder::ipv4([10, 0, 1, 2], [10, 0, 1, 1], 64)
            .icmpv4_echo_request(1, 1)
            .write_to_vec(&mut echo, &segment.payload)?;
        let mut short = frame(&segment);
        short[14] = 0x44;
        let rows = [
            ("a later fragment of what has not begun", with_ip_header(&segment, ipv4(later))),
            ("an echo request", framed(&echo)),
            ("an IP header that is too short to be one", short),
        ];
        check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;

        ensure!(programs.track()? == connection.track, "noted for a connection");
        Ok(())
    })
}

/// A device that hears everything hands up what is addressed to others as well, and the stack takes none of it.
#[test]
fn what_is_not_addressed_to_this_host_passes_untouched() -> Result<()> {
    with_programs(|programs| {
        for v6 in [false, true] {
            let connection = Connection::new(v6);
            let packet = connection.request().packet();
            let to = |destination: [u8; 6]| {
                let mut addresses = ADDRESSES;
                addresses[..6].copy_from_slice(&destination);
                with_link_header(addresses, &packet)
            };
            let rows = [
                ("to another host", to([2, 0, 0, 0, 0, 9])),
                ("to a group", to([1, 0, 0x5e, 0, 0, 1])),
                ("to all", to([0xff; 6])),
            ];
            check(programs, &connection, rows.map(|(what, packet)| (what, packet, Fate::Passed)))?;
            ensure!(programs.track()? == connection.track, "noted for a connection");
        }
        Ok(())
    })
}
