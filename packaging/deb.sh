#!/usr/bin/env bash
# deb.sh ARCH...: packs the static dlock of each architecture as target/debian/dlock_VERSION-1_ARCH.deb. It must not know how
# it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
maintainer=$(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
mkdir -p target/deb
rm -rf target/debian
# Debian's form of a changelog.
cat >target/deb/changelog <<END
dlock ($version-1) unstable; urgency=medium

  * New version; what is new stands in NEWS.md.

 -- $maintainer  $(LC_ALL=C date --utc --rfc-email --date "@$SOURCE_DATE_EPOCH")
END
for arch; do
    ${CARGO:-cargo} deb --quiet --locked --no-build --no-strip --target "$arch-unknown-linux-musl" --output target/debian/
done
ls target/debian/*.deb
