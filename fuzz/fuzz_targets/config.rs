//! Fuzzes `dlock::fuzzing::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::config(bytes));
