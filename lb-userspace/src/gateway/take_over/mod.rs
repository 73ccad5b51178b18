//! One process takes over from another, and nobody is refused: the sockets on which clients wait belong to both meanwhile.
//!
//! [`message`] has the steps. [`predecessor`] and [`successor`] are what each side has of the other; [`elsewhere`] counts what the
//! first still carries when the second serves.

mod elsewhere;
mod message;
mod predecessor;
mod successor;
mod wire;

pub(super) use elsewhere::{Elsewhere, Told};
pub(super) use message::{Carried, Descriptor, Id, MAX_DESCRIPTORS, Offer, Step, Word};
pub(super) use predecessor::{Candidate, Event, Heir, Succession};
pub(super) use successor::{HandedOver, Predecessor};
pub(super) use wire::Wire;
