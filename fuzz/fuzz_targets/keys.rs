//! Fuzzes `dlock::fuzzing::keys`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::keys(bytes));
