//! The Helm chart: what it makes, and a cluster in which it is installed, updated and removed.

mod chart;
mod install;
mod load;
mod network;
