//! How the program is linked, where that is not what the compiler would do: runs before the compiler.
//! It must not know what is linked.
#![expect(clippy::print_stdout, reason = "it is how cargo is told")]

/// Where there is glibc, the unwinder becomes a part of the program. A library of its own is opened, mapped, relocated and
/// asks for the processor's features at every start (0.2 ms of 4, measured), and all that is ever wanted of it is a backtrace
/// that nobody sees.
fn main() {
    println!("cargo::rerun-if-changed=src/link.rs");
    let target = |variable| std::env::var(variable).unwrap_or_default();
    if target("CARGO_CFG_TARGET_OS") == "linux" && target("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo::rustc-link-lib=gcc_eh");
    }
}
