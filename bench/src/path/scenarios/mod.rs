//! The scenarios, each with its cases, its loads and the figures that come of them.

mod bulk;
mod connections;
mod failover;
mod http;
mod latency;
mod operations;
mod paired;
mod requests;
mod scale;

use super::case::{Case, Depth};

/// Everything that one subject does in one go.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) cases: Vec<Case>,
}

/// Every scenario, in the order of the report.
pub(crate) fn all(depth: Depth) -> Vec<Scenario> {
    let scenario = |name, cases| Scenario { name, cases };
    vec![
        scenario("bulk", bulk::cases(depth)),
        scenario("requests", requests::cases(depth)),
        scenario("http", http::cases(depth)),
        scenario("latency", latency::cases(depth)),
        scenario("connections", connections::cases(depth)),
        scenario("paired", paired::cases(depth)),
        scenario("values", paired::values(depth)),
        scenario("scale", scale::cases(depth)),
        scenario("operations", operations::cases(depth)),
        scenario("failover", failover::cases(depth)),
    ]
}
