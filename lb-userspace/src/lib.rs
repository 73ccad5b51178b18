//! The gateway's userspace. It accepts, sniffs, routes and connects; then a tier carries the bytes.
//!
//! [`conn`] names the stages in order, the first three of them in [`arrival`]; each has a module of its name.

pub mod accept;
pub mod account;
pub mod admin;
pub mod arrival;
pub mod cancel;
pub mod cli;
pub mod clock;
pub mod close;
pub mod config;
pub mod conn;
pub mod connect;
pub mod doctor;
pub mod ech;
pub mod gateway;
pub mod histogram;
pub mod http;
pub mod import;
pub mod kernel;
pub mod kubernetes;
pub mod memory;
pub mod mysql;
mod privileges;
pub mod reason;
pub mod route;
pub mod running;
mod scratch;
pub mod serving;
pub mod sniff;
mod socket;
pub mod splice;
pub mod state;
mod terminal;
pub mod tier;
pub mod tls;
pub mod traffic;
mod words;
