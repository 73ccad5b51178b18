//! Properties of the packet translation, against a model that is made of etherparse and plain arithmetic.

use std::net::SocketAddr;

use etherparse::{TcpOptionElement, TcpOptions, TcpOptionsIterator, TcpSlice};
use lb_common::packet::options::SynOptions;
use lb_common::packet::{Flow, flag, sighted, translate::Head};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

mod generate;
#[path = "../fuzz/properties.rs"]
#[allow(dead_code, reason = "of the fuzz targets")]
mod properties;

use generate::{flow, number, options, segment};
use properties::model::{ACK, Segment, tuple};
use properties::{forward, leaves_as_the_model_says, read_syn};

fn arrival() -> impl Strategy<Value = (Flow, Segment, Option<u32>)> {
    flow().prop_flat_map(|(flow, ends, floor)| (Just(flow), segment(ends), Just(floor)))
}

/// The flow with what both legs can agree on.
fn with_options(flow: Flow) -> Flow {
    Flow { flags: flow.flags | flag::TIMESTAMPS | flag::SACK, ..flow }
}

/// The flow of the packets that come back.
fn mirrored(flow: &Flow, ends: [SocketAddr; 2]) -> Flow {
    let [from, to] = ends;
    Flow {
        out: tuple(to, from),
        seq_delta: flow.ack_delta.wrapping_neg(),
        ack_delta: flow.seq_delta.wrapping_neg(),
        tsval_delta: flow.tsecr_delta.wrapping_neg(),
        tsecr_delta: flow.tsval_delta.wrapping_neg(),
        own_scale: 0,
        promised_scale: 0,
        ..*flow
    }
}

/// Timestamps, and the edges of one block of SACK.
fn stamps_and_edges(options: TcpOptionsIterator<'_>) -> ([u32; 2], [u32; 2]) {
    let (mut stamps, mut edges) = ([0; 2], [0; 2]);
    for option in options {
        match option.unwrap() {
            TcpOptionElement::Timestamp(tsval, tsecr) => stamps = [tsval, tsecr],
            TcpOptionElement::SelectiveAcknowledgement((left, right), [None, None, None]) => {
                edges = [left, right];
            }
            _ => {}
        }
    }
    (stamps, edges)
}

fn options_of(stamps: [u32; 2], edges: [u32; 2]) -> Vec<u8> {
    let elements = [
        TcpOptionElement::Timestamp(stamps[0], stamps[1]),
        TcpOptionElement::Noop,
        TcpOptionElement::SelectiveAcknowledgement((edges[0], edges[1]), [None; 3]),
    ];
    TcpOptions::try_from_elements(&elements).unwrap().as_slice().to_vec()
}

/// The TCP part of a packet.
fn tcp(packet: &[u8]) -> TcpSlice<'_> {
    let ip = if packet[0] >> 4 == 4 { 20 } else { 40 };
    TcpSlice::from_slice(&packet[ip..]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_segment_leaves_as_the_model_says((flow, segment, floor) in arrival()) {
        leaves_as_the_model_says(&flow, &segment, floor);
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong_as_it_was((flow, segment, floor) in arrival(), error in 1_u16..0xffff) {
        let ip = if segment.from.is_ipv4() { 20 } else { 40 };
        let right = segment.packet();
        let mut wrong = right.clone();
        // Ones' complement: 0xffff more is no error.
        let sum = u32::from(u16::from_be_bytes([right[ip + 16], right[ip + 17]])) + u32::from(error);
        let sum = (sum & 0xffff) + (sum >> 16);
        wrong[ip + 16..ip + 18].copy_from_slice(&(sum as u16).to_be_bytes());
        if let (Ok(right), Ok(wrong)) = (forward(&flow, &right, floor), forward(&flow, &wrong, floor)) {
            let [right, wrong] = [tcp(&right).checksum(), tcp(&wrong).checksum()].map(i64::from);
            prop_assert_eq!((wrong - right - i64::from(error)).rem_euclid(0xffff), 0);
        }
    }

    #[test]
    fn an_answer_comes_back_in_the_numbers_of_the_question(
        (flow, question, _) in arrival(),
        stamps in [number(), number()],
        edges in [number(), number()],
    ) {
        let flow = with_options(flow);
        let back = mirrored(&flow, [question.from, question.to]);
        let question = Segment { flags: question.flags | ACK, options: options_of(stamps, edges), ..question };
        let asked = forward(&flow, &question.packet(), None).unwrap();
        let asked = tcp(&asked);
        let ([tsval, tsecr], edges_there) = stamps_and_edges(asked.options_iterator());
        // Translated to 0 by chance, which says that there is nothing to echo.
        prop_assume!(tsval != 0);

        // It acknowledges, and says in SACK, the very numbers that have arrived; and the other way round.
        let sacked = [asked.sequence_number(), asked.sequence_number().wrapping_add(7)];
        let answer = Segment {
            from: SocketAddr::new(question.to.ip(), asked.destination_port()),
            to: SocketAddr::new(question.from.ip(), asked.source_port()),
            seq: asked.acknowledgment_number(),
            ack: asked.sequence_number(),
            flags: ACK,
            options: options_of([tsecr, tsval], sacked),
            ..question.clone()
        };
        let answered = forward(&back, &answer.packet(), None).unwrap();
        prop_assert_eq!(&answered[answered.len() - question.payload.len()..], &question.payload[..]);
        let answered = tcp(&answered);
        prop_assert_eq!(answered.sequence_number(), question.ack);
        prop_assert_eq!(answered.acknowledgment_number(), question.seq);
        let ends = [answered.source_port(), answered.destination_port()];
        prop_assert_eq!(ends, [question.to.port(), question.from.port()]);
        let ([tsval, tsecr], edges_back) = stamps_and_edges(answered.options_iterator());
        prop_assert_eq!(tsecr, stamps[0]);
        prop_assert_eq!(edges_back, [question.seq, question.seq.wrapping_add(7)]);
        if stamps[1] != 0 {
            prop_assert_eq!(tsval, stamps[1]);
        }
        // And what was said of the answer's own numbers in the question.
        for (there, here) in edges_there.into_iter().zip(edges) {
            prop_assert_eq!(there.wrapping_sub(asked.acknowledgment_number()), here.wrapping_sub(question.ack));
        }
    }

    #[test]
    fn an_error_quotes_what_was_sent((flow, sent, _) in arrival()) {
        let back = mirrored(&flow, [sent.from, sent.to]);
        let start = |packet: &[u8]| {
            let tcp = tcp(packet).slice();
            [&tcp[..4], &tcp[4..8]].map(|word| u32::from_ne_bytes(word.try_into().unwrap()))
        };
        let packet = sent.packet();
        if let Ok(left) = forward(&flow, &packet, None) {
            prop_assert_eq!(back.quote(&start(&left)), start(&packet));
            prop_assert_eq!(back.quoted_tuple(), sent.tuple());
        }
    }

    /// In bytes: the window as its sender means it, against what its receiver makes of it.
    #[test]
    fn a_window_is_never_larger_by_a_unit_nor_closed_nor_smaller_by_a_unit(
        (flow, ends, _) in flow(),
        window: u16,
        scales in [0_u8..=14, 0_u8..=14],
    ) {
        let [sender, promised] = scales;
        let flow = Flow { own_scale: sender, promised_scale: promised, ..flow };
        let control = u32::from_ne_bytes([0x50, ACK as u8, window.to_be_bytes()[0], window.to_be_bytes()[1]]);
        let head = Head { ports: u32::from(ends[0].port()), seq: 0, ack: 0, control };
        let [.., high, low] = flow.translate(&head).control.to_ne_bytes();
        let seen = u64::from(u16::from_be_bytes([high, low])) << promised;
        let (meant, unit) = (u64::from(window) << sender, 1_u64 << promised);
        prop_assert!(seen < meant + unit);
        prop_assert_eq!(seen == 0, meant == 0);
        prop_assert!(seen + unit > meant || seen == 0xffff * unit, "{} of {}", seen, meant);
    }

    #[test]
    fn a_syn_says_what_etherparse_reads(bytes in options()) {
        let mut expected = SynOptions::NONE;
        for option in TcpOptionsIterator::from_slice(&bytes) {
            match option {
                Ok(TcpOptionElement::MaximumSegmentSize(mss)) => expected.mss = mss,
                Ok(TcpOptionElement::WindowScale(scale)) => expected.window_scale = scale,
                Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => expected.flags |= sighted::SACK,
                Ok(TcpOptionElement::Timestamp(tsval, _)) => {
                    expected.flags |= sighted::TIMESTAMPS;
                    expected.tsval = tsval;
                }
                Ok(_) => {}
                // A kind that it does not know, or one that is not what it says: the model's.
                Err(_) => return Ok(()),
            }
        }
        prop_assert_eq!(read_syn(&bytes), Ok(expected));
    }

    #[test]
    fn a_syn_says_what_the_model_reads(bytes in options()) {
        properties::syn(&bytes);
    }

    #[test]
    fn arbitrary_options_do_not_panic(flow in flow(), bytes in prop::collection::vec(any::<u8>(), 0..=40)) {
        let (flow, [from, to], floor) = flow;
        properties::syn(&bytes);
        let options = [&bytes[..], &[0; 3][..]].concat();
        let options = options[..bytes.len().next_multiple_of(4)].to_vec();
        let segment = Segment {
            from, to, traffic_class: 0, seq: 1, ack: 2, flags: ACK, window: 3, urgent: 0, options, payload: vec![],
        };
        leaves_as_the_model_says(&flow, &segment, floor);
    }
}

/// A generator that made nothing but refused or plain segments would pass all of the above.
#[test]
fn generated_segments_are_of_every_sort() {
    let mut runner = TestRunner::deterministic();
    let [mut refused, mut kept, mut changed] = [0; 3];
    for _ in 0..1000 {
        let (flow, segment, floor) = arrival().new_tree(&mut runner).unwrap().current();
        match segment.translated(&with_options(flow), floor) {
            None => refused += 1,
            Some(new) if new.options == segment.options => kept += 1,
            Some(_) => changed += 1,
        }
    }
    assert!([refused, kept, changed].into_iter().all(|count| count > 50), "{refused} {kept} {changed}");
}
