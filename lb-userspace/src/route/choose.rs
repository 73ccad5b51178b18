//! Which server of a pool gets a connection. Pure: counters and randomness are given.

use super::Schedule;
use crate::config::Balance;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

/// One server as the choice sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// It may take a new connection: up, resolved, not draining, not tried by this connection yet.
    pub usable: bool,
    /// Used only when no server that is not a backup is usable.
    pub backup: bool,
    /// 1 to 256.
    pub weight: u32,
    /// Connections it has now, over all workers.
    pub active: usize,
}

/// The server for a new connection: an index into `candidates`, `None` when none is usable.
///
/// `ticket` counts the pool's choices over all workers; `random` is uniform. `schedule` was made from the
/// candidates' weights.
pub fn choose(
    balance: Balance,
    candidates: &[Candidate],
    schedule: &Schedule,
    ticket: u64,
    client: IpAddr,
    random: u64,
) -> Option<usize> {
    let backup = !candidates.iter().any(|c| c.usable && !c.backup);
    let eligible = |index: usize| candidates[index].usable && candidates[index].backup == backup;
    match balance {
        Balance::RoundRobin => schedule.order(ticket).find(|index| eligible(*index)),
        // A uniformly chosen turn is a weighted random choice.
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
        Balance::SourceHash => (0..candidates.len())
            .filter(|index| eligible(*index))
            .max_by(|a, b| rendezvous(client, *a, candidates).total_cmp(&rendezvous(client, *b, candidates))),
    }
}

/// Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): the highest score wins; a server that goes
/// away moves only its own clients.
fn rendezvous(client: IpAddr, index: usize, candidates: &[Candidate]) -> f64 {
    let mut hasher = DefaultHasher::new();
    (client, index).hash(&mut hasher);
    // 53 bits, the precision of f64, moved into (0, 1) so that the logarithm is finite and below zero.
    let uniform = ((hasher.finish() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -f64::from(candidates[index].weight) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const BALANCES: [Balance; 4] =
        [Balance::RoundRobin, Balance::LeastConnections, Balance::SourceHash, Balance::Random];

    fn server(active: usize) -> Candidate {
        Candidate { usable: true, backup: false, weight: 1, active }
    }

    fn pick(balance: Balance, candidates: &[Candidate], ticket: u64) -> Option<usize> {
        let weights: Vec<_> = candidates.iter().map(|c| c.weight).collect();
        choose(balance, candidates, &Schedule::new(&weights), ticket, CLIENT, ticket)
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
            servers[1].backup = true;
            assert_eq!(pick(balance, &servers, 1), Some(0));
            servers[0].usable = false;
            assert_eq!(pick(balance, &servers, 1), Some(1));
            servers[1].usable = false;
            assert_eq!(pick(balance, &servers, 1), None);
        }
    }

    #[test]
    fn source_hash_moves_only_the_clients_of_the_server_that_left() {
        let mut servers = [server(0); 5];
        let clients = (0..2000u32).map(|n| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
        let schedule = Schedule::new(&[1; 5]);
        let at =
            |servers: &[Candidate], ip| choose(Balance::SourceHash, servers, &schedule, 0, ip, 0).unwrap();
        let before: Vec<_> = clients.clone().map(|ip| at(&servers, ip)).collect();
        servers[3].usable = false;
        for (ip, old) in clients.zip(before) {
            let new = at(&servers, ip);
            assert!(new != 3 && (old == 3 || new == old));
        }
    }

    #[test]
    fn source_hash_follows_the_weights() {
        let mut servers = [server(0); 2];
        servers[0].weight = 3;
        let schedule = Schedule::new(&[3, 1]);
        let heavy = (0..4000u32)
            .filter(|n| {
                let ip = IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n));
                choose(Balance::SourceHash, &servers, &schedule, 0, ip, 0) == Some(0)
            })
            .count();
        assert!((2850..3150).contains(&heavy), "{heavy} of 4000, 3000 expected");
    }

    proptest! {
        #[test]
        fn whatever_is_chosen_is_usable(
            servers in prop::collection::vec((any::<bool>(), any::<bool>(), 1u32..=256, 0usize..1000), 0..12),
            ticket: u64,
        ) {
            let servers: Vec<_> = servers
                .into_iter()
                .map(|(usable, backup, weight, active)| Candidate { usable, backup, weight, active })
                .collect();
            for balance in BALANCES {
                match pick(balance, &servers, ticket) {
                    Some(index) => prop_assert!(servers[index].usable),
                    None => prop_assert!(servers.iter().all(|c| !c.usable)),
                }
            }
        }
    }
}
