#!/usr/bin/env bash
# dist.sh ARCH...: packs the static dlock of each architecture with its pages, completions and licence as
# target/dist/dlock-VERSION-ARCH-linux-musl.tar.gz, and writes SHA256SUMS of all that is there. The same files make the same
# bytes. It must not know how they are built.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
out=target/dist
mkdir -p "$out"
rm -f "$out"/*.tar.gz "$out"/SHA256SUMS
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
for arch; do
    name=dlock-$version-$arch-linux-musl
    make --silent lay "PROGRAM=target/$arch-unknown-linux-musl/release/dlock" "DESTDIR=$stage/$name" PREFIX= >/dev/null
    # Modes do not depend on the umask, nor the order on the file system.
    tar --create --directory "$stage" --sort=name --format=ustar --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX "$name" | gzip -9 --no-name >"$out/$name.tar.gz"
done
cd "$out"
find . -type f ! -name SHA256SUMS -print0 | LC_ALL=C sort --zero-terminated | xargs --null sha256sum | sed 's| \./| |' >SHA256SUMS
cat SHA256SUMS
