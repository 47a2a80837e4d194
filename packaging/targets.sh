#!/usr/bin/env bash
# targets.sh ARCH...: brings the standard library that a static dlock for each architecture is linked with, or says in one
# line why there is none. It must not know what is built.
set -euo pipefail
for arch; do
    target=$arch-unknown-linux-musl
    libraries=$(rustc --print target-libdir --target "$target")
    if compgen -G "$libraries/libstd-*.rlib" >/dev/null; then continue; fi
    if ! answer=$(rustup target add "$target" 2>&1); then
        echo "no static dlock for $arch: 'rustup target add $target' fails: $(tail -n 1 <<<"$answer")" >&2
        exit 1
    fi
done
