//! Fuzzes `dlock::fuzzing::certificates`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::certificates(bytes));
