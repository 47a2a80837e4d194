//! Fuzzes `dlock::fuzzing::fence_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::fence_file(bytes));
