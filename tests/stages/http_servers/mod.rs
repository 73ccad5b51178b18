//! What servers answer that are broken or hostile: the client gets an answer of the gateway's own, or one that it sees is cut; the
//! next request gets the answer to it, and others are served meanwhile.

mod bodies;
mod close_notify;
mod echo;
mod failover;
mod floods;
mod heads;
mod http2;
mod kept;
mod odd;
mod patience;
mod scene;
