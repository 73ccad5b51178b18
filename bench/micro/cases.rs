//! What is counted. Each piece of work checks its result, so that it cannot quietly become an early return.

use std::fs;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use lb_common::packet::options::{MAX, Scratch};
use lb_common::packet::translate::{Difference, Head};
use lb_common::packet::{Flow, Tuple, exit, flag};
use snisplice::config::SniPattern;
use snisplice::connect::ports::SourcePorts;
use snisplice::route::{Named, Table};
use snisplice::sniff::{Input, Output, Preamble, Sniffer};

use crate::relay;

/// One operation.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How often it is done.
    pub(crate) times: u32,
    /// Everything that is not to be counted; returns what is.
    pub(crate) prepare: fn() -> Box<dyn FnMut()>,
}

pub(crate) const ALL: &[Case] = &[
    Case { name: "sniff/openssl-3.0", times: 100, prepare: || sniff("openssl-3.0") },
    Case { name: "sniff/chromium-156", times: 100, prepare: || sniff("chromium-156") },
    Case {
        name: "sniff/records-of-128-bytes",
        times: 100,
        prepare: || sniff("openssl-3.0-split-records-128"),
    },
    Case { name: "sniff/byte-by-byte", times: 10, prepare: sniff_slowly },
    Case {
        name: "route/exact-of-10-000",
        times: 2_000,
        prepare: || route(|n| format!("r{n}.example.com"), true),
    },
    Case {
        name: "route/wildcard-of-10-000",
        times: 2_000,
        prepare: || route(|n| format!("a.b.w{n}.example.com"), true),
    },
    Case {
        name: "route/unknown-of-10-000",
        times: 2_000,
        prepare: || route(|n| format!("a{n}.b{n}.u{n}.example{n}"), false),
    },
    Case { name: "packet/header-and-checksum", times: 1_000, prepare: header },
    Case { name: "packet/timestamps-and-sack", times: 1_000, prepare: options },
    Case { name: "handover/source-port", times: 10_000, prepare: source_port },
    Case { name: "relay/plain-1-KiB-and-back", times: relay::TIMES, prepare: relay::plain },
    Case { name: "relay/terminated-1-KiB-and-back", times: relay::TIMES, prepare: relay::terminated },
];

/// A file of the tests.
fn test_data(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(file);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sniff(file: &str) -> Box<dyn FnMut()> {
    let hello = test_data(&format!("client-hellos/{file}.bin"));
    Box::new(move || {
        let output = Sniffer::new(Preamble::Tls).handle(Input::Bytes(black_box(&hello)));
        assert!(matches!(output, Output::Hello(_)));
    })
}

fn sniff_slowly() -> Box<dyn FnMut()> {
    let hello = test_data("client-hellos/openssl-3.0.bin");
    Box::new(move || {
        let mut sniffer = Sniffer::new(Preamble::Tls);
        let mut output = Output::NeedMore;
        for length in 1..=hello.len() {
            output = sniffer.handle(Input::Bytes(black_box(&hello[..length])));
        }
        assert!(matches!(output, Output::Hello(_)));
    })
}

/// What a name leads to.
struct Target(String);

impl Named for Target {
    fn name(&self) -> &str {
        &self.0
    }
}

/// Lookups among 5 000 exact names and as many wildcards.
fn route(name: fn(u32) -> String, known: bool) -> Box<dyn FnMut()> {
    let mut table = Table::new();
    for n in 0..5_000 {
        let [exact, suffix] = ["r", "w"].map(|kind| format!("{kind}{n}.example.com"));
        table.insert(&SniPattern::Exact(exact.as_str().into()), &[], Target(exact));
        table.insert(&SniPattern::Wildcard(suffix.as_str().into()), &[], Target(suffix));
    }
    let names: Vec<String> = (0..5_000).step_by(5).map(name).collect();
    let mut at = 0;
    Box::new(move || {
        let found = table.lookup(Some(black_box(&names[at])), |_| false);
        assert_eq!(found.is_ok(), known);
        at = (at + 1) % names.len();
    })
}

fn flow() -> Flow {
    let tuple = Tuple::v4(
        u32::from_ne_bytes([10, 0, 2, 1]),
        u32::from_ne_bytes([10, 0, 2, 2]),
        40_000_u16.to_be(),
        6379_u16.to_be(),
    );
    Flow {
        id: 1,
        origin: 0,
        out: tuple,
        seq_delta: 1_000_000_007,
        ack_delta: 998_244_353,
        tsval_delta: 17,
        tsecr_delta: 19,
        ifindex: 2,
        from: 3,
        slot: 0,
        own_scale: 5,
        peer_scale: 7,
        promised_scale: 7,
        flags: flag::TIMESTAMPS | flag::SACK,
        exit: exit::NEIGHBOUR,
        padding: [0; 3],
    }
}

fn header() -> Box<dyn FnMut()> {
    let flow = flow();
    let head = Head {
        ports: 0x1234_5678,
        seq: 0x0102_0304,
        ack: 0x0506_0708,
        // Ten words, ACK, a window.
        control: u32::from_ne_bytes([0xa0, 0x10, 0x20, 0x00]),
    };
    Box::new(move || {
        let head = black_box(&head);
        let new = black_box(&flow).translate(head);
        let sum = Difference::default().words(&head.words(), &new.words()).apply(0xbeef);
        assert_ne!(sum, 0xbeef);
        black_box(new);
    })
}

fn options() -> Box<dyn FnMut()> {
    let flow = flow();
    let mut scratch = Scratch::EMPTY;
    // NOP NOP timestamps, NOP NOP SACK with two blocks.
    let arrived = [&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 18][..], &[7; 16]].concat();
    scratch.old[..arrived.len()].copy_from_slice(&arrived);
    let length = arrived.len().min(MAX);
    Box::new(move || {
        let done = black_box(&mut scratch).translate(black_box(&flow), length, None);
        assert!(done.is_ok() && scratch.new[4..8] == [0, 0, 0, 18]);
    })
}

/// A port is taken for each connection, and given back when it ends; a thousand are open.
fn source_port() -> Box<dyn FnMut()> {
    const OPEN: usize = 1_000;
    let ports = SourcePorts::new(10_000..=60_000);
    let server = SocketAddr::from((Ipv4Addr::new(10, 0, 2, 2), 6379));
    let mut now = 0;
    let mut open = [0_u16; OPEN];
    for port in &mut open {
        *port = ports.take(server, None, now).expect("a port");
    }
    Box::new(move || {
        let slot = now as usize % OPEN;
        ports.give_back(server, open[slot], now);
        open[slot] = ports.take(server, None, now).expect("a port");
        now += 1;
    })
}
