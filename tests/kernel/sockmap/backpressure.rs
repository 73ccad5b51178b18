//! Receivers that do not keep up, and a full map: connections that go on in the copy tier.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use lb_common::sockmap::EVENT_STEP;
use snisplice::reason::FallbackReason;
use snisplice::splice::sockmap::MAX_IN_FLIGHT;

use crate::gateway::{in_a_gateway, in_a_gateway_for};
use crate::peers::{Legs, MIB, Stream, halt};

/// The tier's weak point: nothing in the kernel holds the sender back.
#[test]
fn a_stalled_receiver_stops_its_sender_and_nobody_else_and_gets_every_byte_later() {
    in_a_gateway(async |gateway| {
        let legs = Legs::new();
        let (upload, download) =
            (Stream { seed: 8, length: 160 * MIB }, Stream { seed: 9, length: 64 * MIB });
        let sent = Arc::new(AtomicU64::new(0));

        let uploader = upload.send_counted(&legs.client.0, &sent);
        let downloader = thread::spawn(move || download.expect_all(&legs.client.0));
        let server = thread::spawn({
            let sent = sent.clone();
            move || {
                // Reads nothing before it has written all and the upload has come to a halt.
                download.send_all(&legs.server.0);
                legs.server.0.shutdown(Shutdown::Write).unwrap();
                downloader.join().unwrap();
                let halted_at = halt(&sent, Duration::from_millis(500));
                upload.expect_all(&legs.server.0);
                halted_at
            }
        });
        let carried = gateway.carry(&legs.gateway).await;
        uploader.join().unwrap();
        let halted_at = server.join().unwrap();

        assert_eq!(carried.demoted, Some(FallbackReason::SockmapBackpressure));
        assert_eq!(carried.bytes(), [upload.length as u64, download.length as u64]);
        // The two sockets' buffers at each end, the cap, and what a busy machine's scheduler adds.
        let buffers = 4 * 8 * MIB as u64;
        assert!(halted_at < MAX_IN_FLIGHT + EVENT_STEP + buffers + 32 * MIB as u64, "{halted_at}");
        assert!(halted_at > 0);
    });
}

#[test]
fn a_slow_receiver_is_demoted_in_mid_stream_without_losing_a_byte() {
    in_a_gateway(async |gateway| {
        let (mut demoted, mut round) = (0, 0_u64);
        // On a busy machine the receiver may be the faster one eight times in a row.
        while round < 8 || demoted == 0 && round < 80 {
            let legs = Legs::new();
            let upload = Stream { seed: round, length: 32 * MIB };
            let download = Stream { seed: !round, length: 4 * MIB };
            let sent = Arc::new(AtomicU64::new(0));
            let uploader = upload.send_counted(&legs.client.0, &sent);
            let downloader = thread::spawn(move || download.expect_all(&legs.client.0));
            let server = thread::spawn(move || {
                let send = legs.server.0.try_clone().unwrap();
                let sender = thread::spawn(move || {
                    download.send_all(&send);
                    send.shutdown(Shutdown::Write).unwrap();
                });
                // In the middle of the demotion, or just before or after it.
                halt(&sent, Duration::from_millis(1 + 3 * (round % 8)));
                upload.expect_all(&legs.server.0);
                sender.join().unwrap();
            });
            let carried = gateway.carry(&legs.gateway).await;
            uploader.join().unwrap();
            downloader.join().unwrap();
            server.join().unwrap();
            assert_eq!(carried.bytes(), [upload.length as u64, download.length as u64], "round {round}");
            demoted += u32::from(carried.demoted.is_some());
            round += 1;
        }
        assert!(demoted > 0);
    });
}

#[test]
fn a_full_map_leaves_the_connection_to_the_copy_tier() {
    in_a_gateway_for(2, async |gateway| {
        let (first_client, first_server, carry_first) = gateway.carry_these(Legs::new()).await;
        let second = Legs::new();
        let sends = Stream { seed: 3, length: MIB };
        let (client, server) = (second.client.exchange(sends, sends), second.server.exchange(sends, sends));
        let carried = gateway.carry(&second.gateway).await;
        client.join().unwrap();
        server.join().unwrap();
        assert_eq!((carried.demoted, carried.by_kernel), (Some(FallbackReason::SockmapFull), 0));

        let (client, server) = (first_client.exchange(sends, sends), first_server.exchange(sends, sends));
        assert_eq!(carry_first.await.unwrap().demoted, None);
        client.join().unwrap();
        server.join().unwrap();
        assert_eq!(gateway.sockmap.entries(), 0);
    });
}
