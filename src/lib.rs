//! stub
pub mod core;
mod clock;
#[allow(dead_code)]
mod guard;
pub fn main() -> ! { std::process::exit(0) }
