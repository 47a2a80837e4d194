//! stub
pub mod core;
mod clock;
pub fn main() -> ! { std::process::exit(0) }
