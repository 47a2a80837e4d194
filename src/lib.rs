//! stub
pub mod core;
mod clock;
pub mod cli;
mod config;
pub mod exit;
mod log;
mod whoami;
pub fn main() -> ! { std::process::exit(0) }
