//! `scale`: many connections, many routes, many flows.

mod flows;
mod idle;
mod routes;

use flows::Flows;
use idle::Idle;
use routes::Routes;

use crate::path::case::{Case, Depth};

pub(super) fn cases(depth: Depth) -> Vec<Case> {
    let idle = |connections: u64| {
        depth.case(
            format!("idle-{connections}"),
            format!("{connections} idle TLS connections, passed through by SNI"),
            Idle { connections },
        )
    };
    let routes = |routes: u32| {
        depth.case(
            format!("routes-{routes}"),
            format!("{routes} routes: start, memory, and new TLS connections to any of the names"),
            Routes { routes },
        )
    };
    let flows = |flows: u32| {
        depth.case(
            format!("flows-{flows}"),
            format!("redis-benchmark, plain TCP, with {flows} connections in the flow table"),
            Flows { flows },
        )
    };
    match depth {
        // More routes are also in each reload of `operations`.
        Depth::Quick => vec![idle(500), flows(100)],
        _ => vec![
            idle(1_000),
            idle(20_000),
            routes(10),
            routes(10_000),
            routes(100_000),
            flows(100),
            flows(10_000),
            // The table of 1 048 576 entries, two a connection, nearly full.
            flows(500_000),
        ],
    }
}
