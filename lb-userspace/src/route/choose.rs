//! Which server of a pool gets a connection. Pure: the caller gives counters and random numbers.

use super::Schedule;
use crate::config::Balance;
use std::cmp::Ordering;
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
    /// It may take new connections: up, resolved, not draining, not tried by this connection yet.
    pub usable: bool,
    /// It has as many connections as it may have.
    pub full: bool,
    /// Those of the lowest rank that has a usable one are chosen from.
    pub rank: Rank,
    /// 1 to 256.
    pub weight: u32,
    /// How much of its weight counts now, in parts of [`WHOLE`]: 1 to `WHOLE`, less than that after it came up.
    pub warmth: u32,
    /// Connections it has now, over all workers.
    pub active: usize,
    /// Identifies the server, wherever it is in the list.
    pub identity: u64,
}

/// The warmth of a server that has been up for long.
pub const WHOLE: u32 = 256;

/// The warmth of a server that has been up for so long, when it takes `slow_start` to get its whole share. All in
/// milliseconds.
pub fn warmth(up_ms: u64, slow_start_ms: u64) -> u32 {
    match up_ms < slow_start_ms {
        true => (u64::from(WHOLE) * up_ms / slow_start_ms).max(1) as u32,
        false => WHOLE,
    }
}

/// What [`choose`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// An index into the candidates.
    Server(usize),
    /// All that could be chosen are full: one of them may take the connection later.
    Full,
    /// No candidate is usable.
    Nobody,
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

/// The server for a new connection. One of a higher rank is no way out for those that are full.
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
) -> Choice {
    let Some(lowest) = candidates.iter().filter(|c| c.usable).map(|c| c.rank).min() else {
        return Choice::Nobody;
    };
    let eligible = |index: &usize| {
        let candidate = &candidates[*index];
        candidate.usable && candidate.rank == lowest && !candidate.full
    };
    // The schedules are of all servers; without this rank's there is nobody to choose.
    let Some((_, schedule)) = schedules.iter().find(|(rank, _)| *rank == lowest) else {
        return Choice::Nobody;
    };
    let next = |ticket: u64, passed_over: Option<usize>| {
        let is_left = |index| eligible(&index) && Some(index) != passed_over;
        let takes_turn = |index| is_left(index) && is_admitted(&candidates[index], random);
        let admitted = schedule.pick_among(ticket, random, takes_turn);
        admitted.or_else(|| schedule.pick_among(ticket, random, is_left))
    };
    let chosen = match balance {
        Balance::RoundRobin => next(ticket, None),
        // A uniformly chosen turn is a weighted random choice.
        Balance::Random => next(random, None).map(|first| match next(random.rotate_left(32), Some(first)) {
            Some(second) if by_load(&candidates[second], &candidates[first]).is_lt() => second,
            _ => first,
        }),
        Balance::LeastConnections => {
            let by_load = |a: usize, b: usize| by_load(&candidates[a], &candidates[b]);
            let all = || (0..candidates.len()).filter(eligible);
            all().min_by(|a, b| by_load(*a, *b)).and_then(|least| {
                let equals = || all().filter(|index| by_load(*index, least).is_eq());
                equals().nth((ticket % equals().count() as u64) as usize)
            })
        }
        Balance::SourceHash => (0..candidates.len()).filter(eligible).max_by(|a, b| {
            let score = |index: usize| rendezvous(client, &candidates[index]);
            score(*a).total_cmp(&score(*b))
        }),
    };
    chosen.map_or(Choice::Full, Choice::Server)
}

/// Of the candidates that are usable, keeps the one with the smallest `since`; of equals the first. Of several servers that say
/// they are the master, all but one are mistaken: the one that was it before stays it.
pub fn keep_one(candidates: &mut [Candidate], since: impl Fn(usize) -> u64) {
    let usable = (0..candidates.len()).filter(|index| candidates[*index].usable);
    let Some(kept) = usable.min_by_key(|index| since(*index)) else { return };
    for (index, candidate) in candidates.iter_mut().enumerate() {
        candidate.usable &= index == kept;
    }
}

/// By the connections that each would have for its weight, with this one.
fn by_load(a: &Candidate, b: &Candidate) -> Ordering {
    let load = |of: &Candidate, other: &Candidate| {
        u128::from(of.active as u64 + 1) * u128::from(other.weight) * u128::from(other.warmth)
    };
    load(a, b).cmp(&load(b, a))
}

/// Whether a server takes its turn: with the probability of its warmth.
fn is_admitted(candidate: &Candidate, random: u64) -> bool {
    candidate.warmth >= WHOLE || {
        let mut hasher = DefaultHasher::new();
        (random, candidate.identity).hash(&mut hasher);
        hasher.finish() % u64::from(WHOLE) < u64::from(candidate.warmth)
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
mod tests;
