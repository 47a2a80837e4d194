//! Fuzzes `dlock::fuzzing::release_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::release_record(bytes));
