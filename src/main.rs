//! Calls the library; knows nothing else.
fn main() -> ! {
    dlock::main()
}
