//! How connections end.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use snisplice::reason::{CloseReason, FallbackReason};
use snisplice::splice::sockmap::{Outcome, splice};
use snisplice::traffic::Traffic;
use socket2::SockRef;

use crate::gateway::{in_a_gateway, is_orderly, read_some};
use crate::peers::{Legs, MIB, Stream};

#[test]
fn a_half_closed_connection_goes_on_the_other_way() {
    in_a_gateway(async |gateway| {
        for client_first in [true, false] {
            let (client, server, carry) = gateway.carry_these(Legs::new()).await;
            let (first, second) = if client_first { (client, server) } else { (server, client) };
            let (question, answer) = (Stream { seed: 5, length: 1000 }, Stream { seed: 6, length: 5 * MIB });
            let first = first.exchange(question, answer);
            let second = thread::spawn(move || {
                // Answers only when the question has ended.
                question.expect_all(&second.0);
                answer.send_all(&second.0);
                second.0.shutdown(Shutdown::Write).unwrap();
            });
            let carried = carry.await.unwrap();
            first.join().unwrap();
            second.join().unwrap();
            let expected = if client_first { CloseReason::ClientClosed } else { CloseReason::ServerClosed };
            assert_eq!(carried.ended, expected);
        }
    });
}

#[test]
fn a_fin_right_behind_the_data_does_not_overtake_it() {
    in_a_gateway(async |gateway| {
        for round in 0..500_u64 {
            let legs = Legs::new();
            let sends = Stream { seed: round, length: (round as usize * 613) % 300_000 };
            let client = legs.client.exchange(sends, sends);
            let server = legs.server.exchange(sends, sends);
            if round % 2 == 0 {
                tokio::task::yield_now().await;
            }
            let carried = gateway.carry(&legs.gateway).await;
            assert!(is_orderly(carried.ended), "{:?} in round {round}", carried.ended);
            client.join().unwrap();
            server.join().unwrap();
            assert_eq!(carried.bytes(), [sends.length as u64; 2], "round {round}");
        }
        assert_eq!(aborts(), 0);
    });
}

/// How often this namespace's TCP has reset a connection because it was closed with bytes unread.
fn aborts() -> u64 {
    let netstat = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = netstat.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let aborts = names.split(' ').zip(values.split(' '));
    let aborts = aborts.filter(|(name, _)| ["TCPAbortOnData", "TCPAbortOnClose"].contains(name));
    aborts.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    in_a_gateway(async |gateway| {
        for (client_resets, reason) in [(true, CloseReason::ClientReset), (false, CloseReason::ServerReset)] {
            let mut legs = Legs::new();
            let (mut resets, mut meets) =
                if client_resets { (legs.client, legs.server) } else { (legs.server, legs.client) };
            let peers = thread::spawn(move || {
                resets.0.write_all(b"question").unwrap();
                meets.0.read_exact(&mut [0; 8]).unwrap();
                SockRef::from(&resets.0).set_linger(Some(Duration::ZERO)).unwrap();
                drop(resets);
                meets.0.read(&mut [0]).unwrap_err().kind()
            });
            let carried = gateway.carry(&legs.gateway).await;
            legs.gateway.clear();
            assert_eq!(peers.join().unwrap(), io::ErrorKind::ConnectionReset);
            assert_eq!(carried.ended, reason);
        }
    });
}

/// The socket's error says "reset" once; whoever takes it without saying so leaves the next reader a clean end.
#[test]
fn a_reset_in_the_midst_of_the_insertion_is_not_taken_for_an_end() {
    in_a_gateway(async |gateway| {
        for round in 0..2000 {
            let mut legs = Legs::new();
            let server = legs.server.0;
            SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
            let inserting = Arc::new(Barrier::new(2));
            let resets = thread::spawn({
                let inserting = Arc::clone(&inserting);
                move || {
                    inserting.wait();
                    let begin = Instant::now();
                    while begin.elapsed() < Duration::from_nanos(round * 25) {
                        std::hint::spin_loop();
                    }
                    drop(server);
                }
            });
            inserting.wait();
            let [client, server] = &legs.gateway[..] else { unreachable!("a connection has two legs") };
            let outcome = splice(&gateway.sockmap, client, server, &Traffic::default(), None).await;
            resets.join().unwrap();
            match outcome {
                Outcome::Closed(reason) => assert_eq!(reason, CloseReason::ServerReset, "round {round}"),
                Outcome::Demoted(_) => {
                    let met = read_some(server, &mut [0]).await.map_err(|error| error.kind());
                    assert_eq!(met, Err(io::ErrorKind::ConnectionReset), "round {round}");
                }
            }
            legs.gateway.clear();
        }
    });
}

#[test]
fn a_socket_that_has_met_its_fin_is_left_to_the_copy_tier() {
    in_a_gateway(async |gateway| {
        let legs = Legs::new();
        legs.client.0.shutdown(Shutdown::Write).unwrap();
        legs.gateway[0].readable().await.unwrap();
        let server = legs.server.exchange(Stream::EMPTY, Stream::EMPTY);
        let carried = gateway.carry(&legs.gateway).await;
        server.join().unwrap();
        assert_eq!(carried.demoted, Some(FallbackReason::SockmapRefused));
    });
}

#[test]
fn a_connection_without_traffic_ends_when_its_time_is_up() {
    in_a_gateway(async |gateway| {
        let mut legs = Legs::new();
        legs.client.0.write_all(b"hello").unwrap();
        let traffic = Traffic::default();
        let idle = Some(Duration::from_millis(50));
        let outcome = splice(&gateway.sockmap, &legs.gateway[0], &legs.gateway[1], &traffic, idle).await;
        assert_eq!(outcome, Outcome::Closed(CloseReason::IdleTimeout));
        assert_eq!(traffic.bytes_in.load(Relaxed), 5);
    });
}
