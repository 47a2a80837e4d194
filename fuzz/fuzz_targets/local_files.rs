//! Fuzzes `dlock::fuzzing::local_files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::local_files(bytes));
