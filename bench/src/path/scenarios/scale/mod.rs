//! `scale`: many connections, many routes, many servers, many flows.

mod flows;
mod idle;
mod left;
mod reload;
mod routes;
mod servers;

use flows::Flows;
use idle::Idle;
use left::{Adopt, Open};
use reload::Reload;
use routes::Routes;
use servers::Servers;

use crate::path::case::{Case, Depth};
use crate::path::subjects::Size;

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
    let adopt = |connections: u32| {
        depth.case(
            format!("adopt-{connections}"),
            format!("a start with {connections} connections of the process before"),
            Adopt { connections },
        )
    };
    let open = |connections: u32| {
        depth.case(
            format!("open-{connections}"),
            format!("an idle gateway with {connections} open connections"),
            Open { connections },
        )
    };
    let servers = |servers: u32| {
        depth.case(
            format!("servers-{servers}"),
            format!("{servers} servers, each checked every 5 s by a TCP connection"),
            Servers { servers },
        )
    };
    let reload = |name: &str, what: &str, size: Size, reloads: bool| {
        let title = format!("PING over TLS at 2000 a second and 50 new connections a second: {what}");
        depth.case(name.to_owned(), title, Reload { size, reloads })
    };
    let routes_only = Size { routes: 10_000, ..Size::default() };
    let own_pools = Size { pools: 10_000, servers: 1, ..Size::default() };
    match depth {
        // More routes are also in each reload of `operations`.
        Depth::Quick => vec![idle(500), flows(100), adopt(1_000)],
        _ => vec![
            idle(1_000),
            idle(20_000),
            routes(10),
            routes(10_000),
            routes(100_000),
            reload("reload-nothing", "10 000 routes, and no reload", routes_only, false),
            reload("reload-routes", "a reload of 10 000 routes to one pool, every second", routes_only, true),
            reload(
                "reload-pools",
                "a reload of 10 000 routes with a pool each, every second",
                own_pools,
                true,
            ),
            servers(100),
            servers(10_000),
            flows(100),
            flows(10_000),
            flows(1_000_000),
            adopt(500_000),
            open(500_000),
        ],
    }
}
