#!/usr/bin/env bash
# etcd35.sh DIR: unpacks the newest etcd 3.5 of Debian into DIR, beside whatever etcd is installed, and prints its version.
set -euo pipefail
dir=$(realpath -m "$1")
cd "$(dirname "$0")"
version() {
    # Not head(1): it would close the pipe while etcd still writes, and pipefail would make a failure of it.
    "$dir/usr/bin/etcd" --version | sed -n 1p
}
# The first suite will have a later version one day.
for suite in testing trixie; do
    if [ -x "$dir/usr/bin/etcd" ] && [[ $(version) == *" 3.5."* ]]; then
        version
        exit
    fi
    rm -rf "$dir"
    ./newer.sh "$suite" "$dir" etcd-server etcd-client
done
version | grep -F ' 3.5.'
