//! Splice: bytes flow between the two legs. The tier is chosen per connection.

pub(crate) mod keepalive;
pub mod ktls;
pub mod packet;
mod pipe;
pub mod relay;
pub mod sockmap;
pub(crate) mod split;
pub mod tls;
pub mod transport;
