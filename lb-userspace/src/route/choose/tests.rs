use super::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::hash::{BuildHasher, BuildHasherDefault};
use std::net::Ipv4Addr;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const BALANCES: [Balance; 4] =
    [Balance::RoundRobin, Balance::LeastConnections, Balance::SourceHash, Balance::Random];

const TICKETS: usize = 4000;
/// Six standard deviations of a share of one half of [`TICKETS`].
const TOLERANCE: usize = 190;

const BACKUP: Rank = Rank { backup: true, priority: 0 };

const IDLE: Candidate = Candidate {
    usable: true,
    full: false,
    rank: Rank { backup: false, priority: 0 },
    weight: 1,
    warmth: WHOLE,
    active: 0,
    identity: 0,
};

fn server(active: usize) -> Candidate {
    Candidate { active, ..IDLE }
}

fn numbered<const N: usize>() -> [Candidate; N] {
    std::array::from_fn(|index| Candidate { identity: index as u64, ..server(0) })
}

fn schedules_of(candidates: &[Candidate]) -> Box<[(Rank, Schedule)]> {
    schedules(&candidates.iter().map(|c| (c.rank, c.weight)).collect::<Vec<_>>())
}

fn pick(balance: Balance, candidates: &[Candidate], ticket: u64) -> Option<usize> {
    match decide(balance, candidates, ticket) {
        Choice::Server(index) => Some(index),
        Choice::Full | Choice::Nobody => None,
    }
}

/// How many connections of [`TICKETS`] each of the candidates gets, whose loads stay the same.
fn counts(balance: Balance, candidates: &[Candidate]) -> Vec<usize> {
    let schedules = schedules_of(candidates);
    let mut counts = vec![0; candidates.len()];
    for ticket in 0..TICKETS as u64 {
        match choose(balance, candidates, &schedules, ticket, CLIENT, mixed(ticket)) {
            Choice::Server(index) => counts[index] += 1,
            other => panic!("{other:?}"),
        }
    }
    counts
}

/// Stands for a random number.
fn mixed(ticket: u64) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(ticket)
}

fn decide(balance: Balance, candidates: &[Candidate], ticket: u64) -> Choice {
    choose(balance, candidates, &schedules_of(candidates), ticket, CLIENT, ticket)
}

#[test]
fn least_connections_counts_the_connection_to_come_and_the_weight() {
    let mut servers = [server(4), server(3), server(9)];
    assert_eq!(pick(Balance::LeastConnections, &servers, 0), Some(1));
    servers[2].weight = 10;
    assert_eq!(pick(Balance::LeastConnections, &servers, 0), Some(2));
}

#[test]
fn least_connections_rotates_among_equals() {
    let servers = [server(0), server(0), server(0)];
    let picks: Vec<_> =
        (0..3).map(|ticket| pick(Balance::LeastConnections, &servers, ticket).unwrap()).collect();
    assert_eq!(picks, [0, 1, 2]);
}

#[test]
fn least_connections_rotates_among_the_equals_alone() {
    let others = [Candidate { usable: false, ..IDLE }, Candidate { full: true, ..IDLE }, server(5)];
    for other in others {
        let taken = counts(Balance::LeastConnections, &[server(0), other, server(0)]);
        assert_eq!(taken, [TICKETS / 2, 0, TICKETS / 2]);
    }
}

#[test]
fn round_robin_skips_the_unusable() {
    let mut servers = numbered::<3>();
    servers[1].usable = false;
    let picks: Vec<_> = (0..12).map(|ticket| pick(Balance::RoundRobin, &servers, ticket).unwrap()).collect();
    // The others keep their turns, and both take some of those that are not its any more.
    assert!((0..12).all(|ticket| ticket % 3 == 1 || picks[ticket] == ticket % 3), "{picks:?}");
    let drawn = BTreeSet::from([picks[1], picks[4], picks[7], picks[10]]);
    assert_eq!(drawn, BTreeSet::from([0, 2]), "{picks:?}");
}

#[test]
fn all_others_share_what_an_unusable_server_leaves() {
    let half = |count: usize| count.abs_diff(TICKETS / 2) < TOLERANCE;
    for balance in [Balance::Random, Balance::RoundRobin] {
        for (usable, full) in [(false, false), (true, true)] {
            let mut servers = numbered::<3>();
            servers[1] = Candidate { usable, full, ..servers[1] };
            let taken = counts(balance, &servers);
            assert!(half(taken[0]) && half(taken[2]), "{balance:?}: {taken:?}");
        }
    }
    let mut servers = numbered::<3>();
    servers[0].weight = 8;
    servers[0].usable = false;
    let taken = counts(Balance::RoundRobin, &servers);
    assert!(half(taken[1]) && half(taken[2]), "{taken:?}");
}

#[test]
fn all_others_share_what_slow_start_leaves() {
    let mut servers = numbered::<3>();
    servers[0].warmth = 1;
    let taken = counts(Balance::RoundRobin, &servers);
    assert!(taken[0] < 40 && taken[1].abs_diff(taken[2]) < TOLERANCE, "{taken:?}");
}

#[test]
fn shares_follow_the_weights_of_those_that_are_usable() {
    let weighted = (any::<bool>(), 1u32..=256);
    let servers = prop::collection::vec(weighted, 1..10)
        .prop_filter("none is usable", |servers| servers.iter().any(|(usable, _)| *usable));
    // The same cases in every run.
    let outcome = TestRunner::deterministic().run(&servers, |servers| {
        let candidate = |((usable, weight), identity)| Candidate { usable, weight, identity, ..IDLE };
        let servers: Vec<_> = servers.into_iter().zip(0..).map(candidate).collect();
        let total: u32 = servers.iter().filter(|c| c.usable).map(|c| c.weight).sum();
        let taken = counts(Balance::RoundRobin, &servers);
        for (taken, server) in taken.into_iter().zip(&servers) {
            let weight = if server.usable { server.weight as usize } else { 0 };
            let expected = TICKETS * weight / total as usize;
            prop_assert!(taken.abs_diff(expected) < TOLERANCE, "{taken} instead of {expected}");
        }
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn backups_serve_only_when_all_others_are_gone() {
    for balance in BALANCES {
        let mut servers = [server(50), server(0)];
        servers[1].rank = BACKUP;
        assert_eq!(pick(balance, &servers, 1), Some(0));
        servers[0].usable = false;
        assert_eq!(pick(balance, &servers, 1), Some(1));
        servers[1].usable = false;
        assert_eq!(pick(balance, &servers, 1), None);
    }
}

#[test]
fn a_priority_serves_only_when_all_lower_ones_are_gone_and_backups_after_all() {
    for balance in BALANCES {
        let mut servers = [server(0), server(50), server(99)];
        servers[0].rank = BACKUP;
        servers[1].rank.priority = 1;
        assert_eq!(pick(balance, &servers, 1), Some(2));
        servers[2].usable = false;
        assert_eq!(pick(balance, &servers, 1), Some(1));
        servers[1].usable = false;
        assert_eq!(pick(balance, &servers, 1), Some(0));
    }
}

#[test]
fn full_servers_are_passed_over_and_their_backups_do_not_stand_in_for_them() {
    for balance in BALANCES {
        let mut servers = [server(0), server(7), server(0)];
        servers[2].rank = BACKUP;
        servers[0].full = true;
        assert_eq!(decide(balance, &servers, 0), Choice::Server(1));
        servers[1].full = true;
        assert_eq!(decide(balance, &servers, 0), Choice::Full);
        servers[0].usable = false;
        servers[1].usable = false;
        assert_eq!(decide(balance, &servers, 0), Choice::Server(2));
        servers[2].usable = false;
        assert_eq!(decide(balance, &servers, 0), Choice::Nobody);
    }
}

#[test]
fn a_server_that_has_just_come_up_gets_its_share_little_by_little() {
    for balance in [Balance::RoundRobin, Balance::Random] {
        let mut last = 0;
        for part in [1, 64, 128, 192, WHOLE] {
            // Equal loads: chance alone decides.
            let mut servers = [server(0), Candidate { identity: 1, ..server(0) }];
            servers[1].warmth = part;
            let schedules = schedules_of(&servers);
            let chosen = (0..4000u64).filter(|ticket| {
                let choice = choose(balance, &servers, &schedules, *ticket, CLIENT, mixed(*ticket));
                choice == Choice::Server(1)
            });
            let (count, share) = (chosen.count(), part as usize);
            if balance == Balance::RoundRobin {
                let expected = 2000 * share / WHOLE as usize;
                assert!(count.abs_diff(expected) < 150, "{count} instead of {expected}");
            }
            assert!(count >= last, "{count} after {last}");
            last = count;
        }
    }
    let mut servers = [server(99), server(20)];
    servers[1].warmth = WHOLE / 4;
    assert_eq!(pick(Balance::LeastConnections, &servers, 0), Some(1));
    servers[1].active = 30;
    assert_eq!(pick(Balance::LeastConnections, &servers, 0), Some(0));
    // Alone, it takes all.
    servers[0].usable = false;
    assert!(BALANCES.iter().all(|balance| pick(*balance, &servers, 0) == Some(1)));
}

#[test]
fn warmth_grows_from_little_to_all() {
    assert_eq!(
        [0, 1, 15_000, 29_999, 30_000, u64::MAX].map(|up| warmth(up, 30_000)),
        [1, 1, 128, 255, 256, 256]
    );
    assert_eq!(warmth(0, 0), WHOLE);
}

#[test]
fn of_two_drawn_at_random_the_less_loaded_is_taken() {
    // Whichever of them is drawn first, the one with the fewest connections is never passed over for the other.
    let servers = [server(5), server(1)];
    assert!((0..100).all(|ticket| pick(Balance::Random, &servers, ticket << 31 | ticket) == Some(1)));
    // The most loaded of all never wins, and the others share.
    let servers = [server(9), server(3), server(3)];
    let picks: BTreeSet<_> =
        (0..100u64).map(|n| pick(Balance::Random, &servers, n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    assert_eq!(picks, BTreeSet::from([Some(1), Some(2)]));
}

#[test]
fn those_of_other_ranks_leave_no_mark_on_the_rotation() {
    let mut servers = [server(0), server(0), server(0)];
    servers[2].rank.priority = 1;
    servers[2].weight = 7;
    let picks: Vec<_> = (0..4).map(|ticket| pick(Balance::RoundRobin, &servers, ticket).unwrap()).collect();
    assert_eq!(picks, [0, 1, 0, 1]);
}

#[test]
fn source_hash_moves_only_the_clients_of_the_server_that_left() {
    let mut servers = numbered::<5>();
    let clients = (0..2000u32).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
    let schedules = schedules_of(&servers);
    let at = |servers: &[Candidate], ip| match choose(Balance::SourceHash, servers, &schedules, 0, ip, 0) {
        Choice::Server(index) => servers[index].identity,
        other => panic!("{other:?}"),
    };
    let before: Vec<_> = clients.clone().map(|ip| at(&servers, ip)).collect();
    // Not usable, or not in the list any more, which puts others in other places.
    servers[3].usable = false;
    let shorter = [servers[4], servers[2], servers[1], servers[0]];
    for (ip, old) in clients.zip(before) {
        for servers in [&servers[..], &shorter] {
            let new = at(servers, ip);
            assert!(new != 3 && (old == 3 || new == old));
        }
    }
}

#[test]
fn source_hash_follows_the_weights() {
    let mut servers = numbered::<2>();
    servers[0].weight = 3;
    let schedules = schedules_of(&servers);
    let heavy = (0..4000u32)
        .filter(|n| {
            let ip = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
            choose(Balance::SourceHash, &servers, &schedules, 0, ip, 0) == Choice::Server(0)
        })
        .count();
    assert!((2850..3150).contains(&heavy), "{heavy} of 4000, 3000 expected");
}

proptest! {
    #[test]
    fn whatever_is_chosen_is_usable(
        servers in prop::collection::vec(
            (any::<bool>(), any::<bool>(), any::<bool>(), 0u16..3, 1u32..=256, 1..=WHOLE, 0usize..1000), 0..12),
        ticket: u64,
    ) {
        let servers: Vec<_> = servers
            .into_iter()
            .zip(0..)
            .map(|((usable, full, backup, priority, weight, warmth, active), identity)| {
                let rank = Rank { backup, priority };
                Candidate { usable, full, rank, weight, warmth, active, identity }
            })
            .collect();
        for balance in BALANCES {
            match decide(balance, &servers, ticket) {
                Choice::Server(index) => {
                    let chosen = servers[index];
                    prop_assert!(chosen.usable && !chosen.full);
                    prop_assert!(!servers.iter().any(|c| c.usable && c.rank < chosen.rank));
                }
                Choice::Full => {
                    let lowest = servers.iter().filter(|c| c.usable).map(|c| c.rank).min();
                    prop_assert!(servers.iter().any(|c| c.usable));
                    prop_assert!(servers.iter().all(|c| !c.usable || Some(c.rank) != lowest || c.full));
                }
                Choice::Nobody => prop_assert!(servers.iter().all(|c| !c.usable)),
            }
        }
    }
}
