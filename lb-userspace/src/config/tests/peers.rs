//! `peers`: what they stand for, and what is wrong with them.

use super::*;
use crate::config::Peer;

fn with(keys: &str) -> String {
    format!("[gateway]\n{keys}\n{GOOD}")
}

#[test]
fn peers_have_a_number_and_an_address() {
    let live = accepted(&with("peer_id = 1\npeers = [{ id = 2, address = '10.0.0.2:5432' }]")).gateway.live;
    assert_eq!(live.peer_id, 1);
    assert_eq!(live.peers, [Peer { id: 2, address: "10.0.0.2:5432".parse().unwrap() }]);
}

#[test]
fn each_gateway_has_a_number_of_its_own() {
    assert_faults(
        &with(
            "peer_id = 2\npeers = [{ id = 1, address = '10.0.0.1:1' }, { id = 2, address = '10.0.0.2:1' }]",
        ),
        "error: two gateways have the number 2
            at: 2
          help: take one of them out",
    );
    assert_faults(
        &with("peers = [{ id = 1, address = '10.0.0.1:1' }]"),
        "error: `peers` without a `peer_id` of this gateway
            at: [{ id = 1, address = '10.0.0.1:1' }]
          help: a number that no other has: `peer_id = 1`",
    );
}
