//! Every byte arrives, once and in its order.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use snisplice::splice::sockmap::splice;
use snisplice::traffic::Traffic;
use snisplice_tests::stranger::{Forged, Numbers, Stranger, flag};
use socket2::SockRef;

use crate::gateway::{forward_exactly, in_a_gateway, is_orderly, queued};
use crate::peers::{Legs, MIB, Stream};

#[test]
fn both_directions_at_once_deliver_every_byte() {
    in_a_gateway(async |gateway| {
        let legs = Legs::new();
        let [client_sends, server_sends] = [1, 2].map(|seed| Stream { seed, length: 64 * MIB });
        let client = legs.client.exchange(client_sends, server_sends);
        let server = legs.server.exchange(server_sends, client_sends);
        let carried = gateway.carry(&legs.gateway).await;
        client.join().unwrap();
        server.join().unwrap();
        assert!(is_orderly(carried.ended));
        assert_eq!(carried.bytes(), [64 * MIB as u64; 2]);
        assert!(carried.by_kernel > 0);
    });
}

/// Both ends send all the time; userspace has read some of it, in pieces that end within a segment, and forwarded
/// what it read.
#[test]
fn insertion_under_fire_loses_repeats_and_reorders_nothing() {
    in_a_gateway(async |gateway| {
        let mut by_kernel = 0;
        for round in 0..2000_u64 {
            let legs = Legs::new();
            let [client_sends, server_sends] = [round, !round]
                .map(|seed| Stream { seed, length: 60_000 + (round as usize * 7919) % 60_000 });
            let client = legs.client.exchange(client_sends, server_sends);
            let server = legs.server.exchange(server_sends, client_sends);
            let prefix = (round as usize * 997) % 50_000;
            forward_exactly(&legs.gateway[0], &legs.gateway[1], prefix).await;
            forward_exactly(&legs.gateway[1], &legs.gateway[0], prefix / 3).await;
            let carried = gateway.carry(&legs.gateway).await;
            assert!(is_orderly(carried.ended), "{:?} in round {round}", carried.ended);
            client.join().unwrap();
            server.join().unwrap();
            let expected = [client_sends.length - prefix, server_sends.length - prefix / 3];
            assert_eq!(carried.bytes(), expected.map(|bytes| bytes as u64), "round {round}");
            by_kernel += carried.by_kernel;
        }
        assert!(by_kernel > 0);
    });
}

#[test]
fn bytes_queued_before_the_insertion_go_first() {
    in_a_gateway(async |gateway| {
        for seed in 0..200 {
            let mut legs = Legs::new();
            let request = Stream { seed, length: 3000 };
            legs.client.0.write_all(&request.bytes(0, 1000)).unwrap();
            queued(&legs.gateway[0], 1000).await;
            let (mut client, server, carry) = gateway.carry_these(legs).await;
            let peers = thread::spawn(move || {
                client.0.write_all(&request.bytes(1000, 2000)).unwrap();
                let server = server.exchange(Stream::EMPTY, request);
                client.exchange(Stream::EMPTY, Stream::EMPTY).join().unwrap();
                server.join().unwrap();
            });
            let carried = carry.await.unwrap();
            peers.join().unwrap();
            assert_eq!(carried.by_kernel, 3000);
        }
    });
}

#[test]
fn a_thousand_connections_at_once_leave_nothing_behind() {
    in_a_gateway(async |gateway| {
        let mut carried = Vec::new();
        let mut peers = Vec::new();
        for seed in 0..1000 {
            let legs = Legs::new();
            peers.push((legs.client.0, legs.server.0, seed));
            let gateway = gateway.clone();
            carried.push(tokio::task::spawn_local(async move { gateway.carry(&legs.gateway).await }));
        }
        let peers = thread::spawn(move || {
            for (client, server, seed) in &peers {
                Stream { seed: *seed, length: 10_000 }.send_all(client);
                Stream { seed: !*seed, length: 20_000 }.send_all(server);
            }
            for (client, server, _) in &peers {
                client.shutdown(Shutdown::Write).unwrap();
                server.shutdown(Shutdown::Write).unwrap();
            }
            for (client, server, seed) in &peers {
                Stream { seed: *seed, length: 10_000 }.expect_all(server);
                Stream { seed: !*seed, length: 20_000 }.expect_all(client);
            }
        });
        for carried in carried {
            let carried = carried.await.unwrap();
            assert_eq!((carried.demoted, carried.bytes()), (None, [10_000, 20_000]));
        }
        peers.join().unwrap();
        assert_eq!(gateway.sockmap.entries(), 0);
    });
}

#[test]
fn counters_follow_when_asked() {
    in_a_gateway(async |gateway| {
        let mut legs = Legs::new();
        let traffic = Arc::new(Traffic::default());
        let carry = tokio::task::spawn_local({
            let (gateway, traffic) = (gateway.clone(), traffic.clone());
            async move { splice(&gateway.sockmap, &legs.gateway[0], &legs.gateway[1], &traffic, None).await }
        });
        legs.client.0.write_all(b"hello").unwrap();
        tokio::task::spawn_blocking(move || legs.server.0.read_exact(&mut [0; 5]).unwrap()).await.unwrap();
        while traffic.bytes_in.load(Relaxed) != 5 {
            gateway.sockmap.refresh();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        carry.abort();
        let _ = carry.await;
        assert_eq!(gateway.sockmap.entries(), 0);
    });
}

/// What a sender does after a loss: the retransmission begins with bytes that have arrived, and goes on with new
/// ones. TCP takes the new part; a verdict program is handed the whole.
#[test]
fn the_old_head_of_an_overlapping_retransmission_is_not_delivered_again() {
    in_a_gateway(async |gateway| {
        let mut legs = Legs::new();
        let carry = tokio::task::spawn_local({
            let gateway = gateway.clone();
            async move { gateway.carry(&legs.gateway).await }
        });
        let server = tokio::task::spawn_blocking(move || {
            let mut received = [0; 16];
            legs.client.0.write_all(b"0123456789").unwrap();
            legs.server.0.read_exact(&mut received[..10]).unwrap();
            retransmit(&legs.client.0, b"456789abcdef", 6);
            legs.server.0.read_exact(&mut received[10..]).unwrap();
            // The client does not know what it "sent", so nothing that it says now would be in the window.
            SockRef::from(&legs.server.0).set_linger(Some(Duration::ZERO)).unwrap();
            received
        });
        assert_eq!(&server.await.unwrap(), b"0123456789abcdef");
        assert_eq!(carry.await.unwrap().by_kernel, 16);
    });
}

/// Sends a TCP segment in this socket's name that ends `new` bytes beyond what it has sent.
fn retransmit(socket: &TcpStream, payload: &[u8], new: u32) {
    let numbers = Numbers::of(socket).unwrap();
    let seq = numbers.next.wrapping_add(new).wrapping_sub(payload.len() as u32);
    let forged =
        Forged { flags: flag::PSH | flag::ACK, seq, ack: numbers.expected, payload, ..Forged::default() };
    let [own, other] = [socket.local_addr(), socket.peer_addr()].map(Result::unwrap);
    Stranger::here(own, other).unwrap().send(&forged).unwrap();
}
