#!/usr/bin/env bash
# rpm.sh ARCH...: packs the static dlock of each architecture as target/rpm/dlock-VERSION-1.ARCH.rpm. It must not know how it
# is built.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
rm -rf target/rpm
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
for arch; do
    rm -rf "$stage/root"
    make --silent lay "PROGRAM=target/$arch-unknown-linux-musl/release/dlock" "DESTDIR=$stage/root" PREFIX=/usr >/dev/null
    install -D -m 644 man/notes/config.toml "$stage/root/etc/dlock/config.toml"
    # The same source makes the same bytes: no dates and names of this machine.
    rpmbuild -bb --quiet --target "$arch-linux" --define "_topdir $stage/build" --define "_rpmdir $PWD/target/rpm" \
        --define '_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm' --define "program_version $version" \
        --define "stage $stage/root" --define '_buildhost localhost' --define 'use_source_date_epoch_as_buildtime 1' \
        --define 'clamp_mtime_to_source_date_epoch 1' packaging/dlock.spec
done
ls target/rpm/*.rpm
