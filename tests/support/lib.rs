//! What the tests and the benchmarks share: namespaces, peers, certificates.
