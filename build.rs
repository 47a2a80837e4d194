//! How the program is linked, where that is not what the compiler would do: runs before the compiler.
//! It must not know what is linked.

use std::env;
use std::process::Command;

/// Where there is glibc, the unwinder becomes a part of the program. A library of its own is opened, mapped, relocated and
/// asks for the processor's features at every start (0.2 ms of 4, measured), and all that is ever wanted of it is a backtrace
/// that nobody sees.
///
/// A glibc that knows them gets its relocations in the short form of 2022: 0.26 MiB of 4 less to read.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| env::var(name).unwrap_or_default();
    if variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo::rustc-link-lib=gcc_eh");
        if variable("HOST") == variable("TARGET")
            && glibc().is_some_and(|version| version >= (2, 36))
        {
            println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        }
    }
}

/// The version of this machine's glibc (getconf(1)): where a program is built it is to run, and an older one refuses the
/// short form.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
