//! Which server of a pool gets a connection. Pure: the caller gives counters and random numbers.

use super::Schedule;
use crate::config::Balance;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// Which servers are used first: one of a higher rank only if none of a lower rank is usable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// `backup` in the configuration.
    pub backup: bool,
    /// The rank of the priority among those of a service's SRV records, the lowest is 0; 0 for servers without a service.
    pub priority: u16,
}

/// A server to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// It may get this connection: up, resolved, not draining, not tried yet.
    pub usable: bool,
    /// The choice is among the lowest rank that has a usable server.
    pub rank: Rank,
    /// 1 to 256.
    pub weight: u32,
    /// Its connections now, over all workers.
    pub active: usize,
    /// Identifies the server, wherever it is in the list.
    pub identity: u64,
}

/// The rotation among the servers of each rank, the lowest rank first.
pub fn schedules(servers: &[(Rank, u32)]) -> Box<[(Rank, Schedule)]> {
    let ranks: BTreeSet<Rank> = servers.iter().map(|(rank, _)| *rank).collect();
    let schedule = |rank: Rank| {
        let weight = |(other, weight): &(Rank, u32)| if *other == rank { *weight } else { 0 };
        (rank, Schedule::new(&servers.iter().map(weight).collect::<Vec<_>>()))
    };
    ranks.into_iter().map(schedule).collect()
}

/// The server for a new connection: an index into `candidates`, `None` when none is usable.
///
/// `ticket`: how many choices were made in the pool, over all workers. `random`: uniformly distributed. The [`schedules`]
/// were made from the candidates' ranks and weights.
pub fn choose(
    balance: Balance,
    candidates: &[Candidate],
    schedules: &[(Rank, Schedule)],
    ticket: u64,
    client: IpAddr,
    random: u64,
) -> Option<usize> {
    let lowest = candidates.iter().filter(|c| c.usable).map(|c| c.rank).min()?;
    let eligible = |index: usize| candidates[index].usable && candidates[index].rank == lowest;
    let (_, schedule) = schedules.iter().find(|(rank, _)| *rank == lowest)?;
    match balance {
        Balance::RoundRobin => schedule.order(ticket).find(|index| eligible(*index)),
        // A random turn of the weighted rotation is a weighted random choice.
        Balance::Random => schedule.order(random).find(|index| eligible(*index)),
        Balance::LeastConnections => {
            let length = candidates.len();
            let start = usize::try_from(ticket % (length.max(1) as u64)).unwrap_or_default();
            let rotated = (start..length).chain(0..start).filter(|index| eligible(*index));
            rotated.min_by(|a, b| {
                let (a, b) = (&candidates[*a], &candidates[*b]);
                let load = |c: &Candidate, other: &Candidate| (c.active as u64 + 1) * u64::from(other.weight);
                load(a, b).cmp(&load(b, a))
            })
        }
        Balance::SourceHash => (0..candidates.len()).filter(|index| eligible(*index)).max_by(|a, b| {
            let score = |index: usize| rendezvous(client, &candidates[index]);
            score(*a).total_cmp(&score(*b))
        }),
    }
}

/// Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): the server with the highest score is chosen. If a server
/// is removed, only its own clients move.
fn rendezvous(client: IpAddr, candidate: &Candidate) -> f64 {
    let mut hasher = DefaultHasher::new();
    (client, candidate.identity).hash(&mut hasher);
    // 53 bits, the precision of f64, mapped into (0, 1), so that the logarithm is finite and negative.
    let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(candidate.weight) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const BALANCES: [Balance; 4] =
        [Balance::RoundRobin, Balance::LeastConnections, Balance::SourceHash, Balance::Random];

    const BACKUP: Rank = Rank { backup: true, priority: 0 };

    fn server(active: usize) -> Candidate {
        Candidate { usable: true, rank: Rank::default(), weight: 1, active, identity: 0 }
    }

    fn numbered<const N: usize>() -> [Candidate; N] {
        std::array::from_fn(|index| Candidate { identity: index as u64, ..server(0) })
    }

    fn schedules_of(candidates: &[Candidate]) -> Box<[(Rank, Schedule)]> {
        schedules(&candidates.iter().map(|c| (c.rank, c.weight)).collect::<Vec<_>>())
    }

    fn pick(balance: Balance, candidates: &[Candidate], ticket: u64) -> Option<usize> {
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
    fn round_robin_skips_the_unusable() {
        let mut servers = [server(0), server(0), server(0)];
        servers[1].usable = false;
        let picks: Vec<_> =
            (0..3).map(|ticket| pick(Balance::RoundRobin, &servers, ticket).unwrap()).collect();
        assert_eq!(picks, [0, 2, 2]);
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
    fn those_of_other_ranks_leave_no_mark_on_the_rotation() {
        let mut servers = [server(0), server(0), server(0)];
        servers[2].rank.priority = 1;
        servers[2].weight = 7;
        let picks: Vec<_> =
            (0..4).map(|ticket| pick(Balance::RoundRobin, &servers, ticket).unwrap()).collect();
        assert_eq!(picks, [0, 1, 0, 1]);
    }

    #[test]
    fn source_hash_moves_only_the_clients_of_the_server_that_left() {
        let mut servers = numbered::<5>();
        let clients = (0..2000u32).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
        let schedules = schedules_of(&servers);
        let at = |servers: &[Candidate], ip| {
            let index = choose(Balance::SourceHash, servers, &schedules, 0, ip, 0).unwrap();
            servers[index].identity
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
                choose(Balance::SourceHash, &servers, &schedules, 0, ip, 0) == Some(0)
            })
            .count();
        assert!((2850..3150).contains(&heavy), "{heavy} of 4000, 3000 expected");
    }

    proptest! {
        #[test]
        fn whatever_is_chosen_is_usable(
            servers in prop::collection::vec(
                (any::<bool>(), any::<bool>(), 0u16..3, 1u32..=256, 0usize..1000), 0..12),
            ticket: u64,
        ) {
            let servers: Vec<_> = servers
                .into_iter()
                .zip(0..)
                .map(|((usable, backup, priority, weight, active), identity)| {
                    Candidate { usable, rank: Rank { backup, priority }, weight, active, identity }
                })
                .collect();
            for balance in BALANCES {
                match pick(balance, &servers, ticket) {
                    Some(index) => {
                        let chosen = servers[index];
                        prop_assert!(chosen.usable);
                        prop_assert!(!servers.iter().any(|c| c.usable && c.rank < chosen.rank));
                    }
                    None => prop_assert!(servers.iter().all(|c| !c.usable)),
                }
            }
        }
    }
}
