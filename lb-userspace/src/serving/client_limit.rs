//! `client_rate`: what one client address may have, counted over all workers.

use super::clients::{Client, Clients, Excess};
use crate::clock::now_ns;
use crate::config::ClientRate;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clients without open connections that all limits together remember, and those that one does, at the least and at the
/// most. Each takes about 100 bytes.
const REMEMBERED: usize = 1 << 20;
const REMEMBERED_BY_ONE: (usize, usize) = (64, 1 << 16);

/// How many clients without open connections each of so many limits remembers.
pub(super) fn share(limits: usize) -> usize {
    (REMEMBERED / limits.max(1)).clamp(REMEMBERED_BY_ONE.0, REMEMBERED_BY_ONE.1)
}

/// The limit of a listener or a route. What it has counted outlives a reload that changes it.
#[derive(Debug)]
pub struct ClientLimit {
    rate: ClientRate,
    /// Clients without open connections that are remembered.
    remembered: usize,
    clients: Arc<Mutex<Clients>>,
}

impl ClientLimit {
    /// Goes on from what an earlier configuration's has counted, and remembers so many clients without open connections.
    pub fn new(rate: ClientRate, remembered: usize, known: Option<&Self>) -> Self {
        let clients = known.map(|known| known.clients.clone()).unwrap_or_default();
        ClientLimit { rate, remembered, clients }
    }

    /// Counts one more connection of this client, unless that is more than it may have.
    pub fn acquire(&self, client: IpAddr) -> Result<ClientPermit, Excess> {
        let client = client.into();
        self.clients().open(client, &self.rate, now_ns())?;
        Ok(self.permit(client))
    }

    /// Counts one more that is over at once, unless that is more than this client may have.
    pub fn pass(&self, client: IpAddr) -> Result<(), Excess> {
        self.acquire(client).map(drop)
    }

    /// Counts one more that is there already, whatever the bound.
    pub fn join(&self, client: IpAddr) -> ClientPermit {
        let client = client.into();
        self.clients().join(client);
        self.permit(client)
    }

    /// Clients that were forgotten because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.clients().forgotten()
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        let mut clients = lock(&self.clients);
        clients.remember(self.remembered);
        clients
    }

    fn permit(&self, client: Client) -> ClientPermit {
        ClientPermit(Box::new((self.clients.clone(), client)))
    }
}

/// One connection of a [`ClientLimit`], counted until dropped. Boxed: where there is no such limit it is to cost nothing.
#[derive(Debug)]
pub struct ClientPermit(Box<(Arc<Mutex<Clients>>, Client)>);

impl Drop for ClientPermit {
    fn drop(&mut self) {
        let (clients, client) = &*self.0;
        lock(clients).close(*client, now_ns());
    }
}

fn lock(clients: &Mutex<Clients>) -> MutexGuard<'_, Clients> {
    // Never left half-changed.
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn what_is_open_counts_under_the_next_configuration() {
        let limit = |open, known| ClientLimit::new(ClientRate { new: None, open: Some(open) }, 10, known);
        let before = limit(2, None);
        let held = [before.acquire(ADDRESS).unwrap(), before.join(ADDRESS)];
        let after = limit(3, Some(&before));
        drop(before);
        let third = after.acquire(ADDRESS).unwrap();
        assert_eq!(after.acquire(ADDRESS).unwrap_err(), Excess::Open);
        drop((held, third));
        assert!(after.acquire(ADDRESS).is_ok());
    }

    #[test]
    fn all_limits_together_remember_no_more_than_one_may() {
        assert_eq!([0, 1, 16, 1 << 10, 1 << 20].map(share), [65_536, 65_536, 65_536, 1024, 64]);
    }
}
