//! The kTLS tier: TLS records in the kernel, of real sessions, every byte checked. Where the kernel has no kTLS, the tests run on
//! one that has.

mod scene;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::{CipherSuite, ContentType};
use snisplice::kernel::probe::{Answer, ktls};
use snisplice_tests::pump::{Plan, Start, exchange};
use snisplice_tests::require;

use crate::scene::{Scene, Server};

const MIB: u64 = 1024 * 1024;

fn has_ktls() -> bool {
    ktls() == Answer::Yes
}

const NO_KTLS: &str = "the kernel has no kTLS";

const SUITES: [CipherSuite; 6] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Nearly all to one end, which is the last to end. The other has said a word before.
fn to_the_client(bytes: u64) -> Plan {
    Plan { send: 100, greeting: 50, start: Start::AfterBytes(bytes), ..Plan::both_ways(bytes) }
}

#[test]
fn every_byte_passes_both_ways_with_each_suite_and_the_ends_are_told() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    let scene = Scene::new(Server::Plan(Plan::both_ways(4 * MIB).mirrored()))?;
    for (i, suite) in SUITES.into_iter().enumerate() {
        scene.exchange(suite, &Plan::both_ways(4 * MIB)).with_context(|| format!("{suite:?}"))?;
        let line = scene.gateway.wait_access_log(i + 1)?.remove(i);
        assert_eq!(
            (&line["tier"], &line["bytes_in"], &line["bytes_out"]),
            (&"ktls".into(), &(4 * MIB).into(), &(4 * MIB).into()),
            "{suite:?}: {line}"
        );
        assert!(line["tls_error"].is_null(), "{line}");
    }
    let status = scene.gateway.status()?;
    assert_eq!((status.tier("ktls", "total"), status.tier("ktls", "active")), (6, 0));
    assert_eq!((status.tier("copy", "total"), status.tier("copy", "active")), (6, 0));
    Ok(())
}

#[test]
fn one_way_alone_is_enough_and_writes_may_have_any_size() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    for chunk in [1499, 200_000] {
        let down = Plan { chunk, ..to_the_client(3 * MIB / 2) };
        for (client, server) in [(&down, down.mirrored()), (&down.mirrored(), down.clone())] {
            let scene = Scene::new(Server::Plan(server))?;
            scene.exchange(SUITES[0], client).with_context(|| format!("{client:?}"))?;
            let line = scene.gateway.wait_access_log(1)?.remove(0);
            assert_eq!(line["tier"], "ktls", "{client:?}: {line}");
        }
    }
    Ok(())
}

/// The kernel seals a record as soon as the socket has any room, and queues what has room. The FIN must not come before the rest.
#[test]
fn a_slow_reader_gets_all_records_before_the_end() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    let plan = Plan { stall: Some((2 * MIB, Duration::from_secs(1))), ..to_the_client(2 * MIB + MIB / 8) };
    for suite in [SUITES[0], SUITES[3]] {
        let scene = Scene::new(Server::Plan(plan.mirrored()))?;
        scene.small_buffers()?;
        scene.exchange(suite, &plan).with_context(|| format!("{suite:?}"))?;
        let line = scene.gateway.wait_access_log(1)?.remove(0);
        assert_eq!(line["tier"], "ktls", "{line}");
    }
    Ok(())
}

#[test]
fn an_answer_still_comes_behind_the_end_of_the_question() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    let plan = Plan::both_ways(2 * MIB);
    let answering = Plan { greeting: 100, start: Start::AfterEnd, ..plan.mirrored() };
    let scene = Scene::new(Server::Plan(answering))?;
    scene.exchange(SUITES[1], &plan)?;
    let line = scene.gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["tier"], &line["close_reason"]), (&"ktls".into(), &"client_closed".into()), "{line}");
    Ok(())
}

/// In a pool with TLS of its own, where the server's records stay the gateway's. The FIN, which comes at once, must not come
/// before records that the kernel has sealed and not queued yet.
#[test]
fn what_a_server_cuts_off_is_whole_until_there_and_does_not_look_whole_to_the_client() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    let scene = Scene::new(Server::CutsOff)?;
    scene.small_buffers()?;
    // Whether the socket's room ends in the last record depends on the size.
    for i in 0..14 {
        let size = MIB + 100_000 + i * 6_000;
        let mut client = scene.client(SUITES[0])?;
        client.writer.write_all(&size.to_be_bytes())?;
        let (mut heard, mut part) = (0, [0; 16 * 1024]);
        let mut pause = Some(Duration::from_millis(500));
        let error = loop {
            // Meanwhile the server leaves.
            pause.take_if(|_| heard >= MIB + 64_000).into_iter().for_each(std::thread::sleep);
            match client.reader.read(&mut part) {
                Ok(0) => panic!("it looks whole, after {heard} bytes"),
                Ok(n) => heard += n as u64,
                Err(error) => break error,
            }
        };
        assert_eq!((error.kind(), heard), (ErrorKind::UnexpectedEof, size), "{error}");
        drop(client);
        let line = scene.gateway.wait_access_log(i as usize + 1)?.remove(i as usize);
        assert_eq!(
            (&line["tier"], &line["close_reason"]),
            (&"ktls".into(), &"server_closed".into()),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn a_client_that_leaves_by_a_fin_alone_is_passed_on_as_one() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    let scene = Scene::new(Server::Echo)?;
    let mut client = scene.bulk(SUITES[0])?;
    client.socket.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    // The server, which has no TLS, has seen a FIN, and ends in the same way.
    assert_eq!(client.reader.read_to_end(&mut rest)?, 0);
    let line = scene.gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["tier"], &line["close_reason"]), (&"ktls".into(), &"client_closed".into()), "{line}");
    Ok(())
}

#[test]
fn a_clients_key_update_is_followed_where_the_kernel_can_and_else_ends_the_session() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    let scene = Scene::new(Server::Echo)?;
    let mut client = scene.stream(SUITES[0])?;
    let echo = |bytes: usize, client: &mut scene::Stream| -> std::io::Result<()> {
        let said = vec![b'y'; bytes];
        client.write_all(&said)?;
        let mut heard = vec![0; bytes];
        client.read_exact(&mut heard)?;
        assert!(heard == said);
        Ok(())
    };
    for _ in 0..40 {
        echo(32 * 1024, &mut client)?;
    }
    scene.wait_for_ktls()?;
    client.conn.refresh_traffic_keys()?;
    let echoed = echo(10_000, &mut client);
    if scene::kernel_takes_new_keys() {
        echoed?;
        for _ in 0..3 {
            client.conn.refresh_traffic_keys()?;
            echo(100_000, &mut client)?;
        }
        client.conn.send_close_notify();
        client.flush()?;
        assert_eq!(client.read(&mut [0; 10])?, 0, "close_notify");
    } else {
        let error = echoed.unwrap_err();
        // An alert, which rustls gives as an error of its own: not a connection that just ends.
        assert!(error.to_string().contains("InternalError"), "{error}");
        let line = scene.gateway.wait_access_log(1)?.remove(0);
        assert_eq!(
            (&line["tier"], &line["close_reason"], &line["tls_error"]),
            (&"ktls".into(), &"tls_error".into(), &"key_update".into()),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn records_that_are_not_what_they_should_be_end_the_session_and_reset_the_server() -> Result<()> {
    require!(has_ktls(), NO_KTLS);
    type Record = (ContentType, &'static [u8]);
    let cases: [(&str, &[Record], &str); 8] = [
        ("a ClientHello", &[(ContentType::Handshake, &[1, 0, 0, 0])], "protocol_violation"),
        ("a part of a message", &[(ContentType::Handshake, &[24, 0])], "protocol_violation"),
        ("two messages", &[(ContentType::Handshake, &[24, 0, 0, 1, 0, 24])], "protocol_violation"),
        ("a fatal alert", &[(ContentType::Alert, &[2, 48])], "alert_unknown_ca"),
        ("half an alert", &[(ContentType::Alert, &[1])], "protocol_violation"),
        (
            "many alerts that say nothing",
            &[(ContentType::Alert, &[1_u8, 90] as &[u8]); 5],
            "protocol_violation",
        ),
        ("a heartbeat", &[(ContentType::Heartbeat, &[1, 0, 1, 7])], "protocol_violation"),
        ("a record of another key", &[], "undecryptable"),
    ];
    let scene = Scene::new(Server::Echo)?;
    let mut lines = 0;
    for (case, records, expected) in cases {
        let (mut sealer, mut socket, reader) = scene.sealed_bulk()?;
        for (content, payload) in records {
            socket.write_all(&sealer.seal(*content, payload)?)?;
        }
        if records.is_empty() {
            let mut sealed = sealer.seal(ContentType::ApplicationData, b"word")?;
            *sealed.last_mut().context("a record")? ^= 1;
            socket.write_all(&sealed)?;
        }
        reader.join().expect("the reader does not panic");
        lines += 1;
        let line = scene.gateway.wait_access_log(lines)?.remove(lines - 1);
        assert_eq!(line["tier"], "ktls", "{case}: {line}");
        assert_eq!(line["tls_error"], expected, "{case}: {line}");
    }
    Ok(())
}

#[test]
fn a_connection_that_is_not_bulk_stays_in_the_copy_tier() -> Result<()> {
    let plan = to_the_client(MIB / 2);
    let scene = Scene::new(Server::Plan(plan.mirrored()))?;
    exchange(scene.client(SUITES[0])?, &plan)?;
    let line = scene.gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["tier"], &line["tier_reason"]), (&"copy".into(), &"ktls_later".into()), "{line}");
    assert_eq!(scene.gateway.status()?.tier("ktls", "total"), 0);
    Ok(())
}

#[test]
fn without_ktls_bulk_stays_in_the_copy_tier_and_the_reason_is_counted() -> Result<()> {
    if has_ktls() {
        return Ok(());
    }
    // One way: with both, neither may be at rest when the kernel could be asked.
    let plan = to_the_client(3 * MIB);
    let scene = Scene::new(Server::Plan(plan.mirrored()))?;
    exchange(scene.client(SUITES[0])?, &plan)?;
    let line = scene.gateway.wait_access_log(1)?.remove(0);
    assert_eq!((&line["tier"], &line["bytes_out"]), (&"copy".into(), &(3 * MIB).into()), "{line}");
    let refused = scene.gateway.status()?.number("/tier_fallbacks/ktls_refused");
    assert_eq!(refused, 1);
    Ok(())
}
