//! The packet tier between real TCP ends: every byte checked, and what the kernels of client, gateway and server
//! count as faults unchanged by us.
//!
//! Nearly every test is one [`case::Case`]: a topology, what happens on the way, how both ends behave, and what the
//! access log must say.

mod case;
mod churn;
mod clients;
mod dialogues;
mod ech;
mod ends;
mod filters;
mod gateways;
mod health;
mod keepalive;
mod left;
mod life;
mod loading;
mod mysql;
mod names;
mod networks;
mod odd;
mod pools;
mod programs;
mod receivers;
mod removed;
mod scene;
mod source;
mod standby;
mod strangers;
mod take_over;
mod transfers;

/// Whether this version has the packet tier; if not, every connection is expected in `copy`.
const PACKET: bool = true;
