#![no_main]

#[path = "../properties.rs"]
#[allow(dead_code, reason = "the other target's property")]
mod properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| properties::syn(data));
