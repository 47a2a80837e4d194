//! Fuzzes `dlock::fuzzing::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::record(bytes));
