//! The sockmap tier on this kernel: real sockets, every byte checked.
//!
//! The two legs of a connection are carried by `splice` on a current-thread runtime, as in the gateway; the
//! programs at both ends are blocking threads. Each test has a network namespace of its own.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lb_common::sockmap::{DEFAULT_SOCKETS, EVENT_STEP};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use snisplice::kernel::{self, Kernel, KernelError, Sockmap};
use snisplice::reason::{CloseReason, FallbackReason};
use snisplice::splice::sockmap::{MAX_IN_FLIGHT, Outcome, splice};
use snisplice::traffic::Traffic;
use socket2::SockRef;

const MIB: usize = 1 << 20;

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
        let mut demoted = 0;
        for round in 0..8_u64 {
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
                halt(&sent, Duration::from_millis(1 + 3 * round));
                upload.expect_all(&legs.server.0);
                sender.join().unwrap();
            });
            let carried = gateway.carry(&legs.gateway).await;
            uploader.join().unwrap();
            downloader.join().unwrap();
            server.join().unwrap();
            assert_eq!(carried.bytes(), [upload.length as u64, download.length as u64], "round {round}");
            demoted += u32::from(carried.demoted.is_some());
        }
        assert!(demoted > 0);
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

#[test]
fn pinned_maps_are_adopted_by_one_process_and_foreign_ones_by_none() {
    in_a_namespace(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let bpffs = PathBuf::from(format!("/sys/fs/bpf/snisplice-test-{}", std::process::id()));

        assert!(!kernel::unload(&bpffs).unwrap());
        kernel::load_and_pin(&bpffs, 64).unwrap();
        kernel::load_and_pin(&bpffs, 64).unwrap();
        assert!(kernel::is_loaded(&bpffs).unwrap());
        {
            let first = Kernel::open(&bpffs, 128).unwrap();
            let second = Kernel::open(&bpffs, 128).unwrap();
            assert_eq!((first.sockmap().capacity(), second.sockmap().capacity()), (64, 128));
            runtime(async { exchange_once(first.sockmap().clone()).await });
            runtime(async { exchange_once(second.sockmap().clone()).await });
        }
        let again = Kernel::open(&bpffs, 128).unwrap();
        assert_eq!(again.sockmap().capacity(), 64, "the pins are free again");
        runtime(async { exchange_once(again.sockmap().clone()).await });
        drop(again);

        let pins = bpffs.join(format!("v{}/sockmap", lb_common::ABI_VERSION));
        std::fs::remove_file(pins.join(lb_common::sockmap::FLOWS)).unwrap();
        std::fs::rename(pins.join(lb_common::sockmap::EVENTS), pins.join(lb_common::sockmap::FLOWS)).unwrap();
        assert!(matches!(Kernel::open(&bpffs, 64), Err(KernelError::ForeignPin { .. })));

        assert!(kernel::unload(&bpffs).unwrap());
        assert!(!kernel::is_loaded(&bpffs).unwrap());
        assert!(!bpffs.exists());
    });
}

#[test]
fn a_user_without_capabilities_is_told_so() {
    in_a_namespace(|| {
        let refused = thread::spawn(|| {
            // Of this thread only.
            for capability in [caps::Capability::CAP_SYS_ADMIN, caps::Capability::CAP_BPF] {
                caps::drop(None, caps::CapSet::Effective, capability).unwrap();
            }
            Kernel::open(Path::new("/nonexistent"), 2).err()
        });
        assert!(matches!(refused.join().unwrap(), Some(KernelError::NotPermitted(_))));
    });
}

async fn exchange_once(sockmap: Arc<Sockmap>) {
    let gateway = Gateway { sockmap };
    let (client, server, carry) = gateway.carry_these(Legs::new()).await;
    let sends = Stream { seed: 4, length: 100_000 };
    let (client, server) = (client.exchange(sends, sends), server.exchange(sends, sends));
    let carried = carry.await.unwrap();
    client.join().unwrap();
    server.join().unwrap();
    assert_eq!((carried.demoted, carried.by_kernel), (None, 200_000));
}

/// What stands between the two ends.
#[derive(Clone)]
struct Gateway {
    sockmap: Arc<Sockmap>,
}

/// How a connection was carried.
struct Carried {
    ended: CloseReason,
    demoted: Option<FallbackReason>,
    by_kernel: u64,
    total: [u64; 2],
}

impl Carried {
    /// From the client, and from the server.
    fn bytes(&self) -> [u64; 2] {
        self.total
    }
}

impl Gateway {
    /// Splices; continues by copying if the tier gives the connection back.
    async fn carry(&self, legs: &[tokio::net::TcpStream]) -> Carried {
        let traffic = Traffic::default();
        let outcome = splice(&self.sockmap, &legs[0], &legs[1], &traffic, None).await;
        let mut total = [&traffic.bytes_in, &traffic.bytes_out].map(|bytes| bytes.load(Relaxed));
        let by_kernel = total.iter().sum();
        let (ended, demoted) = match outcome {
            Outcome::Closed(reason) => (reason, None),
            Outcome::Demoted(reason) => {
                let copied = tokio::try_join!(copy(&legs[0], &legs[1]), copy(&legs[1], &legs[0])).unwrap();
                total = [total[0] + copied.0, total[1] + copied.1];
                (CloseReason::ClientClosed, Some(reason))
            }
        };
        Carried { ended, demoted, by_kernel, total }
    }
}

impl Gateway {
    /// Puts a connection into the kernel's hands; its two ends.
    async fn carry_these(&self, legs: Legs) -> (Peer, Peer, tokio::task::JoinHandle<Carried>) {
        let (gateway, before) = (self.clone(), self.sockmap.entries());
        let carry = tokio::task::spawn_local(async move { gateway.carry(&legs.gateway).await });
        while self.sockmap.entries() < before + 2 {
            tokio::task::yield_now().await;
        }
        (legs.client, legs.server, carry)
    }
}

/// The simplest copy tier there can be.
async fn copy(from: &tokio::net::TcpStream, to: &tokio::net::TcpStream) -> io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let read = read_some(from, &mut buffer).await?;
        if read == 0 {
            // Not connected: this direction had ended before, and the other too by now.
            return match SockRef::from(to).shutdown(Shutdown::Write) {
                Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
                _ => Ok(copied),
            };
        }
        write_all(to, &buffer[..read]).await?;
        copied += read as u64;
    }
}

/// Reads these bytes, in odd pieces, and writes them.
async fn forward_exactly(from: &tokio::net::TcpStream, to: &tokio::net::TcpStream, mut bytes: usize) {
    let mut buffer = [0; 1777];
    while bytes > 0 {
        let part = bytes.min(buffer.len());
        let read = read_some(from, &mut buffer[..part]).await.unwrap();
        write_all(to, &buffer[..read]).await.unwrap();
        bytes -= read;
    }
}

async fn read_some(from: &tokio::net::TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match from.try_read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

async fn write_all(to: &tokio::net::TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until so many bytes lie unread in the socket.
async fn queued(socket: &tokio::net::TcpStream, bytes: usize) {
    let mut buffer = vec![0; bytes];
    while socket.peek(&mut buffer).await.unwrap() < bytes {
        tokio::task::yield_now().await;
    }
}

/// A connection through the gateway: the program at each end, and the gateway's two sockets.
struct Legs {
    client: Peer,
    server: Peer,
    gateway: Vec<tokio::net::TcpStream>,
}

struct Peer(TcpStream);

impl Legs {
    fn new() -> Self {
        let (client, client_leg) = connection();
        let (server_leg, server) = connection();
        let gateway = [client_leg, server_leg].map(|leg| {
            leg.set_nonblocking(true).unwrap();
            tokio::net::TcpStream::from_std(leg).unwrap()
        });
        Self { client: Peer(client), server: Peer(server), gateway: gateway.into() }
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = listener.accept().unwrap().0;
    for socket in [&connected, &accepted] {
        socket.set_nodelay(true).unwrap();
        // A test that fails ends.
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    }
    (connected, accepted)
}

impl Peer {
    /// Sends all of one stream and a FIN, and meanwhile expects the other and a FIN.
    fn exchange(self, sends: Stream, expects: Stream) -> JoinHandle<()> {
        let sender = self.0.try_clone().unwrap();
        let sender = thread::spawn(move || {
            sends.send_all(&sender);
            sender.shutdown(Shutdown::Write).unwrap();
        });
        thread::spawn(move || {
            expects.expect_all(&self.0);
            sender.join().unwrap();
        })
    }
}

/// Bytes that depend on their position and on the seed.
#[derive(Clone, Copy)]
struct Stream {
    seed: u64,
    length: usize,
}

impl Stream {
    const EMPTY: Self = Self { seed: 0, length: 0 };
    const BLOCK: usize = 64 << 10;

    fn bytes(&self, from: usize, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 16);
        let mut word = from / 8;
        while bytes.len() < length + from % 8 {
            let mixed = (word as u64 ^ self.seed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bytes.extend((mixed ^ (mixed >> 29)).to_ne_bytes());
            word += 1;
        }
        bytes.drain(..from % 8);
        bytes.truncate(length);
        bytes
    }

    fn for_each_block(&self, mut work: impl FnMut(&[u8])) {
        let mut at = 0;
        while at < self.length {
            let block = self.bytes(at, Self::BLOCK.min(self.length - at));
            work(&block);
            at += block.len();
        }
    }

    fn send_all(&self, mut to: &TcpStream) {
        self.for_each_block(|block| to.write_all(block).unwrap());
    }

    /// Sends it and a FIN, and counts what is sent.
    fn send_counted(self, to: &TcpStream, sent: &Arc<AtomicU64>) -> JoinHandle<()> {
        let (mut to, sent) = (to.try_clone().unwrap(), sent.clone());
        thread::spawn(move || {
            self.for_each_block(|block| {
                to.write_all(block).unwrap();
                sent.fetch_add(block.len() as u64, Relaxed);
            });
            to.shutdown(Shutdown::Write).unwrap();
        })
    }

    /// Reads to the end and compares.
    fn expect_all(&self, mut from: &TcpStream) {
        let mut received = 0;
        self.for_each_block(|block| {
            let mut got = vec![0; block.len()];
            from.read_exact(&mut got)
                .unwrap_or_else(|error| panic!("{error} after {received} of {}", self.length));
            assert!(got == block, "wrong byte in the block at {received}");
            received += block.len();
        });
        assert_eq!(from.read(&mut [0]).unwrap(), 0, "more than {} bytes", self.length);
    }
}

fn is_orderly(reason: CloseReason) -> bool {
    matches!(reason, CloseReason::ClientClosed | CloseReason::ServerClosed)
}

/// Waits until the counter has stood still for so long; returns where.
fn halt(counter: &AtomicU64, quiet: Duration) -> u64 {
    let mut last = counter.load(Relaxed);
    let mut since = Instant::now();
    while last == 0 || since.elapsed() < quiet {
        thread::sleep(Duration::from_millis(1));
        let now = counter.load(Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// Sends a TCP segment in this socket's name that ends `new` bytes beyond what it has sent.
fn retransmit(socket: &TcpStream, payload: &[u8], new: u32) {
    let (SocketAddr::V4(from), SocketAddr::V4(to)) =
        (socket.local_addr().unwrap(), socket.peer_addr().unwrap())
    else {
        unreachable!("the tests use IPv4")
    };
    let (seq, ack) = (queue_seq(socket, 2), queue_seq(socket, 1));
    let seq = seq.wrapping_add(new).wrapping_sub(payload.len() as u32);

    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([5 << 4, 0x18]); // Five words of header; PSH and ACK.
    segment.extend(u16::MAX.to_be_bytes());
    segment.extend([0; 4]); // Checksum, urgent pointer.
    segment.extend(payload);

    let mut summed = [from.ip().octets(), to.ip().octets()].concat();
    summed.extend([0, 6]);
    summed.extend((segment.len() as u16).to_be_bytes());
    summed.extend(&segment);
    summed.resize(summed.len().next_multiple_of(2), 0);
    let mut sum: u32 = summed.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    segment[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());

    let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::TCP));
    raw.unwrap().send_to(&segment, &SocketAddr::from((*to.ip(), 0)).into()).unwrap();
}

/// TCP_QUEUE_SEQ of the queue: 1 to receive, 2 to send.
fn queue_seq(socket: &TcpStream, queue: i32) -> u32 {
    use std::os::fd::AsRawFd;
    let set = |option, value: i32| {
        // SAFETY: `value` is an int that outlives the call.
        let status = unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), 4)
        };
        assert_eq!(status, 0, "{}", io::Error::last_os_error());
    };
    set(libc::TCP_REPAIR, 1);
    set(libc::TCP_REPAIR_QUEUE, queue);
    set(libc::TCP_REPAIR, -1);
    let (mut seq, mut size) = (0_u32, 4);
    // SAFETY: the kernel writes four bytes to `seq`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUEUE_SEQ,
            (&raw mut seq).cast(),
            &raw mut size,
        )
    };
    assert_eq!(status, 0, "{}", io::Error::last_os_error());
    seq
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

fn in_a_gateway<F: Future<Output = ()>>(test: impl FnOnce(Gateway) -> F) {
    in_a_gateway_for(DEFAULT_SOCKETS, test);
}

/// Runs a test with its own programs, whose maps take so many sockets.
fn in_a_gateway_for<F: Future<Output = ()>>(sockets: u32, test: impl FnOnce(Gateway) -> F) {
    in_a_namespace(|| {
        let kernel = Kernel::open(Path::new("/nonexistent"), sockets).unwrap();
        let gateway = Gateway { sockmap: kernel.sockmap().clone() };
        runtime(async {
            let events = tokio::task::spawn_local({
                let sockmap = gateway.sockmap.clone();
                async move { sockmap.serve_events().await }
            });
            test(gateway).await;
            events.abort();
        });
    });
}

/// A worker's runtime.
fn runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, work);
}

/// Runs a test on a thread in a network namespace of its own, with its loopback device up; threads that it starts
/// are inside as well.
fn in_a_namespace(test: impl FnOnce()) {
    unshare(CloneFlags::CLONE_NEWNET).expect("the tests of the kernel run as root");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
    assert!(up.success());
    test();
}
