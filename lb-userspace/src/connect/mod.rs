//! Connect: a socket to one server of the route's pool.

mod dial;
mod foreign;
pub mod health;
mod lookup;
pub mod ports;
mod preamble;
mod race;
pub mod resolve;
mod search;
mod service;
mod source;
mod starttls;

pub use dial::{Connected, Dial, Failure, Source, reach};
pub use preamble::{Endpoints, Greeting, proxy_header};
pub use search::Search;
pub use source::{GatewayPorts, SourcePort};

use crate::serving::Pool;
use tokio::time::Instant;

/// Connects to a server of `pool` and greets it; after a failure the next one: nothing of the client's is lost by then. `begun`:
/// see [`Search::open`].
pub async fn connect(
    pool: &Pool,
    dial: &Dial<'_>,
    begun: &mut Option<Instant>,
) -> Result<Connected, Failure> {
    let mut search = Search::new(pool, dial.client);
    loop {
        let guard = search.next().await?;
        if let Some(connected) = search.open(guard, dial, begun).await {
            return Ok(connected);
        }
    }
}
