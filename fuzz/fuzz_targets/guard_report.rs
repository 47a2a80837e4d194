//! Fuzzes `dlock::fuzzing::guard_report`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock::fuzzing::guard_report(bytes));
