//! What a stranger can do to a spliced connection: the programs by BPF_PROG_TEST_RUN, beside an end that knows what it
//! would have taken.

#[path = "../verdicts/connection.rs"]
#[allow(dead_code, reason = "of the tables of verdicts")]
mod connection;
mod forged;
#[path = "../../../lb-common/tests/model"]
#[allow(dead_code, reason = "of lb-common's own tests")]
mod model {
    pub(crate) mod ends;
    pub(crate) mod wire;
}
#[path = "../verdicts/programs.rs"]
#[allow(dead_code, reason = "of the tables of verdicts")]
mod programs;
#[path = "../../../lb-common/fuzz/properties.rs"]
#[allow(dead_code, reason = "of lb-common's own tests")]
mod properties;
