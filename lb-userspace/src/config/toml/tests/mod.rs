//! Of the TOML source.

mod declared;
mod pieces;
