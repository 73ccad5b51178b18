//! Each stage of a connection's life against real programs, in network namespaces of each test's own.

mod accept;
mod account;
mod cli;
mod close;
mod connect;
mod keepalive;
mod manager;
mod postgres;
mod reload;
mod route;
mod sniff;
mod splice;
mod starting;
mod terminate;

mod config;
mod openssl;
mod world;
