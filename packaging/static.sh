#!/usr/bin/env bash
# static.sh ARCH...: builds dlock as one static file for each architecture (x86_64, aarch64), in target/ARCH-unknown-linux-musl.
# The same source and the same compiler make the same bytes, in any directory and for any user. It must not know what is
# packed.
set -euo pipefail
cd "$(dirname "$0")/.."
packaging/targets.sh "$@"
# Panics name source files, and so where they lay.
flags=(
    "--remap-path-prefix=$(rustc --print sysroot)=/rust"
    "--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    "--remap-path-prefix=$PWD=/dlock"
)
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${flags[*]}")
export CARGO_ENCODED_RUSTFLAGS
# ring has parts in C, which call nothing of a C library; Rust brings musl itself.
export CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=$PWD/packaging/aarch64-linker
for arch; do
    ${CARGO:-cargo} build --release --locked --target "$arch-unknown-linux-musl"
done
