//! Each stage of a connection's life against real programs, in network namespaces of each test's own.

mod accept;
mod account;
mod certificates;
mod cli;
mod client_auth;
mod clients;
mod close;
mod connect;
mod drained;
mod ech;
mod gateway_api;
mod health;
mod keepalive;
mod manager;
mod names;
mod pools;
mod postgres;
mod postgres_cancel;
mod proxy;
mod reload;
mod removed;
mod route;
mod server_tls;
mod sniff;
mod source;
mod splice;
mod starting;
mod starttls;
mod terminate;
mod tls_errors;
mod tolerance;

mod config;
mod openssl;
mod world;
