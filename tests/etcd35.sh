#!/usr/bin/env bash
# etcd35.sh DIR: unpacks etcd 3.5 of Debian's stable suite into DIR, beside whatever etcd is installed, and prints its version.
set -euo pipefail
dir=$(realpath -m "$1")
cd "$(dirname "$0")"
version() {
    # Not head(1): it would close the pipe while etcd still writes, and pipefail would make a failure of it.
    "$dir/usr/bin/etcd" --version | sed -n 1p
}
if [ ! -x "$dir/usr/bin/etcd" ] || [ ! -x "$dir/usr/bin/etcdctl" ]; then
    ./newer.sh trixie "$dir" etcd-server etcd-client
fi
version
